"""What the checks of the host judge: facts of this machine, gathered in about a tenth of a second."""

import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from stacklab.lab.cgroups import Hierarchy, hierarchies

MIB = 2**20

# What the labs call, with the Debian package that brings it.
PROGRAMS = {
    "dnsmasq": "dnsmasq-base",
    "ip": "iproute2",
    "libvirtd": "libvirt-daemon",
    "mke2fs": "e2fsprogs",
    "mmdebstrap": "mmdebstrap",
    "nsenter": "util-linux",
    "qemu-img": "qemu-utils",
    "qemu-storage-daemon": "qemu-system-common",
    "qemu-system-x86_64": "qemu-system-x86",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "unshare": "util-linux",
}
DEVICES = {"tun": "/dev/net/tun", "fuse": "/dev/fuse", "loop": "/dev/loop-control"}
LIBVIRT_DRIVERS = ("lxc", "network", "qemu")

# Each line is tried in namespaces of its own, as the labs do it, for only that tells whether this machine and
# whatever it runs in (a container, a hardened kernel) allow it. Output: the words of those that work.
_PROBE = """
mount --make-rprivate / && echo namespaces
overlay=overlay
for folder; do
    mkdir "$folder/lower" "$folder/upper" "$folder/work" "$folder/root"
    options="lowerdir=$folder/lower,upperdir=$folder/upper,workdir=$folder/work"
    mount -t overlay -o "$options" overlay "$folder/root" || overlay=
done
echo $overlay
ip link add probe0 type veth peer name probe1 && echo veth
ip link add probe2 type bridge && echo bridge
mount -t proc proc /proc && echo proc
"""


@dataclass(frozen=True)
class Space:
    """The free space for a folder, in MiB, and the number of the device that it is on."""

    folder: Path
    free: int
    device: int = 0


@dataclass(frozen=True)
class Facts:
    """A machine, as the checks see it. Sizes in MiB.

    features: the words of the probe that work, and of DEVICES that are there. controllers: those of the
    control groups. programs: where those of PROGRAMS are; those that are not installed are missing.
    openvswitch: its module is loaded.
    """

    user: int = 0
    architecture: str = "x86_64"
    distribution: str = "debian"
    version: str = "12"
    kernel: str = "6.12"
    features: frozenset[str] = frozenset(
        {"namespaces", "overlay", "veth", "bridge", "proc", "tun", "fuse", "loop"}
    )
    cgroups: tuple[Hierarchy, ...] = ()
    controllers: frozenset[str] = frozenset({"memory"})
    cgroups_writable: bool = True
    programs: Mapping[str, Path] = field(default_factory=dict)
    libvirt_drivers: frozenset[str] = frozenset(LIBVIRT_DRIVERS)
    memory: int = 0
    disk: tuple[Space, ...] = ()
    openvswitch: bool = False
    apparmor: str = ""
    selinux: str = ""


def gather(folders: Sequence[Path]) -> Facts:
    """Look at this machine; `folders` are those that all is put into, and need not exist yet."""
    release = platform.freedesktop_os_release() if Path("/etc/os-release").exists() else {}
    present = tuple(hierarchies())
    return Facts(
        user=os.geteuid(),
        architecture=platform.machine(),
        distribution=release.get("ID", "unknown"),
        version=release.get("VERSION_ID", ""),
        kernel=platform.release(),
        features=_features({_existing(folder) for folder in folders}),
        cgroups=present,
        controllers=_controllers(present),
        cgroups_writable=all(os.access(hierarchy.mount_point, os.W_OK) for hierarchy in present),
        programs={name: Path(path) for name in PROGRAMS if (path := shutil.which(name))},
        libvirt_drivers=_libvirt_drivers(),
        memory=available_memory(),
        disk=tuple(_space(folder) for folder in folders),
        openvswitch=Path("/sys/module/openvswitch").is_dir(),
        apparmor=_apparmor(),
        selinux=_selinux(),
    )


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    return next(path for path in (folder, *folder.parents) if path.is_dir())


def _space(folder: Path) -> Space:
    place = _existing(folder)
    return Space(folder, shutil.disk_usage(place).free // MIB, place.stat().st_dev)


def _features(folders: Iterable[Path]) -> frozenset[str]:
    """What works of the probe; it is tried in all folders, as an overlay may not lie on every file system."""
    devices = {word for word, device in DEVICES.items() if Path(device).exists()}
    unshare = ["unshare", "--mount", "--net", "--uts", "--ipc", "--pid", "--fork"]
    try:
        with ExitStack() as places:
            work = [
                places.enter_context(tempfile.TemporaryDirectory(dir=folder, prefix=".probe-"))
                for folder in folders
            ]
            done = subprocess.run(
                [*unshare, "sh", "-c", _PROBE, "sh", *work], capture_output=True, text=True, check=False
            )
    except OSError:  # not root, a read-only disk, or no unshare: other checks say so
        return frozenset(devices)
    return frozenset(done.stdout.split()) | devices


def _controllers(present: Sequence[Hierarchy]) -> frozenset[str]:
    found: set[str] = set()
    for hierarchy in present:
        if hierarchy.is_v2:
            file = hierarchy.mount_point / "cgroup.controllers"
            found.update(file.read_text().split() if file.is_file() else [])
        else:
            found.update(hierarchy.controllers.split(","))
    return frozenset(found)


def _libvirt_drivers() -> frozenset[str]:
    folders = [*Path("/usr/lib").glob("*-linux-gnu/libvirt/connection-driver")]
    files = {file.name for folder in folders for file in folder.iterdir()}
    return frozenset(name for name in LIBVIRT_DRIVERS if f"libvirt_driver_{name}.so" in files)


def available_memory() -> int:
    """MemAvailable, or what is left below the memory limit of the control group that we are in."""
    text = Path("/proc/meminfo").read_text()
    words = {line.split(":")[0]: line.split()[1] for line in text.splitlines()}
    available = int(words["MemAvailable"]) // 1024
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and used.is_file() and (most := limit.read_text().strip()) != "max":
        available = min(available, (int(most) - int(used.read_text())) // MIB)
    return available


def _apparmor() -> str:
    """`enforced` where AppArmor confines /usr/sbin/libvirtd, as Debian's libvirt-daemon-system has it."""
    profiles = Path("/sys/kernel/security/apparmor/profiles")
    try:
        lines = profiles.read_text().splitlines()
    except OSError:
        return ""
    return "enforced" if any("libvirtd" in line and "(enforce)" in line for line in lines) else "on"


def _selinux() -> str:
    try:
        return "enforcing" if Path("/sys/fs/selinux/enforce").read_text().strip() == "1" else "permissive"
    except OSError:
        return ""
