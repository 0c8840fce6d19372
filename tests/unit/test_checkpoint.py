"""Checkpoints belong to a lab, not to its name."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from stacklab import checkpoint
from stacklab.checkpoint import CHECKPOINT, checkpoints, clone
from stacklab.errors import UsageError
from stacklab.freeze import thaw
from stacklab.home import Home
from stacklab.images import digest
from stacklab.images import store as store_module
from stacklab.images.store import Image, Store
from stacklab.lab.lab import Lab
from stacklab.lab.settings import LabSettings
from stacklab.provide.provider import Node
from stacklab.restore import finish_renewal, start

CONTROLLER = Node("controller", "10.20.0.11", ("controller",), 8192, 2)
COMPUTE = Node("compute-1", "10.20.0.12", ("compute",), 3072, 2)
SETTINGS = LabSettings(
    profile="openstack", release="epoxy", topology="t", node_kind="lxc", layer=1, nodes=(CONTROLLER,)
)


@pytest.fixture(autouse=True)
def seal_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def seal(folder: Path) -> None:
        (folder / digest.MANIFEST).write_text(json.dumps(digest.manifest(folder)))
        (folder / digest.SEALED).touch()

    monkeypatch.setattr(store_module, "seal_in_background", seal)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "images")


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    """A lab on layer 1 that is off."""
    lab = Lab(Home(tmp_path / "state", tmp_path), "blue")
    lab.save(SETTINGS)
    (lab.folder / "secrets.yaml").write_text("keystone: {admin: mine}\n")
    yield lab
    lab.journal.close()


def saved(store: Store, settings: LabSettings = SETTINGS, **inputs: Any) -> Image:
    """A checkpoint of a lab `blue` with these settings."""

    def build(folder: Path) -> None:
        (folder / "lab").mkdir()
        (folder / "lab" / "lab.yaml").write_text(yaml.safe_dump(settings.model_dump(mode="json")))
        (folder / "lab" / "secrets.yaml").write_text("keystone: {admin: frozen}\n")

    return store.add(CHECKPOINT, {"lab": "blue", "name": "a", **inputs}, build, stands_on=[], title="blue: a")


def test_a_lab_whose_up_was_cut_off_before_it_had_nodes_cannot_be_kept_or_cloned(lab: Lab) -> None:
    lab.save(SETTINGS.model_copy(update={"layer": 0}))
    for attempt in (
        lambda: checkpoint.save(lab, "a", lambda _: None),
        lambda: clone(lab, ["green"], lambda _: None),
    ):
        with pytest.raises(UsageError, match="lab 'blue' has no nodes yet") as refused:
            attempt()
        assert refused.value.hint == "stacklab up --lab blue"
    assert not Lab(lab.home, "green").exists


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            {"nodes": (CONTROLLER, COMPUTE)},
            "nodes: controller (controller), compute-1 (compute) in the image",
        ),
        ({"profile": "starter-kit"}, "profile: starter-kit in the image, openstack in the lab"),
        ({"release": "flamingo"}, "release: flamingo in the image, epoxy in the lab"),
        ({"node_kind": "vm"}, "node_kind: vm in the image, lxc in the lab"),
    ],
)
def test_a_lab_that_was_made_otherwise_is_left_as_it_is(
    lab: Lab, store: Store, change: dict[str, Any], told: str
) -> None:
    image = saved(store, SETTINGS.model_copy(update=change))
    with pytest.raises(UsageError, match="which was made otherwise") as refused:
        thaw(lab, store, image)
    assert told in refused.value.detail
    assert lab.settings == SETTINGS
    assert "mine" in (lab.folder / "secrets.yaml").read_text()


def test_checkpoints_of_another_state_folder_are_not_the_labs(lab: Lab, store: Store) -> None:
    own = saved(store, state=str(lab.home.state))
    saved(store, state="/another/state")
    before = saved(store)
    assert {image.name for image in checkpoints(lab, store)} == {own.name, before.name}


def test_only_a_checkpoint_that_is_kept_waits_for_the_disk(
    lab: Lab, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []

    def freeze(_lab: Lab, _store: Store, _kind: str, inputs: dict[str, Any], **about: Any) -> Image:
        asked.append(about["durable"])
        return saved(store, **inputs)

    monkeypatch.setattr(checkpoint, "freeze", freeze)
    monkeypatch.setattr(checkpoint, "put", lambda *_: None)
    monkeypatch.setattr(checkpoint, "start_and_await", lambda *_: None)
    lab.save(SETTINGS.model_copy(update={"layer": 0}))
    checkpoint.save(lab, "lunch", lambda _: None)
    clone(lab, ["green"], lambda _: None)
    assert asked == [True, False]


def test_a_lab_that_was_made_while_its_source_was_frozen_is_not_overwritten(
    lab: Lab, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = Lab(lab.home, "student")

    def freeze(*_: Any, **__: Any) -> Image:
        student.save(SETTINGS)
        return saved(store)

    monkeypatch.setattr(checkpoint, "_freeze", freeze)
    monkeypatch.setattr(checkpoint, "restore", lambda *_: None)
    with pytest.raises(UsageError, match="there is a lab 'student' already"):
        clone(lab, ["student"], lambda _: None)
    assert student.settings == SETTINGS


class Students:
    """What a clone does to labs, in words: it is cut off at the word that `cut` names."""

    def __init__(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        self.store = store
        self.done: list[str] = []
        self.cut = ""
        monkeypatch.setattr(checkpoint, "freeze", self.freeze)
        monkeypatch.setattr(checkpoint, "put", self.put)
        monkeypatch.setattr(checkpoint, "start_and_await", lambda lab: self.note(f"start {lab.name}"))
        monkeypatch.setattr(checkpoint, "_bring_up", lambda lab, _: self.note(f"up {lab.name}"))

    def note(self, word: str) -> None:
        if word == self.cut:
            self.cut = ""
            raise KeyboardInterrupt
        self.done.append(word)

    def freeze(self, lab: Lab, _store: Store, _kind: str, inputs: dict[str, Any], **_: Any) -> Image:
        self.note("freeze")
        return saved(self.store, **inputs)

    def put(self, lab: Lab, _store: Store, _image: Image) -> None:
        self.note(f"put {lab.name}")
        (lab.folder / "secrets.yaml").write_text("keystone: {admin: frozen}\n")
        lab.save(lab.settings.model_copy(update={"thawing": ""}))


WHOLE = Node("controller", "10.20.0.11", ("controller", "network", "compute", "storage"), 8192, 2)
WORK = ["freeze", *(f"{word} s-{number}" for number in (1, 2) for word in ("put", "start", "up"))]


PLAIN = [word for word in WORK if not word.startswith("up")]


@pytest.mark.parametrize(
    ("cut", "new_secrets"), [*((cut, False) for cut in PLAIN), *((cut, True) for cut in WORK)]
)
def test_a_clone_that_was_cut_off_goes_on(
    cut: str, new_secrets: bool, lab: Lab, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.save(SETTINGS.model_copy(update={"layer": 0, "nodes": (WHOLE,)}))
    students = Students(store, monkeypatch)
    students.cut = cut
    names = ["s-1", "s-2"]
    with pytest.raises(KeyboardInterrupt):
        clone(lab, names, lambda _: None, new_secrets=new_secrets)
    (*_, made) = clone(lab, names, lambda _: None, new_secrets=new_secrets)
    assert list(dict.fromkeys(students.done)) == (WORK if new_secrets else PLAIN)
    assert students.done.count("freeze") == students.done.count("put s-1") == 1
    assert len(store.all(CHECKPOINT)) == 1
    for name in names:
        passwords = (Lab(lab.home, name).folder / "secrets.yaml").read_text()
        assert ("frozen" not in passwords) is new_secrets
    assert not made.settings.cloning
    with pytest.raises(UsageError, match="there is a lab 's-1' already"):
        clone(lab, names, lambda _: None, new_secrets=new_secrets)


def test_a_copy_without_passwords_of_its_own_is_not_started_and_up_gives_it_some(
    lab: Lab, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.save(SETTINGS.model_copy(update={"layer": 0, "nodes": (WHOLE,)}))
    students = Students(store, monkeypatch)
    students.cut = "start s-1"
    with pytest.raises(KeyboardInterrupt):
        clone(lab, ["s-1"], lambda _: None, new_secrets=True)
    copy = Lab(lab.home, "s-1")
    with pytest.raises(UsageError, match="before it had passwords of its own") as refused:
        start(copy, lambda _: None)
    assert refused.value.hint.startswith("stacklab up --lab s-1 ")
    with pytest.raises(UsageError, match="there is a lab 's-1' already"):
        clone(lab, ["s-1"], lambda _: None)  # that is another clone
    finish_renewal(copy)
    assert "frozen" not in (copy.folder / "secrets.yaml").read_text()
    assert not copy.settings.renewing
