"""The namespaces of a lab: started as one process tree, entered, and ended at once.

A lab's first process (`init.py`) is process 1 of its own PID namespace, so killing it kills everything in the
lab, and with the last process the mounts and the network of the lab are gone too. Nothing has to be tracked
to be cleaned up.
"""

import contextlib
import ctypes
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from stacklab.errors import HostUnfit, StepFailed
from stacklab.files import boot_id
from stacklab.lab import cgroups
from stacklab.lab import init as lab_init

if TYPE_CHECKING:
    import libvirt

_CLONE_NEWCGROUP = 0x02000000
_CLONE_NEWNET = 0x40000000
_CLONE_NEW = 0x00020000 | 0x04000000 | 0x08000000 | 0x20000000 | _CLONE_NEWNET | _CLONE_NEWCGROUP
_LIBC = ctypes.CDLL(None, use_errno=True)
STOP_SECONDS = 15.0

LIBVIRT_CONFIG = {
    "libvirtd.conf": 'auth_unix_ro = "none"\nauth_unix_rw = "none"\nunix_sock_rw_perms = "0700"\n',
    "lxc.conf": 'security_driver = "none"\n',
    # Images belong to root and stay as they are: libvirt is not to give them away, nor to mark them.
    "qemu.conf": 'security_driver = "none"\nstdio_handler = "file"\nuser = "root"\ngroup = "root"\n'
    "dynamic_ownership = 0\nremember_owner = 0\nnamespaces = []\n",
}


def _call(name: str, *arguments: int) -> None:
    if getattr(_LIBC, name)(*arguments) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")


def _start_time(pid: int) -> str:
    """When the process started, in clock ticks since boot (proc(5), field 22).

    Tells it from a later one of that id.
    """
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]


def libvirt_uri(driver: str, socket: Path) -> str:
    """What libvirt calls its driver (lxc or qemu) behind a libvirtd's socket."""
    return f"{driver}+unix:///system?socket={urllib.parse.quote(str(socket))}"


