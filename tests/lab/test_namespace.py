"""The namespaces of a lab, without nodes; takes a second."""

import os
import select
import tempfile
from pathlib import Path

import pytest

from stacklab.errors import HostUnfit
from stacklab.lab import cgroups
from stacklab.lab.namespace import Namespace


@pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root")
@pytest.mark.parametrize("record", ["", "null", "{"])
def test_a_lab_whose_record_is_lost_is_ended_all_the_same(record: str) -> None:
    with tempfile.TemporaryDirectory(prefix="stacklab-test-", dir="/var/tmp") as folder:
        lost = Namespace(Path(folder) / "lab", "lost")
        lost.folder.mkdir()
        try:
            lost.start()
            handle = os.pidfd_open(lost.pid() or 0)
            (lost.folder / "init.json").write_text(record)
        finally:
            lost.stop()
        assert select.select([handle], [], [], 10)[0]
        os.close(handle)
        assert not cgroups.exist(lost.group)


@pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root")
def test_a_lab_of_which_no_record_can_be_written_does_not_live(tmp_path: Path) -> None:
    unknown = Namespace(tmp_path / "lab", "unknown")
    (unknown.folder / "init.json").mkdir(parents=True)
    with pytest.raises(HostUnfit, match="Is a directory"):
        unknown.start()
    groups = [each.mount_point / cgroups.PARENT / unknown.group for each in cgroups.hierarchies()]
    try:
        assert not any(group.exists() for group in groups)
    finally:
        for file in (file for group in groups for file in group.rglob("cgroup.procs")):
            for pid in file.read_text().split():
                os.kill(int(pid), 9)
        cgroups.remove(unknown.group)
