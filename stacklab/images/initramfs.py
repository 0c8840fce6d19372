"""The first file system of a machine that boots: busybox, the modules that it needs, and a script of ours.

Guests and nodes of kind `vm` start from one. It is made of unpacked packages, on any machine, and packed as
the kernel reads it.
"""

import hashlib
import lzma
import re
import shutil
import stat
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

from stacklab.errors import StepFailed
from stacklab.host.archive import Archive

KERNEL = "linux-image-cloud-amd64"


def kernel_packages(archive: Archive) -> list[str]:
    """The packages that hold the kernel; KERNEL names the newest one."""
    names = [name for name in archive.dependencies(KERNEL) if re.match(r"linux-(image|modules|binary)", name)]
    if not names:
        raise StepFailed(f"the package {KERNEL} names no kernel")
    return names


def fill_initramfs(tools: Path, templates: Path, folder: Path) -> None:
    """Fill `folder`, which is not there yet, from the packages unpacked in `tools`, a kernel among them.

    templates: a folder with `initramfs`, our own files in it, and `modules`, the list of those to load.
    """
    shutil.copytree(templates / "initramfs", folder)
    set_modes(folder)
    install_busybox(tools, folder)
    for name in ("dev", "proc", "sys", "modules"):
        (folder / name).mkdir()
    order = []
    for name, options, content in _modules(modules_of(tools), templates / "modules"):
        (folder / "modules" / f"{name}.ko").write_bytes(content)
        order.append(f"{name} {options}".rstrip() + "\n")
    (folder / "modules" / "load").write_text("".join(order))


def modules_of(tools: Path) -> Path:
    """The folder of the modules of the one kernel below `tools`."""
    return next((tools / "usr/lib/modules").iterdir())


def install_busybox(tools: Path, folder: Path) -> None:
    """Put busybox there, with a link for each of its applets; /usr is merged, as in Debian."""
    for name in ("bin", "sbin", "lib", "lib64"):
        (folder / "usr" / name).mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(f"usr/{name}")
    shutil.copyfile(tools / "usr/bin/busybox", folder / "usr/bin/busybox")
    (folder / "usr/bin/busybox").chmod(0o4755)
    argv = ["chroot", str(tools), "/bin/busybox", "--list-full"]
    applets = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    for applet in applets.split():
        place = "usr/sbin" if "sbin" in applet else "usr/bin"
        link = folder / place / Path(applet).name
        if not link.exists():
            link.symlink_to("/bin/busybox")


def set_modes(folder: Path) -> None:
    """Scripts are executable, whatever the way on which stacklab was installed did to their modes."""
    for file in folder.rglob("*"):
        executable = file.is_dir() or file.read_bytes()[:2] == b"#!"
        file.chmod(0o755 if executable else 0o644)


def _modules(kernel: Path, wanted: Path) -> Iterator[tuple[str, str, bytes]]:
    """Name, options and content of each module to load, after what it depends on.

    Dependencies are read from the modules themselves (`depends=` in their .modinfo): modules.dep is made when
    the package is installed, and it is not.
    """
    files = {_module_name(file): file for file in kernel.rglob("*.ko*")}
    loaded: set[str] = set()

    def load(name: str, options: str = "") -> Iterator[tuple[str, str, bytes]]:
        if name in loaded or name not in files:
            return
        loaded.add(name)
        packed = files[name].read_bytes()
        content = lzma.decompress(packed) if files[name].suffix == ".xz" else packed
        found = re.search(rb"\0depends=([^\0]*)\0", content)
        for other in found[1].decode().split(",") if found else []:
            yield from load(other.replace("-", "_"))
        yield name, options, content

    for line in wanted.read_text().splitlines():
        name, _, options = line.partition("#")[0].strip().partition(" ")
        yield from load(name, options)


def _module_name(file: Path) -> str:
    return file.name.partition(".ko")[0].replace("-", "_")


def cpio(root: Path) -> Iterator[bytes]:
    """The tree as an initramfs: cpio in the `newc` format. Not compressed, as the disk is.

    https://docs.kernel.org/driver-api/early-userspace/buffer-format.html
    """
    for number, path in enumerate(sorted(root.rglob("*")), start=1):
        status = path.lstat()
        if path.is_symlink():
            content = str(path.readlink()).encode()
        else:
            content = path.read_bytes() if path.is_file() else b""
        owner = (status.st_uid, status.st_gid)
        yield _cpio_entry(str(path.relative_to(root)), number, status.st_mode, content, owner)
    yield _cpio_entry("TRAILER!!!", 0, 0, b"")


def cpio_of(name: str, content: bytes) -> bytes:
    """An archive with one file that only root reads, to be unpacked after another one."""
    return _cpio_entry(name, 1, stat.S_IFREG | 0o600, content) + _cpio_entry("TRAILER!!!", 0, 0, b"")


def _cpio_entry(name: str, inode: int, mode: int, content: bytes, owner: tuple[int, int] = (0, 0)) -> bytes:
    encoded = name.encode() + b"\0"
    fields = (inode, mode, *owner, 1, 0, len(content), 0, 0, 0, 0, len(encoded), 0)
    header = b"070701" + b"".join(b"%08x" % field for field in fields) + encoded
    return _padded(header) + _padded(content)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)


def digest_of(folder: Path) -> str:
    """SHA-256, in hex, of the names and contents of all files below a folder."""
    digest = hashlib.sha256()
    for file in _files(folder):
        for part in (str(file.relative_to(folder)).encode(), file.read_bytes()):
            digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()


def _files(folder: Path) -> Iterable[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())
