"""Images: whole or absent in the store, checked by digest, kept while they are needed, moved as one file."""

import json
import os
import re
import shutil
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from stacklab import lock
from stacklab.errors import LabBusy, LabDamaged, StepFailed, UsageError
from stacklab.freeze import freeze
from stacklab.home import Home
from stacklab.images import store as store_module
from stacklab.images import transfer, usage
from stacklab.images.digest import MANIFEST, SEALED, damage, seal
from stacklab.images.store import Image, Store
from stacklab.images.transfer import export_image, import_images
from stacklab.images.usage import store_of
from stacklab.lab.lab import Lab
from stacklab.lab.settings import LabSettings
from stacklab.provide.provider import Node, NodeState

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="device nodes and overlay's attributes need root")


@pytest.fixture(autouse=True)
def seal_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No process outlives a test, and sync(1) of this machine's disk, which may take long, is left out."""
    monkeypatch.setattr(store_module, "seal_in_background", _seal)


def _seal(folder: Path) -> None:
    from stacklab.images import digest

    (folder / MANIFEST).write_text(json.dumps(digest.manifest(folder)))
    (folder / SEALED).touch()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "images")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "state", tmp_path)


def build(folder: Path) -> None:
    """A small tree with a file, a program, a link and a folder."""
    (folder / "tree" / "etc").mkdir(parents=True)
    (folder / "tree" / "etc" / "hostname").write_text("node\n")
    (folder / "tree" / "etc" / "program").write_text("#!/bin/sh\n")
    (folder / "tree" / "etc" / "program").chmod(0o755)
    (folder / "tree" / "etc" / "link").symlink_to("hostname")


def add(store: Store, name: str, parent: Image | None = None, kind: str = "layer", title: str = "") -> Image:
    return store.ensure(kind, {"is": name}, build, parent=parent, title=title)


def chain(store: Store) -> tuple[Image, Image, Image]:
    """Three images, each on the one before it."""
    base = add(store, "base", kind="base")
    packages = add(store, "packages", base, kind="packages")
    return base, packages, add(store, "layer", packages, title="layer 1")


