"""Digests of images: what every file was when it was made, so that a change is found before it is used.

An image that is complete is sealed in the background: a digest of each of its files is written beside them,
and the mark `sealed` once all has reached the disk. Run as `python -m stacklab.images.digest FOLDER`.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from stacklab.files import write_atomically

MANIFEST = "manifest.json"
SEALED = "sealed"
_OWN = (MANIFEST, SEALED)
# What decides, beside content and mode, how a file is seen or run. Others, such as overlay's note of where a
# file was copied from, differ from machine to machine.
_ATTRIBUTES = frozenset({"trusted.overlay.opaque", "trusted.overlay.redirect", "security.capability"})
# Before the digest of a file that had holes: there are virtual disks of many GiB with little in them.
_SPARSE = "sparse-"
_BLOCK = 1 << 16
_ZEROS = bytes(_BLOCK)


def seal(folder: Path) -> None:
    """Write the image's manifest and, when all of it is on the disk, the mark that says so."""
    write_atomically(folder / MANIFEST, json.dumps(manifest(folder), indent=0))
    subprocess.run(["sync", "--file-system", str(folder)], check=True)
    (folder / SEALED).touch()


def seal_in_background(folder: Path) -> None:
    """Have another process seal the image, at the lowest priority; nobody waits for it."""
    subprocess.run(
        ["setsid", "--fork", "nice", "-n19", sys.executable, "-m", "stacklab.images.digest", str(folder)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=True,
    )


def manifest(folder: Path, earlier: Mapping[str, str] | None = None) -> dict[str, str]:
    """The digest of every file, link, device and directory below `folder`, by its path in there.

    earlier: a manifest that it is to be compared with; files are sparse that were sparse then.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        entries = [(path, entry) for path, entry in _walk(str(folder), "") if not _is_own(path)]
        digests = pool.map(lambda found: _digest(found[0], found[1], earlier or {}), entries, chunksize=256)
        return dict(sorted(zip((path for path, _ in entries), digests, strict=True)))


def damage(folder: Path) -> list[str]:
    """The paths that are not what they were when the image was sealed; empty for a whole image.

    An image that is not sealed yet cannot be told: it was written since the machine booted.
    """
    try:
        entries = json.loads((folder / MANIFEST).read_text()).items()
    except FileNotFoundError:
        return [MANIFEST] if (folder / SEALED).exists() else []
    except (ValueError, AttributeError):  # the latter: JSON, and no object
        return [MANIFEST]
    expected = {path: str(digest) for path, digest in entries}
    found = manifest(folder, expected)
    return sorted(path for path in {*expected, *found} if expected.get(path) != found.get(path))


def _is_own(path: str) -> bool:
    """Whether it is of the seal itself; another process may be writing it just now."""
    return path in _OWN or path.startswith(f".{MANIFEST}.")


def _walk(top: str, below: str) -> Iterator[tuple[str, "os.DirEntry[str]"]]:
    with os.scandir(os.path.join(top, below)) as entries:  # noqa: PTH118 - 60,000 paths
        for entry in entries:
            path = f"{below}/{entry.name}" if below else entry.name
            yield path, entry
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(top, path)


def _digest(path: str, entry: "os.DirEntry[str]", earlier: Mapping[str, str]) -> str:
    """Kind, mode, owner, attributes and content. Times are left out: they say nothing about what is read."""
    status = entry.stat(follow_symlinks=False)
    digest = hashlib.blake2b(f"{status.st_mode:o} {status.st_uid} {status.st_gid}".encode(), digest_size=16)
    for name in sorted(_ATTRIBUTES.intersection(os.listxattr(entry.path, follow_symlinks=False))):
        digest.update(name.encode() + b"\0" + os.getxattr(entry.path, name, follow_symlinks=False))
    if stat.S_ISLNK(status.st_mode):
        digest.update(os.readlink(entry.path).encode())  # noqa: PTH115
    elif stat.S_ISREG(status.st_mode):
        has_holes = status.st_blocks * 512 < status.st_size
        with open(entry.path, "rb", buffering=0) as file:  # noqa: PTH123
            if earlier[path].startswith(_SPARSE) if path in earlier else has_holes:
                digest.update(f" {status.st_size}".encode())
                for place, block in _blocks(file.fileno(), status.st_size):
                    digest.update(f" {place} ".encode())
                    digest.update(block)
                return _SPARSE + digest.hexdigest()
            while block := file.read(1 << 20):
                digest.update(block)
    elif stat.S_ISBLK(status.st_mode) or stat.S_ISCHR(status.st_mode):
        digest.update(f"device {status.st_rdev}".encode())
    return digest.hexdigest()


def _blocks(file: int, size: int) -> Iterator[tuple[int, bytes]]:
    """The blocks of a file that are not all zeros, each with its place; holes are not read.

    Whether zeros are a hole or written makes no difference: that changes as a file is copied.
    """
    start = 0
    while start < size:
        try:
            data = os.lseek(file, start, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole up to the end
                return
            raise
        end = os.lseek(file, data, os.SEEK_HOLE)
        for place in range(data - data % _BLOCK, end, _BLOCK):
            block = os.pread(file, _BLOCK, place)
            if block != _ZEROS[: len(block)]:
                yield place, block
        start = end + -end % _BLOCK


def _give_way() -> None:
    """Yield to other sessions too, where the kernel shares the processors out by session (sched(7))."""
    with contextlib.suppress(OSError):
        Path("/proc/self/autogroup").write_text("19")


def _seal_once(folder: Path) -> None:
    """Seal the image, unless another process does or has done it."""
    handle = os.open(folder, os.O_RDONLY)
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel frees it at our end
        if not (folder / SEALED).exists():
            seal(folder)


if __name__ == "__main__":
    _give_way()
    _seal_once(Path(sys.argv[1]))
