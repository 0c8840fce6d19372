"""Files that the user names: replaced as a whole, or written into where they are no regular ones."""

import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

from stacklab.check.junit import write_junit
from stacklab.files import write_asked


def test_a_link_stays_and_what_it_leads_to_is_replaced(tmp_path: Path) -> None:
    file, link = tmp_path / "there" / "versions.yaml", tmp_path / "link"
    link.symlink_to(file)
    write_asked(link, "old")
    write_asked(link, "new")
    assert link.readlink() == file
    assert file.read_text() == "new"
    assert [each.name for each in file.parent.iterdir()] == [file.name]


def test_a_report_goes_where_a_link_leads(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("results.xml")
    write_junit(tmp_path / "link", [], lab="blue", layers={}, began=datetime.now(UTC))
    assert (tmp_path / "link").is_symlink()
    assert "<testsuites" in (tmp_path / "results.xml").read_text()


def test_a_device_is_written_into(tmp_path: Path) -> None:
    script = f"from stacklab.files import *; write_asked(Path({str(tmp_path / 'out')!r}), 'nova: 31')"
    (tmp_path / "out").symlink_to("/dev/stdout")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "nova: 31"
    assert (tmp_path / "out").readlink() == Path("/dev/stdout")


def test_a_pipe_is_written_into(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with subprocess.Popen(["cat", tmp_path / "pipe"], stdout=subprocess.PIPE, text=True) as reader:
        write_asked(tmp_path / "pipe", "nova: 31")
        assert reader.communicate()[0] == "nova: 31"
    assert (tmp_path / "pipe").is_fifo()
