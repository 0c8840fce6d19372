"""The line to another machine's libvirt: one ssh(1), which carries libvirt's words and network cards' frames.

It runs as one of the lab's processes, in this machine's network, and ends with the lab. libvirtd there is a
socket here; what a network card there connects to is a socket here, too (wire.py).
"""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import libvirt

from stacklab import lock
from stacklab.children import BOUND
from stacklab.errors import StepFailed, Unreached
from stacklab.lab.namespace import Namespace, libvirt_uri
from stacklab.provide import wire
from stacklab.provide.elsewhere import Elsewhere

CONNECT_SECONDS = 30
WIRE_SECONDS = 10.0


class Line:
    """The line of one lab. folder: where its sockets are, which is emptied when the lab starts.

    namespace: the lab's, whose process the line is to be; None for one that its user closes. prefix: what the
    names of the lab's domains there begin with; what happens to them is recorded in the lab's journal.
    """

    def __init__(
        self, elsewhere: Elsewhere, folder: Path, namespace: Namespace | None = None, prefix: str = ""
    ) -> None:
        self._elsewhere = elsewhere
        self._folder = folder
        self._namespace = namespace
        self._prefix = prefix
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def socket(self) -> Path:
        """The other machine's libvirtd, as a socket here."""
        return self._folder / "libvirt-sock"

    @property
    def _control(self) -> Path:
        return self._folder / "ssh"

    def start(self) -> None:
        """Have the line up. Raises Unreached with what ssh(1) said."""
        self._folder.parent.mkdir(parents=True, exist_ok=True)
        with lock.hold(self._folder.with_suffix(".lock"), "the line", wait=True):
            if not self._control.exists() or self._master("check").returncode != 0:
                self._start()

    def _start(self) -> None:
        is_first = not self._folder.exists()
        self._folder.mkdir(exist_ok=True)
        for file in self._folder.iterdir():
            file.unlink()
        log = self._folder / "log"
        options = (
            *("-N", "-M", "-S", str(self._control), "-E", str(log)),
            *(f"-oConnectTimeout={CONNECT_SECONDS}", "-oServerAliveInterval=15", "-oServerAliveCountMax=3"),
            *("-oExitOnForwardFailure=yes", "-L", f"{self.socket}:{self._elsewhere.socket}"),
        )
        if self._namespace is None:
            up = self._start_bound(self._elsewhere.ssh_command(*options))
        else:
            up = self._namespace.run_beside(self._elsewhere.ssh_command("-f", *options), wait=True) == 0
        if not up:
            said = log.read_text(errors="replace").strip() if log.exists() else ""
            shutil.rmtree(self._folder)
            raise Unreached(
                f"{self._elsewhere.host} is not reached over SSH",
                detail=said,
                hint=f"see that this logs in without a question: ssh {self._elsewhere.host}",
            )
        if self._namespace is not None and is_first:
            self._namespace.run_beside(self._namespace.watch_command(self.socket, self._prefix))

    def _start_bound(self, command: Sequence[str]) -> bool:
        """Start ssh(1) as a process that ends with this one; whether the line came up."""
        self._process = subprocess.Popen(
            [*BOUND, *command], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while self._master("check").returncode != 0:  # it gives up by itself
            if self._process.poll() is not None:
                return False
            time.sleep(0.05)
        return True

    def stop(self) -> None:
        """Close the line."""
        self._master("exit")
        if self._process:
            self._process.wait()

    def connect(self) -> libvirt.virConnect:
        """A connection to the other machine's libvirtd. Raises Unreached."""
        self.start()
        libvirt.registerErrorHandler(lambda _context, _error: None, None)
        try:
            return libvirt.open(libvirt_uri("qemu", self.socket))
        except libvirt.libvirtError as error:
            raise Unreached(
                f"libvirtd of {self._elsewhere.host} takes no connection: {error}",
                hint=f"on {self._elsewhere.host}: systemctl status libvirtd; may the user open "
                f"{self._elsewhere.socket}, and does sshd_config(5) say AllowStreamLocalForwarding no?",
            ) from error

    def is_wired(self, card: str) -> bool:
        """Whether a network card of a machine that runs is plugged in here."""
        return self._plug(card).exists()

    def wire(self, card: str, bridge: str) -> int:
        """Make ready for a network card; the port of 127.0.0.1 there that it has to connect to.

        Raises StepFailed.
        """
        assert self._namespace is not None
        plug, log = self._plug(card), self._plug(f"{card}.log")
        deadline = time.monotonic() + WIRE_SECONDS
        while plug.exists():  # of a machine that did not start: what connects, and goes, ends it
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as old:
                old.connect(str(plug))
            if time.monotonic() > deadline:
                plug.unlink(missing_ok=True)
            time.sleep(0.05)
        argv = [os.path.realpath(sys.executable), "-I", wire.__file__, str(plug), bridge, card, str(log)]
        self._namespace.run_beside(argv, network=True)
        deadline = time.monotonic() + WIRE_SECONDS
        while not plug.exists():
            if time.monotonic() > deadline:
                raise StepFailed(
                    f"the network card '{card}' is not plugged into {bridge}",
                    detail=log.read_text(errors="replace") if log.exists() else "",
                )
            time.sleep(0.01)
        done = self._master("forward", "-R", f"127.0.0.1:0:{plug}")
        port = done.stdout.split()[-1:]  # before it, those that ssh_config(5) asks for
        if done.returncode != 0 or not port:
            raise StepFailed(
                f"sshd of {self._elsewhere.host} takes no connections for us",
                detail=done.stderr.strip(),
                hint=f"AllowTcpForwarding in sshd_config(5) of {self._elsewhere.host}",
            )
        return int(port[0])

    def _plug(self, card: str) -> Path:
        return self._folder / card

    def _master(self, verb: str, *options: str) -> "subprocess.CompletedProcess[str]":
        command = self._elsewhere.ssh_command("-S", str(self._control), "-O", verb, *options)
        try:
            return subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError as error:  # there is no such program
            return subprocess.CompletedProcess(command, 127, "", str(error))


@dataclass(frozen=True)
class Machine:
    """The machine that a line leads to. available: memory that is free or would be given, in MiB."""

    architecture: str
    available: int


def look_elsewhere(elsewhere: Elsewhere) -> Machine:
    """What another machine is and has. Raises StepFailed when it is not reached."""
    with temporary_line(elsewhere) as line, contextlib.closing(line.connect()) as connection:
        try:
            memory = connection.getMemoryStats(libvirt.VIR_NODE_MEMORY_STATS_ALL_CELLS)
            architecture = str(connection.getInfo()[0])
        except libvirt.libvirtError as error:
            raise StepFailed(f"libvirtd of {elsewhere.host} does not tell what it has: {error}") from error
        kibibytes = sum(memory.get(name, 0) for name in ("free", "buffers", "cached"))
        return Machine(architecture, kibibytes // 1024)


@contextlib.contextmanager
def temporary_line(elsewhere: Elsewhere) -> Iterator[Line]:
    """A line that is closed afterwards, for when there is no lab, or it is off. Raises StepFailed."""
    with tempfile.TemporaryDirectory(prefix="stacklab-") as folder:
        line = Line(elsewhere, Path(folder) / "line")
        try:
            line.start()
            yield line
        finally:
            line.stop()
