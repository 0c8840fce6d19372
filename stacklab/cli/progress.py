"""Readers of a journal that show how the work goes: on a terminal, as plain lines, or as JSON lines.

Each is called with every event as it is recorded, from any thread, and is a context manager around the work.
"""

import json
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

import typer

from stacklab.cli.options import Output
from stacklab.cli.screen import on_terminal, print_json_line, seconds_text
from stacklab.event import Event
from stacklab.files import write_atomically
from stacklab.home import Home

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text

PLANNED = "stacklab.lab.planned"
_KEPT_TIMINGS = 5  # runs per step; their median is not thrown off by one slow mirror

Clock = Callable[[], float]


class Progress(Protocol):
    """A screen for events: enter it, call it with each event, leave it."""

    def __call__(self, event: Event) -> None:
        """Take an event in, and show it if it is one to show."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def progress(home: Home, output: Output, *, verbose: bool = False) -> Progress:
    """The screen that suits where standard output goes. verbose: show tasks and nodes as well as steps."""
    if output is Output.JSON:
        return Json()
    timings = Timings(home.cache / "timings.json")
    if on_terminal():
        return Terminal(timings, verbose=verbose)
    return Lines(timings, verbose=verbose)


class Timings:
    """How many seconds steps took when they passed earlier, by name, kept in one small file of the cache.

    It only serves guesses: a file that is missing or unreadable is as good as an empty one.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._earlier = _read_timings(file)
        self._new: dict[str, list[float]] = {}

    def expected(self, name: str) -> float | None:
        """The usual seconds of the step, None when it never passed here."""
        from statistics import median

        earlier = self._earlier.get(name)
        return median(earlier) if earlier else None

    def add(self, name: str, seconds: float) -> None:
        """Remember what a step took; `save` writes it down."""
        self._new.setdefault(name, []).append(seconds)

    def save(self) -> None:
        """Write down what was added, beside what other labs' runs have written meanwhile."""
        if not self._new:
            return
        merged = _read_timings(self._file)
        for name, seconds in self._new.items():
            merged[name] = [*merged.get(name, []), *seconds][-_KEPT_TIMINGS:]
        self._new = {}
        try:
            write_atomically(self._file, json.dumps(merged, indent=1, sort_keys=True) + "\n")
        except OSError:  # a guess is not worth failing for, least of all on a full disk
            return


