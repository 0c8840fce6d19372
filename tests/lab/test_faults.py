"""What goes wrong while a lab is built, and what `up` again makes of it: one lab with bad luck at each step.

Its only layer is Keystone's, and its images lie in memory. Costs about four minutes on two cores. The tests
run in the order of the file.
"""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.machine import Machine, await_end, descendants, left_over_since, name_of
from tests.lab.program import Program, TestLab, wait_for

PROFILES = Path(__file__).parent / "profiles"
UP = ("--layer", "1", "--profile", "identity", "--path", str(PROFILES))
BUILD_SECONDS = 300.0
STEP_SECONDS = 120.0
END_SECONDS = 15.0
MIB = 2**20
ROOM = "8g"  # of memory, which is only taken as it is filled; `up` asks for 4.5 GiB


@pytest.fixture(scope="module")
def cache(program: Program) -> Iterator[Path]:
    """A cache whose images lie on a disk that the tests can make smaller."""
    folder = program.state.parent / "small"
    folder.mkdir()
    downloads = program.cache / "packages"
    downloads.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={ROOM}", "stacklab-test", str(folder)], check=True)
    try:
        (folder / "packages").symlink_to(downloads)
        yield folder
        wait_for(
            "the sealing of the images",
            lambda: all((folder / "images" / name / "sealed").exists() for name in images(folder)),
            STEP_SECONDS,
        )
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture(scope="module")
def before(program: Program, cache: Path) -> Machine:
    """The machine before the lab."""
    return Machine.look(program.state)


@pytest.fixture(scope="module")
def unlucky(program: Program, cache: Path, before: Machine) -> Iterator[TestLab]:
    """The name of a lab, not built yet; destroyed at the end."""
    lab = TestLab(Program(program.state, cache), "test-unlucky")
    yield lab
    lab.try_("destroy", "--yes")


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "up.log"


def building(cache: Path) -> list[Path]:
    """The trees of an image of packages that is being built, once dpkg has begun to fill it."""
    return [*cache.glob("images/.building-packages-*/tree/usr/bin")]


def images(cache: Path) -> dict[str, float]:
    """The images that count as whole, each with when it was finished."""
    return {file.parent.name: file.stat().st_mtime for file in cache.glob("images/*/image.json")}


def resize(folder: Path, size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True)


def started(up: "subprocess.Popen[bytes]", log: Path, what: str, happens: bool) -> bool:
    if up.poll() is not None:
        pytest.fail(f"up ended before {what}:\n{log.read_text()}", pytrace=False)
    return happens


@pytest.mark.slow
class TestWhileImagesAreBuilt:
    def test_a_full_disk_is_named_and_leaves_no_image(self, unlucky: TestLab, cache: Path, log: Path) -> None:
        up = unlucky.start("up", *UP, log=log)
        try:
            wait_for("dpkg", lambda: started(up, log, "dpkg", bool(building(cache))), BUILD_SECONDS)
            space = os.statvfs(cache)
            used = (space.f_blocks - space.f_bfree) * space.f_frsize // MIB
            resize(cache, f"{used + 30}m")
            assert up.wait(BUILD_SECONDS) == 1
        finally:
            up.kill()
            up.wait()
            resize(cache, ROOM)
        said = log.read_text()
        assert "error: installing the packages failed: no space left on the disk" in said
        assert "next: make room" in said
        assert [name for name in images(cache) if name.startswith("packages")] == []
        assert [*cache.glob("images/.building-packages*")] == []

    @pytest.mark.parametrize("word", [signal.SIGINT, signal.SIGKILL], ids=["ctrl-c", "kill-9"])
    def test_a_build_that_is_cut_off_ends_at_once_and_leaves_no_image(
        self, unlucky: TestLab, cache: Path, log: Path, word: signal.Signals
    ) -> None:
        up = unlucky.start("up", *UP, log=log)
        try:
            wait_for("dpkg", lambda: started(up, log, "dpkg", bool(building(cache))), BUILD_SECONDS)
            family = descendants(up.pid)
            up.send_signal(word)
            assert up.wait(END_SECONDS) == (130 if word is signal.SIGINT else -word), log.read_text()
        finally:
            up.kill()
            up.wait()
        assert any("dpkg" in words for words in family.values())
        await_end(family)
        assert [name for name in images(cache) if name.startswith("packages")] == []


@pytest.mark.slow
class TestWhileStepsRun:
    @pytest.mark.parametrize("step", ["keystone/sync.schema", "keystone/init.bootstrap"])
    def test_ctrl_c_ends_all_that_up_has_started(self, unlucky: TestLab, log: Path, step: str) -> None:
        up = unlucky.start("up", *UP, log=log)
        try:
            wait_for(step, lambda: started(up, log, step, step in unlucky.steps("started")), BUILD_SECONDS)
            family = descendants(up.pid)
            up.send_signal(signal.SIGINT)
            assert up.wait(END_SECONDS) == 130, log.read_text()
        finally:
            up.kill()
            up.wait()
        assert [words for words in family.values() if "ansible-playbook" in words]
        assert [words for words in family.values() if "tail" in words]
        await_end(family)
        assert "goes on from here" in log.read_text()
        wait_for("the end of the steps on the node", lambda: not sessions(unlucky), END_SECONDS)

    def test_up_again_repeats_nothing_that_had_passed(self, unlucky: TestLab, cache: Path) -> None:
        done, before, built = unlucky.once_only(), unlucky.steps("started"), images(cache)
        assert "keystone/sync.schema" in done
        unlucky.run("up", *UP)
        assert images(cache).items() >= built.items()
        assert not set(done) & set(unlucky.steps("started")[len(before) :])
        assert len(unlucky.events(["node.created"])) == 1
        unlucky.exec("openstack", "token", "issue")


def sessions(lab: TestLab) -> list[int]:
    """The processes of the lab that serve an SSH connection."""
    found = []
    for pid in lab.processes():
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if words.startswith((b"sshd-session:", b"sshd: root")):
            found.append(pid)
    return found


@pytest.mark.slow
class TestALabThatStands:
    def test_up_mends_a_service_that_was_stopped(self, unlucky: TestLab) -> None:
        unlucky.run("ssh", "controller", "--", "systemctl stop keystone")
        assert unlucky.try_exec("openstack", "token", "issue").returncode != 0
        unlucky.run("up")
        unlucky.exec("openstack", "token", "issue")

    def test_a_node_that_did_not_start_can_be_started_when_the_cause_is_gone(self, unlucky: TestLab) -> None:
        unlucky.run("stop")
        disk, file = unlucky.namespace.folder / "nodes" / "controller", "usr/lib/stacklab/init"
        (disk / "upper" / file).rename(disk / "upper" / f"{file}.away")
        refused = unlucky.try_("start")
        assert refused.returncode == 1
        assert f"cannot find init path '/{file}'" in refused.stderr
        assert [node["state"] for node in unlucky.status()["nodes"]] == ["stopped"]
        assert "libvirt_lxc" not in {name_of(pid) for pid in unlucky.processes()}
        unlucky.namespace.run(["mv", str(disk / "root" / f"{file}.away"), str(disk / "root" / file)])
        unlucky.run("start")
        unlucky.exec("openstack", "token", "issue")

    def test_destroy_leaves_nothing(self, unlucky: TestLab, before: Machine) -> None:
        unlucky.run("destroy", "--yes")
        assert left_over_since(before, unlucky.program.state) == {}
