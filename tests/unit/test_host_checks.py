"""Each check of the host judges facts: what a fit machine looks like, and what each lack is called."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stacklab.blueprint import UpRequest, resolve
from stacklab.home import Home
from stacklab.host import kinds, kvm
from stacklab.host.checks import (
    NODE_MEMORY,
    Finding,
    Needs,
    State,
    host_facts,
    judge,
    needs_of,
    nodes_finding,
)
from stacklab.host.facts import PROGRAMS, Facts, Space, gather
from stacklab.host.kind_checks import kind_findings
from stacklab.lab.cgroups import Hierarchy
from stacklab.lab.lab import Lab
from stacklab.lab.settings import LabSettings
from stacklab.model.service import Needs as ServiceNeeds
from stacklab.model.service import Service

V2 = (Hierarchy("", Path("/sys/fs/cgroup")),)
V1 = (Hierarchy("memory", Path("/cg/memory")), Hierarchy("name=systemd", Path("/cg/systemd")))
STATE, CACHE = Path("/state"), Path("/cache")
NEEDS = Needs(memory=2000, state=6000, cache=4000)
FIT = Facts(
    cgroups=V2,
    programs={name: Path("/usr/bin") / name for name in PROGRAMS},
    memory=8000,
    disk=(Space(STATE, 20000, 1), Space(CACHE, 20000, 1)),
)


def finding(name: str, needs: Needs = NEEDS, **changes: Any) -> Finding:
    return next(item for item in judge(replace(FIT, **changes), needs) if item.name == name)


def test_a_fit_machine_passes_every_check() -> None:
    assert {item.state for item in judge(FIT, NEEDS)} == {State.OK}


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("root", {"user": 1000}, "not root"),
        ("architecture", {"architecture": "aarch64"}, "aarch64"),
        ("programs", {"programs": {}}, "mmdebstrap"),
        ("libvirt", {"libvirt_drivers": frozenset({"network"})}, "lxc"),
        ("namespaces", {"features": frozenset()}, "namespaces"),
        ("overlay", {"features": FIT.features - {"overlay"}}, "overlay"),
        ("network devices", {"features": FIT.features - {"bridge"}}, "bridge"),
        ("tun", {"features": FIT.features - {"tun"}}, "/dev/net/tun"),
        ("control groups", {"cgroups": ()}, "no control groups"),
        ("control groups", {"cgroups_writable": False}, "read-only"),
        ("control groups", {"controllers": frozenset({"cpu"})}, "memory controller"),
        ("control groups", {"cgroups": V1[:1]}, "name=systemd"),
        ("memory", {"memory": 1999}, "2.0 GiB of memory are free"),
        ("disk", {"disk": (Space(STATE, 10500, 1), Space(CACHE, 10500, 1))}, "10.3 GiB are needed"),
        ("disk", {"disk": (Space(STATE, 20000, 1), Space(CACHE, 300, 2))}, "300 MiB are free for /cache"),
    ],
)
def test_what_a_lab_cannot_do_without_fails(name: str, changes: dict[str, Any], words: str) -> None:
    found = finding(name, **changes)
    assert found.state is State.FAILED
    assert words in found.what
    assert found.advice


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("distribution", {"distribution": "ubuntu", "version": "24.04"}, "ubuntu 24.04"),
        ("memory", {"memory": 2100}, "free"),
        ("confinement", {"apparmor": "enforced"}, "AppArmor"),
        ("confinement", {"selinux": "enforcing"}, "SELinux"),
    ],
)
def test_what_only_works_less_well_is_a_warning(name: str, changes: dict[str, Any], words: str) -> None:
    found = finding(name, **changes)
    assert found.state is State.WARNING
    assert words in found.what


def test_the_packages_to_install_are_named() -> None:
    programs = {
        name: path for name, path in FIT.programs.items() if name not in ("qemu-img", "ssh", "ssh-keygen")
    }
    found = finding("programs", programs=programs)
    assert found.what == "not installed: qemu-img, ssh, ssh-keygen"
    assert found.advice.endswith("apt-get install openssh-client qemu-utils")


@pytest.mark.parametrize(
    ("cgroups", "mode"), [(V2, "v2"), (V1, "v1"), ((*V1, Hierarchy("", Path("/cg/unified"))), "hybrid")]
)
def test_each_layout_of_control_groups_is_told_apart(cgroups: tuple[Hierarchy, ...], mode: str) -> None:
    found = finding("control groups", cgroups=cgroups)
    assert (found.state, found.what) == (State.OK, f"{mode}, with the memory controller")


def test_who_is_not_root_is_not_told_what_only_root_can_see() -> None:
    unseen = replace(FIT, user=1000, features=frozenset())
    failed = [item.name for item in judge(unseen, NEEDS) if item.state is State.FAILED]
    assert failed == ["root"]


def test_separate_disks_are_judged_separately() -> None:
    assert finding("disk", disk=(Space(STATE, 6600, 1), Space(CACHE, 4600, 2))).state is State.OK


def test_what_services_take_is_added_up() -> None:
    services = [
        Service(version=1, name=name, title=name, needs=ServiceNeeds.model_validate(needs))
        for name, needs in (("a", {"memory": "100 MiB", "disk": "10 MiB"}), ("b", {"memory": "200 MiB"}))
    ]
    needs = needs_of(services, images=False)
    assert (needs.memory, needs.state, needs.cache) == (600, 10, 0)
    assert needs_of([], images=False) == Needs()
    assert needs_of(services, images=False, nodes=3).memory == needs.memory + 2 * NODE_MEMORY


def test_an_emulated_machine_is_waited_for_longer(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    for name, emulated in (("QEMU TCG CPU version 2.5+", True), ("QEMU Virtual CPU version 2.5+", False)):
        cpuinfo.write_text(f"processor\t: 0\nmodel name\t: {name}\nflags\t: fpu\n")
        assert kvm.is_emulated(cpuinfo) is emulated


def test_this_machine_can_be_looked_at_in_no_time(tmp_path: Path) -> None:
    facts = gather([tmp_path / "not" / "there", tmp_path])
    assert facts.memory > 0
    assert [space.folder for space in facts.disk] == [tmp_path / "not" / "there", tmp_path]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("without", ["state", "cache", "nowhere"])
def test_overlays_are_tried_in_each_folder(
    without: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In place of the real programs, for there is hardly a file system here that takes none."""
    programs = {
        "unshare": 'while [ "$1" != sh ]; do shift; done; exec "$@"',
        "mount": f'case "$*" in *overlay*/{without}/*) exit 1; esac',
        "ip": "exit 0",
    }
    for name, text in programs.items():
        file = tmp_path / "bin" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"#!/bin/sh\n{text}\n")
        file.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    folders = [tmp_path / "state", tmp_path / "cache"]
    for folder in folders:
        folder.mkdir()
    features = gather(folders).features
    assert ("overlay" in features) is (without == "nowhere")
    assert {"namespaces", "veth", "bridge", "proc"} <= features


