"""Nodes of kind `vm` on another machine's libvirt: it needs nothing of stacklab, and no rights but libvirt's.

Disks are sent there and fetched back; the network cards are plugged into the lab's bridges here, so that
everything that reaches a node is as it is with nodes of this machine (docs/decisions/0023).
"""

import contextlib
import hashlib
import secrets
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree

import libvirt

from stacklab.errors import StepFailed, Unreached, UsageError
from stacklab.files import remove_tree, write_atomically
from stacklab.images.disk import DISK, INITRD, SIZE_GIB, VMLINUZ
from stacklab.images.packages import Installation
from stacklab.lab.namespace import Namespace
from stacklab.provide.disks import is_made, mark_made
from stacklab.provide.domains import ENDED, NETWORKS, Domains, absent, is_active
from stacklab.provide.elsewhere import Elsewhere
from stacklab.provide.line import Line, temporary_line
from stacklab.provide.pool import Pool
from stacklab.provide.provider import Node, NodeFile, NodeState
from stacklab.provide.vm import (
    Run,
    VmProvider,
    install_into,
    number_of,
    qemu_img,
    rebase,
)

PROOF_SECONDS = 10.0
PROOF = "proof"
VOLUME = "volume"
EXPAND = libvirt.VIR_CONNECT_BASELINE_CPU_EXPAND_FEATURES


