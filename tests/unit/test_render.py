"""What cannot be rendered or installed is told at the line of the service that asks for it."""

from pathlib import Path

import pytest

from stacklab.blueprint import Blueprint, UpRequest, packages_traced, resolve
from stacklab.errors import ModelError, StepFailed
from stacklab.home import Home
from stacklab.lab.lab import Lab
from stacklab.lab.secrets import placeholder_secrets
from stacklab.render import HostFacts, Renderer
from tests.unit.catalogs import write, write_profile

MOTD = """\
version: 1
name: motd
title: Message of the day
secrets: [admin]
parts:
  controller:
    packages: [motd-server, figlet]
initialise:
  - {name: first, run: "echo {{ node.adress }}"}
  - name: second
    run: |
      echo {{ secrets.motd.admin }}
      echo {{ nodes[0].address + 1 }}
checks:
  - {name: greets, run: "greet {{ network.management.gatewy }}"}
"""


@pytest.fixture
def blueprint(tmp_path: Path) -> Blueprint:
    folder = tmp_path / "catalog"
    write(folder / "services" / "motd" / "service.yaml", MOTD)
    write(folder / "services" / "motd" / "files" / "etc" / "motd.j2", "a\n{{ release.nam }}\n")
    write_profile(folder, "motd", name="greeting")
    lab = Lab(Home(tmp_path / "state", tmp_path / "cache"), "blue")
    return resolve(lab, UpRequest(lab="blue", layer=1, profile="greeting", path=(folder,)))


def problems(blueprint: Blueprint) -> list[str]:
    secrets = placeholder_secrets(Path("/nonexistent"), blueprint.services)
    with pytest.raises(ModelError) as raised:
        Renderer("blue", blueprint, secrets, HostFacts(kvm=False, openvswitch=False)).layer(1)
    folder = blueprint.services[0].folder
    return [str(problem).replace(f"{folder}/", "") for problem in raised.value.problems]


def test_words_that_are_not_there_are_told_at_their_lines_all_at_once(blueprint: Blueprint) -> None:
    assert problems(blueprint) == [
        "files/etc/motd.j2:2:1: cannot be rendered: there is no 'nam', did you mean 'name'?",
        "service.yaml:9:24: cannot be rendered: there is no 'adress', did you mean 'address'?",
        'service.yaml:13:1: cannot be rendered: TypeError: can only concatenate str (not "int") to str',
        "service.yaml:15:25: cannot be rendered: there is no 'gatewy', did you mean 'gateway'?",
    ]


def test_packages_that_the_mirror_does_not_have_are_told_at_their_lines(blueprint: Blueprint) -> None:
    said = "E: Unable to locate package figlet\nE: Package 'motd-server' has no installation candidate"
    with pytest.raises(ModelError) as raised, packages_traced(blueprint):
        raise StepFailed("installing the packages failed", detail=said, hint="less images.log")
    file = blueprint.services[0].file
    assert raised.value.detail.splitlines() == [
        f"{file}:7:16: the mirror has no package 'motd-server' in trixie",
        f"{file}:7:29: the mirror has no package 'figlet' in trixie",
    ]
    with pytest.raises(StepFailed, match="out of memory"), packages_traced(blueprint):
        raise StepFailed("out of memory")
