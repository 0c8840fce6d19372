"""Exact versions: written down from a lab that runs, asked for by another, refused when they are gone.

The default run costs seconds on top of the layer 1 that all lab tests share.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.lab.program import EXAMPLES, Program, TestLab


@pytest.fixture(scope="module")
def locked(layer1: TestLab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The versions of the lab's packages, in a file."""
    file = tmp_path_factory.mktemp("lock") / "versions.yaml"
    layer1.run("lock", str(file))
    return file


def installed(lab: TestLab) -> dict[str, str]:
    show = "dpkg-query --show --showformat='${db:Status-Status} ${Package} ${Version}\\n'"
    lines = [line.split() for line in lab.run("ssh", "controller", show).splitlines()]
    return {name: version for state, name, version in lines if state == "installed"}


def test_lock_writes_the_version_of_every_package(layer1: TestLab, locked: Path) -> None:
    document = yaml.safe_load(locked.read_text())
    assert document["packages"] == installed(layer1)
    assert (document["release"], document["profile"]) == ("epoxy", "openstack")


def test_versions_that_are_gone_are_all_told_before_anything_is_built(
    program: Program, locked: Path, tmp_path: Path
) -> None:
    document = yaml.safe_load(locked.read_text())
    there = document["packages"]["nova-api"]
    document["packages"] |= {"nova-api": "1:2.3-4", "keystone": "5:6.7-8"}
    gone = tmp_path / "versions.yaml"
    gone.write_text(yaml.safe_dump(document))
    refused = program.try_("up", "--layer", "1", "--lab", "lock-gone", "--locked", str(gone))
    assert refused.returncode == 3
    words = " ".join(refused.stderr.split())
    assert "2 of the locked packages are gone from the mirror" in words
    told = dict(re.findall(r"(\S+ \S+) \(there is: ([^)]*)\)", words))
    # a mirror keeps several versions after an update
    assert there in told["nova-api 1:2.3-4"].split(", ")
    assert "keystone 5:6.7-8" in told
    assert program.try_("status", "--lab", "lock-gone").returncode == 2


def test_a_standing_lab_of_other_versions_is_not_taken_over(layer1: TestLab, locked: Path) -> None:
    refused = layer1.try_("up", "--locked", str(locked))
    assert refused.returncode == 2
    assert "is not built by the versions in" in refused.stderr


def test_plan_says_why_an_image_does_not_match(program: Program, layer1: TestLab) -> None:
    words = ("plan", "--layer", "1", "--lab", "lock-plan", "--output", "json")
    assert json.loads(program.run(*words))["start"]["image"].startswith("layer-")
    planned = json.loads(program.run(*words, "--with", "hello", "--path", str(EXAMPLES)))["start"]
    assert planned["image"] == ""
    assert planned["closest"].startswith("layer-")
    # "is new" beside the image of a plain layer, "changed" beside one that a test made with a service like it
    assert any("/etc/hello.ini" in reason for reason in planned["reasons"])


@pytest.fixture
def second(program: Program) -> Iterator[TestLab]:
    lab = TestLab(program, "lock-second")
    yield lab
    lab.try_("destroy", "--yes")


@pytest.mark.slow
def test_a_lab_is_built_of_the_locked_versions(second: TestLab, layer1: TestLab, locked: Path) -> None:
    """Packages are installed anew, some three minutes."""
    second.up("--locked", str(locked))
    assert installed(second) == installed(layer1)
