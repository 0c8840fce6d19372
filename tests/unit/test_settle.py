"""A rendered tree on the disk of a node that is off: files, owners by the disk's own users, and stamps."""

import base64
import io
import json
import os
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "playbooks" / "files"))
sys.path.insert(0, str(Path(__file__).parents[2] / "playbooks" / "library"))
import config_tree
import settle

CONFIG = "/etc/glance/glance-api.conf"
UNITS = {
    "id": "glance/controller",
    "kind": "units",
    "units": ["glance-api"],
    "files": [CONFIG],
    "stamp": "new",
}
COMMAND = {"id": "glance/sync.schema", "run": "true", "stamp": "new"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A system that has users of its own, and on which both steps passed once."""
    root = tmp_path / "root"
    stamps = root / "var/lib/stacklab/steps"
    for folder in (root / "etc", stamps):
        folder.mkdir(parents=True)
    (root / "etc/passwd").write_text(f"keeper:x:{os.getuid()}:{os.getgid()}::/:/bin/sh\n")
    (root / "etc/group").write_text(f"keepers:x:{os.getgid()}:\n")
    for step in (UNITS, COMMAND):
        (stamps / str(step["id"]).replace("/", ".")).write_text("old")
    return root


def settled(root: Path, *steps: dict[str, Any], owner: str = "keeper") -> Path:
    """Put a configuration and steps on the system; the folder of the stamps."""
    contents = {CONFIG: "workers = 1", f"/{settle.STEPS}": json.dumps(steps)}
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for path, text in contents.items():
            member = tarfile.TarInfo(path.lstrip("/"))
            member.size, member.uname, member.gname = len(text.encode()), owner, "keepers"
            tar.addfile(member, io.BytesIO(text.encode()))
    tree = root.with_name("tree.tar.gz.b64")
    tree.write_bytes(base64.b64encode(archive.getvalue()))
    settle.main(root, tree)
    return root / "var/lib/stacklab/steps"


def test_units_that_ran_start_with_the_new_files_and_need_no_restart(root: Path) -> None:
    stamps = settled(root, UNITS)
    assert (root / CONFIG.lstrip("/")).read_text() == "workers = 1"
    assert (stamps / "glance.controller").read_text() == "new"


def test_a_command_is_still_to_be_run(root: Path) -> None:
    assert (settled(root, UNITS, COMMAND) / "glance.sync.schema").read_text() == "old"


def test_units_that_never_ran_are_still_to_be_started(root: Path) -> None:
    units = {**UNITS, "id": "cinder/storage"}
    assert not (settled(root, UNITS, units) / "cinder.storage").exists()


def test_owners_are_the_users_of_the_disk(root: Path) -> None:
    with pytest.raises(config_tree.TreeError, match="no user 'root' on this node"):
        settled(root, UNITS, owner="root")
