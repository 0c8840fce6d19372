"""A lab on this machine: one folder that holds everything of it.

lab.yaml       what it is built from, and the layer that it stands on
journal.db     its events
secrets.yaml   its passwords            ssh/     its key, and the host keys of its nodes
nodes/         the disks of its nodes   rendered/ what was rendered and run, by layer
run/ libvirt/  what its libvirtd keeps  images.log, ansible/   what tools printed
"""

import os
import re
import secrets
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from threading import Event, Lock
from typing import TYPE_CHECKING, Any, TypeVar

import yaml

from stacklab import lock
from stacklab.errors import LabDamaged, StepFailed, Unreached, UsageError
from stacklab.files import remove_tree, write_atomically
from stacklab.home import Home
from stacklab.host import kvm
from stacklab.images.store import Store
from stacklab.journal import Journal, JournalUnusable
from stacklab.lab import cgroups
from stacklab.lab.machine import MachineNetwork
from stacklab.lab.namespace import Namespace
from stacklab.lab.secrets import read_secrets
from stacklab.lab.settings import HOST, LabSettings, patience_of
from stacklab.model.documents import did_you_mean
from stacklab.provide.provider import Node, NodeState, Provider

if TYPE_CHECKING:
    from stacklab.provide.vm import VmProvider

ROOT = "root"
_GONE = ".gone-"  # before the name of a lab that is destroyed
Result = TypeVar("Result")
NAME = re.compile(r"[a-z][a-z0-9-]{0,30}")
NAME_WORDS = "a letter, then up to 30 of a-z, 0-9 and -"
SOCKET_BYTES = 107  # of the path of a socket (unix(7))


@dataclass(frozen=True)
class LabStatus:
    """A lab at a glance."""

    name: str
    running: bool
    settings: LabSettings
    nodes: dict[str, NodeState] = field(default_factory=dict)


