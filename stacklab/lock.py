"""One stacklab process at a time works on a thing; another is told who has it."""

import contextlib
import fcntl
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from stacklab.errors import LabBusy


@contextlib.contextmanager
def hold(file: Path, subject: str, *, wait: bool = False, shared: bool = False) -> Iterator[None]:
    """Hold the lock on `file` while the block runs; the kernel frees it however the process ends.

    shared: beside others who share it. Raises LabBusy, with the other process's id and command, when it is
    taken, unless it is to be waited for.
    """
    how = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    with _locked(file, how, subject) as handle:
        handle.truncate(0)
        handle.write(f"process {os.getpid()}: {shlex.join(['stacklab', *sys.argv[1:]])}")
        handle.flush()
        yield


def _locked(file: Path, how: int, subject: str) -> TextIO:
    """The file, open and locked; made anew as often as a holder before has taken it away."""
    while True:
        file.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError), contextlib.ExitStack() as opened:
            handle = opened.enter_context(file.open("a+"))
            try:
                fcntl.flock(handle, how)
            except BlockingIOError:
                handle.seek(0)
                holder = handle.read().strip() or "another process"
                raise LabBusy(
                    f"{subject} is in use by {holder}", hint="wait for it to end, then try again"
                ) from None
            if os.path.samestat(file.stat(), os.fstat(handle.fileno())):
                opened.pop_all()
                return handle
