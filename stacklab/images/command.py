"""Running the tools that build images, their output kept in a log."""

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from stacklab.errors import StepFailed

TAIL_LINES = 25


def run_logged(
    argv: Sequence[str],
    log: Path,
    what: str,
    *,
    stdin: str = "",
    environment: Mapping[str, str] | None = None,
) -> None:
    """Run a command with its output appended to `log`. Raises StepFailed with the end of what it printed."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        before = output.tell()
        done = subprocess.run(
            argv, input=stdin.encode(), stdout=output, stderr=subprocess.STDOUT, env=environment, check=False
        )
    if done.returncode != 0:
        with log.open("rb") as output:
            output.seek(before)
            lines = output.read().decode(errors="replace").splitlines()
        raise StepFailed(f"{what} failed", detail="\n".join(lines[-TAIL_LINES:]), hint=f"less {log}")