class Namespace:
    """The namespaces of one lab, identified by its folder.

    folder: the lab's folder, on a filesystem that can hold overlay directories. name: the lab's.
    group: the name of its control groups.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self.name = name
        self._record = folder / "init.json"
        # Labs of one name can stand in two state folders; control groups are the machine's.
        self.group = f"{name}-{hashlib.sha256(str(folder).encode()).hexdigest()[:8]}"

    @property
    def libvirt_socket(self) -> Path:
        """The private libvirtd's socket, as the machine sees it."""
        return self.folder / "run" / "libvirt" / "libvirt-sock"

    def pid(self) -> int | None:
        """The id of the lab's first process as the machine sees it, or None when the lab is down."""
        try:
            record = json.loads(self._record.read_text())
            pid = int(record["pid"])
            alive = _start_time(pid) == record["started"] and record["boot"] == boot_id()
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return pid if alive else None

    def start(self) -> None:
        """Start the namespaces, unless they are up, and wait until libvirtd answers.

        Raises HostUnfit when the machine refuses one of them, StepFailed when libvirtd does not answer.
        """
        if self.pid() is not None:
            self.connect().close()
            return
        self._prepare_folder()
        parent_end, child_end = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(parent_end)
            self._become_init(child_end)
        os.close(child_end)
        with os.fdopen(parent_end) as pipe:
            pid, *said = pipe.read().split("\n", 1)
        os.waitpid(child, 0)
        if said != ["ready"]:
            cgroups.remove(self.group)
            raise HostUnfit(
                f"the namespaces of the lab could not be made: {' '.join(said) or pid or 'no answer'}",
                hint="stacklab doctor",
            )
        self.connect().close()

    def connect(self, driver: str = "lxc") -> "libvirt.virConnect":
        """A connection to the lab's libvirtd, which may just be starting: at first, or again after it died.

        driver: lxc or qemu. Raises StepFailed, with the end of its log, when it takes none within 15 s or the
        lab is down.
        """
        import libvirt

        # Errors are raised; nothing is to be printed.
        libvirt.registerErrorHandler(lambda _context, _error: None, None)
        uri = libvirt_uri(driver, self.libvirt_socket)
        deadline = time.monotonic() + STOP_SECONDS
        while True:
            try:
                return libvirt.open(uri)
            except libvirt.libvirtError as error:
                if self.pid() is None or time.monotonic() > deadline:
                    log = self.folder / "libvirt" / "log" / "libvirtd.log"
                    detail = log.read_text(errors="replace")[-3000:] if log.exists() else ""
                    message = f"libvirtd of the lab takes no connection: {error}"
                    raise StepFailed(message, detail=detail, hint="stacklab doctor") from error
            time.sleep(0.02)

    def stop(self) -> None:
        """End every process of the lab, its mounts and its network, and remove its control groups.

        Also of one whose record is lost: then its groups tell its processes.
        """
        pid = self.pid()
        if pid is not None:
            cgroups.unfreeze(self.group)  # a frozen process does not even die
            handle = os.pidfd_open(pid)
            try:
                signal.pidfd_send_signal(handle, signal.SIGKILL)
                _wait_until_gone(handle)
            finally:
                os.close(handle)
        cgroups.kill(self.group)
        cgroups.remove(self.group)
        self._record.unlink(missing_ok=True)

    def enter_command(self, argv: Sequence[str], *, network_only: bool = False) -> list[str]:
        """The command line that runs `argv` in the lab: in its network, or among its processes and mounts.

        Raises StepFailed when the lab is down.
        """
        scope = ["--net"] if network_only else ["--net", "--mount", "--pid", "--cgroup", "--ipc", "--uts"]
        return ["nsenter", f"--target={self._running_pid()}", *scope, "--", *argv]

    def run(self, argv: Sequence[str], *, stdin: bytes = b"", check: bool = True) -> str:
        """Run a command inside the lab and return what it printed.

        Raises StepFailed with its output where it fails, unless told not to check.
        """
        done = subprocess.run(self.enter_command(argv), input=stdin, capture_output=True, check=False)
        if check and done.returncode != 0:
            raise StepFailed(
                f"`{argv[0]}` failed in the lab", detail=(done.stdout + done.stderr).decode(errors="replace")
            )
        return done.stdout.decode()

    def run_beside(self, argv: Sequence[str], *, network: bool = False, wait: bool = False) -> int:
        """Run a program of this machine as one of the lab's processes, which ends with the lab at the latest.

        network: in the lab's network instead of the machine's. wait: for its end, and return its exit code;
        else 0. Raises StepFailed when the lab is down.
        """
        scope = ["--pid", *(["--net"] if network else [])]
        enter = ["nsenter", f"--target={self._running_pid()}", *scope, "--", *argv]
        script = 'read -r _ || exit 1; "$@" < /dev/null'
        process = subprocess.Popen(
            ["sh", "-c", script if wait else f"{script} &", "sh", *enter],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd="/",
        )
        assert process.stdin is not None
        try:
            with process.stdin as go:  # when it is in the lab's control groups
                cgroups.join(self.group, process.pid, beside=True)
                go.write(b"\n")
            return process.wait()
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise

    @contextlib.contextmanager
    def network(self) -> Iterator[None]:
        """Meanwhile the calling thread, and all that it starts, use the lab's network."""
        with (
            Path("/proc/thread-self/ns/net").open() as before,
            Path(f"/proc/{self._running_pid()}/ns/net").open() as inside,
        ):
            _call("setns", inside.fileno(), _CLONE_NEWNET)
            try:
                yield
            finally:
                _call("setns", before.fileno(), _CLONE_NEWNET)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Hold every process of the lab meanwhile, all from the same moment on.

        Nothing happens when it is down.
        """
        if self.pid() is None:
            yield
        else:
            with cgroups.frozen(self.group):
                yield

    def _running_pid(self) -> int:
        pid = self.pid()
        if pid is None:
            raise StepFailed(f"lab '{self.name}' is not running", hint=f"stacklab start --lab {self.name}")
        return pid

    def _prepare_folder(self) -> None:
        """/run starts empty, as after a boot; libvirt's own state stays."""
        shutil.rmtree(self.folder / "run", ignore_errors=True)
        for source in lab_init.BINDS:
            (self.folder / source).mkdir(parents=True, exist_ok=True)
        (self.folder / "libvirt" / "lib" / "dnsmasq").mkdir(exist_ok=True)
        for file, text in LIBVIRT_CONFIG.items():
            (self.folder / "libvirt" / "etc" / file).write_text(text)

    def watch_command(self, socket: Path, prefix: str = "") -> list[str]:
        """The command that records what happens to the nodes on a libvirtd.

        socket: of that libvirtd. prefix: what the names of domains have before those of the nodes.
        """
        return [sys.executable, "-m", "stacklab.watch", str(self.folder), self.name, str(socket), prefix]

    def _become_init(self, ready: int) -> None:
        """In the forked child: leave everything of the caller behind and become the lab's first process."""
        try:
            os.setsid()
            cgroups.join(self.group, os.getpid())
            _call("unshare", _CLONE_NEW)
            recorded, go = os.pipe()
            pid = os.fork()
            if pid != 0:  # written here, not by the caller, who may be killed at any moment
                record = {"pid": pid, "started": _start_time(pid), "boot": boot_id()}
                self._record.write_text(json.dumps(record))
                os.write(ready, f"{pid}\n".encode())
                os.write(go, b"\n")
                os._exit(0)
            os.close(go)
            if not os.read(recorded, 1):  # nobody would know of this lab
                os._exit(1)
            os.set_inheritable(ready, True)
            null = os.open(os.devnull, os.O_RDWR)
            for stream in (0, 1, 2):
                os.dup2(null, stream)
            script = str(Path(lab_init.__file__))
            os.chdir("/")
            interpreter = os.path.realpath(sys.executable)
            os.execve(
                interpreter,
                [
                    interpreter,
                    "-I",
                    script,
                    str(self.folder),
                    str(ready),
                    *self.watch_command(self.libvirt_socket),
                ],
                {"PATH": os.defpath + ":/usr/sbin:/sbin"},
            )
        except BaseException as error:
            os.write(ready, f"0\n{error}".encode())
        finally:
            os._exit(1)


def _wait_until_gone(handle: int) -> None:
    """Wait for a process that need not be our child: its pidfd becomes readable when it has ended."""
    import select

    readable, _, _ = select.select([handle], [], [], STOP_SECONDS)
    if not readable:
        raise StepFailed(
            "the lab's processes do not end", hint="look for a process in state D: ps -eo pid,stat,args"
        )
