"""The image `guest`: a small Linux for instances, from Debian's kernel, busybox and dropbear.

    sector 0            boot code and partition table
    1 MiB               FAT: syslinux, the kernel, and an initramfs that finds the root file system
    after it            ext4, labelled `guest`: the system; the instance makes it as large as its disk

No loop device and no mounted image: mtools and mke2fs write into the file. The tools and the system come
from packages of the release's suite, unpacked in a folder, and run in there, so the host needs none of them.
What the guest does when it boots is in templates/guest.
"""

import re
import shutil
import struct
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stacklab.errors import StepFailed
from stacklab.home import data_dir
from stacklab.host.archive import Archive
from stacklab.images.initramfs import (
    KERNEL,
    cpio,
    digest_of,
    fill_initramfs,
    install_busybox,
    kernel_packages,
    set_modes,
)

FILE = "guest.qcow2"
KERNEL_FILE, RAMDISK_FILE = "guest.vmlinuz", "guest.ramdisk"
# What the guest consists of, with all that these depend on; without; and what writes its boot partition.
PACKAGES = ("busybox-static", "dropbear-bin", "e2fsprogs", "opendoas")
ALONE = (
    "util-linux",
    *("libmount1", "libsmartcols1", "libudev1", "libcap2", "libselinux1", "libpcre2-8-0", "libtinfo6"),
    "libpam-modules",  # of which one that permits: doas asks PAM even where it asks nobody
)
TOOLS = ("mtools", "syslinux", "syslinux-common")
# Programs beside busybox's, with the libraries that they load.
PROGRAMS = (
    "usr/sbin/dropbear",
    "usr/bin/dropbearkey",
    "usr/sbin/blkid",  # Debian's busybox has none, and its findfs does not know every FAT
    "usr/sbin/mke2fs",
    "usr/sbin/resize2fs",
    "usr/sbin/e2fsck",
    "usr/bin/lsblk",
    "usr/bin/doas",
    "usr/lib/x86_64-linux-gnu/security/pam_permit.so",
)
SETUID = ("usr/bin/doas",)
LINKS = {"usr/sbin/mkfs.ext4": "mke2fs", "usr/sbin/mkfs.ext2": "mke2fs"}

# Without the kernel's tests of its own cryptography it boots a seventh faster, where it is emulated.
COMMAND_LINE = (
    "root=LABEL=guest console=tty0 console=ttyS0,115200 quiet mitigations=off cryptomgr.notests panic=5"
)

MIB = 2**20
SECTOR = 512
SYSTEM_MIB = 64
USER_ID = 1000  # of the user `guest`
REVISION = 6  # raise it when what is done below changes


@dataclass(frozen=True)
class Guest:
    """The files of a built guest: a disk to boot, and kernel and ramdisk for booting without any.

    initramfs: finds the disk. ramdisk: the same, with the whole system beside it.
    """

    disk: Path
    kernel: Path
    initramfs: Path
    ramdisk: Path

    @classmethod
    def at(cls, folder: Path) -> "Guest":
        """The guest whose files lie in `folder`."""
        return cls(folder / FILE, folder / KERNEL_FILE, folder / "initramfs", folder / RAMDISK_FILE)

    @property
    def images(self) -> dict[str, Path]:
        """The files that services may upload, by the name by which `resources` call them."""
        return {FILE: self.disk, KERNEL_FILE: self.kernel, RAMDISK_FILE: self.ramdisk}


def guest_inputs(pockets: Sequence[str]) -> dict[str, Any]:
    """All that the guest of a release is made of, for the key of its image (plain JSON values)."""
    return {
        "revision": REVISION,
        "pockets": list(pockets),
        "packages": [KERNEL, *PACKAGES, *ALONE, *TOOLS],
        "command_line": COMMAND_LINE,
        "scripts": digest_of(_templates()),
    }


def build_guest(folder: Path, archive: Archive, workdir: Path) -> Guest:
    """Build the guest's files in `folder`, from the packages of `archive`; about 5 s without downloads.

    workdir: an empty folder on a disk with 250 MiB free, for the builder's own use. Needs root (chroot, and
    owners of files). Raises StepFailed with the words of the tool that failed.
    """
    tools = workdir / "tools"
    archive.unpack(_fetch(archive), tools)
    guest = Guest.at(folder)
    folder.mkdir(parents=True, exist_ok=True)

    kernel = next((tools / "boot").glob("vmlinuz-*"))
    shutil.copyfile(kernel, guest.kernel)
    initramfs = workdir / "initramfs"
    fill_initramfs(tools, _templates(), initramfs)
    guest.initramfs.write_bytes(b"".join(cpio(initramfs)))
    system = workdir / "system"
    _fill_system(tools, system)
    beside = workdir / "beside"
    beside.mkdir()
    system.rename(beside / "system")
    system = beside / "system"
    # The kernel unpacks one archive after the other.
    guest.ramdisk.write_bytes(guest.initramfs.read_bytes() + b"".join(cpio(beside)))

    disk = tools / "disk.raw"
    _write_disk(disk, tools, system, guest)
    compressed = folder / f".{guest.disk.name}"
    _run("qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", disk, compressed)
    compressed.rename(guest.disk)
    return guest


