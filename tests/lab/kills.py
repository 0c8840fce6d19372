"""Killing stacklab at points that it shows itself: each event of a lab's journal, each change in its folders.

A rehearsal runs a command undisturbed and notes what it can be seen to do, and when. A kill waits for one of
these marks and a part of the time to the next one, and then kills -9.
"""

import random
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from stacklab.journal import Journal
from tests.lab.program import Program

LOOK_SECONDS = 0.002
# Image names and temporary names differ from run to run; how many there are, and of what kind, does not.
SHOWN = 12


@dataclass(frozen=True)
class Point:
    """A moment in the run of a command: `wait` seconds after its mark number `mark`, counted from 0."""

    mark: int
    wait: float
    name: str

    def __str__(self) -> str:
        return f"{self.wait:.3f} s after mark {self.mark} ({self.name})"


@dataclass(frozen=True)
class Watched:
    """Where a command can be seen at work: the journals of labs, and the names in some folders."""

    program: Program
    labs: tuple[str, ...]

    def marks(self, process: "subprocess.Popen[bytes]") -> Iterator[str]:
        """What happens, as it happens, until the process has ended; "" after each look."""
        journals = {name: Journal(self._lab(name) / "journal.db") for name in self.labs}
        last = {name: journal.newest() for name, journal in journals.items()}
        before = self._names()
        try:
            while process.poll() is None:
                now = self._names()
                yield from (f"+{name}" for name in sorted(now - before))
                yield from (f"-{name}" for name in sorted(before - now))
                before = now
                for name, journal in journals.items():
                    for event in journal.read(last[name]):
                        last[name] = event.id
                        yield event.type.removeprefix("stacklab.")
                yield ""
                time.sleep(LOOK_SECONDS)
        finally:
            for journal in journals.values():
                journal.close()

    def _names(self) -> set[str]:
        found = set()
        for folder in (self.program.cache / "images", *map(self._lab, self.labs)):
            for path in (*folder.glob("*"), *folder.glob(".building-*"), *folder.glob("nodes/*/*")):
                found.add(str(path.relative_to(folder))[:SHOWN])
        return found

    def _lab(self, name: str) -> Path:
        return self.program.state / "labs" / name


def rehearse(watched: Watched, *arguments: str, log: Path) -> list[tuple[float, str]]:
    """Run a command to its end; its marks, with the seconds from its start, and the end as the last one."""
    process = watched.program.start(*arguments, log=log)
    started = time.monotonic()
    marks = [(time.monotonic() - started, mark) for mark in watched.marks(process) if mark]
    assert process.wait() == 0, log.read_text()
    return [*marks, (time.monotonic() - started, "the end")]


def choose(rehearsed: Sequence[tuple[float, str]], count: int, seed: int) -> list[Point]:
    """Points all over the rehearsed run, in no order, in every gap between marks before in any twice."""
    chance = random.Random(seed)
    gaps = range(len(rehearsed) - 1)
    chosen: list[int] = []
    while len(chosen) < count:
        chosen += chance.sample(gaps, min(len(gaps), count - len(chosen)))
    points = []
    for gap in chosen:
        (at, name), (following, _) = rehearsed[gap], rehearsed[gap + 1]
        points.append(Point(gap, chance.random() * (following - at), name))
    return points


def run_and_kill(watched: Watched, point: Point, *arguments: str, log: Path) -> bool:
    """Run a command and kill it at a point; returns whether it was killed before it had ended."""
    process = watched.program.start(*arguments, log=log)
    left = point.mark
    until: float | None = None
    for mark in watched.marks(process):
        if until is None:
            if mark and left == 0:
                until = time.monotonic() + point.wait
            left -= bool(mark)
        elif mark or time.monotonic() > until:  # a run may be quicker than the rehearsal was
            break
    process.kill()
    return process.wait() < 0


def kill_often(
    watched: Watched, points: Iterable[Point], times: int, command: Callable[[], Sequence[str]], log: Path
) -> Iterator[None]:
    """Kill a command at one point after the other until it has died of that `times`; yields after each try.

    command: prepares a try and gives the arguments.
    """
    killed = 0
    for point in points:
        killed += run_and_kill(watched, point, *command(), log=log)
        yield
        if killed == times:
            return
    raise AssertionError(f"killed {killed} times, not {times}")


def run_and_kill_at(watched: Watched, name: str, *arguments: str, log: Path) -> bool:
    """Run a command and kill it as soon as a mark with this name shows; returns whether one did."""
    process = watched.program.start(*arguments, log=log)
    shown = name in watched.marks(process)
    process.kill()
    return process.wait() < 0 and shown
