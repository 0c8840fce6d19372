"""The first process of a lab's namespaces: it mounts what the lab sees, runs libvirtd, and ends with the lab.

Run as `python3 -I init.py FOLDER READY_FD WATCH...` in new mount, PID, network, IPC, UTS and cgroup
namespaces. Being process 1 of the PID namespace, its end is the end of every process of the lab: the kernel
sees to it. It imports nothing of stacklab, so that a lab that runs is independent of the program's files:
WATCH, the command that writes down what happens to the nodes, may fail.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

# What libvirtd finds at its usual places lies in the lab's folder.
BINDS = {
    "run": "/run",
    "libvirt/lib": "/var/lib/libvirt",
    "libvirt/etc": "/etc/libvirt",
    "libvirt/log": "/var/log/libvirt",
    "libvirt/cache": "/var/cache/libvirt",
}
RESTART_SECONDS = 1.0


def run(*argv: str) -> None:
    """Run a command; its failure is the failure of the lab's start."""
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)


def mount_view(folder: Path) -> None:
    """Mount what the lab sees. Nothing of it spreads to the machine.

    What the machine unmounts goes here too.
    """
    run("mount", "--make-rslave", "/")
    run("mount", "-t", "proc", "proc", "/proc")
    for source, target in BINDS.items():
        run("mount", "--bind", str(folder / source), target)
    cgroups = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    controllers = [names for _, names, _ in cgroups if names]
    run("umount", "--recursive", "--lazy", "/sys")
    run("mount", "-t", "sysfs", "sysfs", "/sys")
    if controllers:
        mount_cgroup_v1(controllers)
    else:
        mount_cgroup_v2()


def mount_cgroup_v1(hierarchies: list[str]) -> None:
    """Mount the v1 hierarchies one by one.

    Libvirt refuses the hybrid layout with its `unified` beside them.
    """
    top = Path("/sys/fs/cgroup")
    run("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", str(top))
    for names in hierarchies:
        folder = top / names.removeprefix("name=")
        folder.mkdir()
        options = f"none,{names}" if names.startswith("name=") else names
        run("mount", "-t", "cgroup", "-o", options, "cgroup", str(folder))
        for name in names.split(","):
            if not (top / name).exists() and not name.startswith("name="):
                (top / name).symlink_to(names)


def mount_cgroup_v2() -> None:
    """Mount the unified hierarchy, step into a leaf, and hand all controllers to what comes beside us."""
    top = Path("/sys/fs/cgroup")
    run("mount", "-t", "cgroup2", "cgroup2", str(top))
    (top / "init").mkdir(exist_ok=True)
    for pid in (top / "cgroup.procs").read_text().split():
        (top / "init" / "cgroup.procs").write_text(pid)
    available = (top / "cgroup.controllers").read_text().split()
    (top / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in available))


class Service:
    """A program that is started again when it ends, not sooner than a second after its start."""

    def __init__(self, argv: list[str], log: Path) -> None:
        self.argv = argv
        self.log = log
        self.start()

    def start(self) -> None:
        """Start the program; its words go to the log."""
        self.started = time.monotonic()
        with self.log.open("ab") as output:
            self.pid = subprocess.Popen(self.argv, stdout=output, stderr=output).pid


def supervise(*services: Service) -> None:
    """Start services again when they end (nodes outlive libvirtd), and reap whatever else ends.

    Never returns.
    """
    while True:
        pid, _ = os.wait()
        for service in services:
            if service.pid == pid:
                time.sleep(max(0.0, RESTART_SECONDS - (time.monotonic() - service.started)))
                service.start()


def main() -> None:
    """Build the lab's view of the machine, tell the starter so, and stay."""
    folder, ready, watch = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        mount_view(folder)
        run("ip", "link", "set", "lo", "up")
    except (OSError, subprocess.CalledProcessError) as error:
        os.write(ready, str(error).encode())
        sys.exit(1)
    os.write(ready, b"ready")
    os.close(ready)
    logs = folder / "libvirt" / "log"
    supervise(Service(["/usr/sbin/libvirtd"], logs / "libvirtd.log"), Service(watch, logs / "watch.log"))


if __name__ == "__main__":
    main()
