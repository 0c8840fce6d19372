"""Checks that are commands, run in the lab's network with the cloud's credentials, like `stacklab exec`."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from stacklab.check.cloud import Cloud
from stacklab.check.result import Checking, Unmet, ask
from stacklab.model.service import Service

COMMAND_SECONDS = 180.0
TAIL_LINES = 20


def check_command(cloud: Cloud, service: Service, name: str, text: str) -> Checking:
    """The shell command ends with 0 within 180 s."""
    yield ask(service.name, name, lambda: run_command(cloud, text))


def run_command(cloud: Cloud, text: str, seconds: float = COMMAND_SECONDS) -> str:
    """Run a shell command in the lab's network; returns its output. Raises Unmet with the end of that."""
    process = subprocess.Popen(
        cloud.lab.enter_command(["sh", "-c", text]),
        env=_environment(cloud),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # so that all of it can be ended at once
    )
    with process:
        deadline = time.monotonic() + seconds
        while True:
            try:
                output, _ = process.communicate(timeout=0.2)
                break
            except subprocess.TimeoutExpired:
                late = time.monotonic() > deadline
                if late or cloud.stopping.is_set():
                    os.killpg(process.pid, signal.SIGKILL)
                cloud.heed_stop()
                if late:
                    raise Unmet(f"`{text}` has not ended after {seconds:.0f} s") from None
    if process.returncode != 0:
        lines = output.rstrip().splitlines()[-TAIL_LINES:]
        raise Unmet(f"`{text}` ended with {process.returncode}", detail="\n".join(lines))
    return output


def _environment(cloud: Cloud) -> dict[str, str]:
    """The cloud's credentials and no others; the programs beside this Python come first."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("OS_")}
    programs = str(Path(sys.prefix) / "bin")
    path = f"{programs}:{os.environ.get('PATH', os.defpath)}"
    return {**own, **cloud.credentials, "PATH": path, "STACKLAB_LAB": cloud.lab.name}
