"""The climb, on a lab whose nodes are played by programs of this machine."""

import errno
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from stacklab import climb as climb_module
from stacklab import restore as restore_module
from stacklab.blueprint import UpRequest, resolve, resolve_climb
from stacklab.checkpoint import clone
from stacklab.climb import Climb, running_services, up
from stacklab.errors import HostUnfit, LabBusy, LabDamaged, StepFailed
from stacklab.home import Home
from stacklab.host import checks
from stacklab.host.checks import NODE_MEMORY, needs_beyond
from stacklab.images import store as store_module
from stacklab.images.guest import Guest
from stacklab.images.store import Image, Store
from stacklab.lab.lab import Lab
from stacklab.lab.machine import MachineNetwork
from stacklab.provide.lxc import LxcProvider
from stacklab.provide.provider import NodeState
from stacklab.render import STEPS_FILE, HostFacts, Rendered, Renderer
from stacklab.restore import down, start
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


CAT = f"""\
#!/bin/sh
test "$1" = {STEPS_FILE} && set -- "$(dirname "$0")/steps.json"
exec /bin/cat "$@"
"""


DPKG_QUERY = """\
#!/bin/sh
shift 2
printf 'installed %s\\n' "$@"
"""


class Played(Lab):
    """A lab whose nodes have the programs of its folder `bin`, and those of this machine."""

    @property
    def namespace(self) -> MachineNetwork:
        return self._network

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


class Rehearsed(Climb):
    """A climb on nodes that need not be made."""

    def _make(self) -> None:
        return None

    def _guest(self) -> Guest:
        return Guest.at(Path("/nonexistent"))

    def render(self, layer: int, guest: Guest | None = None) -> Rendered:
        return Renderer(self.lab.name, self.blueprint, {}, HOST).layer(layer)


def climb(lab: Lab, layer: int | None = None) -> Climb:
    return Rehearsed(lab, resolve_climb(lab, UpRequest(lab=lab.name, layer=layer)), HOST, online=False)


def test_units_that_cannot_be_stopped_are_told_and_units_that_never_came_are_not_asked(lab: Played) -> None:
    steps = [{"id": "gone/controller", "units": ["old", "never"]}]
    programs = lab.folder / "bin"
    write(programs / "steps.json", json.dumps(steps))
    write(programs / "cat", CAT).chmod(0o755)
    of = climb(lab)
    rendered = Renderer(lab.name, of.blueprint, {}, HOST).layer(1)
    of._stop_gone_units(rendered)
    assert (programs / "calls").read_text().splitlines()[-1] == "disable --now -- old.service"
    write(programs / "fault", "old.service refuses\n")
    with pytest.raises(StepFailed, match="`systemctl` failed on node 'controller'") as failed:
        of._stop_gone_units(rendered)
    assert failed.value.detail == "old.service refuses"


def test_what_a_climb_that_was_cut_off_has_brought_up_is_not_asked_for_twice(
    lab: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LxcProvider, "state", lambda *_: NodeState.RUNNING)
    services = Path(lab.settings.path[0]) / "services"
    for name in ("two", "three"):
        needs = "needs: {memory: 1000 MiB, disk: 500 MiB}\n"
        parts = f"parts: {{controller: {{units: [{name}-api, {name}-worker]}}}}\n"
        write(services / name / "service.yaml", f"version: 1\nname: {name}\ntitle: x\n{needs}{parts}")
    write_profile(services.parent, "one", "two three")
    states = "\n".join(f"ActiveState={state}\n" for state in ("active", "active", "active", "failed"))
    write(lab.folder / "bin" / "systemctl", f"#!/bin/sh\ncat <<.\n{states}.\n")
    blueprint = resolve_climb(lab, UpRequest(lab="blue", layer=2))
    running = running_services(lab, blueprint)
    assert len(running & {"two", "three"}) == 1
    still = needs_beyond(running, lab.home, blueprint)
    assert (still.memory, still.state) == (1000, 500)
    assert needs_beyond((), lab.home, blueprint).memory == 2000 + NODE_MEMORY
    lab.namespace.stop()
    assert not running_services(lab, blueprint)


