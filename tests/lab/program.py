"""The program under test, called as a person calls it."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from stacklab.lab.namespace import Namespace

EXAMPLES = Path(__file__).parents[2] / "examples"
Done = subprocess.CompletedProcess[str]
LONG_ENOUGH = 1500.0  # seconds for the longest command, a cold `up` on two slow cores


def wait_for(what: str, happens: Callable[[], Any], seconds: float) -> Any:
    """The first true result of `happens`, asked again and again; fails the test after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        result = happens()
        if result:
            return result
        if time.monotonic() > deadline:
            pytest.fail(f"{what}: not within {seconds:.0f} s", pytrace=False)
        time.sleep(0.2)


@dataclass(frozen=True)
class Program:
    """stacklab with a state and a cache of its own."""

    state: Path
    cache: Path

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "STACKLAB_STATE": str(self.state), "STACKLAB_CACHE": str(self.cache)}

    @staticmethod
    def argv(*arguments: str) -> list[str]:
        return [sys.executable, "-m", "stacklab", *arguments]

    def try_(self, *arguments: str, timeout: float = LONG_ENOUGH) -> Done:
        """Run a command and return what came of it, whatever its exit code."""
        return subprocess.run(
            self.argv(*arguments),
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def run(self, *arguments: str, timeout: float = LONG_ENOUGH) -> str:
        """Run a command that has to succeed; its standard output."""
        done = self.try_(*arguments, timeout=timeout)
        if done.returncode != 0:
            words = f"stacklab {' '.join(arguments)}\nexit code {done.returncode}"
            pytest.fail(f"{words}\n{done.stdout[-4000:]}\n{done.stderr[-8000:]}", pytrace=False)
        return done.stdout

    def start(self, *arguments: str, log: Path) -> "subprocess.Popen[bytes]":
        """Start a command, its output going to `log`."""
        with log.open("wb") as output:
            return subprocess.Popen(
                self.argv(*arguments),
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def end(self) -> None:
        """Kill what still runs of the commands of a session that was cut off: they hold the locks of labs."""
        ours = f"STACKLAB_STATE={self.state}".encode()
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                words = (folder / "cmdline").read_bytes().split(b"\0")
                variables = (folder / "environ").read_bytes().split(b"\0")
            except OSError:  # it has ended
                continue
            if ours in variables and words[1:3] == [b"-m", b"stacklab"]:
                os.kill(int(folder.name), signal.SIGKILL)


@dataclass(frozen=True)
class TestLab:
    """A lab of the program under test."""

    __test__ = False  # its name begins like a test's

    program: Program
    name: str

    def run(self, verb: str, *arguments: str, timeout: float = LONG_ENOUGH) -> str:
        return self.program.run(verb, "--lab", self.name, *arguments, timeout=timeout)

    def try_(self, verb: str, *arguments: str) -> Done:
        return self.program.try_(verb, "--lab", self.name, *arguments)

    def start(self, verb: str, *arguments: str, log: Path) -> "subprocess.Popen[bytes]":
        return self.program.start(verb, "--lab", self.name, *arguments, log=log)

    def exec(self, *argv: str) -> str:
        """Run a command in the lab's network with the cloud's credentials."""
        return self.run("exec", "--", *argv)

    def try_exec(self, *argv: str) -> Done:
        return self.try_("exec", "--", *argv)

    def openstack(self, *arguments: str) -> Any:
        """What an `openstack` command answers, as JSON."""
        return json.loads(self.exec("openstack", *arguments, "-f", "json"))

    def up(self, *arguments: str) -> str:
        return self.run("up", "--layer", "1", *arguments)

    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = json.loads(self.run("status", "--output", "json"))
        return status

    def events(self, kinds: Sequence[str] = ()) -> list[dict[str, Any]]:
        """The lab's journal as CloudEvents; only those whose type is stacklab.KIND or below it, if given."""
        options = [part for kind in kinds for part in ("--type", kind)]
        done = self.try_("events", "--output", "json", *options)
        return [json.loads(line) for line in done.stdout.splitlines()] if done.returncode == 0 else []

    def steps(self, state: str) -> list[str]:
        """The names of the steps that started, passed, ..., in order."""
        return [event["data"]["name"] for event in self.events([f"step.{state}"])]

    def once_only(self) -> list[str]:
        """The commands that have passed on the nodes: steps that are not to be done a second time.

        Units and ports are looked at each time, and a schema that is left half made is made anew. It is whole
        for sure once a later step of its service has started: a killed `up` hears no more of what nodes do.
        """
        commands = re.compile(r"identity$|.+/(database$|resources$|sync\.|init\.|final\.)")
        schemas = re.compile(r".+/(database$|sync\.)")
        settled = {name.partition("/")[0] for name in self.steps("started") if not schemas.match(name)}
        return [
            name
            for name in self.steps("passed")
            if commands.match(name) and not (schemas.match(name) and name.partition("/")[0] not in settled)
        ]

    @property
    def namespace(self) -> Namespace:
        return Namespace(self.program.state / "labs" / self.name, self.name)

    def processes(self) -> set[int]:
        """The ids of the lab's processes, by its control groups."""
        found = set()
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                groups = (folder / "cgroup").read_text()
            except OSError:  # it has ended
                continue
            if any(f"/stacklab/{self.namespace.group}/" in f"{line}/" for line in groups.splitlines()):
                found.add(int(folder.name))
        return found
