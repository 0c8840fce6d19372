"""Programs that take long end with stacklab, however that ends."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.unit.catalogs import write

BEGIN = {
    "qemu-system-x86_64": "from stacklab.host import kvm; kvm.boot(folder / 'vmlinuz', seconds=60.0)",
    "apt-get": "from stacklab.host import apt, archive\n"
    "archive.Archive(apt.Mirror(()), ('x',), folder).update()",
    "tar": "from stacklab.images import store, transfer\n"
    "transfer.import_images(store.Store(folder / 'images'), folder / 'bin' / 'tar')",
}


@pytest.mark.parametrize("name", BEGIN)
def test_a_program_does_not_outlive_stacklab(name: str, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    program = write(
        tmp_path / "bin" / name, f"#!/bin/sh\necho $$ > {pid}.new; mv {pid}.new {pid}; exec sleep 50\n"
    )
    program.chmod(0o755)
    environment = {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}"}
    code = f"import sys; from pathlib import Path; folder = Path(sys.argv[1])\n{BEGIN[name]}"
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], env=environment) as stacklab:
        while not pid.exists():
            assert stacklab.poll() is None
            time.sleep(0.05)
        stacklab.kill()
    words = Path(f"/proc/{pid.read_text().strip()}/cmdline")
    deadline = time.monotonic() + 10.0
    while words.exists() and words.read_bytes():  # of one that nobody has reaped there are none
        assert time.monotonic() < deadline
        time.sleep(0.05)
