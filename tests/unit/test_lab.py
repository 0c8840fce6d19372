"""A lab by itself: its end, and what it does with several nodes at a time."""

from pathlib import Path

import pytest

from stacklab.home import Home
from stacklab.lab import lab as lab_module
from stacklab.lab.lab import Lab, LabSettings

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