def test_nodes_that_are_too_small_for_the_chosen_services_are_told_with_figures(tmp_path: Path) -> None:
    whole = resolve(Lab(Home(tmp_path, tmp_path), "blue"), UpRequest(lab="blue", layer=1))
    assert nodes_finding(whole).state is State.OK
    nodes = tuple(replace(node, memory=1024) for node in whole.nodes)
    small = replace(whole, settings=whole.settings.model_copy(update={"nodes": nodes}))
    found = nodes_finding(small)
    assert found.state is State.FAILED
    assert "may take 1.0 GiB, the lab takes 2." in found.what
    assert "--without" in found.advice


@pytest.fixture
def with_kvm(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """A machine whose KVM was proved to work, or not to."""
    monkeypatch.setattr(kvm, "known", lambda _cache: kvm.Proof(request.param, "tried"))
    monkeypatch.setattr(kvm, "is_nested", lambda: True)
    monkeypatch.setattr(kvm, "is_emulated", lambda: False)


@pytest.mark.parametrize(
    ("with_kvm", "taken", "words"),
    [(True, "vm", "nearly at this machine's own speed"), (False, "lxc", "10 to 20 times as long")],
    indirect=["with_kvm"],
)
@pytest.mark.usefixtures("with_kvm")
def test_the_kinds_of_nodes_are_told_with_their_speed(taken: str, words: str, tmp_path: Path) -> None:
    found = {item.name: item for item in kind_findings(judge(FIT, NEEDS), tmp_path)}
    assert words in found["nodes: vm"].what
    assert [name for name, item in found.items() if "auto" in item.what] == [f"nodes: {taken}"]
    assert kinds.best(tmp_path) == taken


def test_a_kind_that_this_machine_cannot_run_names_what_is_missing(tmp_path: Path) -> None:
    facts = replace(FIT, features=FIT.features - {"fuse", "overlay"})
    lxc, vm = kind_findings(judge(facts, NEEDS), tmp_path)
    assert (lxc.state, lxc.what) == (State.WARNING, "not here: overlay")
    assert (vm.state, vm.what) == (State.WARNING, "not here: fuse and loop, overlay")


@pytest.mark.parametrize(
    ("with_kvm", "patience"), [(True, 1.0), (False, kinds.EMULATED)], indirect=["with_kvm"]
)
@pytest.mark.usefixtures("with_kvm")
def test_only_an_emulated_node_is_waited_for_longer(patience: float, tmp_path: Path) -> None:
    home = Home(tmp_path / "state", tmp_path / "cache")
    virtual = LabSettings(profile="p", release="r", topology="t", node_kind="vm")
    assert host_facts(home, virtual).patience == patience
    assert host_facts(home, virtual.model_copy(update={"node_kind": "lxc"})).patience == 1.0


@pytest.mark.parametrize(
    ("with_kvm", "kind", "inside"),
    [(True, "vm", False), (False, "vm", True), (True, "lxc", True), (False, "lxc", False)],
    indirect=["with_kvm"],
)
@pytest.mark.usefixtures("with_kvm")
def test_an_emulated_node_has_a_kvm_of_its_own(
    kind: str, inside: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kvm, "is_nested", lambda: False)
    settings = LabSettings(profile="p", release="r", topology="t", node_kind=kind)
    assert host_facts(Home(tmp_path / "state", tmp_path / "cache"), settings).kvm == inside


def test_nodes_that_are_emulated_elsewhere_have_a_kvm_of_their_own(tmp_path: Path) -> None:
    home = Home(tmp_path / "state", tmp_path / "cache")
    there = LabSettings(
        profile="p", release="r", topology="t", node_kind="vm", connect="qemu+ssh://there/system"
    )
    for works, nested, inside in ((True, True, True), (True, False, False), (False, False, True)):
        proved = there.model_copy(update={"connect_kvm": works, "connect_nested": nested})
        assert host_facts(home, proved).kvm == inside
