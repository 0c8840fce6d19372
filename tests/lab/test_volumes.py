"""Volumes in Ceph on a real layer 1: what the scenario says of them, and that they live through freezing.

Costs some six minutes on two cores, after the layer 1 that all lab tests share. The tests run in the order of
the file.
"""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.program import Program, TestLab

pytestmark = pytest.mark.slow

OSD_MIB = 400  # of a file of 10 GiB, after all that the checks write


def on_node(lab: TestLab, command: str) -> str:
    return lab.run("ssh", "controller", "--", command)


def content(lab: TestLab, volume: str) -> str:
    """The digest of all that is in a volume, as Ceph reads it."""
    return on_node(lab, f"rbd --id cinder export --no-progress volumes/volume-{volume} - | sha256sum")


def allocated(folder: Path) -> list[float]:
    """How much of the disk the OSD's files below a folder take, in MiB."""
    return [file.stat().st_blocks / 2048 for file in folder.rglob("var/lib/ceph/osd/ceph-0/block")]


@pytest.fixture(scope="module")
def lab(program: Program, layer1: TestLab) -> Iterator[TestLab]:
    """A lab on layer 1 with Cinder added to it; its checks, with the scenario, have passed."""
    lab = TestLab(program, "volumes")
    lab.up("--with", "cinder")
    yield lab
    lab.try_("destroy", "--yes")


def make(lab: TestLab, *arguments: str) -> str:
    """The id of a new volume of 1 GiB, once it is available."""
    made = lab.openstack("volume", "create", "--size", "1", *arguments)["id"]
    deadline = time.monotonic() + 120
    while (status := lab.openstack("volume", "show", made)["status"]) != "available":
        assert status in ("creating", "downloading")
        assert time.monotonic() < deadline
        time.sleep(1)
    return str(made)


@pytest.fixture(scope="module")
def volume(lab: TestLab) -> str:
    """The id of a volume with the guest in it."""
    return make(lab, "--image", "guest", "kept")


def test_data_moved_from_one_instance_to_another(lab: TestLab, tmp_path: Path) -> None:
    report = tmp_path / "verify.xml"
    lab.run("verify", "--junit", str(report))
    said = report.read_text()
    for words in (
        "what was written is there",
        "it grows while it is attached",
        "what was there then is there",
    ):
        assert words in said


def test_ceph_takes_little_of_the_disk(lab: TestLab, program: Program) -> None:
    (size,) = allocated(program.state / "labs" / lab.name)
    assert size < OSD_MIB


def test_a_volume_lives_through_a_checkpoint_and_is_in_clones(
    lab: TestLab, program: Program, volume: str
) -> None:
    before = content(lab, volume)
    program.run("checkpoint", "save", "with-volume", "--lab", lab.name)
    lab.exec("openstack", "volume", "delete", volume)
    program.run("checkpoint", "restore", "with-volume", "--lab", lab.name)
    assert content(lab, volume) == before
    assert all(size < OSD_MIB for size in allocated(program.state / "labs" / lab.name))
    clone = TestLab(program, "volumes-clone")
    program.run("clone", lab.name, clone.name)
    try:
        assert content(clone, volume) == before
        assert content(lab, volume) == before
    finally:
        clone.run("destroy", "--yes")


def test_services_about_volumes_come_and_go(lab: TestLab, volume: str) -> None:
    lab.run("up", "--with", "cinder-backup,encrypted-volumes")
    assert "encrypted" in {kind["Name"] for kind in lab.openstack("volume", "type", "list")}
    sealed = make(lab, "--type", "encrypted", "sealed")
    begin = f"rbd --id cinder export --no-progress volumes/volume-{sealed} - | head -c 4"
    assert on_node(lab, begin) == "LUKS"
    lab.exec("openstack", "volume", "delete", sealed)
    before = content(lab, volume)
    lab.run("up", "--without", "cinder-backup,encrypted-volumes")
    assert content(lab, volume) == before
    lab.exec("openstack", "volume", "delete", volume)