class TestStore:
    def test_an_image_is_found_by_exactly_what_it_was_made_of(self, store: Store) -> None:
        made = add(store, "one")
        assert store.find("layer", {"is": "one"}) == made
        assert store.find("layer", {"is": "other"}) is None
        assert store.find("base", {"is": "one"}) is None

    def test_it_is_built_once(self, store: Store) -> None:
        add(store, "one")

        def again(folder: Path) -> None:
            raise AssertionError

        assert store.ensure("layer", {"is": "one"}, again) == store.find("layer", {"is": "one"})

    def test_a_build_that_fails_leaves_nothing(self, store: Store) -> None:
        def fails(folder: Path) -> None:
            build(folder)
            raise StepFailed("no")

        with pytest.raises(StepFailed):
            store.ensure("layer", {"is": "one"}, fails)
        assert store.all() == []
        assert list(store.leftovers()) == []

    def test_what_a_killed_build_left_is_no_image_and_goes_with_the_next(self, store: Store) -> None:
        made = add(store, "one")
        left = store.folder / f".building-{made.name}-killed"
        made.folder.rename(left)
        assert store.find("layer", {"is": "one"}) is None
        assert list(store.leftovers()) == [left]
        assert add(store, "one").folder == made.folder
        assert not left.exists()

    def test_an_image_that_may_not_have_reached_the_disk_is_absent_after_a_reboot(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sealed, unsealed = add(store, "sealed"), add(store, "unsealed")
        for file in (SEALED, MANIFEST):
            (unsealed.folder / file).unlink()
        assert store.holds(unsealed.name)
        monkeypatch.setattr(store_module, "boot_id", lambda: "another boot")
        assert [image.name for image in store.all()] == [sealed.name]
        assert list(store.leftovers()) == [unsealed.folder]

    def test_what_was_whole_on_the_disk_when_the_machine_went_off_is_found(
        self, store: Store, home: Home, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        images = chain(store)
        for image in images:
            (image.folder / SEALED).unlink()
        monkeypatch.setattr(store_module, "boot_id", lambda: "another boot")
        assert list(Store(store.folder).leftovers()) == []
        for image in images:
            (image.folder / SEALED).unlink()
        assert store.get(images[-1].name) == images[-1]
        assert store.find("layer", {"is": "layer"}) == images[-1]
        assert usage.prune(home, store) == []

    def test_what_is_to_last_is_sealed_with_all_below_it_before_it_is_there(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        base = add(store, "base", kind="base")
        (base.folder / SEALED).unlink()
        sealed: list[str] = []

        def watched(folder: Path) -> None:
            assert store.all("checkpoint") == []
            sealed.append(folder.name)
            _seal(folder)

        monkeypatch.setattr(store_module, "seal", watched)
        monkeypatch.setattr(store_module, "seal_in_background", lambda folder: None)
        made = store.add("checkpoint", {}, build, stands_on=[base.name], durable=True)
        assert len(sealed) == 2 and sealed[0] == base.name
        monkeypatch.setattr(store_module, "boot_id", lambda: "another boot")
        assert damage(made.folder) == []
        assert store.get(made.name) == made

    def test_an_image_that_is_not_whole_on_the_disk_is_read_once(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        base = chain(store)[0]
        (base.folder / SEALED).unlink()
        read: list[Path] = []

        def damaged(folder: Path) -> list[str]:
            read.append(folder)
            return ["tree/etc/hostname"]

        monkeypatch.setattr(store_module, "boot_id", lambda: "another boot")
        monkeypatch.setattr(store_module, "damage", damaged)
        assert store.all() == store.all() == []
        assert read == [base.folder]

    def test_an_image_is_absent_without_what_it_stands_on(self, store: Store) -> None:
        base, packages, layer = chain(store)
        assert [image.name for image in store.chain(layer)] == [layer.name, packages.name, base.name]
        shutil.rmtree(base.folder)
        assert store.all() == []

    @pytest.mark.parametrize("text", ["", "{", "{}", "[]"])
    def test_a_record_that_is_not_whole_makes_no_image(self, store: Store, text: str) -> None:
        made = add(store, "one")
        (made.folder / "image.json").write_text(text)
        assert store.all() == []

    def test_an_image_is_named_by_its_beginning(self, store: Store) -> None:
        made = add(store, "one")
        add(store, "two")
        assert store.get(made.name[:12]) == made
        with pytest.raises(UsageError, match="2 images"):
            store.get("layer-")
        with pytest.raises(UsageError, match="no image"):
            store.get("nothing")

    def test_a_removal_that_was_killed_is_completed(self, store: Store) -> None:
        made = add(store, "one")
        gone = store.folder / f".building-{made.name}-gone"
        made.folder.rename(gone)
        add(store, "one")
        store.remove(add(store, "one"))
        assert not made.folder.exists()
        assert not gone.exists()

    def test_a_node_without_a_tree_of_its_own_has_the_one_for_all(self, store: Store) -> None:
        def with_nodes(folder: Path) -> None:
            (folder / "nodes" / "controller").mkdir(parents=True)

        base = add(store, "base", kind="base")
        layer = store.ensure("layer", {}, with_nodes, parent=base)
        assert layer.nodes == ("controller",)
        trees = [each.tree_of("controller") for each in store.chain(layer)]
        assert trees == [layer.folder / "nodes" / "controller", base.tree]
        assert [store.name_of(tree) for tree in trees] == [layer.name, base.name]

    def test_its_size_can_be_told_while_a_file_of_it_goes(
        self, store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        du = tmp_path / "du"
        du.write_text("#!/bin/sh\necho '4096 .'; echo 'cannot access .manifest.json.x' >&2; exit 1\n")
        du.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
        assert store.size(add(store, "one")) == 4096


class TestDigest:
    @pytest.fixture
    def image(self, store: Store) -> Image:
        return add(store, "one")

    def test_a_sealed_image_is_whole(self, image: Image) -> None:
        seal(image.folder)
        assert damage(image.folder) == []

    def test_a_flipped_byte_is_found(self, image: Image) -> None:
        (image.tree / "etc/hostname").write_text("mode\n")
        assert damage(image.folder) == ["tree/etc/hostname"]

    def test_times_do_not_count(self, image: Image) -> None:
        os.utime(image.tree / "etc/hostname", (0, 0))
        assert damage(image.folder) == []

    @pytest.mark.parametrize(
        ("change", "found"),
        [
            (lambda etc: (etc / "program").chmod(0o700), ["tree/etc/program"]),
            (lambda etc: (etc / "hostname").unlink(), ["tree/etc/hostname"]),
            (lambda etc: (etc / "extra").write_text(""), ["tree/etc/extra"]),
            (lambda etc: etc.chmod(0o700), ["tree/etc"]),
            (
                lambda etc: ((etc / "link").unlink(), (etc / "link").symlink_to("program")),
                ["tree/etc/link"],
            ),
            (lambda etc: (etc / "hostname").rename(etc / "name"), ["tree/etc/hostname", "tree/etc/name"]),
        ],
        ids=["mode", "missing", "extra", "folder's mode", "link", "renamed"],
    )
    def test_a_change_is_found(
        self, image: Image, change: Callable[[Path], object], found: list[str]
    ) -> None:
        change(image.tree / "etc")
        assert damage(image.folder) == found

    @pytest.fixture
    def disk(self, image: Image) -> Path:
        """A sealed virtual disk of a TiB with one word in its middle: there is no time to read it whole."""
        disk = image.tree / "disk"
        with disk.open("wb") as file:
            file.truncate(1 << 40)
            file.seek((1 << 39) + 7)
            file.write(b"data")
        seal(image.folder)
        assert damage(image.folder) == []
        return disk

    @pytest.mark.parametrize(
        ("place", "text", "found"),
        [
            (1 << 39, b"text", ["tree/disk"]),
            (1 << 30, b"text", ["tree/disk"]),
            ((1 << 39) + 7, b"\0\0\0\0", ["tree/disk"]),
            (1 << 30, b"\0\0\0\0", []),
            (1 << 40, b"\0", ["tree/disk"]),
        ],
        ids=["beside it", "in a hole", "the word itself", "zeros in a hole", "longer"],
    )
    def test_of_a_file_with_holes_zeros_are_not_read_and_all_else_counts(
        self, image: Image, disk: Path, place: int, text: bytes, found: list[str]
    ) -> None:
        with disk.open("r+b") as file:
            file.seek(place)
            file.write(text)
        assert damage(image.folder) == found

    def test_a_file_that_lost_its_holes_when_it_was_copied_is_whole(self, image: Image) -> None:
        disk = image.tree / "disk"
        with disk.open("wb") as file:
            file.truncate(1 << 20)
            file.write(b"data")
        seal(image.folder)
        disk.write_bytes(disk.read_bytes())
        assert disk.stat().st_blocks * 512 >= 1 << 20
        assert damage(image.folder) == []

    def test_a_changed_record_is_found(self, image: Image) -> None:
        with (image.folder / "image.json").open("a") as file:
            file.write(" ")
        assert damage(image.folder) == ["image.json"]

    @pytest.mark.parametrize("text", [None, "", "{", "[]", "null"])
    def test_a_manifest_that_is_gone_or_broken_is_damage(self, image: Image, text: str | None) -> None:
        (image.folder / MANIFEST).unlink()
        if text is not None:
            (image.folder / MANIFEST).write_text(text)
        assert damage(image.folder) == [MANIFEST]

    def test_what_another_process_is_sealing_with_does_not_count(self, image: Image) -> None:
        (image.folder / f".{MANIFEST}.tmp").write_text("half")
        assert damage(image.folder) == []

    @needs_root
    def test_whiteouts_are_devices_and_count(self, store: Store) -> None:
        def whiteout(folder: Path) -> None:
            build(folder)
            os.mknod(folder / "tree" / "gone", 0o000 | stat.S_IFCHR, os.makedev(0, 0))

        image = store.ensure("layer", {}, whiteout)
        assert damage(image.folder) == []
        (image.tree / "gone").unlink()
        os.mknod(image.tree / "gone", 0o000 | stat.S_IFCHR, os.makedev(1, 3))
        assert damage(image.folder) == ["tree/gone"]

    @needs_root
    def test_overlays_mark_of_a_replaced_folder_counts(self, image: Image) -> None:
        os.setxattr(image.tree / "etc", "trusted.overlay.opaque", b"y")
        assert damage(image.folder) == ["tree/etc"]


def a_lab(home: Home, name: str, image: Image | None = None, thawing: str = "") -> Lab:
    """A lab whose node stands on an image, or that is only being put on one."""
    node = Node("controller", "10.20.0.11", ("controller",), 1024, 1)
    lab = Lab(home, name)
    lab.save(
        LabSettings(profile="p", release="r", topology="t", node_kind="lxc", nodes=(node,), thawing=thawing)
    )
    if image:
        store = Store(home.cache / "images")
        disk = lab.folder / "nodes" / node.name
        disk.mkdir(parents=True)
        trees = (each.tree_of(node.name) for each in store.chain(image))
        (disk / "lower").write_text("\n".join(map(str, trees)))
        (disk / "created").touch()
    return lab


class TestUsage:
    def test_it_is_told_who_stands_on_an_image(self, store: Store, home: Home) -> None:
        base, packages, layer = chain(store)
        a_lab(home, "blue", packages)
        assert usage.users(home, store) == {
            base.name: [f"image {layer.name}", f"image {packages.name}", "lab blue"],
            packages.name: [f"image {layer.name}", "lab blue"],
            layer.name: [],
        }

    def test_what_something_stands_on_is_not_removed(self, store: Store, home: Home) -> None:
        base, packages, layer = chain(store)
        a_lab(home, "blue", layer)
        for image in (base, packages, layer):
            with pytest.raises(UsageError, match="is needed") as raised:
                usage.remove_unused(home, store, image)
            assert "lab blue" in raised.value.detail

    def test_what_another_has_removed_meanwhile_is_told(self, store: Store, home: Home) -> None:
        made = add(store, "one")
        store.remove(made)
        with pytest.raises(UsageError, match="no image is called"):
            usage.remove_unused(home, store, made)

    def test_prune_keeps_what_labs_stand_on_or_are_being_put_on(self, store: Store, home: Home) -> None:
        base = add(store, "base", kind="base")
        stood_on, coming = (
            add(store, "old", base, title="layer 1"),
            add(store, "older", base, title="layer 1"),
        )
        add(store, "new", title="layer 1")
        a_lab(home, "blue", stood_on)
        a_lab(home, "green", thawing=coming.name)
        assert usage.prune(home, store) == []
        assert len(usage.prune(home, store, everything=True)) == 1
        assert {image.name for image in store.all()} == {base.name, stood_on.name, coming.name}

    def test_labs_of_other_state_folders_are_known_until_they_have_gone(
        self, store: Store, home: Home, tmp_path: Path
    ) -> None:
        base, packages, layer = chain(store)
        other = Home(tmp_path / "other" / "state", home.cache)
        lab = a_lab(other, "blue", packages)
        with Store(store.folder, other.state).kept():
            pass
        assert usage.users(home, store)[packages.name] == [
            f"image {layer.name}",
            f"lab blue in {other.state}",
        ]
        with pytest.raises(UsageError, match="is needed"):
            usage.remove_unused(home, store, packages)
        assert usage.prune(home, store, everything=True) == [layer.name]
        with lab.locked():
            lab.destroy()
        assert set(usage.prune(home, store, everything=True)) == {packages.name, base.name}
        assert store.states() == []

    def test_nothing_goes_while_labs_cannot_be_seen(self, store: Store, home: Home, tmp_path: Path) -> None:
        made = add(store, "one")
        other = Home(tmp_path / "disk" / "state", home.cache)
        a_lab(other, "blue", made)
        with Store(store.folder, other.state).kept():
            pass
        (tmp_path / "disk").rename(tmp_path / "unmounted")
        with pytest.raises(StepFailed, match=f"labs in {other.state} .* cannot be seen") as refused:
            usage.prune(home, store, everything=True)
        assert refused.value.hint.endswith(f"stacklab images prune --forget {other.state}")
        with pytest.raises(StepFailed, match="cannot be seen"):
            usage.remove_unused(home, store, made)
        with Lab(other, "green").locked():  # nor is it forgotten by a lab that does not come into being there
            pass
        (tmp_path / "unmounted").rename(tmp_path / "disk")
        assert usage.prune(home, store, everything=True) == []
        with pytest.raises(UsageError, match="no labs in"):
            usage.prune(home, store, everything=True, forget=[other.state])
        shutil.rmtree(tmp_path / "disk")
        assert usage.prune(home, store, everything=True, forget=[other.state]) == [made.name]
        assert usage.prune(home, store, everything=True) == []

    def test_a_state_folder_without_labs_is_not_missed(
        self, store: Store, home: Home, tmp_path: Path
    ) -> None:
        other = Home(tmp_path / "other", home.cache)
        others = Store(store.folder, other.state)
        with others.kept():
            pass
        labs = [a_lab(other, name, add(store, "one")) for name in ("blue", "green")]
        with others.kept():
            pass
        for lab in labs:
            assert store.states() == [other.state]
            with lab.locked():
                lab.destroy()
        assert store.states() == []
        assert not other.state.exists()
        assert len(usage.prune(home, store, everything=True)) == 1

    def test_prune_keeps_the_newest_of_each_title_and_named_checkpoints(
        self, store: Store, home: Home
    ) -> None:
        old, new = add(store, "old", title="layer 1"), add(store, "new", title="layer 1")
        named = store.ensure("checkpoint", {"name": "mine"}, build, title="blue: mine")
        cloned = store.ensure("checkpoint", {"name": ""}, build, title="blue, cloned")
        assert set(usage.prune(home, store)) == {old.name, cloned.name}
        assert {image.name for image in store.all()} == {new.name, named.name}
        assert usage.prune(home, store, everything=True) == [new.name]
        assert store.all() == [named]

    def test_prune_takes_from_the_top_down_what_is_not_needed_any_more(
        self, store: Store, home: Home
    ) -> None:
        base, packages, layer = chain(store)
        gone = usage.prune(home, store, everything=True)
        assert gone == [layer.name, packages.name, base.name]

    def test_prune_removes_leftovers(self, store: Store, home: Home) -> None:
        made = add(store, "one")
        made.folder.rename(store.folder / f".building-{made.name}-gone")
        assert usage.prune(home, store) == [f".building-{made.name}-gone"]

    def test_what_a_lab_stands_on_is_no_leftover(
        self, store: Store, home: Home, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The machine was switched off before it had reached the disk for certain."""
        made = add(store, "one")
        a_lab(home, "blue", made)
        for file in (SEALED, MANIFEST):
            (made.folder / file).unlink()
        monkeypatch.setattr(store_module, "boot_id", lambda: "another boot")
        assert not store.holds(made.name)
        assert usage.prune(home, store, everything=True) == []
        assert made.tree.is_dir()

    def test_what_a_lab_stands_on_is_not_made_anew(self, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
        store = store_of(home)
        made = add(store, "one")
        a_lab(home, "blue", made)
        for file in (SEALED, MANIFEST):
            (made.folder / file).unlink()
        monkeypatch.setattr(store_module, "boot_id", lambda: "another boot")
        with pytest.raises(StepFailed, match="in use") as failed:
            add(store, "one")
        assert failed.value.detail == "lab blue"
        assert made.tree.is_dir()
        Lab(home, "blue").destroy()
        assert add(store, "one").name == made.name

    def test_a_lab_on_what_a_power_cut_has_left_of_an_image_is_damaged(
        self, home: Home, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = store_of(home)
        packages = chain(store)[1]
        lab = a_lab(home, "blue", packages)
        for file in (SEALED, MANIFEST):
            (packages.folder / file).unlink()
        monkeypatch.setattr(store_module, "boot_id", lambda: "another boot")
        with pytest.raises(LabDamaged, match="had not reached the disk") as failed:
            freeze(lab, store, "checkpoint", {})
        assert failed.value.detail == f"{packages.tree} (node 'controller')"
        assert failed.value.hint.startswith("move them away and put them back (stacklab images import FILE")
        lab.remove_lost_nodes()
        lab.refuse_lost_images()
        assert lab.provider.state(lab.controller) is NodeState.ABSENT
        assert add(store, "packages", store.all("base")[0], kind="packages").name == packages.name
        lab.journal.close()

    def test_what_reads_as_its_digests_say_after_a_power_cut_is_whole(
        self, store: Store, home: Home, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        base, packages, _ = chain(store)
        lab = a_lab(home, "blue", packages)
        for image in (base, packages):
            (image.folder / SEALED).unlink()
        monkeypatch.setattr(store_module, "boot_id", lambda: "another boot")
        (base.tree / "etc/hostname").write_text("")
        with pytest.raises(LabDamaged):
            lab.refuse_lost_images()
        (base.tree / "etc/hostname").write_text("node\n")
        lab.refuse_lost_images()
        assert store.holds(packages.name)

    def test_a_lab_on_an_image_whose_sealing_was_killed_has_it_sealed(self, store: Store, home: Home) -> None:
        made = add(store, "one")
        lab = a_lab(home, "blue", made)
        (made.folder / SEALED).unlink()
        lab.refuse_lost_images()
        assert (made.folder / SEALED).exists()
        (made.folder / SEALED).unlink()
        add(store, "one")
        assert (made.folder / SEALED).exists()

    def test_a_lab_without_nodes_is_no_hindrance(self, store: Store, home: Home) -> None:
        a_lab(home, "blue")
        made = add(store, "one")
        assert usage.prune(home, store, everything=True) == [made.name]

    def test_nothing_goes_while_another_process_is_about_to_stand_on_something(
        self, store: Store, home: Home
    ) -> None:
        made = add(store, "one")
        with store.kept(), store.kept():
            with pytest.raises(LabBusy, match=f"process {os.getpid()}: "):
                usage.prune(home, store, everything=True)
            with pytest.raises(LabBusy):
                usage.remove_unused(home, store, made)
        assert usage.prune(home, store, everything=True) == [made.name]


HOLD = """\
import sys
from pathlib import Path
from stacklab import lock
with lock.hold(Path(sys.argv[1]), "it", shared=sys.argv[2] == "shared"):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def another_holds(file: Path, how: str, words: str) -> Iterator["subprocess.Popen[bytes]"]:
    """A process that holds a lock meanwhile, whose command line is that of a `stacklab`."""
    program = file.parent.parent / "stacklab"
    program.write_text(HOLD)
    argv = [sys.executable, str(program), str(file), how, words]
    environment = {**os.environ, "PYTHONPATH": str(Path(lock.__file__).parents[1])}
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as other:
        assert other.stdout
        assert other.stdout.readline() == b"held\n"
        yield other
        other.kill()


def test_a_lock_names_the_command_that_has_it(tmp_path: Path) -> None:
    file = tmp_path / "locks" / "blue"
    with (
        another_holds(file, "alone", "my lunch") as other,
        pytest.raises(LabBusy) as raised,
        lock.hold(file, "lab 'blue'"),
    ):
        pass
    words = f"lab 'blue' is in use by process {other.pid}: stacklab {file} alone 'my lunch'"
    assert raised.value.message == words
    with lock.hold(file, "lab 'blue'"):  # the kernel has freed it
        pass


def test_of_those_who_share_a_lock_those_are_named_that_still_have_it(tmp_path: Path) -> None:
    file = tmp_path / "locks" / "images"
    with another_holds(file, "shared", "first") as first, another_holds(file, "shared", "second") as second:
        with pytest.raises(LabBusy) as raised, lock.hold(file, "it"):
            pass
        assert sorted(re.findall(r"process (\d+): stacklab", raised.value.message)) == sorted(
            [str(first.pid), str(second.pid)]
        )
        second.kill()
        second.wait()
        with pytest.raises(LabBusy) as raised, lock.hold(file, "it"):
            pass
    assert raised.value.message == f"it is in use by process {first.pid}: stacklab {file} shared first"


def test_a_lock_whose_folder_cannot_be_made_is_not_tried_for_ever() -> None:
    with pytest.raises(FileNotFoundError), lock.hold(Path("/proc/no/such/folder/blue"), "it"):
        pass


def test_a_lock_that_its_holder_takes_away_is_waited_for_all_the_same(tmp_path: Path) -> None:
    """Whoever waited for the file that has gone must not hold it beside one who has made it anew."""
    file = tmp_path / "locks" / "blue"
    holding, tried = threading.Event(), threading.Event()

    def wait() -> None:
        with lock.hold(file, "it", wait=True):
            holding.set()
            tried.wait(10.0)

    with lock.hold(file, "it"):
        waiter = threading.Thread(target=wait)
        waiter.start()
        time.sleep(0.2)
        file.unlink()
        file.parent.rmdir()
    assert holding.wait(10.0)
    with pytest.raises(LabBusy), lock.hold(file, "it"):
        pass
    tried.set()
    waiter.join()


def test_a_lab_that_did_not_come_into_being_leaves_nothing(tmp_path: Path) -> None:
    home = Home(state=tmp_path / "state", cache=tmp_path / "cache")
    with pytest.raises(StepFailed), Lab(home, "blue").locked():
        raise StepFailed("the preflight")
    assert not home.state.exists()


class TestTransfer:
    @pytest.fixture
    def exported(self, store: Store, tmp_path: Path) -> tuple[Path, list[str]]:
        guest = add(store, "guest", kind="guest")
        base, packages, layer = chain(store)
        add(store, "unrelated")
        file = tmp_path / "layer.stacklab"
        images = export_image(store, layer, file)
        assert [image.name for image in images] == [layer.name, packages.name, base.name, guest.name]
        return file, [image.name for image in images]

    @pytest.fixture
    def elsewhere(self, tmp_path: Path) -> Store:
        return Store(tmp_path / "elsewhere" / "images")

    def test_an_image_goes_with_all_that_it_stands_on(
        self, store: Store, exported: tuple[Path, list[str]], elsewhere: Store
    ) -> None:
        file, names = exported
        assert sorted(import_images(elsewhere, file)) == sorted(names)
        assert {image.name for image in elsewhere.all()} == set(names)
        found = elsewhere.find("layer", {"is": "layer"})
        assert found
        assert damage(found.folder) == []
        assert found.title == "layer 1"
        assert (found.tree / "etc/link").readlink() == Path("hostname")
        assert list(elsewhere.leftovers()) == []

    def test_a_guest_by_itself_goes_once(self, store: Store, tmp_path: Path, elsewhere: Store) -> None:
        guest = add(store, "guest", kind="guest")
        assert export_image(store, guest, tmp_path / "guest.stacklab") == [guest]
        assert import_images(elsewhere, tmp_path / "guest.stacklab") == [guest.name]

    def test_a_file_that_names_an_image_twice_is_taken(
        self, store: Store, tmp_path: Path, elsewhere: Store
    ) -> None:
        guest = add(store, "guest", kind="guest")
        os.link(guest.tree / "etc/hostname", guest.tree / "etc/same")
        _seal(guest.folder)
        (store.folder / transfer.CONTENTS).write_text(json.dumps([guest.name, guest.name]))
        tar = [*transfer._TAR, "--create", "--file", str(tmp_path / "guest.stacklab")]
        names = [transfer.CONTENTS, guest.name, guest.name]
        subprocess.run([*tar, "--directory", str(store.folder), *names], check=True)
        assert import_images(elsewhere, tmp_path / "guest.stacklab") == [guest.name]

    def test_the_file_holds_passwords_and_only_its_owner_may_read_it(
        self, exported: tuple[Path, list[str]]
    ) -> None:
        assert exported[0].stat().st_mode & 0o777 == 0o600

    @pytest.mark.parametrize("end", ["kill -INT $PPID; sleep 10", "exit 2"])
    def test_an_export_that_is_cut_off_leaves_no_half_file_and_the_one_before_it(
        self, store: Store, exported: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch, end: str
    ) -> None:
        file, names = exported
        before = file.read_bytes(), {path.name for path in file.parent.iterdir()}
        monkeypatch.setattr(transfer, "_TAR", ("sh", "-c", end, "tar"))
        with pytest.raises((KeyboardInterrupt, StepFailed)):
            export_image(store, store.get(names[0]), file)
        assert (file.read_bytes(), {path.name for path in file.parent.iterdir()}) == before

    @pytest.mark.parametrize(
        "words", ["Cannot write: No space left on device", "Wrote only 512 of 10240 bytes"]
    )
    def test_a_full_disk_is_no_fault_of_the_file(
        self,
        store: Store,
        exported: tuple[Path, list[str]],
        elsewhere: Store,
        monkeypatch: pytest.MonkeyPatch,
        words: str,
    ) -> None:
        file, names = exported
        monkeypatch.setenv("LC_ALL", "xx_XX")
        full = f'test "$LC_ALL" = C && echo "tar: a file: {words}" >&2; exit 2'
        monkeypatch.setattr(transfer, "_TAR", ("sh", "-c", full, "tar"))
        with pytest.raises(StepFailed, match="could not be imported: no space left on the disk") as failed:
            import_images(elsewhere, file)
        assert words in failed.value.detail
        assert list(elsewhere.leftovers()) == []
        with pytest.raises(StepFailed, match="could not be written: no space left on the disk"):
            export_image(store, store.get(names[0]), file)

    def test_meanwhile_no_image_goes(
        self, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made = add(store, "one")
        (made.folder / SEALED).unlink()

        def seal_while_another_prunes(folder: Path) -> None:
            with pytest.raises(LabBusy), store.cleared():
                pass
            _seal(folder)

        monkeypatch.setattr(transfer, "seal", seal_while_another_prunes)
        assert export_image(store, made, tmp_path / "one.stacklab") == [made]

    def test_where_no_file_can_be_made_is_told(self, store: Store, tmp_path: Path) -> None:
        with pytest.raises(StepFailed, match="could not be written"):
            export_image(store, add(store, "one"), tmp_path / "nowhere" / "one.stacklab")

    def test_a_link_stays_and_what_is_no_file_is_refused(self, store: Store, tmp_path: Path) -> None:
        layer, link = add(store, "one"), tmp_path / "link"
        link.symlink_to("one.stacklab")
        export_image(store, layer, link)
        assert link.is_symlink()
        assert (tmp_path / "one.stacklab").stat().st_size
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(UsageError, match="no regular file"):
            export_image(store, layer, tmp_path / "pipe")
        assert (tmp_path / "pipe").is_fifo()

    def test_what_is_there_is_not_taken_again(
        self, exported: tuple[Path, list[str]], elsewhere: Store
    ) -> None:
        file, names = exported
        import_images(elsewhere, file)
        assert import_images(elsewhere, file) == []
        lost = next(name for name in names if name.startswith("packages"))
        (elsewhere.folder / lost / "image.json").unlink()  # a folder, and no image
        assert lost in import_images(elsewhere, file)

    def test_an_image_that_is_built_meanwhile_is_waited_for_and_not_replaced(
        self, exported: tuple[Path, list[str]], elsewhere: Store
    ) -> None:
        file, names = exported
        taken: list[str] = []
        importing = threading.Thread(target=lambda: taken.extend(import_images(elsewhere, file)))

        def build_while_another_imports(folder: Path) -> None:
            build(folder)
            (folder / "mine").touch()
            importing.start()
            importing.join(1.0)

        mine = elsewhere.ensure("guest", {"is": "guest"}, build_while_another_imports)
        importing.join()
        assert sorted(taken) == sorted(set(names) - {mine.name})
        assert (mine.folder / "mine").exists()

    def test_it_counts_after_a_reboot(
        self, exported: tuple[Path, list[str]], elsewhere: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        file, names = exported
        import_images(elsewhere, file)
        monkeypatch.setattr(store_module, "boot_id", lambda: "another machine")
        assert len(elsewhere.all()) == len(names)

    @pytest.mark.parametrize("part", [0.1, 0.3, 0.5, 0.7, 0.9])
    def test_a_cut_file_is_refused_and_nothing_is_kept(
        self, exported: tuple[Path, list[str]], elsewhere: Store, part: float
    ) -> None:
        file, _ = exported
        end = file.read_bytes().rstrip(b"\0")  # an archive ends with some KiB of zeros
        os.truncate(file, int(len(end) * part) // 512 * 512)  # between members, too
        self._refused(elsewhere, file)

    def test_a_flipped_byte_is_refused_and_nothing_is_kept(
        self, exported: tuple[Path, list[str]], elsewhere: Store
    ) -> None:
        file, _ = exported
        content = file.read_bytes()
        assert content.count(b"node\n") == 4
        file.write_bytes(content.replace(b"node\n", b"mode\n", 1))
        error = self._refused(elsewhere, file)
        assert "is damaged" in error.message
        assert "tree/etc/hostname" in error.detail

    @pytest.mark.parametrize("content", [b"", b"no archive at all", bytes(20480)])
    def test_what_is_no_file_of_images_is_refused(
        self, tmp_path: Path, elsewhere: Store, content: bytes
    ) -> None:
        (tmp_path / "file").write_bytes(content)
        assert "is no file of images" in self._refused(elsewhere, tmp_path / "file").message

    def test_an_archive_of_something_else_is_refused(self, tmp_path: Path, elsewhere: Store) -> None:
        (tmp_path / "layer-1").mkdir()
        (tmp_path / "layer-1" / "image.json").write_text('{"kind": "layer", "inputs": {}}')
        subprocess.run(["tar", "-cf", "file", "layer-1"], cwd=tmp_path, check=True)
        self._refused(elsewhere, tmp_path / "file")

    def test_a_file_that_is_not_there_is_refused(self, tmp_path: Path, elsewhere: Store) -> None:
        assert "there is no file" in self._refused(elsewhere, tmp_path / "nothing").message

    def test_an_export_that_fails_leaves_no_file(self, store: Store, tmp_path: Path) -> None:
        layer = add(store, "layer")
        with pytest.raises(StepFailed, match="could not be written"):
            export_image(store, layer, tmp_path / "no folder" / "file")
        assert not (tmp_path / "no folder").exists()

    @needs_root
    def test_whiteouts_marks_and_owners_survive(self, store: Store, tmp_path: Path, elsewhere: Store) -> None:
        def overlay(folder: Path) -> None:
            build(folder)
            os.mknod(folder / "tree" / "gone", 0o000 | stat.S_IFCHR, os.makedev(0, 0))
            os.setxattr(folder / "tree" / "etc", "trusted.overlay.opaque", b"y")
            os.chown(folder / "tree" / "etc/hostname", 12345, 54321)

        image = store.ensure("layer", {}, overlay)
        export_image(store, image, tmp_path / "file")
        (name,) = import_images(elsewhere, tmp_path / "file")
        tree = elsewhere.get(name).tree
        assert (tree / "gone").stat().st_rdev == 0
        assert stat.S_ISCHR((tree / "gone").stat().st_mode)
        assert os.getxattr(tree / "etc", "trusted.overlay.opaque") == b"y"
        assert (tree / "etc/hostname").stat().st_uid == 12345

    @staticmethod
    def _refused(store: Store, file: Path) -> UsageError:
        with pytest.raises(UsageError) as raised:
            import_images(store, file)
        assert store.all() == []
        assert list(store.leftovers()) == []
        return raised.value
