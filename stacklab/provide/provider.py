"""The contract that every node kind keeps. Providers know nodes and images; they know nothing of layers."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from stacklab.model.topology import PROVIDER

if TYPE_CHECKING:
    from stacklab.images.packages import Installation


@dataclass(frozen=True)
class Node:
    """A machine of the lab: memory and disk in MiB, its address on the management network.

    kind: lxc, vm or host. port, user, key: how a host is reached over SSH; the key is a file on this machine,
    "" for what ssh(1) finds by itself. provider_interface: the one that is plugged into the provider network.
    """

    name: str
    address: str
    roles: tuple[str, ...]
    memory: int
    cpus: int
    kind: str = "lxc"
    port: int = 22
    user: str = "root"
    key: str = ""
    provider_interface: str = PROVIDER.interface
    disk: int = 0


@dataclass(frozen=True)
class NodeFile:
    """A file to put into a node before it starts."""

    text: str
    mode: int = 0o644


class NodeState(StrEnum):
    """Whether a node exists and runs."""

    ABSENT = "absent"
    STOPPED = "stopped"
    RUNNING = "running"
    UNREACHABLE = "unreachable"
    """A host that does not answer SSH: what is there cannot be told."""


class Provider(Protocol):
    """Makes and runs nodes of one kind. Every method may be called again and then changes nothing."""

    kind: str

    def create(self, node: Node, image: Sequence[Path], files: Mapping[str, NodeFile]) -> None:
        """Make the node's disk on top of `image` and put `files` into it.

        image: the folders that images have for the node (`Image.tree_of`), top first.
        """

    def start(self, node: Node) -> bool:
        """Start the node and return when its processes run; SSH may need a moment more.

        Returns whether its clock is to be set: it goes on where it was when its memory was kept, or it runs
        on another machine.
        """

    def stop(self, node: Node) -> None:
        """Shut the node down in order; by force when it takes longer than 60 s."""

    def destroy(self, node: Node) -> None:
        """Stop the node by force and remove its disk."""

    def state(self, node: Node) -> NodeState:
        """What is there of the node."""

    def image(self, node: Node) -> list[Path]:
        """The folders of the image that the node's disk stands on, top first."""

    def flush(self, node: Node) -> None:
        """Have what the node's programs have written reach its disk, before the lab is held for `freeze`."""

    def held(self, nodes: Sequence[Node]) -> AbstractContextManager[None]:
        """Hold all that runs on the nodes meanwhile, from one moment on."""

    def hibernate(self, nodes: Sequence[Node]) -> None:
        """Keep the memory of nodes that run, all as of one moment; they are off afterwards.

        `freeze` copies it, and `start` goes on from it. Raises UsageError where nodes of this kind cannot.
        When it fails half-way, `start` has all of them run again.
        """

    def freeze(self, node: Node, folder: Path) -> None:
        """Copy what the node has written over its image into `folder`, which is not there yet.

        The lab is held meanwhile. Raises StepFailed when the copy fails.
        """

    def install(self, node: Node, installation: "Installation") -> None:
        """Install packages on the node, which runs, and runs again afterwards; SSH may need a moment.

        Raises StepFailed with the end of what apt said.
        """
