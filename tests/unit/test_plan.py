"""What `plan` says is what `up` would do, also of a lab that was put on an image."""

from pathlib import Path
from typing import Any

import pytest

from stacklab import recipe, restore
from stacklab.blueprint import Blueprint, UpRequest, resolve
from stacklab.cli.plan import lines
from stacklab.home import Home
from stacklab.host import kvm
from stacklab.images.store import Image
from stacklab.images.usage import store_of
from stacklab.lab.lab import Lab
from stacklab.plan import Plan, PlannedStart, make_plan
from tests.unit.catalogs import write, write_profile

SERVICE = """\
version: 1
name: {name}
title: The {name}
parts:
  controller: {{units: [{name}]}}
"""


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    """A lab on layer 2 of two, whose one node is off; nothing has been recorded of it."""
    for name in ("lower", "upper"):
        folder = tmp_path / "catalog" / "services" / name
        write(folder / "service.yaml", SERVICE.format(name=name))
        write(folder / "files" / "etc" / f"{name}.conf", "words\n")
    write_profile(tmp_path / "catalog", "lower", "upper", name="two")
    lab = Lab(Home(tmp_path / "state", tmp_path / "cache"), "blue")
    fresh = resolve(lab, UpRequest(lab="blue", layer=2, profile="two", path=(tmp_path / "catalog",)))
    lab.save(fresh.settings.model_copy(update={"layer": 2, "node_kind": "lxc"}))
    write(lab.folder / "secrets.yaml", "{}")
    write(lab.folder / "nodes" / "controller" / "created", "")
    write(lab.folder / "nodes" / "controller" / "lower", str(tmp_path))
    return lab


def put_back(lab: Lab, layer: int, monkeypatch: pytest.MonkeyPatch, key: str = "") -> None:
    """Put the lab on the image of a layer, of today's or with a key; what that does to disks is left out."""

    store = store_of(lab.home)
    lab.save(lab.settings.model_copy(update={"layer": layer}))
    image = Image("layer", key or restore.made_of(lab, store), lab.folder, {})
    monkeypatch.setattr(restore, "thaw", lambda lab, *_: lab.journal.forget("layer-"))
    restore.put(lab, store, image)


def planned(lab: Lab, layer: int | None = None) -> Plan:
    return make_plan(lab.home, UpRequest(lab="blue", layer=layer))


def test_a_lab_that_was_put_back_on_its_layer_needs_nothing(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The journal holds the word for the layer itself, and none for those below it."""
    assert [layer.number for layer in planned(lab).layers] == [2]
    put_back(lab, 2, monkeypatch)
    assert list(lines(planned(lab), "")) == ["Lab blue, up to layer 2.", "Nothing to do."]


def test_what_an_older_image_lacks_is_planned(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    put_back(lab, 2, monkeypatch, key="0" * 64)
    assert [layer.number for layer in planned(lab).layers] == [2]


def test_after_a_step_down_the_files_of_the_layer_above_are_planned_anew(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_back(lab, 2, monkeypatch)
    put_back(lab, 1, monkeypatch)
    assert {folder.name for folder in (lab.folder / "rendered").iterdir()} == {"layer-1"}
    (layer,) = planned(lab, 2).layers
    assert layer.number == 2
    assert "/etc/upper.conf" in [file.path for file in layer.files if file.action == "add"]


def test_a_plan_makes_the_recipe_of_each_layer_once(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    original = recipe.recipe

    def counted(blueprint: Blueprint, layer: int, *more: Any) -> dict[str, Any]:
        made.append(layer)
        return original(blueprint, layer, *more)

    monkeypatch.setattr(recipe, "recipe", counted)
    path = (lab.home.state.parent / "catalog",)
    fresh = make_plan(lab.home, UpRequest(lab="green", layer=2, profile="two", path=path, node_kind="lxc"))
    assert fresh.start == PlannedStart()
    assert made == [2, 1]


@pytest.mark.parametrize(("works", "seeded"), [(False, True), (True, False), (None, False)])
def test_a_plan_tells_that_containers_build_what_is_emulated(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, works: bool | None, seeded: bool
) -> None:
    proof = None if works is None else kvm.Proof(works, "")
    monkeypatch.setattr(kvm, "known", lambda *_: proof)
    path = (lab.home.state.parent / "catalog",)
    request = UpRequest(lab="green", layer=1, profile="two", path=path, node_kind="vm")
    fresh = make_plan(lab.home, request)
    assert fresh.seeded == seeded
    assert any("come from containers" in line for line in lines(fresh, "")) == seeded


def test_what_has_changed_since_an_image_was_made_is_shown_as_a_difference(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    put_back(lab, 2, monkeypatch)
    write(tmp_path / "catalog" / "services" / "upper" / "files" / "etc" / "upper.conf", "others\n")
    (layer,) = planned(lab).layers
    found = {file.path: file for file in layer.files}
    assert {file.action for file in layer.files} == {"change"}
    assert "-words\n+others" in found["/etc/upper.conf"].difference
