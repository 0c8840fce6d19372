"""Stepping down on hosts: what was cut off is completed."""

import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from stacklab.blueprint import UpRequest, resolve
from stacklab.errors import StepFailed
from stacklab.home import Home
from stacklab.host.checks import host_facts
from stacklab.lab import access
from stacklab.lab.lab import Lab
from stacklab.remote.climb import HostClimb
from stacklab.restore import down
from tests.unit.catalogs import write, write_profile, write_service

RACK = """\
version: 1
name: rack
title: A host
provider: {cidr: 192.0.2.0/24, gateway: 192.0.2.1, start: 192.0.2.100, end: 192.0.2.200}
nodes:
  - {name: brain, kind: host, address: 198.51.100.11, roles: [controller]}
"""
DROPPED = "mariadb DROP DATABASE IF EXISTS `two`; DROP USER IF EXISTS 'two'@'%';"


class Hosts(Lab):
    """A lab of hosts that do all that they are told. fault: the command that one of them refuses."""

    told: list[str]
    fault = ""

    def run_on(
        self, node: str, argv: Sequence[str], *, stdin: str = "", check: bool = False
    ) -> "subprocess.CompletedProcess[str]":
        words = " ".join(argv).removeprefix("python3 - ")
        if argv[0] == "mariadb":
            words += f" {stdin}".replace("\n", " ")
        if self.fault and words.startswith(self.fault):
            raise StepFailed(f"{words} was cut off")
        if argv[0] in ("python3", "mariadb"):
            self.told.append(words)
        return subprocess.CompletedProcess(list(argv), 0, self.mark, "")


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hosts]:
    """A lab on layer 2; the service `two` of that has a database. To apply a layer is a word as well."""
    catalog = tmp_path / "catalog"
    write_service(catalog, "one")
    file = write_service(catalog, "two")
    write(file, file.read_text() + "database: {names: [two]}\nsecrets: [database]\n")
    write_profile(catalog, "one", "two")
    topology = write(tmp_path / "rack.yaml", RACK)
    lab = Hosts(Home(tmp_path / "state", tmp_path / "cache"), "rack")
    lab.told = []
    asked = UpRequest(lab="rack", layer=2, profile="cloud", topology=str(topology), path=(catalog,))
    lab.save(resolve(lab, asked).settings.model_copy(update={"layer": 2, "services": ("one", "two")}))

    def apply(_: HostClimb, layer: int) -> None:
        lab.run_on("brain", ["python3", "-", f"apply {layer}"])
        lab.save(lab.settings.model_copy(update={"services": ("one",)}))

    monkeypatch.setattr(access, "wait_for_ssh", lambda *_: None)
    monkeypatch.setattr(HostClimb, "render", lambda _, layer: layer)
    monkeypatch.setattr(HostClimb, "apply", apply)
    yield lab
    lab.journal.close()


WHOLE = ["retire two", "apply 1", DROPPED, "forget two", "undo layer-2"]


def test_what_came_above_a_layer_goes_in_reverse(lab: Hosts) -> None:
    down(lab, 1, lambda _: None)
    assert lab.told == WHOLE
    assert (lab.settings.layer, lab.settings.target, lab.settings.stepping_down) == (1, 1, None)


@pytest.mark.parametrize("fault", ["retire", "apply", "mariadb", "forget", "undo"])
def test_a_step_down_that_was_cut_off_is_completed_by_the_next(lab: Hosts, fault: str) -> None:
    lab.fault = fault
    with pytest.raises(StepFailed, match="was cut off"):
        down(lab, 1, lambda _: None)
    lab.fault, lab.told = "", []
    down(lab, 1, lambda _: None)
    assert lab.told == WHOLE
    assert lab.settings.stepping_down is None


def test_a_step_down_that_was_cut_off_is_completed_by_the_next_up(
    lab: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.fault = "mariadb"
    with pytest.raises(StepFailed, match="was cut off"):
        down(lab, 1, lambda _: None)
    lab.fault, lab.told = "", []
    blueprint = resolve(lab, UpRequest(lab="rack", layer=2))
    lab.save(blueprint.settings)
    monkeypatch.setattr(HostClimb, "_stands", lambda _: True)
    climb = HostClimb(lab, blueprint, host_facts(lab.home, lab.settings), online=False)
    climb.run()
    assert lab.told == WHOLE
