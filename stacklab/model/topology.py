"""A topology: the nodes of a lab, their kinds, roles and sizes, and the addresses that follow from them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from stacklab.model.documents import Data, Fault
from stacklab.model.schema import Name, NotEmpty, Port, Root, Size, Strict, Word, all_wrong, wrong

Role = Literal["controller", "compute", "network", "storage"]
"""What a node of a lab is for; each part of a service runs on the nodes of one role."""

NodeKind = Literal["lxc", "vm", "host"]
"""What a node is: a container, a virtual machine, or a machine that is there already, reached over SSH."""

SSH_PORT = 22
_MADE_KINDS = ("lxc", "vm")
_MADE = ("memory", "cpus", "disk")
_REACHED = ("address", "port", "user", "key", "interfaces")


@dataclass(frozen=True)
class LabNetwork:
    """A network of a lab. Labs whose nodes stacklab makes all have the same, each in a namespace of its own.

    gateway: in such a lab the namespace itself. start, end: the addresses that instances get, where they get
    any.
    """

    cidr: str
    gateway: str
    interface: str = ""
    start: str | None = None
    end: str | None = None

    @property
    def address(self) -> str:
        """The network's own address, the first one."""
        return str(IPv4Network(self.cidr).network_address)

    @property
    def prefix(self) -> int:
        """The length of the network's prefix, in bits."""
        return IPv4Network(self.cidr).prefixlen


MANAGEMENT = LabNetwork("10.20.0.0/24", "10.20.0.1", "eth0")
PROVIDER = LabNetwork("10.30.0.0/24", "10.30.0.1", "eth1", start="10.30.0.100", end="10.30.0.200")
# Where Open vSwitch sends tunnels through a bridge of its own, they have their addresses, on the wire of the
# provider network: docs/decisions/0020-tunnels-on-the-provider-wire.md.
TUNNEL_CIDR = "10.40.0.0/24"
_FIRST_NODE = 11
MOST_NODES = 80  # what follows on the provider network is for instances


def _address(value: str) -> str:
    try:
        return str(IPv4Address(value))
    except ValueError:
        raise ValueError(f"expected an IPv4 address such as '192.0.2.11', got '{value}'") from None


def _network(value: str) -> str:
    try:
        return str(IPv4Network(value))
    except ValueError as error:
        raise ValueError(f"expected a network such as '192.0.2.0/24', got '{value}' ({error})") from None


Address = Annotated[str, AfterValidator(_address)]
"""An IPv4 address."""


class Interfaces(Strict):
    """The network interfaces of a host that stacklab may take: `provider` carries the provider network."""

    provider: Word | None = None


class ProviderNetwork(Strict):
    """The network that the hosts' provider interfaces are plugged into, as their site has it."""

    cidr: Annotated[str, AfterValidator(_network)]
    gateway: Address
    start: Address
    end: Address

    @model_validator(mode="after")
    def _addresses_lie_in_it(self) -> Self:
        network = IPv4Network(self.cidr)
        found: list[Fault] = [
            (f"{getattr(self, key)} is not in the network {self.cidr}", (key,))
            for key in ("gateway", "start", "end")
            if IPv4Address(getattr(self, key)) not in network
        ]
        if found:
            raise all_wrong(found)
        if IPv4Address(self.end) < IPv4Address(self.start):
            raise wrong(f"{self.end} comes before the start, {self.start}", "end")
        return self

    def network(self) -> LabNetwork:
        """The network as templates know it."""
        return LabNetwork(self.cidr, self.gateway, start=self.start, end=self.end)


class Node(Strict):
    """A machine of the lab; memory and disk in MiB, of a host the least that it must have.

    count: several alike, called NAME-1, NAME-2, ...
    """

    name: Name
    roles: Annotated[tuple[Role, ...], NotEmpty]
    kind: NodeKind | None = None
    memory: Size = 0
    cpus: Annotated[int, Field(ge=1)] = 1
    disk: Size = 0
    count: Annotated[int, Field(ge=1)] | None = None
    address: Address | None = None
    port: Port = SSH_PORT
    user: Word = "root"
    key: Word | None = None
    interfaces: Interfaces = Interfaces()

    @property
    def is_host(self) -> bool:
        """Whether it is a machine that is there already."""
        return self.kind == "host"

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
    provider: ProviderNetwork | None = None

    @property
    def controller(self) -> Node:
        """The node with the role controller."""
        return next(node for node in self.nodes if "controller" in node.roles)

    @property
    def kind(self) -> NodeKind | None:
        """The kind of the nodes, where one of them names it."""
        return next((node.kind for node in self.nodes if node.kind), None)

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

    def size(self, computes: int | None = None) -> int:
        """How many machines there are: they may be too many to list. computes: as above."""
        return sum(
            (computes if computes and node.count and "compute" in node.roles else node.count) or 1
            for node in self.nodes
        )

    @model_validator(mode="after")
    def _can_be_built(self) -> Self:
        found = list(_wrong_counts(self.nodes))
        if self.size() <= MOST_NODES:
            found = [*_shared_names(self.nodes), *found]
        if found:
            raise all_wrong(found)
        return self

    @classmethod
    def faults(cls, data: Data) -> Iterator[Fault]:
        """What is wrong between the values of a topology, whether or not each of them is right by itself."""
        listed = data.get("nodes") if isinstance(data, dict) else None
        nodes = {
            index: node
            for index, node in enumerate(listed if isinstance(listed, list) else [])
            if isinstance(node, dict)
        }
        for index, node in nodes.items():
            yield from (
                (message, ("nodes", index, *where)) for message, where in _faults_of_node(node, index)
            )
        yield from _shared_addresses(nodes)
        yield from _wrong_controllers(nodes)
        hosts = [index for index, node in nodes.items() if node.get("kind") == "host"]
        if hosts and len(hosts) < len(nodes):
            words = "hosts and nodes that stacklab makes cannot be in one lab: its network is closed to hosts"
            yield words, ("nodes", hosts[0], "kind")
        yield from _mixed_kinds(nodes)
        if nodes and not hosts and isinstance(data, dict) and "provider" in data:
            yield "the key 'provider' is for hosts; other nodes have a provider network made", ("provider",)


