"""The climb, on a lab whose nodes are played by programs of this machine."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from stacklab.blueprint import UpRequest, resolve
from stacklab.climb import Climb, up
from stacklab.errors import LabBusy, StepFailed
from stacklab.home import Home
from stacklab.lab.lab import Lab
from stacklab.render import STEPS_FILE, HostFacts, Renderer
from tests.unit.catalogs import write, write_profile, write_service

HOST = HostFacts(kvm=False, openvswitch=False)
SYSTEMCTL = """\
#!/bin/sh
here=$(dirname "$0")
echo "$@" >> "$here/calls"
if [ "$1" = show ]; then
    printf 'Id=old.service\\nLoadState=loaded\\n\\nId=never.service\\nLoadState=not-found\\n'
    exit
fi
if [ -e "$here/fault" ]; then
    cat "$here/fault" >&2
    exit 1
fi
"""


class Played(Lab):
    """A lab whose nodes have the programs of its folder `bin`, and those of this machine."""

    def ssh_command(self, node: str, argv: Sequence[str] = ()) -> list[str]:
        return ["env", f"PATH={self.folder / 'bin'}:/usr/bin:/bin", *argv]


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Played]:
    """A lab on layer 1, of two layers."""
    catalog = tmp_path / "catalog"
    for name in ("one", "two"):
        write_service(catalog, name)
    write_profile(catalog, "one", "two")
    lab = Played(Home(tmp_path / "state", tmp_path / "cache"), "blue")
    asked = UpRequest(lab="blue", profile="cloud", path=(catalog,))
    lab.save(resolve(lab, asked).settings.model_copy(update={"layer": 1, "services": ("one",)}))
    write(lab.folder / "bin" / "systemctl", SYSTEMCTL).chmod(0o755)
    yield lab
    lab.journal.close()


def climb(lab: Lab, layer: int | None = None) -> Climb:
    return Climb(lab, resolve(lab, UpRequest(lab=lab.name, layer=layer)), HOST, online=False)


def test_units_that_cannot_be_stopped_are_told_and_units_that_never_came_are_not_asked(lab: Played) -> None:
    steps = [{"id": "gone/controller", "units": ["old", "never"]}]
    before = lab.folder / "rendered" / "layer-1" / "files" / "controller"
    write(before / STEPS_FILE.lstrip("/"), json.dumps(steps))
    programs = lab.folder / "bin"
    of = climb(lab)
    rendered = Renderer(lab.name, of.blueprint, {}, HOST).layer(1)
    of._stop_gone_units(rendered)
    assert (programs / "calls").read_text().splitlines()[-1] == "disable --now -- old.service"
    write(programs / "fault", "old.service refuses\n")
    with pytest.raises(StepFailed, match="`systemctl` failed on node 'controller'") as failed:
        of._stop_gone_units(rendered)
    assert failed.value.detail == "old.service refuses"


def test_what_another_command_is_about_to_change_is_not_read(lab: Played) -> None:
    with lab.locked(), pytest.raises(LabBusy):
        up(lab.home, UpRequest(lab="blue", profile="no such profile"), lambda _: None)
