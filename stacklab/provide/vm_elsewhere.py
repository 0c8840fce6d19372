"""Nodes of kind `vm` on another machine's libvirt: it needs nothing of stacklab, and no rights but libvirt's.

Disks are sent there and fetched back; the network cards are plugged into the lab's bridges here, so that
everything that reaches a node is as it is with nodes of this machine (docs/decisions/0023).
"""

import contextlib
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree

import libvirt

from stacklab.errors import UsageError
from stacklab.files import remove_tree
from stacklab.images.disk import DISK, INITRD, SIZE_GIB, VMLINUZ
from stacklab.images.packages import Installation
from stacklab.lab.namespace import Namespace
from stacklab.provide.domains import ENDED, Domains, absent
from stacklab.provide.elsewhere import Elsewhere
from stacklab.provide.line import Line, temporary_line
from stacklab.provide.pool import READY, Pool
from stacklab.provide.provider import Node, NodeFile, NodeState
from stacklab.provide.vm import (
    CREATED,
    MEMORY,
    Run,
    VmProvider,
    install_into,
    number_of,
    qemu_img,
    rebase,
)

PROOF_SECONDS = 10.0
PROOF = "stacklab-proof"


class DomainsElsewhere(Domains):
    """The domains of one lab on another machine; its networks are here."""

    def __init__(self, namespace: Namespace, line: Line) -> None:
        super().__init__(namespace, "qemu")
        self._line = line

    def _connect(self) -> libvirt.virConnect:
        return self._line.connect()

    def _log_tail(self) -> str:
        return ""  # it is there


