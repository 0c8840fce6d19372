"""Running a playbook: what counts as a failure, and what the journal says of steps."""

import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import yaml

from stacklab import run as run_module
from stacklab.errors import StepFailed
from stacklab.event import Event
from stacklab.journal import Journal, JournalUnusable
from stacklab.lab.lab import Lab
from stacklab.run import _Recorder, run_playbook
from tests.unit.catalogs import write

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="Ansible gets a tree of processes of its own")
INVENTORY = "all: {hosts: {here: {ansible_connection: local}}}\n"


def fails(word: str, **more: Any) -> dict[str, Any]:
    return {"name": word, "ansible.builtin.fail": {"msg": f"{word} failed"}, **more}


PASSES = {"name": "passes", "ansible.builtin.meta": "noop"}
RESCUED = {"name": "block", "block": [fails("rescued")], "rescue": [PASSES]}


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal(tmp_path / "journal.db") as journal:
        yield journal


def run(tmp_path: Path, journal: Journal, *tasks: dict[str, Any]) -> None:
    """Run tasks on this machine, as those of a lab without nodes whose network is the machine's."""
    write(tmp_path / "layer-1" / "inventory.yml", INVENTORY)
    play = {"hosts": "all", "gather_facts": False, "tasks": list(tasks)}
    write(tmp_path / "layer-1" / "playbook.yml", yaml.safe_dump([play]))
    lab = SimpleNamespace(
        patience=1.0,
        name="blue",
        folder=tmp_path,
        journal=journal,
        has_hosts=False,
        settings=SimpleNamespace(nodes=()),
        namespace=SimpleNamespace(network=nullcontext),
    )
    run_playbook(cast(Lab, lab), tmp_path / "layer-1")


@needs_root
def test_what_a_task_file_ignores_or_rescues_is_no_failure(tmp_path: Path, journal: Journal) -> None:
    run(tmp_path, journal, fails("ignored", ignore_errors=True), RESCUED)
    failed = [event.data["task"] for event in journal.read() if event.type == "stacklab.task.failed"]
    assert failed == ["ignored", "rescued"]


@needs_root
def test_the_failure_that_was_not_rescued_is_the_one_that_is_told(tmp_path: Path, journal: Journal) -> None:
    with pytest.raises(StepFailed, match="task 'broken' failed on node 'here'"):
        run(tmp_path, journal, fails("ignored", ignore_errors=True), RESCUED, fails("broken"))


def test_a_step_that_fails_in_the_last_look_has_failed(journal: Journal) -> None:
    """Its units were active when they had started, and ended while others were."""
    recorder = _Recorder(cast(Lab, SimpleNamespace(name="blue", journal=journal)))
    started = {"id": "nova/controller", "state": "started", "start": 1.0}
    passed = {**started, "state": "passed", "end": 3.0, "output": ""}
    failed = {**started, "state": "failed", "end": 9.0, "output": "nova-api: failed (exit-code)"}
    lines = "\n".join(map(json.dumps, (started, passed, passed, failed)))
    recorder.read_steps("controller", io.StringIO(lines))
    event = {"event": "runner_on_failed", "event_data": {"host": "controller", "res": {"steps": [failed]}}}
    recorder.take(event)
    steps = [event for event in journal.read() if event.type.startswith("stacklab.step.")]
    assert [event.type.rpartition(".")[2] for event in steps] == ["started", "passed", "failed"]
    assert [event.data["step"] for event in steps[1:]] == [steps[0].id, steps[0].id]
    assert steps[-1].data["error"] == "nova-api: failed (exit-code)"


class FullJournal(Journal):
    """A journal whose disk is full when a node tells of a step."""

    def record(self, type: str, subject: str = "", **data: Any) -> Event:
        if type.startswith("stacklab.step."):
            raise JournalUnusable("the disk is full")
        return super().record(type, subject, **data)


STEP = json.dumps({"id": "nova/controller", "state": "started", "start": 1.0}) + "\n"


@needs_root
@pytest.mark.parametrize(
    ("tasks", "told"), [([PASSES], "the disk is full"), ([fails("broken")], "task 'broken' failed")]
)
def test_what_cannot_be_recorded_of_a_node_is_read_on_and_told_when_all_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tasks: list[dict[str, Any]], told: str
) -> None:
    lines = io.StringIO(STEP * 2)

    @contextmanager
    def followed(_: Lab, recorder: _Recorder) -> Iterator[None]:
        recorder.read_steps("here", lines)
        yield

    monkeypatch.setattr(run_module, "_followed", followed)
    with (
        FullJournal(tmp_path / "journal.db") as journal,
        pytest.raises((JournalUnusable, StepFailed), match=told),
    ):
        run(tmp_path, journal, *tasks)
    assert lines.read() == ""
