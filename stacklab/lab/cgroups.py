"""The control groups of a lab: one per hierarchy, so that all that a lab creates lies below them.

Three kinds of host are met. cgroup v2 has one hierarchy; v1 has one per controller; a hybrid has v1
controllers and an empty v2 tree beside them. A lab's group is `stacklab/NAME` below the root of each.
"""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PARENT = "stacklab"
LEAF = "init"  # lab/init.py makes it, on v2
REMOVAL_SECONDS = 10.0
FREEZE_SECONDS = 10.0


@dataclass(frozen=True)
class Hierarchy:
    """One mounted hierarchy: its v1 controllers (`cpu,cpuacct`, `name=systemd`), or "" for v2.

    And its mount point.
    """

    controllers: str
    mount_point: Path

    @property
    def is_v2(self) -> bool:
        """Whether this is the unified hierarchy."""
        return self.controllers == ""


def hierarchies(mountinfo: str | None = None) -> list[Hierarchy]:
    """The hierarchies mounted on this machine, read from /proc/self/mountinfo (or its text, as given)."""
    text = Path("/proc/self/mountinfo").read_text() if mountinfo is None else mountinfo
    found: dict[str, Hierarchy] = {}
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        mount_point = Path(before.split()[4])
        kind, _, options = after.split(" ", 2)
        if kind == "cgroup2":
            found.setdefault("", Hierarchy("", mount_point))
        elif kind == "cgroup":
            controllers = ",".join(
                option
                for option in options.split(",")
                if option not in ("rw", "ro", "xattr", "noprefix", "clone_children")
                and not option.startswith("release_agent")
            )
            found.setdefault(controllers, Hierarchy(controllers, mount_point))
    return list(found.values())


def is_unified(present: list[Hierarchy]) -> bool:
    """Whether the machine runs on cgroup v2 alone."""
    return all(hierarchy.is_v2 for hierarchy in present)


def join(name: str, pid: int, *, beside: bool = False) -> None:
    """Make the groups of the lab `name` in every hierarchy and move the process `pid` into them.

    beside: the lab runs already. On v2 its group hands out its controllers then, and has no processes of its
    own: they are in a leaf. Raises OSError where the machine does not let it.
    """
    for hierarchy in hierarchies():
        group = hierarchy.mount_point / PARENT / name
        group.mkdir(parents=True, exist_ok=True)
        if "cpuset" in hierarchy.controllers.split(","):
            _inherit_cpuset(hierarchy.mount_point, group)
        if hierarchy.is_v2:
            _delegate(hierarchy.mount_point)
        leaf = group / LEAF
        place = leaf if beside and leaf.is_dir() else group
        (place / "cgroup.procs").write_text(str(pid))


def _inherit_cpuset(top: Path, group: Path) -> None:
    """A new v1 cpuset has no CPU and takes no process until it is given some."""
    for folder in (group.parent, group):
        for file in ("cpuset.cpus", "cpuset.mems"):
            if not (folder / file).read_text().strip():
                (folder / file).write_text((top / file).read_text())


def _delegate(top: Path) -> None:
    """On v2 a group has only the controllers that each group above it hands down."""
    for folder in (top, top / PARENT):
        for name in (folder / "cgroup.controllers").read_text().split():
            with contextlib.suppress(OSError):  # busy with v1, or not to be delegated
                (folder / "cgroup.subtree_control").write_text(f"+{name}")


@contextlib.contextmanager
def frozen(name: str) -> Iterator[None]:
    """Stop every process of the lab `name` at one moment, and let them go on when the block ends.

    They go on even when this process is killed meanwhile. Raises OSError where the machine has no freezer.
    """
    file, stop, go = _freezer(name)
    # Its standard input ends with this process, however that ends.
    watch = ["sh", "-c", 'read -r _; echo "$1" >"$2"', "sh", go, str(file)]
    guard = subprocess.Popen(watch, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        file.write_text(stop)
        deadline = time.monotonic() + FREEZE_SECONDS
        while not _is_frozen(file):
            if time.monotonic() > deadline:
                raise OSError(f"the processes of {name} do not freeze")
            time.sleep(0.005)
        yield
    finally:
        guard.communicate()
        file.write_text(go)


def unfreeze(name: str) -> None:
    """Let the processes of the lab `name` go on; nothing happens where they do, or where there are none."""
    file, _, go = _freezer(name)
    with contextlib.suppress(FileNotFoundError):
        file.write_text(go)


def _freezer(name: str) -> tuple[Path, str, str]:
    """The file that freezes a lab, and what to write to it: to stop, to go on."""
    for hierarchy in hierarchies():
        if "freezer" in hierarchy.controllers.split(","):
            return hierarchy.mount_point / PARENT / name / "freezer.state", "FROZEN", "THAWED"
    top = next(hierarchy.mount_point for hierarchy in hierarchies() if hierarchy.is_v2)
    return top / PARENT / name / "cgroup.freeze", "1", "0"


def _is_frozen(file: Path) -> bool:
    if file.name == "freezer.state":
        return file.read_text().strip() == "FROZEN"
    return "frozen 1" in (file.parent / "cgroup.events").read_text()


def exist(name: str) -> bool:
    """Whether there are groups of the lab `name`."""
    return any((hierarchy.mount_point / PARENT / name).is_dir() for hierarchy in hierarchies())


def kill(name: str) -> None:
    """End every process in the groups of the lab `name` by force; returns after 10 s at the latest."""
    deadline = time.monotonic() + REMOVAL_SECONDS
    while (processes := _processes(name)) and time.monotonic() < deadline:
        unfreeze(name)  # a frozen process does not even die
        for pid in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def _processes(name: str) -> set[int]:
    found: set[int] = set()
    for hierarchy in hierarchies():
        for file in (hierarchy.mount_point / PARENT / name).rglob("cgroup.procs"):
            with contextlib.suppress(OSError):  # the group has just gone, or is a threaded one
                found.update(map(int, file.read_text().split()))
    return found


def remove(name: str) -> None:
    """Remove the groups of the lab `name`, deepest first.

    Its processes are gone, but the kernel may need a moment.
    """
    deadline = time.monotonic() + REMOVAL_SECONDS
    for hierarchy in hierarchies():
        parent = hierarchy.mount_point / PARENT
        group = parent / name
        while group.is_dir() and time.monotonic() < deadline:
            for folder in sorted(group.rglob("*/"), key=lambda path: len(path.parts), reverse=True):
                with contextlib.suppress(OSError):
                    folder.rmdir()
            with contextlib.suppress(OSError):
                group.rmdir()
            if group.is_dir():
                time.sleep(0.02)
        with contextlib.suppress(OSError):  # not ours to remove while another lab is below it
            parent.rmdir()