def _fetch(archive: Archive) -> list[Path]:
    """The packages, downloaded; of the kernel only itself, as what it depends on is for installing it."""
    alone = archive.fetch([*kernel_packages(archive), *ALONE], closure=False)
    return [*alone, *archive.fetch([*PACKAGES, *TOOLS], closure=True)]


def _fill_system(tools: Path, folder: Path) -> None:
    shutil.copytree(_templates() / "root", folder)
    set_modes(folder)
    install_busybox(tools, folder)
    for program in PROGRAMS:
        for file in (program, *_libraries(tools, program)):
            target = folder / file
            target.parent.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)  # busybox has applets of these names
            shutil.copyfile(tools / file, target)
            target.chmod(0o4755 if file in SETUID else 0o755)
    for link, target_name in LINKS.items():
        (folder / link).unlink(missing_ok=True)
        (folder / link).symlink_to(target_name)
    for name in ("dev", "proc", "sys", "run", "mnt", "root", "tmp", "var/log", "home/guest"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "var/run").symlink_to("/run")
    (folder / "root").chmod(0o700)
    (folder / "tmp").chmod(0o1777)
    (folder / "etc/shadow").chmod(0o600)
    shutil.chown(folder / "home/guest", USER_ID, USER_ID)


def _libraries(tools: Path, program: str) -> list[str]:
    """The shared libraries of a program, and its loader: paths below the root, as it asks for them."""
    loader = next(iter(sorted((tools / "usr/lib64").glob("ld-linux*"))))
    listing = _run("chroot", tools, f"/lib64/{loader.name}", "--list", f"/{program}")
    return [path.lstrip("/") for path in re.findall(r"(/\S+)(?= \(0x)", listing)]


def _write_disk(disk: Path, tools: Path, system: Path, guest: Guest) -> None:
    """Write boot code, partition table, boot partition and root file system into the raw image `disk`."""
    boot_files = [guest.kernel, guest.initramfs]
    boot_mib = sum(file.stat().st_size for file in boot_files) // MIB + 2
    system_start = 1 + boot_mib
    with disk.open("wb") as stream:
        stream.truncate((system_start + SYSTEM_MIB) * MIB)
        # mbr.bin: code of 440 bytes that starts the active partition.
        stream.write((tools / "usr/lib/syslinux/mbr/mbr.bin").read_bytes()[:440])
        stream.seek(446)
        stream.write(_partition(0x0E, 1, boot_mib, active=True))
        stream.write(_partition(0x83, system_start, SYSTEM_MIB))
        stream.seek(510)
        stream.write(b"\x55\xaa")

    # syslinux runs mtools through the shell, and names the disk to them as /proc/PID/fd/N.
    (tools / "usr/bin/sh").symlink_to("busybox")
    for name in ("tmp", "proc"):
        (tools / name).mkdir(exist_ok=True)
    bind_proc = 'mount --bind /proc "$1/proc" && exec chroot "$@"'
    with_proc = ("unshare", "--mount", "sh", "-c", bind_proc, "sh", tools)
    staged = tools / "staged"
    staged.mkdir()
    for file in boot_files:
        shutil.copyfile(file, staged / file.name)
    (staged / "syslinux.cfg").write_text(
        f"DEFAULT guest\nLABEL guest\n LINUX {guest.kernel.name}\n INITRD {guest.initramfs.name}\n"
        f" APPEND {COMMAND_LINE}\n"
    )
    inside = f"/{disk.name}"
    sectors = boot_mib * MIB // SECTOR
    hidden = MIB // SECTOR
    # Heads and sectors per track are what SeaBIOS says of any disk of this size.
    shape = ["-h", "255", "-s", "63", "-H", str(hidden), "-T", str(sectors), "-c", "4"]
    _run("chroot", tools, "mformat", "-i", f"{inside}@@{MIB}", *shape)
    _run("chroot", tools, "sh", "-c", f"mcopy -i {inside}@@{MIB} staged/* ::")
    _run(*with_proc, "syslinux", "--install", "--offset", str(MIB), inside)

    _run(
        *("mke2fs", "-q", "-t", "ext4", "-L", "guest", "-b", "4096", "-m", "0", "-J", "size=4", "-d", system),
        *("-E", f"offset={system_start * MIB},root_owner=0:0", disk, f"{SYSTEM_MIB}M"),
    )


def _partition(kind: int, start_mib: int, size_mib: int, *, active: bool = False) -> bytes:
    """An entry of the partition table; its cylinders say `beyond CHS`, as everything reads the LBA fields."""
    beyond = b"\xfe\xff\xff"
    sectors = MIB // SECTOR
    place = struct.pack("<II", start_mib * sectors, size_mib * sectors)
    return bytes([0x80 if active else 0]) + beyond + bytes([kind]) + beyond + place


def _templates() -> Path:
    return data_dir() / "templates" / "guest"


def _run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        words = " ".join(map(str, command))
        output = (done.stdout + done.stderr).strip()
        raise StepFailed(f"building the guest: {words[:120]} failed", detail=output)
    return done.stdout