class Lab:
    """One lab, by the name of its folder. Making the object touches nothing."""

    def __init__(self, home: Home, name: str) -> None:
        """Raises UsageError for a name that no lab can have."""
        if not NAME.fullmatch(name):
            raise UsageError(f"'{name}' cannot be the name of a lab: {NAME_WORDS}")
        self.home = home
        self.name = name
        self.folder = home.labs / name
        self.stopping = Event()
        """Set when the command is interrupted: who waits for a node waits no longer."""
        self._namespace = Namespace(self.folder, name)
        self._network = MachineNetwork(self.folder, name)

    @classmethod
    def open(cls, home: Home, name: str) -> "Lab":
        """The lab of that name. Raises UsageError where there is none."""
        lab = cls(home, name)
        if not lab.exists:
            others = [other.name for other in cls.all(home)]
            near = did_you_mean(name, others) or (f"; there is: {', '.join(others)}" if others else "")
            raise UsageError(
                f"there is no lab '{name}'{near}",
                hint="stacklab list" if others else f"stacklab up --layer 1 --lab {name}",
            )
        return lab

    @classmethod
    def all(cls, home: Home) -> list["Lab"]:
        """Every lab of this machine, by name; not a folder beside them, such as default.bak."""
        names = [file.parent.name for file in sorted(home.labs.glob("*/lab.yaml"))]
        return [cls(home, name) for name in names if NAME.fullmatch(name)]

    @property
    def has_hosts(self) -> bool:
        """Whether its nodes are machines that were there before."""
        return self._kind == HOST if self.exists else False

    @cached_property
    def _kind(self) -> str:
        try:
            return self.settings.node_kind
        except (LabDamaged, FileNotFoundError):  # it can still be stopped and destroyed, or just was
            return HOST if (self.folder / "mark").exists() else "lxc"

    @property
    def namespace(self) -> Namespace | MachineNetwork:
        """Its network, and for nodes that are made all other namespaces."""
        return self._network if self.has_hosts else self._namespace

    @property
    def exists(self) -> bool:
        """Whether it has been made."""
        return (self.folder / "lab.yaml").exists()

    @property
    def has_remains(self) -> bool:
        """Whether it has left something where it is no more: a destroy was cut off, or its folder removed."""
        signs = (self.home.labs / f"{_GONE}{self.name}", self._lock)
        return not self.exists and (any(map(Path.exists, signs)) or cgroups.exist(self._namespace.group))

    @property
    def settings(self) -> LabSettings:
        """What it is built from, as last written. Raises LabDamaged."""
        file = self.folder / "lab.yaml"
        try:
            return LabSettings.model_validate(yaml.safe_load(file.read_text()))
        except (ValueError, yaml.YAMLError) as error:
            raise LabDamaged(
                f"{file} is damaged: it is not what stacklab wrote",
                detail=str(error),
                hint=f"put a copy of it back, or stacklab destroy --lab {self.name}",
            ) from error

    def save(self, settings: LabSettings) -> None:
        """Write the settings; this is what makes a lab exist."""
        text = yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False)
        write_atomically(self.folder / "lab.yaml", text, mode=0o600)

    def rendered(self, layer: int) -> Path:
        """The folder of what was rendered last for a layer."""
        return self.folder / "rendered" / f"layer-{layer}"

    @cached_property
    def journal(self) -> Journal:
        """Its events."""
        return Journal(self.folder / "journal.db", lab=self.name)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other stacklab commands from changing the lab meanwhile. Raises LabBusy, with who has it."""
        with lock.hold(self._lock, f"lab '{self.name}'"):
            try:
                yield
            finally:
                if not self.exists:
                    self._tidy()

    @property
    def _lock(self) -> Path:
        return self.home.state / "locks" / self.name

    def _tidy(self) -> None:
        """Take the lock of a lab that is not there away, and the folders of all labs where none is left."""
        self._lock.unlink(missing_ok=True)
        with suppress(OSError):
            self.home.labs.rmdir()
            Store(self.home.cache / "images", self.home.state).forget(self.home.state)
        for folder in (self._lock.parent, self.home.state):
            with suppress(OSError):
                folder.rmdir()

    @cached_property
    def provider(self) -> Provider:
        """The provider of its nodes."""
        if self.has_hosts:
            from stacklab.provide.host import HostProvider

            return HostProvider(self.mark, self.run_on)
        if self.settings.node_kind == "vm":
            return self._vm_provider
        from stacklab.provide.lxc import LxcProvider

        return LxcProvider(self._namespace, self.folder / "nodes")

    @property
    def _vm_provider(self) -> "VmProvider":
        from stacklab.provide.vm import VmProvider

        place = (self._namespace, self.folder / "nodes", self.run_on, self.kvm_works)
        if not self.settings.connect:
            return VmProvider(*place)
        from stacklab.provide.elsewhere import parse
        from stacklab.provide.vm_elsewhere import VmElsewhereProvider

        return VmElsewhereProvider(*place, parse(self.settings.connect), self._unique_name("name-elsewhere"))

    @property
    def is_elsewhere(self) -> bool:
        """Whether its nodes run on another machine's libvirt."""
        try:
            return self.exists and bool(self.settings.connect)
        except LabDamaged:  # it can still be destroyed here
            return False

    @property
    def mark(self) -> str:
        """The name by which hosts know the lab, which no other lab of any machine has."""
        return self._unique_name("mark")

    def _unique_name(self, file: str) -> str:
        """A name that no other lab of any machine has, made when it is asked for first."""
        kept = self.folder / file
        if not kept.exists():
            write_atomically(kept, f"{self.name}.{secrets.token_hex(8)}")
        return kept.read_text()

    def kvm_works(self) -> bool:
        """Whether its virtual machines have KVM, as far as that was proved."""
        settings = self.settings
        return bool(settings.connect_kvm) if settings.connect else kvm.works(self.home.cache)

    @property
    def patience(self) -> float:
        """How many times longer than on nodes that run natively all is waited for."""
        return patience_of(self.settings, self.home.cache)

    def node(self, name: str) -> Node:
        """The node of that name. Raises UsageError where there is none."""
        nodes = {node.name: node for node in self.settings.nodes}
        if name not in nodes:
            raise UsageError(f"lab '{self.name}' has no node '{name}'; it has: {', '.join(nodes)}")
        return nodes[name]

    @property
    def builder(self) -> "Lab":
        """The lab on containers that builds what this one, emulated, starts from; there while it does."""
        return Lab(Home(self.home.state / "builders", self.home.cache), self.name)

    @property
    def controller(self) -> Node:
        """The first node with the role controller."""
        return next(node for node in self.settings.nodes if "controller" in node.roles)

    def status(self) -> LabStatus:
        """What is there and what runs."""
        settings = self.settings
        states = self.at_once(self.provider.state, settings.nodes)
        nodes = {node.name: state for node, state in zip(settings.nodes, states, strict=True)}
        return LabStatus(self.name, self.namespace.pid() is not None, settings, nodes)

    def start(self) -> bool:
        """Start the lab's namespaces and nodes, all that are off at once, and wait for SSH.

        Returns whether a node was started.
        """
        from stacklab.lab.access import set_clock, wait_for_ssh

        self._end_builder()
        self.refuse_lost_images()
        if self.namespace.pid() is None:
            with self.journal.step("namespaces", self.name):
                self.namespace.start()
        states = {node: self.provider.state(node) for node in self.settings.nodes}
        _refuse_unreachable([node for node, state in states.items() if state is NodeState.UNREACHABLE])
        stopped = [node for node, state in states.items() if state is NodeState.STOPPED]
        one_by_one = Lock()

        def boot(node: Node) -> None:
            with self.journal.step("node", node.name):
                with one_by_one:
                    is_late = self.provider.start(node)
                wait_for_ssh(self, node)
                if is_late:
                    set_clock(self, node)
            self.journal.record("stacklab.node.started", node.name)

        self.at_once(boot, stopped)
        for node, state in states.items():
            if state is NodeState.RUNNING:  # since a moment ago, maybe, by a command that was cut off
                wait_for_ssh(self, node)
        return bool(stopped)

    def refuse_long_path(self, node_kind: str) -> None:
        """Raises UsageError when the lab, of nodes of that kind, could not be made in so long a folder."""
        # The longest: if the nodes are emulated, a lab in another folder builds what they start from.
        socket = (self.builder if node_kind == "vm" else self)._namespace.libvirt_socket
        length = len(os.fsencode(socket))
        if length > SOCKET_BYTES:
            most = len(os.fsencode(self.home.state)) - length + SOCKET_BYTES
            raise UsageError(
                f"{socket} is {length} bytes long; the path of a socket has {SOCKET_BYTES} at most",
                hint=f"export STACKLAB_STATE=FOLDER, one whose path has {most} bytes at most",
            )

    def refuse_another_cache(self) -> None:
        """Raises UsageError when the disk of a node stands on an image of another cache than this one."""
        cache = self.home.cache
        trees: list[Path] = []
        for node in self.settings.nodes:
            with suppress(FileNotFoundError):  # it has no disk
                trees += self.provider.image(node)
        for tree in trees:
            if tree.is_dir() and not tree.is_relative_to(cache / "images"):
                there = next(folder for folder in tree.parents if folder.name in ("images", ""))
                raise UsageError(
                    f"lab '{self.name}' stands on images in {there}, and the cache is {cache}",
                    hint=f"export STACKLAB_CACHE={there.parent}",
                )

    def refuse_lost_images(self) -> None:
        """Raises LabDamaged when the disk of a node stands on an image that is not there whole any more.

        Raises UsageError when that is in another cache.
        """
        self.refuse_another_cache()
        lost = self._lost_images()
        if lost:
            why, first = "have gone: the cache was emptied or moved", ""
            if any(tree.is_dir() for tree in lost):
                why, first = "had not reached the disk when the machine went off", "move them away and "
            raise LabDamaged(
                f"lab '{self.name}' stands on images that {why}",
                detail="\n".join(f"{tree} (node '{node}')" for tree, node in lost.items()),
                hint=f"{first}put them back (stacklab images import FILE, or the folder from a backup), "
                f"or stacklab destroy --lab {self.name}",
            )

    def remove_lost_nodes(self) -> None:
        """Remove the nodes whose images are not there whole any more, for `up` to make them anew."""
        lost = self._lost_images()
        if lost and not self.is_elsewhere:
            self.namespace.stop()
            for node in set(lost.values()):
                remove_tree(self.folder / "nodes" / node)

    def _lost_images(self) -> dict[Path, str]:
        """The trees that nodes stand on and that are not there whole any more, each with one such node."""
        store = Store(self.home.cache / "images")
        lost: dict[Path, str] = {}
        for node in self.settings.nodes:
            with suppress(FileNotFoundError):  # it has no disk
                for tree in reversed(self.provider.image(node)):  # an image is whole on a whole one only
                    is_stored = tree.is_relative_to(store.folder)
                    if not tree.is_dir() or (is_stored and not store.secure(store.name_of(tree))):
                        lost[tree] = node.name
        return lost

    def stop(self) -> None:
        """Shut the nodes down in order, the controller last, and end the lab's processes. Its disks stay."""
        self._end_builder()

        def shut_down(node: Node) -> None:
            was_on = self.provider.state(node) is NodeState.RUNNING
            if was_on or self.is_elsewhere:  # there it may run, and not be reached
                self.provider.stop(node)
            if was_on:
                with suppress(JournalUnusable):  # a full disk is no reason to stay on
                    self.journal.record("stacklab.node.stopped", node.name)

        try:
            if self.namespace.pid() is not None or self.is_elsewhere:
                self.at_once(shut_down, [node for node in self.settings.nodes if node != self.controller])
                shut_down(self.controller)
        except Unreached:  # which is no reason to stay on here
            self.namespace.stop()
            raise
        self.namespace.stop()

    def destroy(self, *, leave_unreachable: bool = False) -> None:
        """End everything of the lab by force and remove its folder; hosts are left as they were before.

        Raises StepFailed when a host cannot be, and keeps the lab for another try. leave_unreachable: hosts
        that do not answer are left as they are. The folder is out of the way at once: no half of it is ever
        taken for a lab, and what a destroy that was cut off has left of it goes with the next one.
        """
        if self.has_hosts:
            self._undo_hosts(leave_unreachable)
        elif self.is_elsewhere:
            self._leave_elsewhere(leave_unreachable)
        self._end_builder()
        self.namespace.stop()
        self.journal.close()
        self._sweep()
        with suppress(FileNotFoundError):
            self.folder.rename(self.home.labs / f"{_GONE}{self.name}")
        self._sweep()
        self._tidy()

    def _end_builder(self) -> None:
        """Remove what is left of the lab that built for this one, when that was killed or cut off."""
        if self.builder.home.state.exists():
            self.builder.destroy()

    def _sweep(self) -> None:
        """Remove the folders of labs that are destroyed."""
        for folder in self.home.labs.glob(f"{_GONE}*"):
            remove_tree(folder)

    def _leave_elsewhere(self, leave_unreachable: bool) -> None:
        """Remove the nodes from the other machine; leave_unreachable: unless it does not answer."""
        try:
            for node in self.settings.nodes:
                self.provider.destroy(node)
        except Unreached as error:
            if not leave_unreachable:
                error.hint += "; or --leave-unreachable, and what is there stays"
                raise

    def _undo_hosts(self, leave_unreachable: bool) -> None:
        nodes = self.settings.nodes
        states = zip(nodes, self.at_once(self.provider.state, nodes), strict=True)
        found = {node: state for node, state in states if state is not NodeState.ABSENT}
        silent = [node for node, state in found.items() if state is NodeState.UNREACHABLE]
        if not leave_unreachable:
            _refuse_unreachable(silent, "or --leave-unreachable, and what they have stays on them")

        def undo(node: Node) -> None:
            with self.journal.step("leave the host", node.name):
                self.provider.destroy(node)

        self._network.start()  # a lab that is off is reached all the same
        self.at_once(undo, [node for node in found if node not in silent])

    def at_once(self, action: Callable[[Node], Result], nodes: Sequence[Node]) -> list[Result]:
        """Do the same with all nodes at the same time; the first error is raised when all have ended.

        Ctrl-C has them end: it sets `stopping`.
        """
        with ThreadPoolExecutor(max_workers=max(len(nodes), 1)) as pool:
            try:
                return [done.result() for done in [pool.submit(action, node) for node in nodes]]
            except KeyboardInterrupt:
                self.stopping.set()
                raise

    def environment(self) -> dict[str, str]:
        """The variables that give an OpenStack client the cloud's administrator."""
        file = self.folder / "secrets.yaml"
        if not file.exists() and self.settings.layer:
            raise LabDamaged(
                f"{file}, with the passwords of the cloud, has gone",
                hint=f"stacklab up --lab {self.name}   (gives every service a new one)",
            )
        if not file.exists():
            raise UsageError(f"lab '{self.name}' has no cloud yet", hint=f"stacklab up --lab {self.name}")
        passwords = read_secrets(file)
        return {
            "OS_AUTH_URL": f"http://{self.controller.address}:5000/v3",
            "OS_USERNAME": "admin",
            "OS_PASSWORD": passwords.get("keystone", {}).get("admin", ""),
            "OS_PROJECT_NAME": "admin",
            "OS_USER_DOMAIN_ID": "default",
            "OS_PROJECT_DOMAIN_ID": "default",
            "OS_REGION_NAME": "RegionOne",
            "OS_IDENTITY_API_VERSION": "3",
        }

    def client_environment(self, inherited: Mapping[str, str]) -> dict[str, str]:
        """The variables for a command in the lab's network: the person's own, and the cloud's credentials.

        The programs beside this Python (the `openstack` client) come first on the PATH; no proxy is asked for
        the nodes.
        """
        # An OS_CLOUD or OS_TOKEN left over from another cloud would win over the lab's credentials.
        own = {name: value for name, value in inherited.items() if not name.startswith("OS_")}
        path = f"{Path(sys.prefix) / 'bin'}:{inherited.get('PATH', os.defpath)}"
        named = inherited.get("no_proxy") or inherited.get("NO_PROXY") or "localhost"
        # A lone asterisk stands for everything; in a list it is no more than a name.
        direct = named if named == "*" else ",".join([named, *(node.address for node in self.settings.nodes)])
        proxies = {"no_proxy": direct, "NO_PROXY": direct}
        return {**own, **self.environment(), **proxies, "PATH": path, "STACKLAB_LAB": self.name}

    def enter_command(self, argv: Sequence[str]) -> list[str]:
        """The command line that runs `argv` in the lab's network. Raises StepFailed when the lab is down."""
        return self.namespace.enter_command(argv, network_only=True)

    def ssh_command(self, node: str, argv: Sequence[str] = ()) -> list[str]:
        """The command line that logs in to the node as root, or runs `argv` there.

        Words, or one shell text.
        """
        from stacklab.lab.access import as_root, ssh_options, ssh_options_of

        there = self.node(node)
        remote = [as_root(there, shlex.join(argv) if len(argv) > 1 else argv[0])] if argv else []
        if not argv and there.user != ROOT:
            remote = ["sudo -n -i"]
        terminal = ["-t"] if remote and not argv else []
        options = [*ssh_options(self), *ssh_options_of(there), *terminal]
        return self.enter_command(["ssh", *options, f"{there.user}@{there.address}", *remote])

    def logs_command(self, units: Sequence[str], *, follow: bool = False, node: str = "") -> list[str]:
        """The command line that shows the journals of systemd units on a node, by default the controller."""
        selection = [f"--unit={unit}" for unit in units]
        mode = ["--follow"] if follow else ["--no-pager", "--lines=200"]
        return self.ssh_command(node or self.controller.name, ["journalctl", *selection, *mode])

    def run_on(
        self, node: str, argv: Sequence[str], *, stdin: str = "", check: bool = False
    ) -> "subprocess.CompletedProcess[str]":
        """Run a command on a node and return what came of it, whatever its exit code.

        check: raise StepFailed with what it said when that is not 0.
        """
        command = self.ssh_command(node, argv)
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
        if check and done.returncode != 0:
            raise StepFailed(
                f"`{argv[0]}` failed on node '{node}'",
                detail=done.stderr.strip(),
                hint="mend it, and the same command goes on from here",
            )
        return done


def _refuse_unreachable(nodes: Sequence[Node], otherwise: str = "") -> None:
    if nodes:
        raise StepFailed(
            f"not reached over SSH: {', '.join(f'{node.name} ({node.address})' for node in nodes)}",
            hint="; ".join(("when they are back, the same command goes on from here", otherwise)).strip("; "),
        )


def summary(status: LabStatus) -> dict[str, Any]:
    """A lab's status as plain values, for `--output json`."""
    return {
        "name": status.name,
        "running": status.running,
        **status.settings.model_dump(mode="json", exclude={"nodes"}),
        "nodes": [
            {
                "name": node.name,
                "address": node.address,
                "kind": node.kind,
                "roles": list(node.roles),
                "state": status.nodes[node.name],
            }
            for node in status.settings.nodes
        ],
    }
