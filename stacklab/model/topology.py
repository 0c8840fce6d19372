"""A topology: the nodes of a lab, their roles and sizes, and the addresses that follow from them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network
from typing import Annotated, Self

from pydantic import Field, model_validator

from stacklab.model.schema import Name, NotEmpty, Root, Size, Strict, all_wrong
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
MOST_NODES = 80  # what follows on the provider network is for instances


class Node(Strict):
    """A machine of the lab; memory and disk in MiB.

    count: several alike, called NAME-1, NAME-2, ...
    """

    name: Name
    roles: Annotated[tuple[Role, ...], NotEmpty]
    memory: Size
    cpus: Annotated[int, Field(ge=1)]
    disk: Size
    count: Annotated[int, Field(ge=1)] | None = None

    def machines(self, count: int | None = None) -> tuple["Node", ...]:
        """Each machine by a name of its own; `count` in place of the file's, where it has one."""
        if self.count is None:
            return (self,)
        numbers = range(1, (count or self.count) + 1)
        return tuple(
            self.model_copy(update={"name": f"{self.name}-{number}", "count": None}) for number in numbers
        )


class Topology(Root):
    """The nodes of a lab; exactly one of them is its controller."""

    nodes: Annotated[tuple[Node, ...], NotEmpty]

    @property
    def controller(self) -> Node:
        """The node with the role controller."""
        return next(node for node in self.nodes if "controller" in node.roles)

    @property
    def computes(self) -> int | None:
        """How many compute nodes there are, where that can be chosen."""
        return next((node.count for node in self.nodes if node.count and "compute" in node.roles), None)

    def machines(self, computes: int | None = None) -> tuple[Node, ...]:
        """Every machine, by a name of its own. computes: how many in place of what the file says."""
        return tuple(
            machine
            for node in self.nodes
            for machine in node.machines(computes if "compute" in node.roles else None)
        )

    @model_validator(mode="after")
    def _can_be_built(self) -> Self:
        found = [*_shared_names(self.nodes), *_wrong_controllers(self.nodes), *_wrong_counts(self.nodes)]
        if found:
            raise all_wrong(found)
        return self


def addresses(machines: Sequence[Node]) -> Mapping[str, str]:
    """The management address of each machine: the controller has 10.20.0.11, the others follow in order."""
    ordered = sorted(machines, key=lambda machine: "controller" not in machine.roles)
    network = IPv4Network(MANAGEMENT.cidr)
    return {machine.name: str(network[_FIRST_NODE + index]) for index, machine in enumerate(ordered)}


Wrong = tuple[str, tuple[str | int, ...]]
"""What is wrong, and the keys and indexes that lead there."""


def _shared_names(nodes: Sequence[Node]) -> Iterator[Wrong]:
    names: set[str] = set()
    for index, node in enumerate(nodes):
        for machine in node.machines():
            if machine.name in names:
                yield f"a second node is called '{machine.name}'", ("nodes", index, "name")
            names.add(machine.name)


def _wrong_controllers(nodes: Sequence[Node]) -> Iterator[Wrong]:
    """The services of the role controller know one of each: there is no cluster of databases or brokers."""
    found = [index for index, node in enumerate(nodes) if "controller" in node.roles]
    if not found:
        yield "no node has the role controller", ("nodes",)
        return
    first = nodes[found[0]]
    if first.count is not None:
        yield "a lab has one controller, so it cannot be counted", ("nodes", found[0], "count")
    for index in found[1:]:
        where = ("nodes", index, "roles", nodes[index].roles.index("controller"))
        yield f"a second controller: a lab has one, and '{first.name}' is it", where


def _wrong_counts(nodes: Sequence[Node]) -> Iterator[Wrong]:
    counted = [index for index, node in enumerate(nodes) if node.count and "compute" in node.roles]
    for index in counted[1:]:
        yield "only one group of compute nodes can be counted", ("nodes", index, "count")
    number = sum(node.count or 1 for node in nodes)
    if number > MOST_NODES:
        yield f"{number} nodes are more than the {MOST_NODES} that a lab can have", ("nodes",)
