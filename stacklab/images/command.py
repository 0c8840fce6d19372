"""Running the tools that build images, their output kept in a log."""

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from stacklab.errors import StepFailed

TAIL_LINES = 25
FULL = "No space left on device"


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
            said = output.read().decode(errors="replace")
        detail = "\n".join(said.splitlines()[-TAIL_LINES:])
        if FULL in said:
            hint = "make room (df -h shows where); `stacklab up` again goes on from here"
            raise StepFailed(f"{what} failed: no space left on the disk", detail=detail, hint=hint)
        raise StepFailed(f"{what} failed", detail=detail, hint=f"less {log}")
