"""Nodes of kind `lxc`.

Containers that the lab's own libvirtd runs with systemd in them, on an overlay of an image.
"""

import contextlib
import io
import subprocess
import tarfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import libvirt

from stacklab.errors import StepFailed
from stacklab.files import remove_tree
from stacklab.home import data_dir
from stacklab.images.packages import Installation
from stacklab.lab.cgroups import hierarchies, is_unified
from stacklab.lab.namespace import Namespace
from stacklab.model.topology import MANAGEMENT, PROVIDER, LabNetwork
from stacklab.provide.disks import copy_disk
from stacklab.provide.provider import Node, NodeFile, NodeState
from stacklab.templating import stacklab_environment

NETWORKS = {"management": MANAGEMENT, "provider": PROVIDER}
DEVICES = ("/dev/net/tun", "/dev/kvm", "/dev/vhost-net")
CREATED = "created"
SHUTDOWN_SECONDS = 60.0
# systemd takes SIGRTMIN+4 for "power off" (systemd(1)); `virsh shutdown` does not reach it.
POWEROFF_SIGNAL = "RTMIN+4"
ENDED = (libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_OPERATION_INVALID)


class LxcProvider:
    """Runs the lxc nodes of one lab.

    namespace: the lab's, running. folder: where the nodes' disks are, one folder per node.
    """

    kind = "lxc"

    def __init__(self, namespace: Namespace, folder: Path) -> None:
        self._namespace = namespace
        self._folder = folder
        self._templates = stacklab_environment()

    def create(self, node: Node, image: Sequence[Path], files: Mapping[str, NodeFile]) -> None:
        """Mount the node's overlay on `image` (root trees, top first) and put `files` into it."""
        disk = self._disk(node)
        if disk.exists() and not (disk / CREATED).exists():  # an earlier call was cut off
            self.destroy(node)
        for part in ("upper", "work", "root"):
            (disk / part).mkdir(parents=True, exist_ok=True)
        (disk / "lower").write_text("\n".join(map(str, image)))
        self._mount(node)
        init = (data_dir() / "templates" / "nodes" / "lxc-init").read_text()
        archive = _archive({**files, "/usr/lib/stacklab/init": NodeFile(init, 0o755)})
        self._namespace.run(
            ["tar", "--extract", "--no-overwrite-dir", "--directory", str(disk / "root")], stdin=archive
        )
        (disk / CREATED).touch()

    def start(self, node: Node) -> None:
        """Start the container.

        Raises StepFailed with libvirt's own words and the end of the container's log.
        """
        if self.state(node) is NodeState.RUNNING:
            return
        self._mount(node)
        with self._connection() as connection:
            for name, network in NETWORKS.items():
                self._start_network(connection, name, network)
            connection.createXML(
                self._templates.get_template("libvirt/lxc.xml.j2").render(
                    node=node,
                    root=self._disk(node) / "root",
                    prefix=MANAGEMENT.prefix,
                    cgroup_v1=not is_unified(hierarchies()),
                    devices=[device for device in DEVICES if Path(device).exists()],
                ),
                0,
            )

    def stop(self, node: Node) -> None:
        """Power the container off from inside; end it by force after 60 s."""
        if self.state(node) is not NodeState.RUNNING:
            return
        self._namespace.run(["pkill", f"-{POWEROFF_SIGNAL}", "-P", str(self._controller_pid(node))])
        deadline = time.monotonic() + SHUTDOWN_SECONDS
        while self.state(node) is NodeState.RUNNING:
            if time.monotonic() > deadline:
                self._kill(node)
            time.sleep(0.05)

    def destroy(self, node: Node) -> None:
        """End the container and remove its disk."""
        self._kill(node)
        disk = self._disk(node)
        if self._is_mounted(node):
            self._namespace.run(["umount", str(disk / "root")])
        if disk.exists():
            remove_tree(disk)

    def state(self, node: Node) -> NodeState:
        """Running, stopped (its disk is there) or absent."""
        if self._namespace.pid() is not None:
            with self._connection() as connection, _absent(*ENDED):
                domain = connection.lookupByName(node.name)
                if self._is_alive(domain):
                    return NodeState.RUNNING
                domain.destroy()
        return NodeState.STOPPED if (self._disk(node) / CREATED).exists() else NodeState.ABSENT

    def image(self, node: Node) -> list[Path]:
        """The lower directories of the node's overlay, top first."""
        return [Path(line) for line in (self._disk(node) / "lower").read_text().splitlines()]

    def flush(self, node: Node) -> None:
        """Nothing is to be done: what a container writes is in the kernel that copies it."""

    def freeze(self, node: Node, folder: Path) -> None:
        """Copy the upper directory of the node's overlay, with everything that overlay keeps in it.

        Devices, links, extended attributes. Not sockets, which are nothing without a process, and which no
        archive takes.
        """
        copy_disk(self._disk(node) / "upper", folder, node)
        subprocess.run(["find", str(folder), "-xdev", "-type", "s", "-delete"], check=True)

    def install(self, node: Node, installation: Installation) -> None:
        """Install into the overlay from outside: among the lab's mounts, with the machine's network."""
        enter = ["nsenter", f"--target={self._namespace.pid()}", "--mount", "--", "unshare", "--mount"]
        installation.run(self._disk(node) / "root", enter)

    def _is_alive(self, domain: libvirt.virDomain) -> bool:
        """Whether the container's controller process, whose id is the domain's, is there.

        libvirtd is told of its end over a connection that it sometimes loses as the container starts (seen
        with 9.0.0), and then holds the domain for running for ever.
        """
        return domain.isActive() and "libvirt_lxc" in self._namespace.run(
            ["cat", f"/proc/{domain.ID()}/cmdline"], check=False
        )

    def _disk(self, node: Node) -> Path:
        return self._folder / node.name

    def _is_mounted(self, node: Node) -> bool:
        mounts = self._namespace.run(["cat", "/proc/self/mounts"])
        return f" {self._disk(node) / 'root'} overlay " in mounts

    def _mount(self, node: Node) -> None:
        if self._is_mounted(node):
            return
        disk = self._disk(node)
        lower = ":".join((disk / "lower").read_text().splitlines())
        options = f"lowerdir={lower},upperdir={disk / 'upper'},workdir={disk / 'work'}"
        self._namespace.run(["mount", "-t", "overlay", "-o", options, "overlay", str(disk / "root")])

    def _start_network(self, connection: libvirt.virConnect, name: str, network: LabNetwork) -> None:
        with _absent(libvirt.VIR_ERR_NO_NETWORK):
            if connection.networkLookupByName(name).isActive():
                return
        xml = self._templates.get_template("libvirt/network.xml.j2")
        connection.networkCreateXML(xml.render(name=name, network=network))

    def _controller_pid(self, node: Node) -> int:
        return int((self._namespace.folder / "run" / "libvirt" / "lxc" / f"{node.name}.pid").read_text())

    def _kill(self, node: Node) -> None:
        if self.state(node) is NodeState.RUNNING:
            with self._connection() as connection, _absent(*ENDED):
                connection.lookupByName(node.name).destroy()

    @contextlib.contextmanager
    def _connection(self) -> Iterator[libvirt.virConnect]:
        connection = self._namespace.connect()
        try:
            yield connection
        except libvirt.libvirtError as error:
            raise StepFailed(f"libvirt: {error}", detail=self._log_tail(), hint="stacklab doctor") from error
        finally:
            with contextlib.suppress(libvirt.libvirtError):  # libvirtd has ended, and the connection with it
                connection.close()

    def _log_tail(self) -> str:
        logs = sorted(
            (self._namespace.folder / "libvirt" / "log").rglob("*.log"), key=lambda file: file.stat().st_mtime
        )
        return "\n".join(logs[-1].read_text(errors="replace").splitlines()[-15:]) if logs else ""


@contextlib.contextmanager
def _absent(*codes: int) -> Iterator[None]:
    """Leave the block when libvirt says, by one of these codes, that the thing is not there any more."""
    try:
        yield
    except libvirt.libvirtError as error:
        if error.get_error_code() not in codes:
            raise


def _archive(files: Mapping[str, NodeFile]) -> bytes:
    """A tar archive with `files`, owned by root.

    The directories above them are made by tar where they are missing.
    """
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path, file in files.items():
            data = file.text.encode()
            member = tarfile.TarInfo(path.lstrip("/"))
            member.size, member.mode, member.mtime = len(data), file.mode, int(time.time())
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()
