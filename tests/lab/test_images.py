"""Images of labs: thawed, stepped back to, saved, cloned, carried away, damaged, and cut off at any moment.

Costs about eight minutes on two cores, after the layer 1 that all lab tests share. The tests run in the order
of the file. A cloud that comes up takes 25 s, so most kills hit a lab whose node has not been set up yet; it
has data, though, and starts in two seconds.
"""

import contextlib
import itertools
import json
import os
import random
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from stacklab.images import store as store_module
from stacklab.images.digest import SEALED, damage
from stacklab.images.store import Image, Store
from stacklab.journal import STEP_STARTED, Journal
from tests.lab.kills import Watched, choose, kill_often, rehearse, run_and_kill_at
from tests.lab.program import EXAMPLES, Done, Program, TestLab, wait_for

SEED = 20251121
KILLED = 6  # times, each kind of command
POINTS = 30  # at most, as a command may have ended before its point: a freeze takes a tenth of a second
# What a lab says about itself beside its records: it must differ between a lab and its clone.
IDENTITY = "cat /etc/machine-id /etc/ssh/ssh_host_ed25519_key.pub /root/.ssh/authorized_keys"
DATA = "/root/data"
FILES = 1500
SEAL_SECONDS = 300.0  # at the lowest priority, beside labs
DIGEST = f"cd {DATA} && cat $(ls | sort -n) | sha256sum"


def link_images(source: Path, cache: Path, kinds: Sequence[str] = ("",)) -> Path:
    """A cache of its own with the images of another, once they are sealed, and its packages, as links."""
    (cache / "images").mkdir(parents=True)
    for kind in kinds:
        for image in Store(source / "images").all(kind):
            wait_for(f"the sealing of {image.name}", (image.folder / SEALED).exists, SEAL_SECONDS)
            subprocess.run(["cp", "-al", str(image.folder), str(cache / "images")], check=True)
    subprocess.run(["cp", "-al", str(source / "packages"), str(cache)], check=True)
    for file in source.glob("*.json"):
        shutil.copy(file, cache)
    return cache


def records(lab: TestLab) -> dict[str, set[str]]:
    """The ids of what a user may have made, by kind; needs a token and three APIs to answer."""
    return {
        kind: {each["ID"] for each in lab.openstack(kind, "list")} for kind in ("image", "network", "server")
    }


def on_node(lab: TestLab, command: str) -> str:
    return lab.run("ssh", "controller", "--", command)


def names(lab: TestLab, kind: str) -> set[str]:
    return {each["Name"] for each in lab.openstack(kind, "list")}


def checkpoint(lab: TestLab, *arguments: str) -> str:
    return lab.program.run("checkpoint", *arguments, "--lab", lab.name)


def try_checkpoint(lab: TestLab, *arguments: str) -> Done:
    return lab.program.try_("checkpoint", *arguments, "--lab", lab.name)


def checkpoints(lab: TestLab) -> list[str]:
    return [each["name"] for each in json.loads(checkpoint(lab, "ls", "--output", "json"))]


@pytest.fixture(scope="module")
def source(program: Program, layer1: TestLab) -> Iterator[TestLab]:
    """A lab that starts from the image which the building of the first one left."""
    lab = TestLab(program, "image-source")
    lab.up()
    yield lab
    for name in checkpoints(lab):
        try_checkpoint(lab, "rm", name)
    lab.try_("destroy", "--yes")


@pytest.fixture(scope="module")
def layer_image(source: TestLab) -> Image:
    """The image of layer 1 that the source lab stands on."""
    images = Store(source.program.cache / "images").all("layer")
    used = json.loads(source.program.run("images", "ls", "--output", "json"))
    (name,) = (
        each["name"] for each in used if each["kind"] == "layer" and f"lab {source.name}" in each["used_by"]
    )
    return next(image for image in images if image.name == name)


class TestThaw:
    def test_a_new_lab_is_not_built_again(self, source: TestLab) -> None:
        assert source.status()["layer"] == 1
        assert source.events(["task"]) == []
        done = {event["data"]["name"] for event in source.events(["step.started"])}
        assert "thaw" in done
        assert not done & {"base image", "packages", "more packages", "layer 1"}

    def test_its_cloud_is_well(self, source: TestLab) -> None:
        source.run("verify")

    def test_up_again_has_nothing_to_do(self, source: TestLab) -> None:
        said = json.loads(source.up("--output", "json").splitlines()[-1])
        assert said["data"]["changed"] is False


