"""What a person, a log and a program see of the work while it goes on."""

import io
import json
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from stacklab.cli.options import Output
from stacklab.cli.progress import Board, Json, Lines, Terminal, Timings, describe, progress
from stacklab.cli.screen import seconds_text
from stacklab.event import Event
from stacklab.home import Home
from stacklab.journal import Journal

numbers = count(1)


class HandClock:
    """A clock that stands still until it is set."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def event(kind: str, subject: str = "", **data: Any) -> Event:
    return Event(next(numbers), datetime.now(UTC), f"stacklab.{kind}", "/stacklab/labs/blue", subject, data)


@pytest.fixture
def timings(tmp_path: Path) -> Timings:
    return Timings(tmp_path / "cache" / "timings.json")


def learned(timings: Timings, **seconds: float) -> Timings:
    for name, each in seconds.items():
        timings.add(name, each)
    timings.save()
    return Timings(timings._file)


# Plain lines


def test_lines_say_when_what_and_how_long(timings: Timings, capsys: pytest.CaptureFixture[str]) -> None:
    clock = HandClock()
    with Lines(timings, clock=clock) as screen:
        started = event("step.started", "controller", name="boot")
        screen(started)
        screen(event("task.started", name="push files"))
        clock.now += 2.8
        screen(event("step.passed", "controller", name="boot", step=started.id, seconds=2.8))
        screen(event("step.failed", name="configure", seconds=61, error="no answer"))
        screen(event("check.passed", name="an instance boots", seconds=9))
        screen(event("check.skipped", name="volumes", error="no room"))
        screen(event("node.crashed", "controller"))
    assert capsys.readouterr().out.splitlines() == [
        "[    0.0 s] boot (controller) ...",
        "[    2.8 s] boot (controller): passed in 2.8 s",
        "[    2.8 s] configure: failed after 1 min 01 s: no answer",
        "[    2.8 s] an instance boots: passed in 9.0 s",
        "[    2.8 s] volumes: skipped: no room",
        "[    2.8 s] node controller: crashed",
    ]


def test_tasks_and_nodes_are_shown_when_asked_for() -> None:
    for kind in ("task.started", "node.started", "lab.created"):
        assert describe(event(kind, "controller", name="x")) == ""
    assert describe(event("task.started", "controller", name="push"), verbose=True) == "push (controller) ..."
    assert describe(event("node.started", "controller"), verbose=True) == "node controller ..."
    assert describe(event("lab.created"), verbose=True) == "lab: created"
    assert describe(event("step.forgotten", key="layer-")) == ""
    assert describe(event("step.forgotten", key="layer-1/"), verbose=True) == "layer-1: to be done again"


def test_of_a_long_error_the_last_line_is_shown(timings: Timings) -> None:
    words = describe(
        event("step.failed", "controller", name="nova/schema", error="Traceback\n  x\n\nno table t\n")
    )
    assert words == "nova/schema (controller): failed: no table t"


def test_the_lab_itself_is_not_named_in_each_line() -> None:
    assert describe(event("step.started", "blue", name="namespaces")) == "namespaces ..."


# JSON


def test_json_is_one_cloudevent_per_line(capsys: pytest.CaptureFixture[str]) -> None:
    sent = [event("step.started", name="boot"), event("task.started", "c", name="push\nfiles")]
    with Json() as screen:
        for each in sent:
            screen(each)
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line) for line in lines] == [each.cloudevent() for each in sent]


# A terminal


def terminal(timings: Timings, clock: HandClock) -> tuple[Terminal, Console]:
    console = Console(file=io.StringIO(), force_terminal=True, width=80, highlight=False, color_system=None)
    return Terminal(timings, clock=clock, console=console), console


def drawn(console: Console, screen: Terminal) -> str:
    with console.capture() as capture:
        console.print(screen._render())
    return capture.get()


def test_a_terminal_shows_what_runs_and_keeps_what_ended(timings: Timings) -> None:
    clock = HandClock()
    screen, console = terminal(timings, clock)
    started = event("step.started", "controller", name="configure")
    screen(started)
    screen(event("task.started", name="push files"))
    clock.now += 4
    below = drawn(console, screen)
    assert "configure (controller)  4.0 s  push files" in below
    assert below.rstrip().endswith("4.0 s")
    with console.capture() as capture:
        screen(event("step.passed", "controller", name="configure", step=started.id, seconds=4.0))
        screen(event("step.failed", name="boot", seconds=1, error="no answer"))
    assert [line.rstrip() for line in capture.get().splitlines()] == [
        "✓ configure (controller)  4.0 s",
        "✗ boot  1.0 s  no answer",
    ]
    assert "configure" not in drawn(console, screen)


def test_a_terminal_leaves_nothing_running_behind(timings: Timings) -> None:
    screen, _ = terminal(timings, HandClock())
    with pytest.raises(KeyboardInterrupt), screen:
        screen(event("step.started", name="configure"))
        raise KeyboardInterrupt
    assert not screen._live.is_started


def test_names_are_not_read_as_markup(timings: Timings) -> None:
    screen, console = terminal(timings, HandClock())
    with console.capture() as capture:
        screen(event("step.failed", name="[bold]x[/]", error="[/nope] at [red]"))
    assert "[bold]x[/]" in capture.get()
    assert "[/nope] at [red]" in capture.get()


# Remaining time


def test_without_a_plan_or_earlier_runs_no_time_is_guessed(timings: Timings) -> None:
    board = Board(timings, HandClock())
    assert board.remaining() == ""
    board.note(event("lab.planned", steps=["boot"]))
    assert board.remaining() == ""


def test_the_guess_adds_up_what_is_to_come_and_what_runs(timings: Timings) -> None:
    clock = HandClock()
    board = Board(learned(timings, boot=10, configure=60), clock)
    board.note(event("lab.planned", steps=["boot", "configure"]))
    assert board.remaining() == "about 1 min 10 s left"
    started = event("step.started", name="boot")
    board.note(started)
    clock.now += 5
    assert board.remaining() == "about 1 min 05 s left"
    clock.now += 500  # slower than ever: it counts for nothing more, and not for less than nothing
    assert board.remaining() == "about 1 min 00 s left"
    board.note(event("step.passed", name="boot", step=started.id, seconds=505))
    board.note(event("step.started", name="configure"))
    clock.now += 500
    assert board.remaining() == ""


def test_what_was_passed_over_is_not_to_come(timings: Timings) -> None:
    board = Board(learned(timings, image=100, boot=10, configure=60), HandClock())
    board.note(event("lab.planned", steps=["image", "boot", "configure"]))
    board.note(event("step.started", name="boot"))
    assert board.remaining() == "about 1 min 10 s left"


def test_the_parts_of_a_planned_step_are_not_counted_twice(timings: Timings) -> None:
    board = Board(learned(timings, layer=60, schema=20), HandClock())
    board.note(event("lab.planned", steps=["layer"]))
    board.note(event("step.started", name="layer"))
    board.note(event("step.started", "controller", name="schema"))
    assert board.remaining() == "about 1 min 00 s left"


def test_a_task_is_shown_beside_its_step_until_it_ends(timings: Timings) -> None:
    board = Board(timings, HandClock())
    board.note(event("task.started", "controller", task="before any step"))
    outer = event("step.started", name="layer 1")
    board.note(outer)
    board.note(event("task.started", "controller", task="converge"))
    board.note(event("step.started", "controller", name="nova/schema"))
    assert board.running[outer.id].task == "converge (controller)"
    board.note(event("task.passed", "controller", task="converge"))
    assert board.running[outer.id].task == ""


def test_a_step_never_seen_makes_it_at_least(timings: Timings) -> None:
    board = Board(learned(timings, boot=10), HandClock())
    board.note(event("lab.planned", steps=["boot", "configure"]))
    assert board.remaining() == "at least 10 s left"


# Timings


def test_timings_are_the_median_of_the_last_five_passes(timings: Timings) -> None:
    for seconds in (500, 1, 2, 3, 4, 100):
        timings = learned(timings, boot=seconds)
    assert timings.expected("boot") == 3
    assert timings.expected("configure") is None


def test_only_steps_that_passed_are_remembered(timings: Timings) -> None:
    with Lines(timings) as screen:
        screen(event("step.failed", name="boot", seconds=900, error="x"))
        screen(event("step.passed", name="configure", seconds=7))
    assert json.loads(timings._file.read_text()) == {"configure": [7.0]}


def test_two_runs_at_once_keep_each_others_timings(timings: Timings) -> None:
    other = Timings(timings._file)
    learned(timings, boot=1)
    other.add("configure", 2)
    other.save()
    assert json.loads(timings._file.read_text()) == {"boot": [1.0], "configure": [2.0]}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"boot": 3}', '{"boot": ["x"]}'])
def test_unreadable_timings_are_as_good_as_none(timings: Timings, text: str) -> None:
    timings._file.parent.mkdir()
    timings._file.write_text(text)
    again = Timings(timings._file)
    assert again.expected("boot") is None
    again.add("boot", 1)
    again.save()
    assert Timings(timings._file).expected("boot") == 1


def test_timings_that_cannot_be_written_are_let_go() -> None:
    timings = Timings(Path("/dev/null/cache/timings.json"))
    timings.add("boot", 1)
    timings.save()


# The whole


def test_off_a_terminal_lines_are_chosen(tmp_path: Path) -> None:
    home = Home(tmp_path / "state", tmp_path / "cache")
    assert isinstance(progress(home, Output.TABLE), Lines)
    assert isinstance(progress(home, Output.JSON), Json)


def test_a_journal_feeds_a_screen(
    tmp_path: Path, timings: Timings, capsys: pytest.CaptureFixture[str]
) -> None:
    with Journal(tmp_path / "journal.db") as journal, Lines(timings) as screen:
        journal.subscribe(screen)
        with journal.step("boot", subject="controller"):
            pass
    assert "boot (controller): passed in 0.0 s" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0.0 s"),
        (9.94, "9.9 s"),
        (9.99, "10 s"),
        (59.6, "1 min 00 s"),
        (3599.9, "1 h 00 min"),
        (3725, "1 h 02 min"),
    ],
)
def test_lengths_of_time_in_words(seconds: float, words: str) -> None:
    assert seconds_text(seconds) == words
