"""A lab of virtual machines without KVM, by the program: built on containers, and brought up in the machine.

The smallest cloud there is. Costs about five minutes on two cores. The tests run in the order of the file.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from stacklab.host import kvm
from stacklab.images.store import Store
from tests.lab.machine import Machine, left_over_since
from tests.lab.program import Program, TestLab

PROFILES = Path(__file__).parent / "profiles"
SCHEMA = "keystone/sync.schema"


@pytest.fixture(scope="module")
def before(program: Program) -> Machine:
    """The machine before the lab."""
    return Machine.look(program.state)


@pytest.fixture(scope="module")
def lab(program: Program, before: Machine) -> Iterator[TestLab]:
    """A lab on layer 1 whose node is a virtual machine; destroyed at the end."""
    lab = TestLab(program, "test-emulated")
    arguments = ("--layer", "1", "--node-kind", "vm", "--profile", "identity", "--path", str(PROFILES))
    try:
        lab.run("up", *arguments)
        yield lab
    finally:
        lab.try_("destroy", "--yes")


def test_its_node_is_a_machine_and_its_cloud_answers(lab: TestLab) -> None:
    assert lab.run("ssh", "controller", "--", "systemd-detect-virt").strip() in ("qemu", "kvm")
    assert "admin" in {user["Name"] for user in lab.openstack("user", "list")}


def test_where_kvm_does_not_work_containers_have_built_it(lab: TestLab, program: Program) -> None:
    passed, works = lab.steps("passed"), kvm.works(program.cache)
    assert ("layer 1 on containers" in passed) is not works
    assert (SCHEMA in passed) is works, "the schema is to be made once, where that is quick"
    assert not (program.state / "builders").exists()


def test_it_is_frozen_as_it_came_up_in_the_machine(lab: TestLab, program: Program) -> None:
    (frozen,) = lab.status()["layer_images"].values()
    below = Store(program.cache / "images").get(frozen).stands_on
    assert [name.partition("-")[0] for name in below] == ["disk" if kvm.works(program.cache) else "seed"]


def test_nothing_is_left_of_it(lab: TestLab, before: Machine, program: Program) -> None:
    lab.run("destroy", "--yes")
    assert not left_over_since(before, program.state)
