"""The images `disk` and `seed`: what nodes of kind `vm` start from, made of the trees of nodes of kind `lxc`.

    tree/disk.qcow2     ext4 on the whole disk, no partition table: the base, the packages and the modules
    tree/vmlinuz        the kernel, which QEMU starts itself; there is no boot loader
    tree/initrd         what it starts with: finds the disk, and puts into it what makes it a node of a lab

A seed has the same for each node, in nodes/NAME/ instead of tree/, with a whole layer on the disk: that of a
lab on containers, whose passwords it has in lab/.

The trees that containers run on are laid over each other and copied into a file system, natively. What the
node does before systemd is in templates/vm.
"""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stacklab.children import BOUND_TREE
from stacklab.files import remove_tree
from stacklab.home import data_dir
from stacklab.host.archive import Archive
from stacklab.images.command import run_logged
from stacklab.images.initramfs import KERNEL, cpio, digest_of, fill_initramfs, kernel_packages, modules_of
from stacklab.images.packages import Downloads, install_command
from stacklab.images.store import Image, Store

SEED = "seed"
DISK, VMLINUZ, INITRD = "disk.qcow2", "vmlinuz", "initrd"
# What a machine with a kernel and devices of its own needs beside what a container does.
PACKAGES = ("kmod", "udev")
SIZE_GIB = 64  # of the file system; what is not written takes no room
REVISION = 3  # raise it when what is done below changes


def disk_inputs() -> dict[str, Any]:
    """What a disk is made of, beside the trees that are on it."""
    return {
        "revision": REVISION,
        "kernel": KERNEL,
        "packages": list(PACKAGES),
        "size": f"{SIZE_GIB}G",
        "scripts": digest_of(_templates()),
    }


def ensure_disk(
    store: Store, packages: Image, archive: Callable[[], Archive], downloads: Downloads, log: Path
) -> Image:
    """The disk with what the image `packages` has, built when the store has none (about 20 s).

    archive: gives where the kernel comes from. log: takes what the tools print. Raises StepFailed.
    """

    def build(folder: Path) -> None:
        trees = [each.tree for each in store.chain(packages)]
        _build(folder / "tree", trees, archive(), downloads, log)

    return store.ensure("disk", {**disk_inputs(), "tree": packages.key}, build)


def ensure_seed(
    store: Store, layer: Image, archive: Callable[[], Archive], downloads: Downloads, log: Path
) -> Image:
    """The disks with what the image of a layer has of nodes of kind `lxc`, and that lab's passwords.

    Otherwise as `ensure_disk`.
    """

    def build(folder: Path) -> None:
        packages = archive()
        for node in layer.nodes:
            trees = [each.tree_of(node) for each in store.chain(layer)]
            _build(folder / "nodes" / node, trees, packages, downloads, log)
        shutil.copytree(layer.folder / "lab", folder / "lab")

    return store.ensure(SEED, {**disk_inputs(), "layer": layer.key}, build, title=f"{layer.title}, on disks")


def _build(target: Path, trees: list[Path], archive: Archive, downloads: Downloads, log: Path) -> None:
    """Put a disk that has `trees`, top first, into the folder `target`, with the kernel to boot it by."""
    target.mkdir(parents=True)
    with tempfile.TemporaryDirectory(dir=target) as folder:
        work = Path(folder)
        tools = work / "tools"
        kernel = archive.fetch(kernel_packages(archive), closure=False)
        archive.unpack([*kernel, *archive.fetch(["busybox-static"], closure=True)], tools)
        (target / VMLINUZ).write_bytes(next((tools / "boot").glob("vmlinuz-*")).read_bytes())
        fill_initramfs(tools, _templates(), work / "initramfs")
        (target / INITRD).write_bytes(b"".join(cpio(work / "initramfs")))
        _make_file_system(target / DISK, trees, modules_of(tools), work, downloads, log)
        remove_tree(work / "work")


def _make_file_system(
    disk: Path, trees: list[Path], modules: Path, work: Path, downloads: Downloads, log: Path
) -> None:
    top = work / "top"
    (top / "usr/lib/modules").mkdir(parents=True)
    modules.rename(top / "usr/lib/modules" / modules.name)
    for name in ("work", "root"):
        (work / name).mkdir()
    # No checksums of metadata, which cost an emulated processor more than they protect on a file; tables of
    # inodes are not written, as a new file is zeros.
    script = """
trees=$1 work=$2 modules=$3 size=$4 disk=$5
shift 5
mount -t overlay -o "volatile,lowerdir=$trees,upperdir=$work/top,workdir=$work/work" overlay "$work/root"
"$@"
chroot "$work/root" depmod "$modules"
mke2fs -q -t ext4 -L root -m 0 -i 32768 -O ^metadata_csum,uninit_bg -J size=64 \
    -E lazy_itable_init=1,nodiscard,root_owner=0:0 -d "$work/root" "$work/disk.raw" "$size"
qemu-img convert -f raw -O qcow2 -W "$work/disk.raw" "$disk"
chmod 600 "$disk"
"""
    arguments = [":".join(map(str, trees)), str(work), modules.name, f"{SIZE_GIB}G", str(disk)]
    command = [*BOUND_TREE, "sh", "-euc", script, "sh", *arguments]
    install = install_command(work / "root", PACKAGES, downloads)
    with downloads.locked():
        run_logged([*command, *install], log, "making the disk of the virtual machines")


def _templates() -> Path:
    return data_dir() / "templates" / "vm"