class VmElsewhereProvider(VmProvider):
    """Runs the vm nodes of one lab on another machine.

    lab: a name that no other lab of any machine has. The rest as for VmProvider; the nodes' folders hold what
    is kept of them here.
    """

    def __init__(
        self,
        namespace: Namespace,
        folder: Path,
        run: Run,
        kvm: Callable[[], bool],
        elsewhere: Elsewhere,
        lab: str,
    ) -> None:
        super().__init__(namespace, folder, run, kvm)
        self._elsewhere = elsewhere
        self._lab = lab
        self._line = Line(elsewhere, namespace.folder / "run" / "line", namespace, f"{lab}.")
        self._bridges = self._domains
        self._domains = DomainsElsewhere(namespace, self._line)

    def create(self, node: Node, image: Sequence[Path], files: Mapping[str, NodeFile]) -> None:
        """Send what the node starts from, where it is not there yet, and make its disk on top of that."""
        disk = self._disk(node)
        if (disk / CREATED).exists():
            return
        self._prepare(node, image, files)
        if (image[0] / MEMORY).exists():
            raise _no_memory()
        with self._pool() as pool:
            pool.upload(f"{self._name(node)}.initrd", disk / INITRD)  # first: it keeps what is there
            self._send_image(pool, image)
            pool.stand_on(f"{self._name(node)}.qcow2", f"{_volume(image[0])}.qcow2", SIZE_GIB << 30)
        (disk / CREATED).touch()

    def start(self, node: Node) -> bool:
        """Start the virtual machine with its network cards plugged in here. Raises StepFailed.

        One that runs and is not plugged in, as the line to it broke, is shut down first.
        """
        if self.state(node) is NodeState.RUNNING:
            return False
        self.stop(node)
        self._bridges.start_networks()
        name, image = self._name(node), self.image(node)
        wires = {network: self._line.wire(card, f"br-{network}") for network, card in _cards(node).items()}
        xml = self._describe(
            node,
            name=name,
            uuid=uuid.uuid5(uuid.NAMESPACE_DNS, name),
            disk=Pool.path(f"{name}.qcow2"),
            kernel=Pool.path(f"{_volume(image[-1])}.vmlinuz"),
            initrd=Pool.path(f"{name}.initrd"),
            console=Pool.path(f"{name}.console"),
            wires=wires,
        )
        self._domains.start(xml)
        return False

    def destroy(self, node: Node) -> None:
        """End the virtual machine and remove its disk; what is of no use any more there goes, too."""
        if not self._disk(node).exists():
            return
        name = self._name(node)
        with self._pool() as pool:
            with absent(*ENDED):
                pool.connection.lookupByName(name).destroy()
            for kind in ("qcow2", "console", "initrd"):
                pool.remove(f"{name}.{kind}")
            pool.tidy()
        remove_tree(self._disk(node))

    def state(self, node: Node) -> NodeState:
        """Running when it is plugged in here, stopped (it has a disk) or absent."""
        if not (self._disk(node) / CREATED).exists():
            return NodeState.ABSENT
        plugged = self._namespace.pid() is not None and all(map(self._line.is_wired, _cards(node).values()))
        runs = plugged and self._domains.is_active(self._name(node))
        return NodeState.RUNNING if runs else NodeState.STOPPED

    def hibernate(self, nodes: Sequence[Node]) -> None:
        """Raises UsageError."""
        raise _no_memory()

    @contextlib.contextmanager
    def held(self, nodes: Sequence[Node]) -> Iterator[None]:
        """Stop the processors of all nodes that run at one moment, and let them go on afterwards."""
        with self._domains.connection() as connection:
            domains = []
            for node in nodes:
                with absent(*ENDED):
                    domains.append(connection.lookupByName(self._name(node)))
            try:
                for domain in domains:
                    domain.suspend()
                yield
            finally:
                for domain in domains:
                    with absent(*ENDED):
                        domain.resume()

    def freeze(self, node: Node, folder: Path) -> None:
        """Fetch the node's disk; in the store it names the image below it by its place beside it."""
        folder.mkdir()
        with self._pool() as pool:
            pool.download(f"{self._name(node)}.qcow2", folder / DISK)
        self._stand_beside(node, folder)

    def install(self, node: Node, installation: Installation) -> None:
        """Fetch the node's disk, install into it here, and send it back; the node is off meanwhile."""
        self.stop(node)
        name = f"{self._name(node)}.qcow2"
        with tempfile.TemporaryDirectory(dir=self._disk(node)) as work:
            file = Path(work) / DISK
            with self._pool() as pool:
                pool.download(name, file)
            rebase(file, str(self.image(node)[0] / DISK))
            install_into(file, installation)
            rebase(file, Pool.path(f"{_volume(self.image(node)[0])}.qcow2"))
            with self._pool() as pool:
                pool.upload(name, file)
        self.start(node)

    def prove_kvm(self, kernel: Path) -> tuple[bool, bool]:
        """Whether KVM works there: a kernel without a disk boots, and ends by itself, within 10 s.

        And whether virtual machines there can run others with it.
        """
        with self._pool() as pool:
            pool.upload(f"{PROOF}.vmlinuz", kernel)
            try:
                works = self._proved(pool)
                return works, works and _is_nested(pool.connection)
            finally:
                pool.remove(f"{PROOF}.vmlinuz")
                pool.tidy()

    def _proved(self, pool: Pool) -> bool:
        name = f"{self._lab}.{PROOF}"
        xml = self._domains.describe("proof.xml.j2", name=name, kernel=Pool.path(f"{PROOF}.vmlinuz"))
        try:
            domain = pool.connection.createXML(xml, 0)
        except libvirt.libvirtError:  # there is no KVM
            return False
        deadline = time.monotonic() + PROOF_SECONDS
        while self._domains.is_active(name):
            if time.monotonic() > deadline:
                domain.destroy()
                return False
            time.sleep(0.1)
        return True

    def _send_image(self, pool: Pool, image: Sequence[Path]) -> None:
        """Send a disk that needs no other one, and the kernel, unless they are there."""
        disk, kernel = _volume(image[0]), _volume(image[-1])
        if not pool.has(f"{kernel}.vmlinuz.{READY}"):
            pool.upload(f"{kernel}.vmlinuz", image[-1] / VMLINUZ)
            pool.mark(f"{kernel}.vmlinuz")
        if not pool.has(f"{disk}.qcow2.{READY}"):
            with tempfile.TemporaryDirectory(dir=self._folder) as work:
                whole = Path(work) / DISK
                qemu_img("convert", "-q", "-W", "-f", "qcow2", "-O", "qcow2", image[0] / DISK, whole)
                pool.upload(f"{disk}.qcow2", whole)
            pool.mark(f"{disk}.qcow2")

    @contextlib.contextmanager
    def _pool(self) -> Iterator[Pool]:
        """The disks there, over the lab's line, or, when the lab is off, over one of their own."""
        with contextlib.ExitStack() as stack:
            if self._namespace.pid() is not None:
                connection = stack.enter_context(self._domains.connection())
            else:
                line = stack.enter_context(temporary_line(self._elsewhere))
                connection = stack.enter_context(DomainsElsewhere(self._namespace, line).connection())
            yield Pool(connection)

    def _name(self, node: Node) -> str:
        return f"{self._lab}.{node.name}"


def _is_nested(connection: libvirt.virConnect) -> bool:
    """Whether processors as libvirt gives them to machines have the extensions for virtual machines."""
    capabilities = ElementTree.fromstring(connection.getDomainCapabilities(None, "x86_64", "pc", "kvm"))
    features = capabilities.findall("cpu/mode[@name='host-model']/feature[@policy='require']")
    return bool({"vmx", "svm"}.intersection(feature.get("name", "") for feature in features))


def _volume(tree: Path) -> str:
    """What an image is called there, by its folder here, which may be that of a node."""
    is_node = tree.parent.name == "nodes"
    return f"{tree.parents[1].name}-{tree.name}" if is_node else tree.parent.name


def _cards(node: Node) -> dict[str, str]:
    """The network cards of a node: by network, the name of the device here."""
    return {network: f"n{number_of(node)}-{network}"[:15] for network in ("management", "provider")}


def _no_memory() -> UsageError:
    return UsageError("nodes on another machine cannot keep their memory; nodes of kind vm on this one can")
