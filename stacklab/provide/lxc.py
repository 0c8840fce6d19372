"""Nodes of kind `lxc`.

Containers that the lab's own libvirtd runs with systemd in them, on an overlay of an image.
"""

import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import libvirt

from stacklab.errors import UsageError
from stacklab.files import remove_tree, write_atomically
from stacklab.home import data_dir
from stacklab.images.packages import Installation
from stacklab.lab.cgroups import hierarchies, is_unified
from stacklab.lab.namespace import Namespace
from stacklab.model.topology import MANAGEMENT, PROVIDER
from stacklab.provide.disks import IMAGE, archive_of, copy_disk, is_made, mark_made
from stacklab.provide.domains import ENDED, Domains, absent
from stacklab.provide.provider import Node, NodeFile, NodeState

DEVICES = ("/dev/net/tun", "/dev/kvm", "/dev/vhost-net")
SHUTDOWN_SECONDS = 60.0
# systemd takes SIGRTMIN+4 for "power off" (systemd(1)); `virsh shutdown` does not reach it.
POWEROFF_SIGNAL = "RTMIN+4"


class LxcProvider:
    """Runs the lxc nodes of one lab.

    namespace: the lab's, running. folder: where the nodes' disks are, one folder per node.
    """

    kind = "lxc"

    def __init__(self, namespace: Namespace, folder: Path) -> None:
        self._namespace = namespace
        self._folder = folder
        self._domains = Domains(namespace, "lxc")

    def create(self, node: Node, image: Sequence[Path], files: Mapping[str, NodeFile]) -> None:
        """Mount the node's overlay on `image` (root trees, top first) and put `files` into it."""
        disk = self._disk(node)
        if disk.exists() and not is_made(disk):  # an earlier call was cut off
            self.destroy(node)
        for part in ("upper", "work", "root"):
            (disk / part).mkdir(parents=True, exist_ok=True)
        write_atomically(disk / IMAGE, "\n".join(map(str, image)))
        self._mount(node)
        init = (data_dir() / "templates" / "nodes" / "lxc-init").read_text()
        files = {**files, "/usr/lib/stacklab/init": NodeFile(init, 0o755)}
        self._namespace.run(
            ["tar", "--extract", "--no-overwrite-dir", "--directory", str(disk / "root")],
            stdin=archive_of(files),
        )
        written = (disk / "upper" / path.lstrip("/") for path in files)
        mark_made(disk, filter(Path.is_file, written))  # not what a link of the image leads elsewhere

    def start(self, node: Node) -> bool:
        """Start the container. Its memory is never kept.

        Raises StepFailed with libvirt's own words and the end of the container's log.
        """
        if self.state(node) is NodeState.RUNNING:
            return False
        self._mount(node)
        xml = self._domains.describe(
            "lxc.xml.j2",
            node=node,
            root=self._disk(node) / "root",
            management=MANAGEMENT,
            provider=PROVIDER,
            cgroup_v1=not is_unified(hierarchies()),
            devices=[device for device in DEVICES if Path(device).exists()],
        )
        self._domains.start_networks()
        self._domains.start(xml)
        return False

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
            with self._domains.connection() as connection, absent(*ENDED):
                domain = connection.lookupByName(node.name)
                if self._is_alive(domain):
                    return NodeState.RUNNING
                domain.destroy()
        return NodeState.STOPPED if is_made(self._disk(node)) else NodeState.ABSENT

    def image(self, node: Node) -> list[Path]:
        """The lower directories of the node's overlay, top first."""
        return [Path(line) for line in (self._disk(node) / IMAGE).read_text().splitlines()]

    def flush(self, node: Node) -> None:
        """Nothing is to be done: what a container writes is in the kernel that copies it."""

    def held(self, nodes: Sequence[Node]) -> AbstractContextManager[None]:
        """Hold all processes of the lab."""
        return self._namespace.paused()

    def hibernate(self, nodes: Sequence[Node]) -> None:
        """Containers are processes of the machine: their memory is not one thing that could be kept."""
        raise UsageError("nodes of kind lxc cannot keep their memory; nodes of kind vm can")

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
        lower = ":".join((disk / IMAGE).read_text().splitlines())
        options = f"lowerdir={lower},upperdir={disk / 'upper'},workdir={disk / 'work'}"
        self._namespace.run(["mount", "-t", "overlay", "-o", options, "overlay", str(disk / "root")])

    def _controller_pid(self, node: Node) -> int:
        return int((self._namespace.folder / "run" / "libvirt" / "lxc" / f"{node.name}.pid").read_text())

    def _kill(self, node: Node) -> None:
        if self.state(node) is NodeState.RUNNING:
            self._domains.destroy(node.name)
