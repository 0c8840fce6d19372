"""A lab by itself: its end, and what it does with several nodes at a time."""

import socket
import threading
import time
from pathlib import Path

import pytest

from stacklab.errors import Interrupted
from stacklab.home import Home
from stacklab.lab import lab as lab_module
from stacklab.lab.access import wait_for_ssh
from stacklab.lab.lab import Lab, LabSettings
from stacklab.provide.provider import Node
from tests.unit.interrupts import ctrl_c_once

SETTINGS = LabSettings(profile="p", release="r", topology="t", node_kind="lxc")


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
