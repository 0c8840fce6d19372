"""What every kind of node does alike: one contract, tested on a node of each kind with the base system only.

`elsewhere` is a virtual machine on the libvirt of another machine, `host` is such another machine itself,
which only SSH reaches. Costs some four minutes on two cores, most of it where virtual machines are emulated.
The tests run in the order of the file, once per kind. All of layer 1 is in test_layer1.py, test_vm.py and
test_host.py.
"""

import os
import re
import signal
import subprocess
import tempfile
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from stacklab.children import BOUND
from stacklab.errors import UsageError
from stacklab.freeze import SECRETS, freeze, thaw
from stacklab.home import Home
from stacklab.host import kvm
from stacklab.host.apt import host_mirror
from stacklab.host.archive import Archive
from stacklab.images.base import ensure_base
from stacklab.images.disk import VMLINUZ, ensure_disk
from stacklab.images.packages import Downloads, Installation
from stacklab.images.store import Image, Store
from stacklab.images.usage import store_of
from stacklab.lab.access import ensure_keys, identity_files, wait_for_ssh
from stacklab.lab.lab import Lab
from stacklab.lab.namespace import Namespace
from stacklab.lab.settings import LabSettings
from stacklab.model.catalog import Catalog
from stacklab.provide.provider import Node, NodeState
from stacklab.provide.vm import SHUTDOWN_SECONDS
from stacklab.provide.vm_elsewhere import VmElsewhereProvider
from tests.lab.machine import TESTS_FOLDER, Machine, left_over_since
from tests.lab.program import Program, wait_for
from tests.lab.rack import Rack, differences, look

# Images are sealed by a process that nobody waits for.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
KINDS = ("lxc", "vm", pytest.param("elsewhere", marks=pytest.mark.slow), "host")
NODE = Node("controller", "10.20.0.11", ("controller",), memory=768, cpus=2)
PACKAGE = "hello"
EVENT_SECONDS = 30.0  # a hundredth of that on a machine that does nothing else
CLOCK_SECONDS = 2.0
# libvirt's driver of containers tells of a killed first process what it tells of one that powered off.
END_EVENT = {"lxc": "stacklab.domain.stopped", "vm": "stacklab.node.crashed"}
OTHER = "other"
LIBVIRT = ("libvirt-clients", "libvirt-daemon-system", "qemu-system-x86", "qemu-utils")