def _read_timings(file: Path) -> dict[str, list[float]]:
    try:
        document = json.loads(file.read_text())
        return {str(name): [float(each) for each in seconds] for name, seconds in document.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


@dataclass
class Running:
    """A step that has started and not ended. task: what it is doing just now, when it says so."""

    name: str
    subject: str
    begin: float
    task: str = ""

    @property
    def title(self) -> str:
        """The name, with what it is about."""
        return _title(self.name, self.subject)


@dataclass
class Board:
    """What is running, what is still to come, and since when: the state behind a screen."""

    timings: Timings
    clock: Clock = time.monotonic
    running: dict[int, Running] = field(default_factory=dict)
    planned: frozenset[str] = frozenset()
    to_come: list[str] = field(default_factory=list)
    begin: float = field(init=False)

    def __post_init__(self) -> None:
        self.begin = self.clock()

    @property
    def elapsed(self) -> float:
        """Seconds since the work began."""
        return self.clock() - self.begin

    def note(self, event: Event) -> None:
        """Take an event in."""
        kind = _short(event.type)
        name = str(event.data.get("name", ""))
        if event.type == PLANNED:
            self.to_come = [str(each) for each in event.data.get("steps", [])]
            self.planned = frozenset(self.to_come)
        elif kind == "step.started":
            self.running[event.id] = Running(name, _subject(event), self.clock())
            self._not_to_come(name)
        elif kind in ("step.passed", "step.failed", "step.interrupted"):
            self.running.pop(int(event.data.get("step", 0)), None)
            if kind == "step.passed":
                self.timings.add(name, float(event.data.get("seconds", 0)))
        elif kind.startswith("task.") and self.running:
            self._note_task(title_of(event), begins=kind == "task.started")

    def remaining(self) -> str:
        """A guess such as "about 40 s left" from earlier runs; empty when there is nothing to go by."""
        left, unknown = 0.0, 0
        for name in self.to_come:
            expected = self.timings.expected(name)
            left += expected or 0.0
            unknown += expected is None
        for step in self.running.values():
            if step.name not in self.planned:  # a part of a planned one, in whose time it is contained
                continue
            expected = self.timings.expected(step.name)
            left += max(0.0, (expected or 0.0) - (self.clock() - step.begin))
            unknown += expected is None
        if left < 1:  # nothing known, or it takes longer than it ever did: say nothing rather than "0 s left"
            return ""
        return f"{'at least' if unknown else 'about'} {seconds_text(5 * math.ceil(left / 5))} left"

    def _note_task(self, title: str, *, begins: bool) -> None:
        if begins:
            self.running[max(self.running)].task = title
            return
        for step in self.running.values():
            if step.task == title:
                step.task = ""

    def _not_to_come(self, name: str) -> None:
        """Take off the list what begins now, and what was passed over before it: it was found done."""
        if name in self.to_come:
            del self.to_come[: self.to_come.index(name) + 1]


class Lines:
    """Plain lines for logs and CI: `[   12.3 s] boot (controller): passed in 2.8 s`."""

    def __init__(self, timings: Timings, *, verbose: bool = False, clock: Clock = time.monotonic) -> None:
        self._board = Board(timings, clock)
        self._verbose = verbose
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._board.timings.save()

    def __call__(self, event: Event) -> None:
        """Print the event, if it is one to show."""
        with self._lock:
            self._board.note(event)
            words = describe(event, verbose=self._verbose)
            if words:
                typer.echo(f"[{self._board.elapsed:7.1f} s] {words}")


class Json:
    """Each event as one line: a CloudEvents object."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def __call__(self, event: Event) -> None:
        """Print the event."""
        print_json_line(event.cloudevent())


class Terminal:
    """Steps that ended scroll by, one line each; those that run stay below, with a spinner."""

    def __init__(
        self,
        timings: Timings,
        *,
        verbose: bool = False,
        clock: Clock = time.monotonic,
        console: "Console | None" = None,
    ) -> None:
        from rich.console import Console
        from rich.live import Live
        from rich.spinner import Spinner

        self._board = Board(timings, clock)
        self._verbose = verbose
        self._console = console or Console(highlight=False)
        self._spinner = Spinner("dots", style="cyan")
        # Rich draws from a thread of its own, while events come from the thread that works.
        self._lock = threading.Lock()
        self._live = Live(
            console=self._console, get_renderable=self._render, refresh_per_second=5, transient=True
        )

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()
        self._board.timings.save()

    def __call__(self, event: Event) -> None:
        """Print the event if something ended; what runs is drawn below."""
        with self._lock:
            self._board.note(event)
        line = self._line(event)
        if line is not None:
            self._live.console.print(line)

    def _line(self, event: Event) -> "Text | None":
        from rich.text import Text

        kind = _short(event.type)
        sign, style = _SIGNS.get(kind, ("", ""))
        if not sign:
            words = describe(event, verbose=self._verbose)
            return Text(f"  {words}", style="dim") if words and not kind.endswith(".started") else None
        line = Text.assemble((sign, style), " ", title_of(event))
        seconds = event.data.get("seconds")
        if seconds is not None:
            line.append(f"  {seconds_text(float(seconds))}", style="dim")
        if kind in _ERROR_STYLES and event.data.get("error"):
            line.append(f"  {_last_line(event.data['error'])}", style=_ERROR_STYLES[kind])
        return line

    def _render(self) -> "RenderableType":
        from rich.console import Group
        from rich.text import Text

        now = self._board.clock()
        with self._lock:
            lines: list[RenderableType] = [
                self._running_line(step, now) for step in self._board.running.values()
            ]
            remaining = self._board.remaining()
        whole = seconds_text(self._board.elapsed) + (f", {remaining}" if remaining else "")
        return Group(*lines, Text(f"  {whole}", style="dim"))

    def _running_line(self, step: Running, now: float) -> "Text":
        from rich.text import Text

        frame = self._spinner.render(self._console.get_time())
        assert isinstance(frame, Text)
        line = Text.assemble(frame, " ", step.title, (f"  {seconds_text(now - step.begin)}", "dim"))
        if step.task:
            line.append(f"  {step.task}", style="dim")
        line.truncate(self._console.width, overflow="ellipsis")
        return line


_SIGNS: Mapping[str, tuple[str, str]] = {
    "step.passed": ("✓", "green"),
    "step.failed": ("✗", "bold red"),
    "step.interrupted": ("■", "yellow"),
    "check.passed": ("✓", "green"),
    "check.failed": ("✗", "bold red"),
    "check.skipped": ("-", "dim"),
}
_ERROR_STYLES: Mapping[str, str] = {"step.failed": "red", "check.failed": "red", "check.skipped": "dim"}
_SHOWN: Sequence[str] = ("step.", "check.", "node.crashed", "lab.lasting")


def describe(event: Event, *, verbose: bool = False) -> str:
    """An event in words, on one line; empty for one that is shown only when `verbose`."""
    kind = _short(event.type)
    if not verbose and not kind.startswith(tuple(_SHOWN)):
        return ""
    if kind == "step.forgotten":  # a note of the journal to itself
        key = str(event.data.get("key") or "").rstrip("-/")
        return f"{key or 'every step'}: to be done again" if verbose else ""
    if kind == "lab.lasting":
        return "on the hosts, destroy will not undo: " + "; ".join(map(str, event.data.get("lines") or ()))
    about, _, what = kind.rpartition(".")
    title = title_of(event)
    words = title if about in ("step", "check", "task") and title else f"{about} {title}".strip()
    result = "..." if what == "started" else what
    seconds: Any = event.data.get("seconds")
    if seconds is not None:
        result += f" {'in' if what == 'passed' else 'after'} {seconds_text(float(seconds))}"
    if what in ("failed", "crashed", "skipped") and event.data.get("error"):
        result += f": {_last_line(event.data['error'])}"
    return f"{words} {result}" if what == "started" else f"{words}: {result}"


def title_of(event: Event) -> str:
    """What an event is about, for people: `nova/schema (controller)`."""
    return _title(str(event.data.get("name") or event.data.get("task") or ""), _subject(event))


def _subject(event: Event) -> str:
    """The subject; empty where it is only the lab, which whoever reads knows already."""
    return "" if event.source.endswith(f"/{event.subject}") else event.subject


def _last_line(text: object) -> str:
    """The last line that says something: of a tool's output, that is where it says why."""
    lines = [line.strip() for line in str(text).splitlines() if line.strip()]
    return lines[-1] if lines else ""


def _short(kind: str) -> str:
    return kind.removeprefix("stacklab.")


def _title(name: str, subject: str) -> str:
    if not name or not subject or subject in name:
        return name or subject
    return f"{name} ({subject})"
