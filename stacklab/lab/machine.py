"""The network of a lab of hosts: this machine's own, by which it reaches them.

It stands where other labs have namespaces, and answers the same calls: such a lab is on until it is stopped.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path


class MachineNetwork:
    """The network of one lab of hosts. folder: the lab's. name: the lab's."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self.name = name
        self._off = folder / "off"

    def pid(self) -> int | None:
        """A process of this network, ours; None when the lab has been stopped."""
        return None if self._off.exists() else os.getpid()

    def start(self) -> None:
        """Have the lab on."""
        self._off.unlink(missing_ok=True)

    def stop(self) -> None:
        """Have the lab off, where it still is there."""
        if self.folder.is_dir():
            self._off.touch()

    def enter_command(self, argv: Sequence[str], *, network_only: bool = False) -> list[str]:
        """The command line that runs `argv` in the network: `argv`, for hosts are reached also when off."""
        return list(argv)

    @contextlib.contextmanager
    def network(self) -> Iterator[None]:
        """Meanwhile the calling thread uses the network, as it does anyway."""
        yield