@pytest.fixture(scope="module")
def kept(source: TestLab, tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """What a user made in the source lab, an image with content and a network, kept as `mine`."""
    file = tmp_path_factory.mktemp("image") / "mine"
    file.write_bytes(random.Random(SEED).randbytes(1 << 20))
    source.openstack("image", "create", "--disk-format", "raw", "--file", str(file), "mine")
    source.openstack("network", "create", "--provider-network-type", "geneve", "mine")
    found = records(source)
    checkpoint(source, "save", "mine")
    return found


class TestCheckpoint:
    def test_restore_brings_back_what_was_saved_and_nothing_else(
        self, source: TestLab, kept: dict[str, set[str]], tmp_path: Path
    ) -> None:
        source.openstack("network", "create", "--provider-network-type", "geneve", "later")
        source.exec("openstack", "image", "delete", "mine")
        with Journal(source.program.state / "labs" / source.name / "journal.db") as journal:
            before = journal.newest()
            restore = source.program.start(
                "checkpoint", "restore", "mine", "--lab", source.name, log=tmp_path / "restore.log"
            )
            try:
                later = journal.follow(before, poll=0.05, until=lambda: restore.poll() is not None)
                assert any(event.type == STEP_STARTED and event.data["name"] == "thaw" for event in later)
                self._is_busy(source, restore)
            finally:
                code = restore.wait()
        assert code == 0, (tmp_path / "restore.log").read_text()
        assert records(source) == kept
        source.exec("openstack", "image", "save", "--file", str(tmp_path / "mine"), "mine")
        assert (tmp_path / "mine").read_bytes() == random.Random(SEED).randbytes(1 << 20)

    def _is_busy(self, source: TestLab, restore: "subprocess.Popen[bytes]") -> None:
        """Another command is told the first one's words and process."""
        refused = try_checkpoint(source, "save", "other")
        assert refused.returncode == 1
        words = " ".join(refused.stderr.split())
        assert f"process {restore.pid}: stacklab checkpoint restore mine" in words
        assert checkpoints(source) == ["mine"]

    def test_up_afterwards_has_nothing_to_do(self, source: TestLab) -> None:
        said = json.loads(source.up("--output", "json").splitlines()[-1])
        assert said["data"]["changed"] is False

    def test_a_name_is_given_once(self, source: TestLab) -> None:
        refused = try_checkpoint(source, "save", "mine")
        assert refused.returncode == 2
        assert "already" in refused.stderr


class TestClone:
    def test_clones_run_beside_their_source_with_its_records_and_their_own_identity(
        self, source: TestLab, kept: dict[str, set[str]]
    ) -> None:
        program = source.program
        clones = [TestLab(program, "image-clone-1"), TestLab(program, "image-clone-2")]
        before = on_node(source, IDENTITY)
        try:
            program.run("clone", source.name, "image-clone", "--count", "2")
            assert [records(lab) for lab in (source, *clones)] == [kept] * 3
            addresses = [lab.status()["nodes"][0]["address"] for lab in (source, *clones)]
            assert len(set(addresses)) == 1

            lines = [on_node(lab, IDENTITY).splitlines() for lab in (source, *clones)]
            assert lines[0] == before.splitlines()
            for ours in zip(*lines, strict=True):  # machine-id, host key, the lab's key
                assert len(set(ours)) == len(lines), ours

            clones[0].exec("openstack", "network", "delete", "mine")
            assert "mine" not in names(clones[0], "network")
            assert "mine" in names(source, "network") & names(clones[1], "network")
            own = [_disk_mib(program.state / "labs" / lab.name) for lab in clones]
            assert max(own) < 400  # by now they have written logs and databases; they share 2 GiB
        finally:
            for lab in clones:
                lab.try_("destroy", "--yes")
        assert records(source) == kept

    def test_a_clone_can_have_passwords_of_its_own(self, source: TestLab, kept: dict[str, set[str]]) -> None:
        lab = TestLab(source.program, "image-fresh")
        try:
            source.program.run("clone", source.name, lab.name, "--new-secrets")
            assert records(lab) == kept
            assert not passwords(lab) & passwords(source)
            old = source.exec("printenv", "OS_PASSWORD").strip()
            assert lab.try_exec("openstack", "--os-password", old, "token", "issue").returncode != 0
        finally:
            lab.try_("destroy", "--yes")


def passwords(lab: TestLab) -> set[str]:
    file = lab.program.state / "labs" / lab.name / "secrets.yaml"
    secrets = yaml.safe_load(file.read_text())
    return {value for names in secrets.values() for value in names.values()}


def _disk_mib(folder: Path) -> int:
    done = subprocess.run(["du", "-sxm", str(folder)], capture_output=True, text=True, check=True)
    return int(done.stdout.split()[0])


class TestDown:
    def test_down_brings_the_layer_back_without_what_the_user_made(
        self, source: TestLab, kept: dict[str, set[str]], tmp_path: Path
    ) -> None:
        """Killed -9 in the middle the first time; `start` completes it."""
        watched = Watched(source.program, (source.name,))
        down = ("down", "--to", "1", "--lab", source.name)
        # Before this event it may die without a trace; after it, the lab is on its way and must arrive.
        assert run_and_kill_at(watched, "step.forgotten", *down, log=tmp_path / "down.log")
        source.run("start")
        before = source.events(["task"])
        source.up()
        assert source.events(["task"]) == before  # nothing is configured again
        assert "mine" not in names(source, "image") | names(source, "network")
        assert names(source, "server") == set()

    def test_down_when_nothing_happened_in_between(self, source: TestLab) -> None:
        source.run("down", "--to", "1")
        source.run("verify")

    def test_what_was_added_to_the_layer_later_is_not_up_and_not_missed(self, source: TestLab) -> None:
        source.up("--with", "hello", "--path", str(EXAMPLES))
        source.run("down", "--to", "1")
        assert "hello (not up)" in source.run("status")
        source.run("verify")
        source.up()
        assert "hello" in source.status()["services"]
        source.up("--without", "hello")

    def test_a_layer_that_the_lab_does_not_stand_on_is_refused(self, source: TestLab) -> None:
        refused = source.try_("down", "--to", "2")
        assert refused.returncode == 2
        assert "stands on layer 1" in refused.stderr


class TestDamage:
    def test_a_flipped_byte_is_found_and_never_thawed(
        self, source: TestLab, layer_image: Image, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        folder = source.program.state.parent / "damaged"
        damaged = replace(source.program, cache=link_images(source.program.cache, folder))
        try:
            file = flip_a_byte(folder / "images" / layer_image.name / "nodes")
            found = damaged.try_("images", "verify")
            assert found.returncode == 1
            assert f"{layer_image.name}: {file}" in " ".join(found.stderr.split())

            before = source.events(["node"])
            with in_place_of(source.program.cache / "images" / layer_image.name, damaged.cache):
                refused = source.try_("down", "--to", "1")
            assert refused.returncode == 1
            assert "is damaged" in refused.stderr
            assert file in refused.stderr
            assert f"stacklab images rm {layer_image.name}" in refused.stderr
            assert source.events(["node"]) == before
            source.exec("openstack", "server", "list")

            new = damaged.try_("up", "--layer", "1", "--offline", "--lab", "image-damaged")
            assert new.returncode == 1
            assert "is damaged" in new.stderr
        finally:
            damaged.try_("destroy", "--lab", "image-damaged", "--yes")
            shutil.rmtree(folder)


@contextlib.contextmanager
def in_place_of(image: Path, cache: Path) -> Iterator[None]:
    """Meanwhile the image is the one of that name in the other cache."""
    other = cache / "images" / image.name
    aside = other.with_name("aside")
    image.rename(aside)
    other.rename(image)
    try:
        yield
    finally:
        image.rename(other)
        aside.rename(image)


def flip_a_byte(tree: Path) -> str:
    """Change one byte of the largest file below `tree`, in a copy of its own; its path in the image."""
    file = max((path for path in tree.rglob("*") if path.is_file() and not path.is_symlink()), key=_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    status = file.stat()
    file.unlink()  # the cache that it is linked from keeps its own
    file.write_bytes(content)
    os.chown(file, status.st_uid, status.st_gid)
    file.chmod(status.st_mode)
    return str(file.relative_to(tree.parent))


def _size(file: Path) -> int:
    return file.stat().st_size


@pytest.mark.slow
class TestFullDisk:
    def test_it_ends_in_a_clear_error_and_the_lab_answers(self, source: TestLab, tmp_path: Path) -> None:
        """The folder of images is 48 MiB of memory with the images in it, for one command only."""
        images = source.program.cache / "images"
        script = f"""
            mkdir {tmp_path}/real {tmp_path}/small && mount --bind {images} {tmp_path}/real
            mount -t tmpfs -o size=48m tmpfs {images}
            for image in {tmp_path}/real/[a-z]*-*; do
                mkdir {images}/$(basename $image) && mount --bind $image {images}/$(basename $image)
            done
            "$@"; code=$?
            ls -A {images} >{tmp_path}/left; exit $code
        """
        save = source.program.argv("checkpoint", "save", "full", "--lab", source.name)
        done = subprocess.run(
            ["unshare", "--mount", "sh", "-c", script, "sh", *save],
            env=source.program.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1
        assert "No space left on device" in done.stderr
        assert "next:" in done.stderr
        assert "Traceback" not in done.stderr
        left = (tmp_path / "left").read_text().splitlines()
        assert [name for name in left if name.startswith(".building")] == []
        assert len([name for name in left if name.startswith("checkpoint")]) == len(
            list(images.glob("checkpoint-*"))
        )
        source.exec("openstack", "server", "list")
        assert "full" not in checkpoints(source)


@pytest.mark.slow
class TestCarriedAway:
    def test_an_exported_layer_gives_a_verified_cloud_on_an_empty_cache_offline(
        self, source: TestLab, layer_image: Image
    ) -> None:
        folder = source.program.state.parent
        file = folder / "layer-1.stacklab"
        other = Program(state=folder / "state-elsewhere", cache=folder / "cache-elsewhere")
        lab = TestLab(other, "image-import")
        try:
            source.program.run("images", "export", layer_image.name, str(file))
            other.run("images", "import", str(file))
            file.unlink()
            lab.up("--offline")
            assert lab.events(["task"]) == []
            lab.run("verify")
        finally:
            lab.try_("destroy", "--yes")
            file.unlink(missing_ok=True)
            shutil.rmtree(other.cache, ignore_errors=True)


# Kill -9, at points that the commands themselves show


@pytest.fixture(scope="module")
def plain(source: TestLab) -> Iterator[TestLab]:
    """A lab whose node stands on the packages and has some data, but no cloud: it starts in two seconds."""
    program = replace(
        source.program,
        cache=link_images(
            source.program.cache, source.program.state.parent / "plain", ("base", "packages", "guest")
        ),
    )
    lab = TestLab(program, "image-plain")
    log = program.cache / "up.log"
    up = program.start("up", "--layer", "1", "--offline", "--lab", lab.name, log=log)
    journal = Journal(program.state / "labs" / lab.name / "journal.db")
    try:
        for event in journal.follow(poll=0.01, until=lambda: up.poll() is not None):
            if event.type == "stacklab.node.started":
                break
        up.kill()
        assert up.wait() < 0, log.read_text()
        fill = (
            f"mkdir {DATA} && cd {DATA} && for i in $(seq {FILES}); do head -c 20000 /dev/urandom >$i; done"
        )
        on_node(lab, f"{fill}; sync -f {DATA}")
        assert lab.status()["layer"] == 0
        yield lab
    finally:
        up.kill()
        journal.close()
        lab.try_("destroy", "--yes")
        shutil.rmtree(program.cache)


@pytest.fixture(scope="module")
def expected(plain: TestLab) -> str:
    """The digest of the lab's data."""
    return on_node(plain, DIGEST)


def data_of(image: Image, store: Store) -> str:
    """The digest of the lab's data in an image, or in the one below it that they were written in."""
    folders = (each.tree_of("controller") / DATA.lstrip("/") for each in store.chain(image))
    folder = next(folder for folder in folders if folder.is_dir())
    argv = ["sh", "-c", DIGEST.replace(DATA, str(folder))]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


def assert_whole_or_absent(program: Program, expected: str) -> None:
    """Every image that counts is whole: as it was sealed, and a checkpoint with all of the lab's data."""
    store = Store(program.cache / "images")
    for image in store.all():
        if image.kind in ("base", "packages"):
            continue  # nothing writes to them here, and they take seconds to read
        assert damage(image.folder) == []
        assert all(store.holds(name) for name in image.stands_on)
        if image.kind == "checkpoint":
            assert data_of(image, store) == expected
            assert {"lab.yaml", "secrets.yaml"} <= {file.name for file in (image.folder / "lab").iterdir()}


def assert_comes_back(lab: TestLab, expected: str) -> None:
    lab.run("start")
    assert on_node(lab, DIGEST) == expected


@pytest.mark.slow
class TestKilled:
    def test_in_the_middle_of_freezing(self, plain: TestLab, expected: str, tmp_path: Path) -> None:
        program, log = plain.program, tmp_path / "log"
        watched = Watched(program, (plain.name,))
        marks = rehearse(watched, "checkpoint", "save", "kept", "--lab", plain.name, log=log)
        tries = itertools.count()

        def save() -> Sequence[str]:
            return ("checkpoint", "save", f"try-{next(tries)}", "--lab", plain.name)

        for _ in kill_often(watched, choose(marks, POINTS, SEED), KILLED, save, log):
            assert_whole_or_absent(program, expected)
            assert on_node(plain, DIGEST) == expected  # it goes on without any other command
            assert_comes_back(plain, expected)
        for name in checkpoints(plain):
            if name != "kept":
                checkpoint(plain, "rm", name)
        program.run("images", "prune")
        assert not list((program.cache / "images").glob(".building-*"))

    def test_in_the_middle_of_thawing(self, plain: TestLab, expected: str, tmp_path: Path) -> None:
        program, log = plain.program, tmp_path / "log"
        watched = Watched(program, (plain.name,))
        words = ("checkpoint", "restore", "kept", "--lab", plain.name)
        marks = rehearse(watched, *words, log=log)
        assert on_node(plain, DIGEST) == expected

        def restore() -> Sequence[str]:
            on_node(plain, f"touch {DATA}.later")
            return words

        for _ in kill_often(watched, choose(marks, POINTS, SEED), KILLED, restore, log):
            assert_whole_or_absent(program, expected)
            # Whatever is done next completes it: before it began, the lab is as it was; after that, as saved.
            assert_comes_back(plain, expected)

    def test_in_the_middle_of_cloning(self, plain: TestLab, expected: str, tmp_path: Path) -> None:
        program, log = plain.program, tmp_path / "log"
        copy = TestLab(program, "image-copy")
        watched = Watched(program, (plain.name, copy.name))
        clone = ("clone", plain.name, copy.name)
        marks = rehearse(watched, *clone, log=log)
        copy.run("destroy", "--yes")
        for _ in kill_often(watched, choose(marks, POINTS, SEED), KILLED, lambda: clone, log):
            assert_whole_or_absent(program, expected)
            assert on_node(plain, DIGEST) == expected
            if (program.state / "labs" / copy.name / "lab.yaml").exists():
                assert_comes_back(copy, expected)
                copy.run("destroy", "--yes")
        assert_comes_back(plain, expected)

    def test_in_the_middle_of_pruning(
        self, plain: TestLab, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(store_module, "seal_in_background", lambda folder: None)
        program, log = plain.program, tmp_path / "log"
        store = Store(program.cache / "images")
        watched = Watched(program, ())
        program.run("images", "prune")
        used = {image.name for image in store.all()}
        runs = itertools.count()

        def prune() -> Sequence[str]:
            outdate(store, next(runs))
            return ("images", "prune")

        marks = rehearse(watched, *prune(), log=log)
        for _ in kill_often(watched, choose(marks, POINTS, SEED), KILLED, prune, log):
            left = {image.name: image for image in store.all()}
            assert used <= left.keys()
            assert_whole_or_absent(program, expected)
            for image in left.values():
                if image.title == "outdated":
                    assert len(list(image.tree.iterdir())) == FILES
        program.run("images", "prune")
        assert used <= {image.name for image in store.all()}
        assert not list((program.cache / "images").glob(".building-*"))
        assert_comes_back(plain, expected)


def outdate(store: Store, run: int) -> None:
    """Three images of one title that nobody uses; all but the newest are outdated."""

    def build(folder: Path) -> None:
        (folder / "tree").mkdir()
        for number in range(FILES):
            (folder / "tree" / str(number)).write_text(str(number))

    for number in range(3):
        store.add("layer", {"layer": 9, "run": run, "number": number}, build, stands_on=[], title="outdated")


@pytest.mark.slow
class TestPrune:
    def test_what_a_lab_stands_on_stays(self, plain: TestLab, expected: str) -> None:
        program = plain.program
        store = Store(program.cache / "images")
        checkpoint(plain, "restore", "kept")
        program.run("images", "prune", "--all")
        (kept,) = (image for image in store.all("checkpoint") if image.inputs["name"] == "kept")
        assert [each.kind for each in store.chain(kept)] == ["checkpoint", "packages", "base"]
        refused = program.try_("images", "rm", kept.name)
        assert refused.returncode == 2
        assert f"lab {plain.name}" in refused.stderr
        assert try_checkpoint(plain, "rm", "kept").returncode == 2
        assert_comes_back(plain, expected)

    def test_nothing_goes_while_a_lab_is_put_on_an_image(self, plain: TestLab, tmp_path: Path) -> None:
        restore = plain.program.start(
            "checkpoint", "restore", "kept", "--lab", plain.name, log=tmp_path / "log"
        )
        refused: Any = None
        while restore.poll() is None and (refused is None or refused.returncode == 0):
            refused = plain.program.try_("images", "prune", "--all")
        assert restore.wait() == 0
        assert refused.returncode == 1
        assert f"process {restore.pid}: stacklab checkpoint" in " ".join(refused.stderr.split())
