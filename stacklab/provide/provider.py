"""The contract that every node kind keeps. Providers know nodes and images; they know nothing of layers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class Node:
    """A machine of the lab: memory in MiB, its address on the management network."""

    name: str
    address: str
    roles: tuple[str, ...]
    memory: int
    cpus: int


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


class Provider(Protocol):
    """Makes and runs nodes of one kind. Every method may be called again and then changes nothing."""

    kind: str

    def create(self, node: Node, image: Sequence[Path], files: Mapping[str, NodeFile]) -> None:
        """Make the node's disk on top of `image` (its root trees, top first) and put `files` into it."""

    def start(self, node: Node) -> None:
        """Start the node and return when its processes run; SSH may need a moment more."""

    def stop(self, node: Node) -> None:
        """Shut the node down in order; by force when it takes longer than 60 s."""

    def destroy(self, node: Node) -> None:
        """Stop the node by force and remove its disk."""

    def state(self, node: Node) -> NodeState:
        """What is there of the node."""

    def written(self, node: Node) -> Path:
        """The folder with what the node has written over its image, as overlay keeps it."""

    def image(self, node: Node) -> list[Path]:
        """The root trees of the image that the node's disk stands on, top first."""

    def root_view(self, node: Node) -> tuple[list[str], Path]:
        """A prefix for command lines, and the path by which such a command sees the node's root.

        Commands run natively on the machine, with its network and a mount namespace of their own.
        """