def test_labs_are_not_started_without_memory_for_all_of_them(
    lab: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = Path(lab.settings.path[0]) / "services" / "one" / "service.yaml"
    service.write_text(service.read_text() + "needs: {memory: 1000 MiB}\n")
    monkeypatch.setattr(checks, "available_memory", lambda: 900)
    monkeypatch.setattr(MachineNetwork, "pid", lambda _: None)
    for attempt, needed in (
        (lambda: start(lab, lambda _: None), "1.3 GiB"),
        (lambda: clone(lab, ["green", "red"], lambda _: None), "2.5 GiB"),
    ):
        with pytest.raises(HostUnfit, match=f"900 MiB of memory are free, and the lab takes {needed}"):
            attempt()
    assert [each.name for each in Lab.all(lab.home)] == ["blue"]


def test_an_installation_that_was_cut_off_is_done_again_though_all_packages_are_there(
    lab: Played, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(climb_module, "UNFINISHED", tmp_path / "enabled-before")
    with (Path(lab.settings.path[0]) / "services" / "one" / "service.yaml").open("a") as service:
        service.write("parts: {controller: {packages: [one, python3-one]}}\n")
    write(lab.folder / "bin" / "dpkg-query", DPKG_QUERY).chmod(0o755)
    of = climb(lab)
    installed: list[str] = []
    monkeypatch.setattr(of, "_install", lambda _node, packages, _layer: installed.extend(packages))
    of._install_on(lab.controller, 1)
    assert installed == []
    (tmp_path / "enabled-before").touch()
    of._install_on(lab.controller, 1)
    assert installed == ["one", "python3-one"]


def test_a_new_lab_whose_images_are_lost_is_given_new_nodes(
    lab: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    def far_enough(*_: object, **__: object) -> None:
        raise StepFailed("far enough")

    monkeypatch.setattr(climb_module, "preflight", far_enough)
    lab.save(lab.settings.model_copy(update={"node_kind": "lxc"}))
    disk = lab.folder / "nodes" / lab.controller.name
    write(disk / "lower", f"{lab.home.cache}/images/base-1/tree")
    with pytest.raises(LabDamaged, match="images that have gone"):
        up(lab.home, UpRequest(lab=lab.name), lambda _: None)
    lab.save(lab.settings.model_copy(update={"thawing": "layer-2"}))  # its disks are made anew anyway
    with pytest.raises(StepFailed, match="far enough"):
        up(lab.home, UpRequest(lab=lab.name), lambda _: None)
    lab.save(lab.settings.model_copy(update={"layer": 0, "thawing": ""}))
    with pytest.raises(StepFailed, match="far enough"):
        up(lab.home, UpRequest(lab=lab.name), lambda _: None)
    assert not disk.exists()


def test_what_another_command_is_about_to_change_is_not_read(lab: Played) -> None:
    with lab.locked(), pytest.raises(LabBusy):
        up(lab.home, UpRequest(lab="blue", profile="no such profile"), lambda _: None)


@pytest.fixture(autouse=True)
def images_are_not_sealed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "seal_in_background", lambda _: None)


class Stage:
    """What a climb does to the nodes, in words; and what it fails with when it freezes."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.full: OSError | None = None

    def check(self, _lab: Lab, _blueprint: object, layer: int) -> None:
        self.done.append(f"check {layer}")

    def freeze(self, _lab: Lab, store: Store, kind: str, inputs: Mapping[str, Any], *, title: str) -> Image:
        if self.full:
            raise self.full
        self.done.append(f"freeze {title}")
        return store.add(kind, inputs, lambda _: None, stands_on=[], title=title)


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    stage = Stage()
    monkeypatch.setattr(climb_module, "check_layer", stage.check)
    monkeypatch.setattr(climb_module, "freeze", stage.freeze)
    monkeypatch.setattr(climb_module, "is_healthy", lambda *_: True)
    for name in ("run_playbook", "await_cloud"):
        monkeypatch.setattr(climb_module, name, lambda *_, **__: None)
    return stage


def test_a_layer_that_could_not_be_frozen_is_checked_and_frozen_by_the_next_up(
    lab: Played, stage: Stage
) -> None:
    stage.full = OSError(errno.ENOSPC, "no space left")
    with pytest.raises(OSError, match="no space left"):
        climb(lab, 2).run()
    assert lab.settings.layer == 2
    stage.full = None
    assert climb(lab).run()
    assert stage.done == ["check 2", "check 2", "freeze layer 2 of cloud, frozen later"]
    assert not climb(lab).run()


def test_a_layer_that_could_not_be_frozen_is_frozen_before_the_next_one_comes(
    lab: Played, stage: Stage
) -> None:
    lab.save(lab.settings.model_copy(update={"unfrozen": 1}))
    assert climb(lab, 2).run()
    later, at_once = "freeze layer 1 of cloud, frozen later", "freeze layer 2 of cloud"
    assert stage.done == ["check 1", later, "check 2", at_once]


def test_a_layer_counts_as_checked_when_it_is_written_down_that_the_lab_stands_on_it(
    lab: Played, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        of = climb(lab, 2)
        patched.setattr(lab, "save", killed)
        of.run()
    assert lab.settings.layer == 1
    assert climb(lab, 2).run()
    assert lab.settings.layer == 2
    assert stage.done == ["check 2", "check 2", "freeze layer 2 of cloud"]


def test_a_step_down_finds_a_layer_as_it_came_up_though_it_would_be_built_otherwise_today(
    lab: Played, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert climb(lab, 2).run()
    thawed: list[Image] = []
    monkeypatch.setattr(restore_module, "restore", lambda _lab, _store, image: thawed.append(image))
    write(Path(lab.settings.path[0]) / "services" / "two" / "files" / "etc" / "two.conf.j2", "new\n")
    down(lab, 2, lambda _: None)
    assert [image.name for image in thawed] == [lab.settings.layer_images[2]]
    assert stage.done == ["check 2", "freeze layer 2 of cloud"]
