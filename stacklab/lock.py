"""One stacklab process at a time works on a thing; another is told who has it."""

import contextlib
import fcntl
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from stacklab.errors import LabBusy


@contextlib.contextmanager
def hold(file: Path, subject: str, *, wait: bool = False, shared: bool = False) -> Iterator[None]:
    """Hold the lock on `file` while the block runs; the kernel frees it however the process ends.

    shared: beside others who share it. Raises LabBusy, with the other processes' ids and commands, when it is
    taken, unless it is to be waited for.
    """
    how = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    with _locked(file, how, subject):
        yield


def _locked(file: Path, how: int, subject: str) -> TextIO:
    """The file, open and locked; made anew as often as a holder before has taken it away."""
    while True:
        file.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError), contextlib.ExitStack() as opened:
            handle = opened.enter_context(file.open("a"))
            try:
                fcntl.flock(handle, how)
            except BlockingIOError:
                holders = " and ".join(_holders(handle)) or "another process"
                raise LabBusy(
                    f"{subject} is in use by {holders}", hint="wait for it to end, then try again"
                ) from None
            if os.path.samestat(file.stat(), os.fstat(handle.fileno())):
                opened.pop_all()
                return handle


def _holders(handle: TextIO) -> Iterator[str]:
    """The processes that hold the lock, as far as they can be seen, each with its command (proc(5))."""
    # By inode alone: of btrfs, the kernel tells another device here than stat(2) does.
    inode = os.fstat(handle.fileno()).st_ino
    found = re.findall(rf"^\d+: FLOCK .* (\d+) \S+:{inode} ", Path("/proc/locks").read_text(), re.MULTILINE)
    for process in (Path("/proc", number) for number in dict.fromkeys(found)):
        with contextlib.suppress(OSError):  # it has just ended
            if _has_open(process, handle):
                yield f"process {process.name}: {_command(process)}"


def _has_open(process: Path, handle: TextIO) -> bool:
    for file in (process / "fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # it is just closed
            if os.path.samestat(file.stat(), os.fstat(handle.fileno())):
                return True
    return False


def _command(process: Path) -> str:
    """The command line of a process, from the word `stacklab` on, if that is what it runs."""
    words = (process / "cmdline").read_bytes().decode(errors="replace").rstrip("\0").split("\0")
    programs = [Path(word).name for word in words]
    start = programs.index("stacklab") if "stacklab" in programs else 0
    return shlex.join([programs[start], *words[start + 1 :]])