@dataclass(frozen=True)
class Bench:
    """A lab of one kind with one node, and what it was made of."""

    lab: Lab
    store: Store
    downloads: Downloads
    before: Machine
    kind: str
    rack: Rack | None
    """Where the other machine is, if the node is to be there, or to be that machine."""
    found: dict[str, list[str]]
    """What a host was before."""

    @property
    def is_host(self) -> bool:
        return self.kind == "host"

    def state(self) -> NodeState:
        return self.lab.provider.state(NODE)

    def run(self, command: str) -> str:
        """What a shell command on the node prints; it has to succeed."""
        done = subprocess.run(
            [*BOUND, *self.lab.ssh_command(NODE.name, [command])], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def events(self, kind: str) -> list[float]:
        """When events of a kind were recorded, in seconds since the epoch."""
        return [event.time.timestamp() for event in self.lab.journal.read() if event.type == kind]


def image_for(kind: str, store: Store, downloads: Downloads, log: Path) -> Image:
    """What nodes of a kind start from: the base system and nothing more."""
    release = Catalog.load(()).release("epoxy")
    base = ensure_base(store, release, host_mirror(), downloads.base, log)
    if kind == "lxc":
        return base
    archive = Archive(
        host_mirror(), release.pockets, downloads.folder / "guest", components=release.components
    )
    archive.update()
    return ensure_disk(store, base, lambda: archive, downloads, log)


@contextmanager
def other_machine(kind: str, program: Program) -> Iterator[Rack | None]:
    """A machine that SSH reaches, where the kind asks for it, with a libvirt if the node is to be on that."""
    if kind not in ("elsewhere", "host"):
        yield None
        return
    rack = Rack(Path(tempfile.mkdtemp(prefix=TESTS_FOLDER.strip("/"), dir="/var/tmp")), program)
    try:
        if kind == "host":
            rack.build(NODE.name)
            with rack.namespace.network():
                yield rack
        else:
            rack.build(OTHER, packages=LIBVIRT)
            rack.do(OTHER, "systemctl start virtlogd.socket libvirtd.socket")
            yield rack
    finally:
        rack.destroy()


def uri_of(rack: Rack) -> str:
    """The URI of the other machine's libvirt: SSH as its owner uses it, from within its network."""
    address = rack.nodes[OTHER].address
    known_hosts, ssh = rack.folder / "known_hosts", rack.folder / "ssh"
    known_hosts.write_text(host_key(rack, OTHER))
    ssh.write_text(f'#!/bin/sh\nexec nsenter --target {rack.namespace.pid()} --net -- ssh "$@"\n')
    ssh.chmod(0o755)
    query = urllib.parse.urlencode({"keyfile": rack.key, "known_hosts": known_hosts, "command": ssh})
    return f"qemu+ssh://root@{address}/system?{query}"


def host_key(rack: Rack, name: str) -> str:
    """The line of known_hosts for a machine."""
    return f"{rack.nodes[name].address} {rack.do(name, 'cat /etc/ssh/ssh_host_ed25519_key.pub')}"


@pytest.fixture(scope="module", params=KINDS)
def bench(request: pytest.FixtureRequest, program: Program) -> Iterator[Bench]:
    """A lab whose node has been made and not started yet; destroyed at the end."""
    kind = str(request.param)
    home = Home(program.state, program.cache)
    store, downloads = store_of(home), Downloads(home.cache / "packages")
    image = image_for(kind, store, downloads, program.state.parent / "images.log")
    with other_machine(kind, program) as rack:
        before = Machine.look(program.state)
        found = look(rack, NODE.name) if rack and kind == "host" else {}
        lab = Lab(home, f"test-{kind}")
        elsewhere = kind == "elsewhere"
        settings = LabSettings(
            profile="openstack",
            release="epoxy",
            topology="t",
            node_kind="vm" if elsewhere else kind,
            connect=uri_of(rack) if rack and elsewhere else "",
            nodes=(replace(NODE, kind=kind, key=str(rack.key)) if rack and not elsewhere else NODE,),
        )
        lab.save(settings)
        (lab.folder / SECRETS).write_text("{}\n")
        try:
            lab.namespace.start()
            ensure_keys(lab, (NODE,))
            if rack and not elsewhere:
                (lab.folder / "ssh" / "known_hosts").write_text(host_key(rack, NODE.name))
            folders = [each.tree_of(NODE.name) for each in store.chain(image)]
            assert lab.provider.state(NODE) is NodeState.ABSENT
            lab.provider.create(NODE, folders, identity_files(lab, NODE))
            yield Bench(lab, store, downloads, before, kind, rack, found)
        finally:
            lab.destroy()


def test_a_node_that_is_made_is_off_and_stands_on_its_image(bench: Bench) -> None:
    if bench.is_host:  # it was there before
        assert bench.state() is NodeState.RUNNING
        assert bench.lab.provider.image(NODE) == []
        return
    assert bench.state() is NodeState.STOPPED
    assert all(folder.is_relative_to(bench.store.folder) for folder in bench.lab.provider.image(NODE))


def test_it_starts_as_itself(bench: Bench) -> None:
    assert bench.lab.start() is not bench.is_host
    assert bench.state() is NodeState.RUNNING
    assert bench.run("hostname") == NODE.name
    assert len(bench.run("cat /etc/machine-id")) == 32
    assert f"{NODE.address}/24" in bench.run("ip -brief address show eth0")
    assert bench.run("ip -brief link show eth1").split()[1] == "UP"
    wait_for("systemd has nothing left to start", lambda: not bench.run("systemctl list-jobs -q"), 120)
    assert bench.run("systemctl --failed --quiet --plain --no-legend list-units") == ""


def test_to_start_it_again_changes_nothing(bench: Bench) -> None:
    boot = bench.run("stat -c %Y /proc/1")
    assert not bench.lab.start()
    assert bench.run("stat -c %Y /proc/1") == boot


def test_packages_are_installed_and_it_runs_on(bench: Bench) -> None:
    log = bench.lab.folder / "images.log"
    bench.lab.provider.install(NODE, Installation([PACKAGE], bench.downloads, log))
    wait_for_ssh(bench.lab, NODE)
    assert bench.run(f"dpkg-query --show --showformat='${{db:Status-Status}}' {PACKAGE}") == "installed"
    assert bench.run("hostname") == NODE.name


def test_what_was_frozen_comes_back_and_what_came_later_does_not(bench: Bench) -> None:
    inputs = {"lab": bench.lab.name, "name": "", "n": 1}
    if bench.is_host:
        with pytest.raises(UsageError, match="hosts are not frozen"):
            freeze(bench.lab, bench.store, "checkpoint", inputs)
        return
    bench.run(
        "echo before > /root/mark; ln -s mark /root/link; mkdir -m 700 /root/own; rm /etc/debian_version"
    )
    host_key = bench.run("cat /etc/ssh/ssh_host_ed25519_key.pub")
    machine = bench.run("cat /etc/machine-id")
    image = freeze(bench.lab, bench.store, "checkpoint", inputs)
    assert bench.state() is NodeState.RUNNING, "the lab runs on"
    bench.run("echo after > /root/mark; touch /root/later; sync")
    thaw(bench.lab, bench.store, image)
    assert bench.state() is NodeState.STOPPED
    assert bench.lab.start()
    assert bench.run("cat /root/mark /root/link") == "before\nbefore"
    assert bench.run("ls -A /root | grep -c later || true") == "0"
    assert bench.run("stat -c %a /root/own") == "700"
    assert bench.run("test ! -e /etc/debian_version && echo gone") == "gone"
    assert bench.run("cat /etc/ssh/ssh_host_ed25519_key.pub") == host_key, "the lab's own key"
    assert bench.run("cat /etc/machine-id") != machine, "another copy of the image"
    assert bench.store.name_of(bench.lab.provider.image(NODE)[0]) == image.name


def test_a_node_that_ends_by_itself_is_in_the_journal_and_starts_again(bench: Bench) -> None:
    if bench.rack and bench.is_host:  # nobody tells; whoever asks is told
        bench.rack.power_off(NODE.name)
        wait_for("the host is gone", lambda: bench.state() is NodeState.UNREACHABLE, EVENT_SECONDS)
        bench.rack.power_on(NODE.name)
        assert bench.state() is NodeState.RUNNING
        return
    process = first_process(bench)
    began = time.time()
    os.kill(process, signal.SIGKILL)
    wait_for("the node is off", lambda: bench.state() is NodeState.STOPPED, 10)
    kind = END_EVENT[bench.lab.settings.node_kind]

    def told() -> list[float]:
        return [moment for moment in bench.events(kind) if moment > began]

    wait_for("the event", told, EVENT_SECONDS)
    assert bench.lab.start()
    assert bench.run("cat /root/mark") == "before"


def test_its_memory_is_kept_where_it_can_be(bench: Bench) -> None:
    inputs = {"lab": bench.lab.name, "name": "", "n": 2, "at": time.time()}  # none of an earlier run's
    if bench.kind != "vm":
        with pytest.raises(UsageError, match=r"cannot keep their memory|hosts are not frozen"):
            freeze(bench.lab, bench.store, "checkpoint", inputs, memory=True)
        assert bench.state() is NodeState.RUNNING
        return
    bench.run("mkdir -p /run/only-in-memory")
    boot = bench.run("cat /proc/sys/kernel/random/boot_id")
    image = freeze(bench.lab, bench.store, "checkpoint", inputs, memory=True)
    frozen = time.time()
    assert bench.run("cat /proc/sys/kernel/random/boot_id") == boot, "the lab runs on"
    bench.run("rmdir /run/only-in-memory")
    thaw(bench.lab, bench.store, image)
    tolerance = CLOCK_SECONDS * bench.lab.patience
    # A clock that nobody sets is to be further behind than is forgiven.
    wait_for("a clock that is wrong", lambda: time.time() - frozen > tolerance, 2 * tolerance)
    bench.lab.start()
    assert bench.run("cat /proc/sys/kernel/random/boot_id; ls -d /run/only-in-memory").split() == [
        boot,
        "/run/only-in-memory",
    ]
    before = time.time()
    clock = float(bench.run("date +%s.%N"))
    assert before - tolerance < clock < time.time() + tolerance


def test_a_line_that_breaks_is_mended_by_start(bench: Bench) -> None:
    """Of nodes elsewhere: the network goes away under one that runs, as when this machine is carried off."""
    if not bench.rack or bench.is_host:
        return
    bench.run("echo kept > /root/mark")
    rack = bench.rack
    end = "sleep 1; systemctl kill --signal=KILL 'session-*.scope' ssh.service"  # ours has ended by then
    rack.do(OTHER, f'systemd-run sh -c "{end}"')
    wait_for("the node is not reached", lambda: bench.state() is NodeState.STOPPED, 60)
    wait_for("its machine is back", lambda: rack.run(OTHER, "true").returncode == 0, 60)
    assert bench.lab.start()
    assert bench.run("cat /root/mark") == "kept"


def test_kvm_is_proved_there_as_it_is_here(bench: Bench) -> None:
    provider = bench.lab.provider
    if not isinstance(provider, VmElsewhereProvider):
        return
    kernel = provider.image(NODE)[-1] / VMLINUZ
    works, _ = provider.prove_kvm(kernel)
    assert works == kvm.prove(bench.lab.home.cache, kernel).works


def test_a_node_that_was_left_held_goes_on_with_start(bench: Bench) -> None:
    """Of nodes elsewhere: whoever copied their disks was killed before it let them go on."""
    if not bench.rack or bench.is_host:
        return
    boot = bench.run("cat /proc/sys/kernel/random/boot_id")
    bench.rack.do(OTHER, "virsh -q suspend $(virsh -q list --name)")
    assert bench.state() is NodeState.STOPPED
    assert bench.lab.start()
    assert bench.run("cat /proc/sys/kernel/random/boot_id") == boot


def test_it_is_shut_down_in_order_and_not_by_force(bench: Bench) -> None:
    began = time.monotonic()
    bench.lab.stop()
    assert bench.state() is NodeState.STOPPED
    assert time.monotonic() - began < SHUTDOWN_SECONDS * bench.lab.patience


def test_nothing_is_left_of_it(bench: Bench) -> None:
    bench.lab.destroy()
    assert not bench.lab.folder.exists()
    if bench.rack and bench.is_host:
        assert differences(bench.found, look(bench.rack, NODE.name)) == {}
        return
    if bench.rack:
        left = "virsh -q list --all --name; virsh -q pool-list --all --name; ls /var/lib/libvirt/images"
        assert bench.rack.do(OTHER, left).split() == []
    assert not left_over_since(bench.before, bench.lab.home.state)


def first_process(bench: Bench) -> int:
    """The process whose end is that of the node: QEMU, or the first one of the container."""
    there = (bench.rack or bench.lab).namespace
    group = f"/stacklab/{Namespace(there.folder, there.name).group}/"
    is_container = bench.kind == "lxc"
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            inside = (folder / "status").read_text().partition("NSpid:")[2].splitlines()[0].split()
            ours = group in (folder / "cgroup").read_text()
        except (OSError, IndexError):  # it has ended
            continue
        is_qemu = words[0].endswith(b"qemu-system-x86_64") and re.search(
            rf"guest=([a-z0-9.-]*\.)?{NODE.name},".encode(), b" ".join(words)
        )
        if ours and (is_qemu or (is_container and len(inside) == 3 and inside[-1] == "1")):
            return int(folder.name)
    raise AssertionError("the node has no process")
