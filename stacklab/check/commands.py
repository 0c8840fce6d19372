"""Checks that are commands, run in the lab's network with the cloud's credentials, like `stacklab exec`."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from stacklab.check.cloud import Cloud
from stacklab.check.result import Checking, Unmet, ask
from stacklab.children import BOUND
from stacklab.errors import Interrupted
from stacklab.lab.secrets import masked
from stacklab.model.service import Service
from stacklab.templating import FAILURES, failure_in

COMMAND_SECONDS = 180.0
TAIL_LINES = 20


def check_command(cloud: Cloud, service: Service, name: str, text: str) -> Checking:
    """The shell command ends with 0 within 180 s."""

    def run() -> None:
        try:
            command = cloud.renderer.text(text)
        except FAILURES as error:
            raise Unmet(
                f"`{text.strip().splitlines()[0]}` in {service.file} {failure_in(error)[1]}"
            ) from None
        shown = masked(command.strip().splitlines()[0], cloud.renderer.secrets)
        environment = cloud.lab.client_environment(os.environ)
        with _in_memory(command) as script:
            argv = cloud.lab.enter_command(["sh", f"/proc/self/fd/{script}"])
            run_command(argv, environment, name=shown, stopping=cloud.stopping, keep=[script])

    yield ask(service.name, name, run)


@contextmanager
def _in_memory(text: str) -> Iterator[int]:
    """The descriptor of a file with `text`, which may hold passwords: not on a disk, nor in `ps`."""
    with os.fdopen(os.memfd_create("check"), "w+") as file:
        file.write(text)
        file.flush()
        yield file.fileno()


def run_command(
    argv: Sequence[str],
    environment: Mapping[str, str],
    *,
    name: str,
    stopping: threading.Event,
    seconds: float = COMMAND_SECONDS,
    keep: Sequence[int] = (),
) -> str:
    """Run a command and return its output; it is ended, with all that it started, when it takes too long.

    name: what to call it. keep: open descriptors that it is to have, too. Raises Unmet with the end of its
    output, Interrupted when `stopping` is set.
    """
    process = subprocess.Popen(
        [*BOUND, *argv],
        env=environment,
        pass_fds=keep,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # so that all of it can be ended at once
    )
    ended_for = ""
    deadline = time.monotonic() + seconds
    while True:
        try:
            output, _ = process.communicate(timeout=0.2)
            break
        except subprocess.TimeoutExpired:
            if not ended_for and (stopping.is_set() or time.monotonic() > deadline):
                ended_for = "stop" if stopping.is_set() else "time"
                os.killpg(process.pid, signal.SIGKILL)
    if ended_for == "stop":
        raise Interrupted("the checks were interrupted")
    tail = "\n".join(output.rstrip().splitlines()[-TAIL_LINES:])
    if ended_for == "time":
        raise Unmet(f"`{name}` has not ended after {seconds:.0f} s", detail=tail)
    if process.returncode != 0:
        raise Unmet(f"`{name}` ended with {process.returncode}", detail=tail)
    return output
