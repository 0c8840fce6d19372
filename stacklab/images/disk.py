"""The image `disk`: what nodes of kind `vm` start from, made of the same packages as the nodes of kind `lxc`.

    tree/disk.qcow2     ext4 on the whole disk, no partition table: the base, the packages and the modules
    tree/vmlinuz        the kernel, which QEMU starts itself; there is no boot loader
    tree/initrd         what it starts with: finds the disk, and puts into it what makes it a node of a lab

The trees that containers run on are laid over each other and copied into a file system, natively. What the
node does before systemd is in templates/vm.
"""

import tempfile
from pathlib import Path
from typing import Any

from stacklab.children import BOUND_TREE
from stacklab.files import remove_tree, write_atomically
from stacklab.home import data_dir
from stacklab.host.archive import Archive
from stacklab.images.command import run_logged
from stacklab.images.initramfs import KERNEL, cpio, digest_of, fill_initramfs, kernel_packages, modules_of
from stacklab.images.packages import Downloads, ensure_packages
from stacklab.images.store import Image, Store

DISK, VMLINUZ, INITRD = "disk.qcow2", "vmlinuz", "initrd"
# What a machine with a kernel and devices of its own needs beside what a container does.
PACKAGES = ("kmod", "udev")
SIZE_GIB = 64  # of the file system; what is not written takes no room
SYSTEM = "[Manager]\nDefaultTimeoutStartSec=600\nDefaultTimeoutStopSec=300\n"  # it may be emulated
REVISION = 1  # raise it when what is done below changes


def disk_inputs() -> dict[str, Any]:
    """What a disk is made of, beside the trees that are on it."""
    return {
        "revision": REVISION,
        "kernel": KERNEL,
        "packages": list(PACKAGES),
        "size": f"{SIZE_GIB}G",
        "scripts": digest_of(_templates()),
    }


def ensure_disk(store: Store, packages: Image, archive: Archive, downloads: Downloads, log: Path) -> Image:
    """The disk with what the image `packages` has, built when the store has none (about 20 s).

    archive: where the kernel comes from. log: takes what the tools print. Raises StepFailed.
    """
    with_devices = ensure_packages(store, packages, PACKAGES, downloads, log)
    trees = [each.tree for each in store.chain(with_devices)]

    def build(folder: Path) -> None:
        (folder / "tree").mkdir()
        with tempfile.TemporaryDirectory(dir=folder) as work:
            _build(folder / "tree", trees, archive, Path(work), log)

    return store.ensure("disk", {**disk_inputs(), "tree": with_devices.key}, build)


def _build(target: Path, trees: list[Path], archive: Archive, work: Path, log: Path) -> None:
    tools = work / "tools"
    kernel = archive.fetch(kernel_packages(archive), closure=False)
    archive.unpack([*kernel, *archive.fetch(["busybox-static"], closure=True)], tools)
    (target / VMLINUZ).write_bytes(next((tools / "boot").glob("vmlinuz-*")).read_bytes())
    fill_initramfs(tools, _templates(), work / "initramfs")
    (target / INITRD).write_bytes(b"".join(cpio(work / "initramfs")))

    modules = modules_of(tools)
    top = work / "top"
    (top / "usr/lib/modules").mkdir(parents=True)
    modules.rename(top / "usr/lib/modules" / modules.name)
    write_atomically(top / "etc/systemd/system.conf.d/stacklab.conf", SYSTEM)
    for name in ("work", "root"):
        (work / name).mkdir()
    lower = ":".join(map(str, trees))
    # No checksums of metadata, which cost an emulated processor more than they protect on a file; tables of
    # inodes are not written, as a new file is zeros.
    script = """
mount -t overlay -o "volatile,lowerdir=$1,upperdir=$2/top,workdir=$2/work" overlay "$2/root"
chroot "$2/root" depmod "$3"
mke2fs -q -t ext4 -L root -m 0 -i 32768 -O ^metadata_csum,uninit_bg -J size=64 \
    -E lazy_itable_init=1,nodiscard,root_owner=0:0 -d "$2/root" "$2/disk.raw" "$4"
qemu-img convert -f raw -O qcow2 -W "$2/disk.raw" "$5"
"""
    arguments = [lower, str(work), modules.name, f"{SIZE_GIB}G", str(target / DISK)]
    run_logged(
        [*BOUND_TREE, "sh", "-euc", script, "sh", *arguments], log, "making the disk of the virtual machines"
    )
    remove_tree(work / "work")


def _templates() -> Path:
    return data_dir() / "templates" / "vm"
