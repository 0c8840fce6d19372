"""A lab by itself: its end, and what it does with several nodes at a time."""

import os
import socket
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from stacklab.errors import Interrupted
from stacklab.home import Home
from stacklab.lab import lab as lab_module
from stacklab.lab.access import ensure_keys, identity_files, wait_for_ssh
from stacklab.lab.lab import Lab
from stacklab.lab.namespace import Namespace
from stacklab.lab.settings import LabSettings
from stacklab.provide.disks import CREATED, IMAGE
from stacklab.provide.lxc import LxcProvider
from stacklab.provide.provider import Node, NodeFile, NodeState
from tests.unit.interrupts import ctrl_c_once

SETTINGS = LabSettings(profile="p", release="r", topology="t", node_kind="lxc")
NODE = Node("controller", "10.20.0.11", ("controller",), 0, 1)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "state", tmp_path / "cache")


def make(home: Home, name: str) -> Lab:
    """A lab that is off, with the disk of a node."""
    lab = Lab(home, name)
    lab.save(SETTINGS)
    (lab.folder / "nodes" / "controller").mkdir(parents=True)
    return lab


def test_a_destroy_that_is_cut_off_leaves_no_half_of_a_lab(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    blue = make(home, "blue")

    def cut_off(folder: Path) -> None:
        (folder / "lab.yaml").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt), blue.locked():
        patched.setattr(lab_module, "remove_tree", cut_off)
        blue.destroy()
    assert not blue.folder.exists()
    assert Lab.all(home) == []
    make(home, "blue").destroy()
    make(home, "red").destroy()
    assert not home.state.exists()


def test_a_node_that_greets_late_is_asked_once(home: Home) -> None:
    lab = Lab(home, "rack")
    lab.save(SETTINGS.model_copy(update={"node_kind": "host"}))
    greeted: list[socket.socket] = []

    def serve() -> None:
        connection, _ = server.accept()
        with connection:
            time.sleep(6)
            connection.sendall(b"SSH-2.0-late\r\n")
            greeted.append(connection)

    with socket.create_server(("127.0.0.1", 0)) as server:
        node = Node("late", "127.0.0.1", ("compute",), 0, 1, port=server.getsockname()[1])
        thread = threading.Thread(target=serve)
        thread.start()
        wait_for_ssh(lab, node)
        thread.join()
    assert len(greeted) == 1


def test_ctrl_c_ends_the_wait_for_nodes_that_boot(home: Home) -> None:
    """Its nodes are hosts, for these are reached without namespaces."""
    lab = Lab(home, "rack")
    lab.save(SETTINGS.model_copy(update={"node_kind": "host"}))
    with socket.create_server(("127.0.0.1", 0)) as server:
        silent = Node("silent", "127.0.0.1", ("compute",), 0, 1, port=server.getsockname()[1])
    ended = []
    begun = threading.Barrier(3)

    def wait(node: Node) -> None:
        begun.wait(30)
        try:
            wait_for_ssh(lab, node)
        except Interrupted:
            ended.append(node)
            raise

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt), ctrl_c_once(begun):
        lab.at_once(wait, [silent, silent])
    assert len(ended) == 2
    assert time.monotonic() - began < 10


def test_the_first_error_is_raised_when_all_nodes_are_done(home: Home) -> None:
    lab, done = Lab(home, "blue"), threading.Event()
    nodes = [Node(name, "", (), 0, 1) for name in ("quick", "slow")]

    def work(node: Node) -> None:
        if node.name == "quick":
            raise ValueError(node.name)
        assert not lab.stopping.wait(0.2)
        done.set()

    with pytest.raises(ValueError, match="quick"):
        lab.at_once(work, nodes)
    assert done.is_set()


def test_a_lab_is_stopped_though_the_journal_cannot_be_written(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab, stopped = make(home, "blue"), []
    worker = Node("worker", "10.20.0.12", ("compute",), 0, 1)
    lab.save(SETTINGS.model_copy(update={"nodes": (NODE, worker)}))
    running = SimpleNamespace(
        state=lambda node: NodeState.RUNNING, stop=lambda node: stopped.append(node.name)
    )
    monkeypatch.setitem(lab.__dict__, "provider", running)
    end = SimpleNamespace(pid=lambda: 1, stop=lambda: stopped.append("namespaces"))
    monkeypatch.setattr(lab, "_namespace", end)
    lab.journal.path = Path("/dev/full/journal.db")
    lab.stop()
    assert stopped == ["worker", "controller", "namespaces"]


@pytest.mark.parametrize("kind", ["lxc", "vm"])
def test_a_node_whose_disk_does_not_tell_what_it_stands_on_was_not_made(home: Home, kind: str) -> None:
    """So a power cut leaves a file that was just written."""
    lab = make(home, "blue")
    lab.save(SETTINGS.model_copy(update={"node_kind": kind}))
    disk = lab.folder / "nodes" / NODE.name
    (disk / CREATED).touch()
    (disk / IMAGE).write_text("/images/base-1/tree")
    assert lab.provider.state(NODE) is NodeState.STOPPED
    (disk / IMAGE).write_text("")
    assert lab.provider.state(NODE) is NodeState.ABSENT


class NoNamespace:
    """The namespace of a lab that is off; in place of an overlay, the upper directory is all of the root."""

    def pid(self) -> None:
        return None

    def run(self, argv: Sequence[str], *, stdin: bytes = b"") -> str:
        if argv[0] == "mount":
            root = Path(argv[-1])
            root.rmdir()
            root.symlink_to(root.with_name("upper"))
        elif argv[0] == "tar":
            subprocess.run(argv, input=stdin, check=True)
        return ""


def test_what_makes_a_node_has_reached_the_disk_before_the_node_counts_as_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider = LxcProvider(cast(Namespace, NoNamespace()), tmp_path)
    disk, synced, fsync = tmp_path / NODE.name, set(), os.fsync

    def watched(handle: int) -> None:
        assert not (disk / CREATED).exists()
        synced.add(os.stat(handle).st_ino)
        fsync(handle)

    monkeypatch.setattr(os, "fsync", watched)
    provider.create(NODE, [tmp_path / "base"], {"/etc/hostname": NodeFile("controller")})
    assert (disk / CREATED).exists()
    made = (IMAGE, "upper/etc/hostname", "upper/usr/lib/stacklab/init")
    assert {(disk / name).stat().st_ino for name in made} <= synced


@pytest.mark.parametrize("half", ["key", "key.pub", "host-controller", "host-controller.pub"])
def test_a_key_that_a_power_cut_has_emptied_is_made_anew(home: Home, half: str) -> None:
    lab = make(home, "blue")
    ensure_keys(lab, (NODE,))
    before = identity_files(lab, NODE)
    ensure_keys(lab, (NODE,))
    keys = [path for path in before if "key" in path]
    assert [before[path] for path in keys] == [identity_files(lab, NODE)[path] for path in keys]
    (lab.folder / "ssh" / half).write_text("")
    ensure_keys(lab, (NODE,))
    assert all(file.stat().st_size for file in (lab.folder / "ssh").iterdir())