class DomainsElsewhere(Domains):
    """The domains of one lab on another machine; its networks are here."""

    def __init__(self, namespace: Namespace, elsewhere: Elsewhere, line: Line) -> None:
        super().__init__(namespace, "qemu")
        self._elsewhere = elsewhere
        self._line = line

    @contextlib.contextmanager
    def connection(self) -> Iterator[libvirt.virConnect]:
        """A connection over the lab's line, or, when the lab is off, over one of its own."""
        with contextlib.ExitStack() as stack:
            is_on = self._namespace.pid() is not None
            line = self._line if is_on else stack.enter_context(temporary_line(self._elsewhere))
            connection = stack.enter_context(contextlib.closing(line.connect()))
            try:
                yield connection
            except libvirt.libvirtError as error:
                kind = StepFailed if connection.isAlive() else Unreached
                raise kind(f"libvirt of {self._elsewhere.host}: {error}") from error


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
        self._lab = lab
        self._line = Line(elsewhere, namespace.folder / "run" / "line", namespace, f"{lab}.")
        self._bridges = self._domains
        self._domains = DomainsElsewhere(namespace, elsewhere, self._line)

    def create(self, node: Node, image: Sequence[Path], files: Mapping[str, NodeFile]) -> None:
        """Send what the node starts from, where it is not there yet, and make its disk on top of that.

        A memory that the image has is left out: the node boots from its disk.
        """
        disk = self._disk(node)
        if is_made(disk):
            return
        self._prepare(node, image, files)
        with self._pool() as pool:
            pool.upload(f"{self._name(node)}.initrd", disk / INITRD)  # first: it keeps what is there
            self._send_image(pool, image)
            pool.stand_on(self._volume(node), f"{_volume_of(image[0])}.qcow2", SIZE_GIB << 30)
        mark_made(disk, [])

    def start(self, node: Node) -> bool:
        """Start the virtual machine with its network cards plugged in here. Raises StepFailed.

        One that runs and is not plugged in, as the line to it broke, is shut down first; one that is still
        held goes on. Its clock is that of the machine that it is on, so it is to be set.
        """
        name, image = self._name(node), self.image(node)
        if self._is_plugged(node):
            with self._domains.connection() as connection:
                if is_active(connection, name):
                    return _go_on(connection, name)
        self.stop(node)
        self._bridges.start_networks()
        wires = {network: self._line.wire(card, f"br-{network}") for network, card in _cards(node).items()}
        xml = self._describe(
            node,
            name=name,
            uuid=uuid.uuid5(uuid.NAMESPACE_DNS, name),
            disk=Pool.path(self._volume(node)),
            kernel=Pool.path(f"{_volume_of(image[-1])}.vmlinuz"),
            initrd=Pool.path(f"{name}.initrd"),
            console=Pool.path(f"{name}.console"),
            wires=wires,
        )
        self._domains.start(xml)
        return True

    def stop(self, node: Node) -> None:
        """Press the power button, also when the lab is off here and the machine runs on there."""
        name = self._name(node)
        with self._domains.connection() as connection:
            _go_on(connection, name)
        self._domains.shut_down(name, self._shutdown_seconds)

    def destroy(self, node: Node) -> None:
        """End the virtual machine and remove its disk; the last one takes all that was sent there with it."""
        if not self._disk(node).exists():
            return
        with self._pool() as pool:
            with absent(*ENDED):
                pool.connection.lookupByName(self._name(node)).destroy()
            pool.remove_all(f"{self._name(node)}.")
            pool.tidy()
        remove_tree(self._disk(node))

    def state(self, node: Node) -> NodeState:
        """Running when it is plugged in here and not held, stopped (it has a disk) or absent."""
        if not is_made(self._disk(node)):
            return NodeState.ABSENT
        state = libvirt.VIR_DOMAIN_NOSTATE
        if self._is_plugged(node):
            with contextlib.suppress(Unreached), self._domains.connection() as connection, absent(*ENDED):
                state = connection.lookupByName(self._name(node)).state()[0]
        return NodeState.RUNNING if state == libvirt.VIR_DOMAIN_RUNNING else NodeState.STOPPED

    def hibernate(self, nodes: Sequence[Node]) -> None:
        """Raises UsageError."""
        raise UsageError(
            "nodes on another machine cannot keep their memory; those of kind vm on this one can"
        )

    @contextlib.contextmanager
    def held(self, nodes: Sequence[Node]) -> Iterator[None]:
        """Stop the processors of all nodes that run at one moment, and let them go on afterwards."""
        names = [self._name(node) for node in nodes]
        try:
            with self._domains.connection() as connection:
                for name in names:
                    with absent(*ENDED):
                        connection.lookupByName(name).suspend()
                yield
        finally:  # over another connection: this one may be what failed
            with self._domains.connection() as connection:
                for name in names:
                    _go_on(connection, name)

    def freeze(self, node: Node, folder: Path) -> None:
        """Fetch the node's disk; in the store it names the image below it by its place beside it."""
        folder.mkdir()
        with self._pool() as pool:
            pool.download(self._volume(node), folder / DISK)
        self._stand_beside(node, folder)

    def install(self, node: Node, installation: Installation) -> None:
        """Fetch the node's disk, install into it here, and send it back; the node is off meanwhile.

        Until the new disk is there, whole, the old one is the node's.
        """
        self.stop(node)
        old, new = self._volume(node), f"{self._name(node)}.{secrets.token_hex(4)}.qcow2"
        with tempfile.TemporaryDirectory(dir=self._disk(node)) as work:
            file = Path(work) / DISK
            with self._pool() as pool:
                pool.download(old, file)
            rebase(file, str(self.image(node)[0] / DISK))
            install_into(file, installation)
            rebase(file, Pool.path(f"{_volume_of(self.image(node)[0])}.qcow2"))
            with self._pool() as pool:
                pool.upload(new, file)
                write_atomically(self._disk(node) / VOLUME, new)
                pool.remove(old)
        self.start(node)

    def prove_kvm(self, kernel: Path) -> tuple[bool, bool]:
        """Whether KVM works there: a kernel without a disk boots, and ends by itself, within 10 s.

        And whether virtual machines there can run others with it. Raises StepFailed when it cannot be told.
        """
        name = f"{PROOF}.{self._lab}"
        with self._pool() as pool:
            if not (features := _kvm_features(pool.connection)):
                return False, False
            pool.upload(f"{name}.vmlinuz", kernel)
            try:
                xml = self._domains.describe("proof.xml.j2", name=name, kernel=Pool.path(f"{name}.vmlinuz"))
                works = _ends_by_itself(pool.connection, xml)
            finally:
                pool.remove(f"{name}.vmlinuz")
                pool.tidy()
            return works, works and bool({"vmx", "svm"} & features)

    def _send_image(self, pool: Pool, image: Sequence[Path]) -> None:
        """Send a disk that needs no other one, and the kernel, unless they are there."""
        disk, kernel = f"{_volume_of(image[0])}.qcow2", f"{_volume_of(image[-1])}.vmlinuz"
        if not pool.has_whole(kernel):
            pool.upload(kernel, image[-1] / VMLINUZ)
            pool.mark_whole(kernel)
        if not pool.has_whole(disk):
            with tempfile.TemporaryDirectory(dir=self._folder) as work:
                whole = Path(work) / DISK
                qemu_img("convert", "-q", "-W", "-f", "qcow2", "-O", "qcow2", image[0] / DISK, whole)
                pool.upload(disk, whole)
            pool.mark_whole(disk)

    @contextlib.contextmanager
    def _pool(self) -> Iterator[Pool]:
        with self._domains.connection() as connection:
            yield Pool(connection)

    def _is_plugged(self, node: Node) -> bool:
        """Whether all its network cards are plugged in here."""
        return self._namespace.pid() is not None and all(map(self._line.is_wired, _cards(node).values()))

    def _name(self, node: Node) -> str:
        return f"{self._lab}.{node.name}"

    def _volume(self, node: Node) -> str:
        """What the node's disk is called there: another name after each time that it was sent."""
        file = self._disk(node) / VOLUME
        return file.read_text() if file.exists() else f"{self._name(node)}.first.qcow2"


