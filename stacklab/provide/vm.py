"""Nodes of kind `vm`.

QEMU's virtual machines, run by the lab's own libvirtd: with KVM where it was proved to work, else emulated. A
node's disk is a qcow2 file on that of an image; kernel and first file system are given to QEMU, and with them
comes what makes a copy of the image this node.
"""

import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import libvirt

from stacklab.errors import StepFailed, UsageError
from stacklab.files import remove_tree, write_atomically
from stacklab.home import data_dir
from stacklab.host import kinds
from stacklab.images.command import run_logged
from stacklab.images.disk import DISK, INITRD, VMLINUZ
from stacklab.images.initramfs import cpio_of
from stacklab.images.packages import Installation
from stacklab.lab.namespace import Namespace
from stacklab.model.topology import MANAGEMENT, PROVIDER
from stacklab.provide.disks import IMAGE, archive_of, copy_disk, is_made, mark_made
from stacklab.provide.domains import ENDED, Domains, absent
from stacklab.provide.provider import Node, NodeFile, NodeState

MEMORY = "memory"  # there while the node is off and is to go on from it
SHUTDOWN_SECONDS = 60.0

Run = Callable[[str, Sequence[str]], "subprocess.CompletedProcess[str]"]


class VmProvider:
    """Runs the vm nodes of one lab.

    namespace: the lab's, running. folder: where the nodes' disks are, one folder per node. run: runs a
    command on the node of that name. kvm: whether the machine that they run on has a KVM that works.
    """

    kind = "vm"

    def __init__(self, namespace: Namespace, folder: Path, run: Run, kvm: Callable[[], bool]) -> None:
        self._namespace = namespace
        self._folder = folder
        self._run = run
        self._kvm = kvm
        self._domains = Domains(namespace, "qemu")

    def create(self, node: Node, image: Sequence[Path], files: Mapping[str, NodeFile]) -> None:
        """Make the node's disk on top of `image`, and the first file system that puts `files` into it."""
        disk = self._disk(node)
        self._prepare(node, image, files)
        qemu_img("create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", image[0] / DISK, disk / DISK)
        if (image[0] / MEMORY).exists():
            (disk / MEMORY).symlink_to(image[0] / MEMORY)
        mark_made(disk, [disk / DISK])

    def _prepare(self, node: Node, image: Sequence[Path], files: Mapping[str, NodeFile]) -> None:
        """Make the node's folder, with what it stands on and the first file system."""
        disk = self._disk(node)
        if disk.exists() and not is_made(disk):  # an earlier call was cut off
            self.destroy(node)
        disk.mkdir(parents=True, exist_ok=True)
        write_atomically(disk / IMAGE, "\n".join(map(str, image)))
        # The kernel unpacks one archive after the other. It holds the node's keys: only root may read it.
        identity = cpio_of("identity.tar", archive_of(files))
        write_atomically(disk / INITRD, (image[-1] / INITRD).read_bytes() + identity, mode=0o600)

    def start(self, node: Node) -> bool:
        """Start the virtual machine, or let it go on where it was when its memory was kept.

        Raises StepFailed with libvirt's own words and the end of QEMU's log. A memory that cannot be taken up
        is given up: the next start boots the node.
        """
        if self.state(node) is NodeState.RUNNING:
            return False
        disk = self._disk(node)
        self._domains.start_networks()
        xml = self._describe(
            node,
            name=self._name(node),
            # The same in every lab, like its addresses: its memory can be given to another one.
            uuid=uuid.uuid5(uuid.NAMESPACE_DNS, f"{node.name}.stacklab"),
            disk=disk / DISK,
            kernel=self.image(node)[-1] / VMLINUZ,
            initrd=disk / INITRD,
            console=disk / "console.log",
        )
        memory = disk / MEMORY
        if not memory.exists():
            self._domains.start(xml)
            return False
        try:
            self._domains.restore(xml, memory)
        finally:
            memory.unlink()
        return True

    def stop(self, node: Node) -> None:
        """Press the power button; end the machine by force after 60 s, or more where it is emulated."""
        if self.state(node) is NodeState.RUNNING:
            self._domains.shut_down(self._name(node), self._shutdown_seconds)

    def destroy(self, node: Node) -> None:
        """End the virtual machine and remove its disk."""
        if self.state(node) is NodeState.RUNNING:
            self._domains.destroy(self._name(node))
        remove_tree(self._disk(node))

    def state(self, node: Node) -> NodeState:
        """Running, stopped (its disk is there) or absent."""
        if self._namespace.pid() is not None and self._domains.is_active(self._name(node)):
            return NodeState.RUNNING
        return NodeState.STOPPED if is_made(self._disk(node)) else NodeState.ABSENT

    def image(self, node: Node) -> list[Path]:
        """The folders of the images that the node's disk stands on, top first."""
        return [Path(line) for line in (self._disk(node) / IMAGE).read_text().splitlines()]

    def flush(self, node: Node) -> None:
        """Have the node's kernel write what it holds back, and QEMU with it.

        Raises StepFailed when the node runs and does not answer.
        """
        if self.state(node) is NodeState.RUNNING:
            done = self._run(node.name, ["sync"])
            if done.returncode != 0:
                raise StepFailed(f"node '{node.name}' does not write its disk", detail=done.stderr)

    def held(self, nodes: Sequence[Node]) -> AbstractContextManager[None]:
        """Hold all processes of the lab, QEMU's among them."""
        return self._namespace.paused()

    def hibernate(self, nodes: Sequence[Node]) -> None:
        """Stop all processors first, then write one memory after the other.

        When that fails, those whose memory is written are off, and the others run on.
        """
        for node in nodes:
            if self.state(node) is not NodeState.RUNNING:
                raise UsageError(f"node '{node.name}' is off and has no memory to keep")
        with self._domains.connection() as connection:
            domains = [connection.lookupByName(node.name) for node in nodes]
            try:
                for domain in domains:
                    domain.suspend()
                for node, domain in zip(nodes, domains, strict=True):
                    self._keep_memory(node, domain)
            except BaseException:
                for domain in domains:
                    with absent(*ENDED):
                        domain.resume()
                raise

    def _keep_memory(self, node: Node, domain: libvirt.virDomain) -> None:
        memory = self._disk(node) / MEMORY
        pending = memory.with_name(f".{MEMORY}")
        pending.unlink(missing_ok=True)
        try:
            domain.saveFlags(str(pending), None, libvirt.VIR_DOMAIN_SAVE_RUNNING)
        finally:  # Ctrl-C comes when libvirt has ended: the node is off then, and this is its memory
            if pending.exists() and self.state(node) is not NodeState.RUNNING:
                pending.rename(memory)

    def freeze(self, node: Node, folder: Path) -> None:
        """Copy the node's disk; in the store it names the image below it by its place beside it."""
        folder.mkdir()
        if (self._disk(node) / MEMORY).exists():
            copy_disk(self._disk(node) / MEMORY, folder / MEMORY, node)
        copy_disk(self._disk(node) / DISK, folder / DISK, node)
        self._stand_beside(node, folder)

    def install(self, node: Node, installation: Installation) -> None:
        """Install into the disk of the node, which is off meanwhile: natively, at the machine's own speed."""
        self.stop(node)
        install_into(self._disk(node) / DISK, installation)
        self.start(node)

    def settle(self, node: Node, tree: Path, installation: Installation) -> None:
        """Put packages, and then a rendered tree, on the disk of the node, which is off: it boots with them.

        tree: a tar.gz in base64. Raises StepFailed.
        """
        disk = self._disk(node) / DISK
        if installation.packages:
            install_into(disk, installation)
        prefix, root = _with_disk(disk)
        program = data_dir() / "playbooks" / "files" / "settle.py"
        words = [*prefix, sys.executable, str(program), str(root), str(tree)]
        run_logged(words, installation.log, f"putting the files on the disk of '{node.name}'")

    def _stand_beside(self, node: Node, folder: Path) -> None:
        """Have the copy of the node's disk in `folder` name the image below by its place beside it."""
        rebase(folder / DISK, os.path.relpath(self.image(node)[0] / DISK, folder))
        (folder / DISK).chmod(0o600)  # whoever may read it has the passwords of the cloud

    def _name(self, node: Node) -> str:
        """What libvirt calls the node."""
        return node.name

    @property
    def _shutdown_seconds(self) -> float:
        """How many seconds a node has to shut down."""
        return SHUTDOWN_SECONDS * (1.0 if self._kvm() else kinds.EMULATED)

    def _describe(self, node: Node, wires: Mapping[str, int] | None = None, **values: object) -> str:
        """The description of a node's domain.

        wires: by network, the port that a card is plugged into, where the lab's networks are not at hand.
        values: what depends on the machine that it runs on.
        """
        return self._domains.describe(
            "vm.xml.j2",
            node=node,
            kvm=self._kvm(),
            management=MANAGEMENT,
            provider=PROVIDER,
            number=number_of(node),
            wires=wires,
            **values,
        )

    def _disk(self, node: Node) -> Path:
        return self._folder / node.name


def number_of(node: Node) -> int:
    """The last part of a node's address, which no other node of the lab has."""
    return int(node.address.rpartition(".")[2])


def install_into(disk: Path, installation: Installation) -> None:
    """Install packages into a disk that nothing else has open. Raises StepFailed."""
    prefix, root = _with_disk(disk)
    installation.run(root, prefix)


def _with_disk(disk: Path) -> tuple[list[str], Path]:
    """What puts a command where it sees the file system on a disk, and where that is."""
    script, root = data_dir() / "templates" / "vm" / "with-disk", disk.with_name("root")
    return ["sh", str(script), str(disk), str(root)], root


def rebase(disk: Path, below: str) -> None:
    """Have a disk name what it stands on by another path; nothing else of it is changed."""
    qemu_img("rebase", "-q", "-u", "-f", "qcow2", "-F", "qcow2", "-b", below, disk)


def qemu_img(*arguments: str | Path) -> None:
    """Run qemu-img(1). Raises StepFailed with what it said."""
    done = subprocess.run(["qemu-img", *map(str, arguments)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise StepFailed(f"`qemu-img {arguments[0]}` failed", detail=done.stderr)
