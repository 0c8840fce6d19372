"""Into a lab: how this process becomes a command that runs in it."""

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import NoReturn

from stacklab.errors import StacklabError, UsageError


def become(argv: Sequence[str], environment: Mapping[str, str]) -> NoReturn:
    """Replace this process by a command, so that its exit code, its signals and its terminal are its own.

    Raises UsageError when the program is not there, StacklabError when it cannot be run.
    """
    if shutil.which(argv[0], path=environment.get("PATH")) is None:
        raise UsageError(f"there is no program {argv[0]!r} on the PATH")
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        os.execvpe(argv[0], list(argv), dict(environment))
    except OSError as error:
        raise StacklabError(f"{argv[0]} cannot be run: {error.strerror}") from error