def _go_on(connection: libvirt.virConnect, name: str) -> bool:
    """Let a domain that is held go on; whether it was."""
    was_held = False
    with absent(*ENDED):
        domain = connection.lookupByName(name)
        was_held = bool(domain.state()[0] == libvirt.VIR_DOMAIN_PAUSED)
        if was_held:
            domain.resume()
    return was_held


def _ends_by_itself(connection: libvirt.virConnect, xml: str) -> bool:
    """Whether a domain that is started ends within 10 s; it does not run any more afterwards."""
    try:
        domain = connection.createXML(xml, 0)
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_INTERNAL_ERROR:
            raise
        return False  # QEMU ended at once
    deadline = time.monotonic() + PROOF_SECONDS
    try:
        while is_active(connection, domain.name()) and time.monotonic() < deadline:
            time.sleep(0.1)
        return not is_active(connection, domain.name())
    finally:
        with absent(*ENDED):
            domain.destroy()


def _kvm_features(connection: libvirt.virConnect) -> set[str]:
    """What the processors of machines with KVM have there; nothing where libvirt knows no KVM."""
    try:
        capabilities = connection.getDomainCapabilities(None, "x86_64", "pc", "kvm")
    except libvirt.libvirtError:
        return set()
    model = ElementTree.fromstring(capabilities).find("cpu/mode[@name='host-model']")
    if model is None:
        return set()
    model.tag, model.attrib = "cpu", {}
    # Some models have the extensions for virtual machines in them, and do not list them.
    whole = connection.baselineHypervisorCPU(
        None, "x86_64", "pc", "kvm", [ElementTree.tostring(model, "unicode")], EXPAND
    )
    return {feature.get("name", "") for feature in ElementTree.fromstring(whole).iter("feature")}


def _volume_of(tree: Path) -> str:
    """What an image is called there, by its folder here, which may be that of a node.

    Two that were built of the same, at different times, are not the same block by block.
    """
    is_node = tree.parent.name == "nodes"
    folder = tree.parents[1] if is_node else tree.parent
    built = hashlib.sha256((folder / "image.json").read_bytes()).hexdigest()[:12]
    return f"{folder.name}-{tree.name}-{built}"


def _cards(node: Node) -> dict[str, str]:
    """The network cards of a node: by network, the name of the device here."""
    return {network: f"n{number_of(node)}-{network}"[:15] for network in NETWORKS}
