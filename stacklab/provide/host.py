"""Nodes of kind `host`: machines that are there already, and of which a ledger keeps what was added.

They are neither made nor frozen. What `destroy` takes away is what the ledger on the host lists
(playbooks/files/ledger.py), and nothing else.
"""

import subprocess
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Protocol

from stacklab.errors import StepFailed, UsageError
from stacklab.home import data_dir
from stacklab.images.packages import Installation
from stacklab.provide.provider import Node, NodeFile, NodeState

LEDGER = "/var/lib/stacklab/ledger.json"
OFF = "/var/lib/stacklab/off"
UNREACHED = 255  # what ssh(1) ends with when it is at fault itself
LOOK = f"""test -e {LEDGER} || exit 1
sed -n 's/^ "lab": "\\(.*\\)",$/\\1/p' {LEDGER}
! test -e {OFF} || echo off"""


class RunOn(Protocol):
    """Runs a command on a node as root, and returns what came of it."""

    def __call__(
        self, node: str, argv: Sequence[str], *, stdin: str = "", check: bool = False
    ) -> "subprocess.CompletedProcess[str]":
        """The command is words, or one shell text. check: raise StepFailed unless it ends with 0."""


class HostProvider:
    """Runs the hosts of one lab. lab: the name under which they know it."""

    kind = "host"

    def __init__(self, lab: str, run_on: RunOn) -> None:
        self._lab = lab
        self._run_on = run_on

    def create(self, node: Node, image: Sequence[Path], files: Mapping[str, NodeFile]) -> None:
        """Begin the host's ledger; image and files are for nodes that are made."""
        self.ledger(node, "open", self._lab)

    def start(self, node: Node) -> bool:
        """Start the units of its services; it has no memory to come back with."""
        self.ledger(node, "start")
        self._run_on(node.name, ["rm", "-f", OFF], check=True)
        return False

    def stop(self, node: Node) -> None:
        """Stop the units of its services; the machine stays on."""
        self.ledger(node, "stop")
        self._run_on(node.name, ["touch", OFF], check=True)

    def destroy(self, node: Node) -> None:
        """Leave the host as it was before, but for what `NOT_UNDONE` lists."""
        self.ledger(node, "undo")

    def state(self, node: Node) -> NodeState:
        """Whether it is reached, and part of this lab."""
        done = self._run_on(node.name, [LOOK])
        if done.returncode == UNREACHED:
            return NodeState.UNREACHABLE
        lab, *off = done.stdout.split() or [""]
        if done.returncode or lab != self._lab:
            return NodeState.ABSENT
        return NodeState.STOPPED if off else NodeState.RUNNING

    def image(self, node: Node) -> list[Path]:
        """None: it stands on its own disk."""
        return []

    def flush(self, node: Node) -> None:
        """Nothing: hosts are not frozen."""

    def freeze(self, node: Node, folder: Path) -> None:
        """Raises UsageError."""
        raise _not_frozen(node)

    def held(self, nodes: Sequence[Node]) -> AbstractContextManager[None]:
        """Nothing: hosts are not frozen."""
        return nullcontext()

    def hibernate(self, nodes: Sequence[Node]) -> None:
        """Raises UsageError."""
        raise _not_frozen(nodes[0])

    def install(self, node: Node, installation: Installation) -> None:
        """Install packages with the host's own apt, and book what came."""
        self.ledger(node, "install", installation.label or "packages", *installation.packages)

    def ledger(self, node: Node, verb: str, *words: str) -> None:
        """Have the ledger's program do something on the host. Raises StepFailed with what it said."""
        program = (data_dir() / "playbooks" / "files" / "ledger.py").read_text()
        done = self._run_on(node.name, ["python3", "-", verb, *words], stdin=program)
        if done.returncode == UNREACHED:
            raise StepFailed(
                f"the host '{node.name}' went away: {done.stderr.strip() or 'no answer'}",
                hint="when it is back, the same command goes on from here",
            )
        if done.returncode:
            raise StepFailed(
                f"`{verb}` failed on host '{node.name}'",
                detail=done.stderr.strip(),
                hint="mend it, and the same command goes on from here",
            )


def _not_frozen(node: Node) -> UsageError:
    return UsageError(
        f"'{node.name}' is a host, and hosts are not frozen",
        hint="checkpoints and clones are for labs whose nodes stacklab makes",
    )


NOT_UNDONE = (
    "what apt keeps of the packages: its lists, its logs, downloaded files",
    "packages of the host that were replaced by newer ones, and kernel modules that were loaded",
    "all data of the cloud, which is gone with it: databases, images, volumes, instances",
)
"""What `destroy` of a host does not bring back, in words."""
