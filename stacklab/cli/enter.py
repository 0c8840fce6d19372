"""Into a lab: the environment of commands that run in it, and how this process becomes one of them."""

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from stacklab.errors import StacklabError, UsageError

if TYPE_CHECKING:
    from stacklab.lab import Lab


def lab_environment(lab: "Lab", inherited: Mapping[str, str]) -> dict[str, str]:
    """The variables for a command in the lab: the person's own, and the cloud's credentials.

    The programs beside this Python (the `openstack` client) come first on the PATH.
    """
    # An OS_CLOUD or OS_TOKEN left over from another cloud would win over the lab's credentials.
    own = {name: value for name, value in inherited.items() if not name.startswith("OS_")}
    programs = str(Path(sys.prefix) / "bin")
    return {
        **own,
        **lab.environment(),
        "PATH": f"{programs}:{inherited.get('PATH', os.defpath)}",
        "STACKLAB_LAB": lab.name,
    }


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
