"""What a lab is built from: its settings, the nodes that they ask for, and what follows from their kind."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator

from stacklab.host import kinds, kvm
from stacklab.model.topology import PROVIDER, ProviderNetwork, Topology, addresses
from stacklab.provide.provider import Node

HOST = "host"


class SteppingDown(BaseModel):
    """A step down of hosts, from when it begins until it is complete.

    services: those that go, the first to be stopped first, each with its databases. layers: the numbers of
    those whose packages go.
    """

    model_config = ConfigDict(extra="forbid")

    services: dict[str, tuple[str, ...]]
    layers: tuple[int, ...]


class LabSettings(BaseModel):
    """What a lab is built from; written when it is made, and read by every later command."""

    model_config = ConfigDict(extra="forbid")

    profile: str
    release: str
    topology: str
    computes: int | None = None
    """How many compute nodes, where the topology leaves it open."""
    node_kind: str
    connect: str = ""
    """The URI of the libvirt that runs its nodes; "" for the lab's own, on this machine."""
    connect_kvm: bool | None = None
    """Whether KVM was proved to work where `connect` leads; None before it was tried."""
    connect_nested: bool = False
    """Whether instances have KVM there, too."""
    layer: int = 0
    """The highest layer that passed its checks; 0 before the first."""
    target: int = 0
    """The layer that was asked for last: where `up` goes on to after a failure; 0 where none was."""
    with_services: dict[str, int] = {}
    """Services that were added, each with the number of the layer that it was added to."""
    without_services: tuple[str, ...] = ()
    path: tuple[str, ...] = ()
    nodes: tuple[Node, ...] = ()
    provider: ProviderNetwork | None = None
    """The provider network of hosts, as their site has it."""
    hosts_kvm: bool | None = None
    """Whether KVM was proved to work on the hosts that run instances; None before it was tried."""
    hosts_openvswitch: bool = False
    """Whether the kernels of the hosts have Open vSwitch's datapath."""
    services: tuple[str, ...] = ()
    """The services that are up, in the order in which they came."""
    unfrozen: int = 0
    """The layer that is still to be frozen, as that failed or was cut off; 0 where none is."""
    layer_images: dict[int, str] = {}
    """By layer, the image that holds it as it was when it came up."""
    thawing: str = ""
    """The image that the lab is just being put on; it is to be done again when it was cut off."""
    cloning: str = ""
    """The image that it was made a copy of, until the command that makes all copies has ended."""
    renewing: bool = False
    """Whether it is a copy that is to have passwords of its own, and has none yet."""
    stepping_down: SteppingDown | None = None
    """What is just being taken off the lab's hosts; it is to be completed when it was cut off."""

    @field_validator("with_services", mode="before")
    @classmethod
    def _named_alone(cls, value: Any) -> Any:
        """Labs and checkpoints from before there was a second layer name services without one."""
        return dict.fromkeys(value, 1) if isinstance(value, list | tuple) else value


def patience_of(settings: LabSettings, cache: Path) -> float:
    """How many times longer than on nodes that run natively all is waited for."""
    if settings.connect:
        return 1.0 if settings.connect_kvm else kinds.EMULATED
    return kinds.patience(settings.node_kind, cache)


def comes_from_containers(settings: LabSettings, cache: Path) -> bool:
    """Whether the layers of a new lab are built on containers first: its nodes are emulated, on this machine.

    For another machine's libvirt they are not: who uses that may have no memory for containers here.
    """
    proof = kvm.known(cache)
    is_virtual = settings.node_kind == "vm" and not settings.connect
    return is_virtual and proof is not None and not proof.works


def nodes_of(topology: Topology, kind: str, computes: int | None = None) -> tuple[Node, ...]:
    """The machines that a topology asks for, with their addresses.

    kind: of those that name none. computes: how many of them, where one may say.
    """
    machines = topology.machines(computes)
    address = addresses(machines)
    return tuple(
        Node(
            name=machine.name,
            address=address[machine.name],
            roles=tuple(machine.roles),
            memory=machine.memory,
            cpus=machine.cpus,
            disk=machine.disk,
            kind=machine.kind or kind,
            port=machine.port,
            user=machine.user,
            key=str(_key_file(topology, machine.key)) if machine.key else "",
            provider_interface=(machine.interfaces.provider or "") if machine.is_host else PROVIDER.interface,
        )
        for machine in machines
    )


def _key_file(topology: Topology, key: str) -> Path:
    """The file of a private key, which a topology names from its own folder."""
    return (topology.file.parent / Path(key).expanduser()).absolute()
