"""A lab of virtual machines without KVM, by the program: built on containers, and brought up in the machine.

The smallest cloud there is. Costs about five minutes on two cores. The tests run in the order of the file.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from stacklab.home import Home
from stacklab.host import kvm
from stacklab.images.store import Store
from stacklab.lab.lab import Lab
from tests.lab.machine import Machine, left_over_since
from tests.lab.program import Program, TestLab, wait_for

PROFILES = Path(__file__).parent / "profiles"
UP = ("--layer", "1", "--node-kind", "vm", "--profile", "identity", "--path", str(PROFILES))
SCHEMA = "keystone/sync.schema"


@pytest.fixture(scope="module")
def before(program: Program) -> Machine:
    """The machine before the lab."""
    return Machine.look(program.state)


def test_a_build_on_containers_that_was_killed_goes_with_its_lab(
    program: Program, before: Machine, tmp_path: Path
) -> None:
    lab = TestLab(program, "test-killed")
    builder = Lab(Home(program.state, program.cache), lab.name).builder
    up = lab.start("up", *UP, log=tmp_path / "up.log")
    try:
        wait_for(
            "the lab that builds, or its end", lambda: builder.namespace.pid() or up.poll() is not None, 300.0
        )
        if up.poll() is not None:
            assert kvm.works(program.cache), (tmp_path / "up.log").read_text()[-2000:]
    finally:
        up.kill()
        up.wait()
        lab.run("destroy", "--yes")
    assert not left_over_since(before, program.state)


@pytest.fixture(scope="module")
def lab(program: Program, before: Machine) -> Iterator[TestLab]:
    """A lab on layer 1 whose node is a virtual machine; destroyed at the end."""
    lab = TestLab(program, "test-emulated")
    try:
        lab.run("up", *UP)
        yield lab
    finally:
        lab.try_("destroy", "--yes")


def test_its_node_is_a_machine_and_its_cloud_answers(lab: TestLab) -> None:
    assert lab.run("ssh", "controller", "--", "systemd-detect-virt").strip() in ("qemu", "kvm")
    assert "admin" in {user["Name"] for user in lab.openstack("user", "list")}


def test_where_kvm_does_not_work_containers_have_built_it(lab: TestLab, program: Program) -> None:
    passed, works = lab.steps("passed"), kvm.works(program.cache)
    assert ("build on containers" in passed) is not works
    assert (SCHEMA in passed) is works, "the schema is to be made once, where that is quick"
    assert not (program.state / "builders").exists()


def test_it_is_frozen_as_it_came_up_in_the_machine(lab: TestLab, program: Program) -> None:
    (frozen,) = lab.status()["layer_images"].values()
    below = Store(program.cache / "images").get(frozen).stands_on
    assert [name.partition("-")[0] for name in below] == ["disk" if kvm.works(program.cache) else "seed"]


def test_nothing_is_left_of_it(lab: TestLab, before: Machine, program: Program) -> None:
    lab.run("destroy", "--yes")
    assert not left_over_since(before, program.state)
