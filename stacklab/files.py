"""Files that are whole or absent, never half-written."""

import os
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path


def write_atomically(file: Path, content: str | bytes, *, mode: int = 0o644) -> None:
    """Put `content` into `file` by way of a temporary file beside it.

    A crash leaves the old file or the new one.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    handle, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            os.fchmod(stream.fileno(), mode)
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        Path(name).replace(file)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_asked(file: Path, content: str | bytes, *, mode: int = 0o644) -> None:
    """Put `content` into a file that the user named: atomically, unless it is a device or a pipe.

    A link stays, and what it leads to is written; so are /dev/stdout and its like.
    """
    if is_special(file):
        file.write_bytes(content.encode() if isinstance(content, str) else content)
    else:
        write_atomically(Path(os.path.realpath(file)), content, mode=mode)


def is_special(file: Path) -> bool:
    """Whether `file` is there and is no regular one: it can be written into, but not replaced."""
    return file.exists() and not file.is_file()


def reach_disk(files: Iterable[Path]) -> None:
    """Return when what is in the files, and which names are in folders, has reached the disk."""
    for file in files:
        handle = os.open(file, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def remove_tree(folder: Path) -> None:
    """Remove a tree, if it is there.

    It may hold overlay's work directories, which `shutil.rmtree` cannot enter.
    """
    if folder.exists():
        subprocess.run(["rm", "-rf", "--one-file-system", "--", str(folder)], check=True)


def boot_id() -> str:
    """What the kernel calls this boot of the machine; another one after each reboot (random(4))."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
