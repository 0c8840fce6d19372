"""A topology: the nodes of a lab, their roles and sizes, and the addresses that follow from them."""

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network
from typing import Annotated, Self

from pydantic import Field, model_validator

from stacklab.model.schema import Name, NotEmpty, Root, Size, Strict, wrong
from stacklab.model.service import Role


@dataclass(frozen=True)
class LabNetwork:
    """A network inside a lab. Every lab has the same ones, for each lives in its own network namespace.

    gateway: the lab's namespace itself. start, end: the addresses that instances get, where they get any.
    """

    cidr: str
    gateway: str
    interface: str
    start: str | None = None
    end: str | None = None

    @property
    def prefix(self) -> int:
        """The length of the network's prefix, in bits."""
        return IPv4Network(self.cidr).prefixlen


MANAGEMENT = LabNetwork("10.20.0.0/24", "10.20.0.1", "eth0")
PROVIDER = LabNetwork("10.30.0.0/24", "10.30.0.1", "eth1", start="10.30.0.100", end="10.30.0.200")
_FIRST_NODE = 11


class Node(Strict):
    """A machine of the lab; memory and disk in MiB."""

    name: Name
    roles: Annotated[tuple[Role, ...], NotEmpty]
    memory: Size
    cpus: Annotated[int, Field(ge=1)]
    disk: Size


class Topology(Root):
    """The nodes of a lab; at least one of them is a controller."""

    nodes: Annotated[tuple[Node, ...], NotEmpty, Field(max_length=200)]

    @property
    def controller(self) -> Node:
        """The first node with the role controller."""
        return self.with_role("controller")[0]

    def with_role(self, role: Role) -> tuple[Node, ...]:
        """The nodes that have the role, in the order of the file."""
        return tuple(node for node in self.nodes if role in node.roles)

    def addresses(self) -> Mapping[str, str]:
        """The management address of each node: the controller has 10.20.0.11, the others follow in order."""
        ordered = (self.controller, *(node for node in self.nodes if node is not self.controller))
        network = IPv4Network(MANAGEMENT.cidr)
        return {node.name: str(network[_FIRST_NODE + index]) for index, node in enumerate(ordered)}

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        names = [node.name for node in self.nodes]
        for index, name in enumerate(names):
            if name in names[:index]:
                raise wrong(f"a second node is called '{name}'", "nodes", index, "name")
        return self

    @model_validator(mode="after")
    def _has_a_controller(self) -> Self:
        if not self.with_role("controller"):
            raise wrong("no node has the role controller", "nodes")
        return self
