"""The typical host, exercised: Debian 13 with systemd, control groups v2 and AppArmor, from `vagrant up` on.

    .venv/bin/python -m tests.host.typical FOLDER       as root; emulated, it takes hours

FOLDER takes the box, a fresh clone of this checkout and what comes of it, some 20 GiB; the transcript is
FOLDER/transcript.txt. The first command that fails ends the run; the machine's disk stays, and the same
command goes on with it, and with what the checkout has by then. Needs ./bootstrap and the packages vagrant,
vagrant-libvirt and slirp4netns. Vagrant, its libvirt and the machine live in namespaces of their own, with a
way out through slirp4netns: nothing touches this machine's network or libvirt.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from stacklab.lab.namespace import Namespace
from tests.host.box import make_box

BOX = "stacklab-typical"
CHECKOUT = Path(__file__).parents[2]
CLEARED = "\x1b[K"
PROGRESS = (f"{CLEARED}Progress:", "\r")
IN_CLONE = "cd stacklab && sudo "
COMMANDS = (
    ". /etc/os-release && echo $PRETTY_NAME && uname -r && nproc && free -m",
    "stat -fc %T /sys/fs/cgroup; cat /sys/module/apparmor/parameters/enabled; systemd-detect-virt",
    "sudo stacklab doctor",
    f"{IN_CLONE}./bootstrap up --layer 1",
    "sudo aa-status | head -n 40",
    "sudo stacklab status",
    "sudo stacklab stop && sudo stacklab start",
    f"{IN_CLONE}./bootstrap test -m unit",
    "sudo stacklab destroy --yes",
    "systemctl is-system-running; systemctl --failed --no-legend",
)


@contextmanager
def machine_of_its_own(folder: Path) -> Iterator[Namespace]:
    """Namespaces with a libvirt of their own and a way out, and nothing of them afterwards."""
    namespace = Namespace(folder / "namespace", "typical-host")
    namespace.folder.mkdir(exist_ok=True)
    namespace.start()
    way_out = None
    try:
        pid = str(namespace.pid())
        way_out = subprocess.Popen(["slirp4netns", "--configure", "--disable-host-loopback", pid, "tap0"])
        yield namespace
    finally:
        if way_out:
            way_out.terminate()
            way_out.wait()
        namespace.stop()


class Transcript:
    """Runs commands, and keeps what they said in a file and on the screen."""

    def __init__(self, file: Path, namespace: Namespace, clone: Path, environment: Mapping[str, str]) -> None:
        self._file = file
        self._namespace = namespace
        self._clone = clone
        self._environment = environment

    def run(self, *argv: str) -> int:
        """Run a command in the clone, in the namespaces; its exit code."""
        begin = time.monotonic()
        self._say(f"$ {' '.join(argv)}\n".replace(str(self._file.parent), "FOLDER"))
        process = subprocess.Popen(
            self._namespace.enter_command(["env", f"--chdir={self._clone}", *argv]),
            env={**os.environ, **self._environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        assert process.stdout is not None
        for line in process.stdout:
            if not line.startswith(PROGRESS):
                self._say(line.replace(str(self._file.parent), "FOLDER").removeprefix(CLEARED))
        code = process.wait()
        self._say(f"# exit code {code}, after {time.monotonic() - begin:.0f} s\n\n")
        return code

    def _say(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()
        with self._file.open("a") as file:
            file.write(text)


def main() -> int:
    """Run it all; the exit code is that of the command that failed, 0 when all is well."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--memory", default="8192", help="of the machine, in MiB")
    parser.add_argument("--cpus", default="2")
    parser.add_argument("--driver", default="qemu", choices=("qemu", "kvm"))
    options = parser.parse_args()
    folder: Path = options.folder.absolute()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    folder.mkdir(parents=True, exist_ok=True)
    box, clone = folder / "typical.box", folder / "clone"
    if not box.exists():
        make_box(box, folder / "box.log")
    if not clone.exists():
        subprocess.run(["git", "clone", "--quiet", str(CHECKOUT), str(clone)], check=True)
    subprocess.run(["git", "-C", str(clone), "pull", "--quiet", "--ff-only"], check=True)
    settings = {
        "VAGRANT_HOME": str(folder / "vagrant"),
        "VAGRANT_CHECKPOINT_DISABLE": "1",
        "STACKLAB_BOX": BOX,
        "STACKLAB_BOX_DRIVER": options.driver,
        "STACKLAB_BOX_MEMORY": options.memory,
        "STACKLAB_BOX_CPUS": options.cpus,
    }
    with machine_of_its_own(folder) as namespace:
        transcript = Transcript(folder / "transcript.txt", namespace, clone, settings)
        known = (folder / "vagrant" / "boxes" / BOX).exists()
        box_add = [] if known else [("box", "add", "--name", BOX, str(box))]
        commands = [("ssh", "--command", command) for command in COMMANDS]
        up = ("up", "--provider", "libvirt", "--provision")
        for argv in [("validate",), *box_add, up, *commands, ("destroy", "--force")]:
            if code := transcript.run("vagrant", *argv):
                transcript.run("vagrant", "halt")
                return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
