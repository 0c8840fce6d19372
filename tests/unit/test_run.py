"""Running a playbook: what counts as a failure, and what the journal says of steps."""

import io
import json
import os
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import yaml

from stacklab.errors import StepFailed
from stacklab.journal import Journal
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