def addresses(machines: Sequence[Node]) -> Mapping[str, str]:
    """The management address of each machine: a host's own; else 10.20.0.11 is the controller's, and on."""
    ordered = sorted(machines, key=lambda machine: "controller" not in machine.roles)
    network = IPv4Network(MANAGEMENT.cidr)
    return {
        machine.name: machine.address or str(network[_FIRST_NODE + index])
        for index, machine in enumerate(ordered)
    }


def tunnel_address(index: int) -> str:
    """The address of a node's end of tunnels, by its place among the nodes, from 0."""
    return str(IPv4Network(TUNNEL_CIDR)[_FIRST_NODE + index])


def _faults_of_node(node: dict[str, Data], index: int) -> Iterator[Fault]:
    roles = node.get("roles")
    if node.get("kind") == "host":
        if "address" not in node:
            yield f"the key 'address' is missing in nodes.{index}: where is this host?", ()
        if "count" in node:
            yield "hosts are listed one by one, for each has an address", ("count",)
        interfaces = node.get("interfaces")
        named = isinstance(interfaces, dict) and interfaces.get("provider")
        if isinstance(roles, list) and {"compute", "network"} & set(map(str, roles)) and not named:
            words = "which one carries the provider network?"
            message = f"the key 'interfaces.provider' is missing in nodes.{index}: {words}"
            yield message, (("interfaces",) if isinstance(interfaces, dict) else ())
        return
    for key in _REACHED:
        if key in node:
            yield f"the key '{key}' is for nodes of kind host", (key,)
    for key in _MADE:
        if key not in node:
            yield f"the key '{key}' is missing in nodes.{index}", ()


def _shared_addresses(nodes: Mapping[int, dict[str, Data]]) -> Iterator[Fault]:
    seen: dict[str, Data] = {}
    for index, node in nodes.items():
        address = node.get("address")
        if isinstance(address, str):
            if address in seen:
                message = f"the address {address} is that of node '{seen[address]}'"
                yield message, ("nodes", index, "address")
            seen.setdefault(address, node.get("name"))


def _shared_names(nodes: Sequence[Node]) -> Iterator[Fault]:
    names: set[str] = set()
    for index, node in enumerate(nodes):
        for machine in node.machines():
            if machine.name in names:
                yield f"a second node is called '{machine.name}'", ("nodes", index, "name")
            names.add(machine.name)


def _mixed_kinds(nodes: Mapping[int, dict[str, Data]]) -> Iterator[Fault]:
    """One provider makes all nodes of a lab."""
    kinds = {index: node["kind"] for index, node in nodes.items() if node.get("kind") in _MADE_KINDS}
    first = next(iter(kinds.values()), None)
    for index, kind in kinds.items():
        if kind != first:
            yield (
                f"a node of kind '{kind}' beside one of kind '{first}': a lab has one",
                ("nodes", index, "kind"),
            )


def _wrong_controllers(nodes: Mapping[int, dict[str, Data]]) -> Iterator[Fault]:
    """The services of the role controller know one of each: there is no cluster of databases or brokers."""
    found = [
        (index, roles.index("controller"))
        for index, node in nodes.items()
        if isinstance(roles := node.get("roles"), list) and "controller" in roles
    ]
    if nodes and not found:
        yield "no node has the role controller", ("nodes",)
        return
    for index, place in found[1:]:
        where = ("nodes", index, "roles", place)
        yield f"a second controller: a lab has one, and '{nodes[found[0][0]].get('name')}' is it", where
    for index, _ in found[:1]:
        if "count" in nodes[index] and nodes[index].get("kind") != "host":
            yield "a lab has one controller, so it cannot be counted", ("nodes", index, "count")


def _wrong_counts(nodes: Sequence[Node]) -> Iterator[Fault]:
    counted = [index for index, node in enumerate(nodes) if node.count and "compute" in node.roles]
    for index in counted[1:]:
        yield "only one group of compute nodes can be counted", ("nodes", index, "count")
    number = sum(node.count or 1 for node in nodes)
    if number > MOST_NODES:
        yield f"{number} nodes are more than the {MOST_NODES} that a lab can have", ("nodes",)
