"""Packages go into a system that is there; cut off at any point, the same again makes up for it."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from stacklab.images.packages import UNFINISHED, Downloads, install_command
from tests.unit.catalogs import write

# An installation enables a unit, as Debian's packages do; stacklab is killed where a file `cut` is.
CHROOT = """\
#!/bin/sh
root=$1
shift 6
case "$*" in "apt-get "*" install "*)
    ln -sf /lib/new.service "$root/etc/systemd/system/multi-user.target.wants/"
    [ ! -e "$root/cut" ] || kill -9 $PPID
esac
"""


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """Stand-ins for what only root can run."""
    for name, text in (("mount", "#!/bin/sh\n"), ("umount", "#!/bin/sh\n"), ("chroot", CHROOT)):
        write(tmp_path / "programs" / name, text).chmod(0o755)
    return tmp_path / "programs"


def test_what_an_installation_that_was_killed_has_enabled_is_not_enabled_in_the_end(
    tmp_path: Path, programs: Path
) -> None:
    root = tmp_path / "root"
    wants = root / "etc/systemd/system/multi-user.target.wants"
    for folder in (wants, root / "tmp", root / "usr/sbin"):
        folder.mkdir(parents=True)
    (wants / "ssh.service").symlink_to("/lib/ssh.service")
    command = install_command(root, ["new"], Downloads(tmp_path / "downloads", online=False))
    environment = {"PATH": f"{programs}:{os.environ['PATH']}"}
    unfinished = root / UNFINISHED.lstrip("/")

    (root / "cut").touch()
    for _ in range(2):
        assert subprocess.run(command, env=environment, check=False).returncode == -signal.SIGKILL
        assert unfinished.exists()
    (root / "cut").unlink()
    subprocess.run(command, env=environment, check=True)
    assert [link.name for link in wants.iterdir()] == ["ssh.service"]
    assert not unfinished.parent.exists()
    assert not (root / "usr/sbin/policy-rc.d").exists()
