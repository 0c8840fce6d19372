"""Virtual machines, by the program: layer 1, verify, down, memory, clone, destroy; and all of layer 2.

Emulated it takes hours on two cores, so it is not part of the default run; test_contract.py is.
The tests run in the order of the file.
"""

import time
from collections.abc import Iterator

import pytest

from tests.lab.machine import Machine, left_over_since
from tests.lab.program import Program, TestLab

pytestmark = [pytest.mark.slow, pytest.mark.timeout(10800)]


@pytest.fixture(scope="module")
def before(program: Program) -> Machine:
    """The machine before the lab."""
    return Machine.look(program.state)


@pytest.fixture(scope="module")
def lab(program: Program, before: Machine) -> Iterator[TestLab]:
    """A lab on layer 1 whose node is a virtual machine; destroyed at the end."""
    lab = TestLab(program, "test-virtual")
    try:
        lab.run("up", "--layer", "1", "--node-kind", "vm", timeout=7200.0)
        yield lab
    finally:
        lab.try_("destroy", "--yes")


def run(lab: TestLab, verb: str, *arguments: str) -> str:
    return lab.run(verb, *arguments, timeout=3600.0)


def test_it_stands_on_layer_1_and_passes_its_checks(lab: TestLab) -> None:
    assert lab.status()["layer"] == 1
    run(lab, "verify")


def test_its_node_has_a_kernel_of_its_own(lab: TestLab) -> None:
    assert run(lab, "ssh", "controller", "--", "systemd-detect-virt").strip() in ("qemu", "kvm")


def names(lab: TestLab, kind: str) -> set[str]:
    """What there is of a kind, by the cloud's own word."""
    return {each["Name"] for each in lab.openstack(*kind.split(), "list")}


def test_what_came_later_is_gone_after_stepping_down(lab: TestLab) -> None:
    lab.exec("openstack", "project", "create", "later")
    run(lab, "down", "--to", "1")
    assert "later" not in names(lab, "project")


def test_its_memory_comes_back_with_what_was_there(lab: TestLab) -> None:
    lab.exec("openstack", "project", "create", "kept")
    boot = run(lab, "ssh", "controller", "--", "cat /proc/sys/kernel/random/boot_id")
    lab.program.run("checkpoint", "save", "kept", "--memory", "--lab", lab.name)
    lab.exec("openstack", "project", "delete", "kept")
    lab.program.run("checkpoint", "restore", "kept", "--lab", lab.name)
    assert "kept" in names(lab, "project")
    assert run(lab, "ssh", "controller", "--", "cat /proc/sys/kernel/random/boot_id") == boot
    clock = float(run(lab, "ssh", "controller", "--", "date +%s.%N"))
    assert abs(clock - time.time()) < 5.0
    run(lab, "verify")


def test_a_clone_is_another_cloud(lab: TestLab) -> None:
    copy = TestLab(lab.program, "test-virtual-copy")
    lab.program.run("clone", lab.name, copy.name, timeout=3600.0)
    try:
        copy.exec("openstack", "project", "create", "mine")
        assert "mine" not in names(lab, "project")
    finally:
        copy.run("destroy", "--yes")


def test_nothing_is_left_of_it(lab: TestLab, before: Machine) -> None:
    run(lab, "destroy", "--yes")
    assert not left_over_since(before, lab.program.state)


def test_layer_2_lies_on_lvm(program: Program, before: Machine) -> None:
    """The checks at its end write to volumes of both types, in Ceph and on LVM, and read them.

    A new lab, as one that stands climbs in the machine, where all is emulated.
    """
    lab = TestLab(program, "test-virtual-two")
    choice = ("--node-kind", "vm", "--with", "cinder-on-lvm,cinder-backup")
    try:
        lab.run("up", "--layer", "2", *choice, timeout=10000.0)
        assert {"ceph", "lvm"} <= names(lab, "volume type")
        assert "cinder-volumes" in run(lab, "ssh", "controller", "--", "vgs --noheadings -o vg_name")
    finally:
        run(lab, "destroy", "--yes")
    assert not left_over_since(before, program.state)
