"""Running a rendered layer.

Ansible-runner in the lab's network, each task and step recorded in the journal.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from stacklab.children import BOUND, BOUND_TREE
from stacklab.errors import Interrupted, StepFailed
from stacklab.home import data_dir
from stacklab.journal import STEP_FAILED, STEP_PASSED, STEP_STARTED, JournalUnusable
from stacklab.lab.access import connect_seconds
from stacklab.lab.lab import Lab

TAIL_LINES = 40
# It ends with our side of the connection, which it would otherwise notice when it has something to say.
FOLLOW_STEPS = (
    "tail --lines=0 --follow=name --retry /var/log/stacklab/steps.jsonl 2> /dev/null &"
    " cat > /dev/null; kill $!"
)


def run_playbook(lab: Lab, folder: Path) -> None:
    """Run the playbook in `folder` on the lab's nodes.

    Raises StepFailed with the node, the service, the step and its output, JournalUnusable when what the nodes
    say cannot be recorded.
    """
    import ansible_runner

    recorder = _Recorder(lab)
    work = lab.folder / "ansible"
    work.mkdir(exist_ok=True)
    with _followed(lab, recorder), lab.namespace.network(), _own_signals():
        runner = ansible_runner.interface.init_runner(
            private_data_dir=str(work),
            project_dir=str(folder),
            inventory=str(folder / "inventory.yml"),
            playbook="playbook.yml",
            ident=folder.name,
            rotate_artifacts=5,
            quiet=True,
            envvars=_environment(lab),
            event_handler=recorder.take,
        )
        runner.config.command = [*BOUND_TREE, *runner.config.command]
        runner.run()
    failed = runner.status != "successful"  # else whatever failed was ignored or rescued
    if failed and recorder.failure:
        raise recorder.failure
    if runner.status == "canceled":
        raise Interrupted("interrupted")
    if recorder.unusable:
        raise recorder.unusable
    if not failed:
        return
    output = Path(runner.config.artifact_dir, "stdout")
    tail = output.read_text(errors="replace").splitlines()[-TAIL_LINES:] if output.exists() else []
    raise StepFailed(f"the playbook of {folder.name} failed", detail="\n".join(tail), hint=f"less {output}")


def _environment(lab: Lab) -> dict[str, str]:
    """Settings of Ansible for few, fat tasks.

    One SSH connection each, nothing written to the node, no ssh left behind.
    """
    return {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "LC_ALL": "C.UTF-8",  # Ansible refuses to run in a locale that is not installed
        "ANSIBLE_LIBRARY": str(data_dir() / "playbooks" / "library"),
        "ANSIBLE_HOME": str(lab.folder / "ansible"),
        "ANSIBLE_PIPELINING": "True",
        "ANSIBLE_SSH_ARGS": "-oControlMaster=no",
        "ANSIBLE_TIMEOUT": str(connect_seconds(lab)),  # goes before what the inventory says of it
        **({} if lab.has_hosts else {"ANSIBLE_PRIVATE_KEY_FILE": str(lab.folder / "ssh" / "key")}),
        "ANSIBLE_LOCAL_TEMP": str(lab.folder / "ansible" / "tmp"),
        "ANSIBLE_RETRY_FILES_ENABLED": "False",
        "ANSIBLE_NOCOLOR": "True",
        "ANSIBLE_FORKS": "20",
        "ANSIBLE_DEPRECATION_WARNINGS": "False",
    }


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Take back the signals afterwards: ansible-runner keeps them, and the next Ctrl-C would go nowhere."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                signal.signal(number, handler)


@contextlib.contextmanager
def _followed(lab: Lab, recorder: "_Recorder") -> Iterator[None]:
    """Meanwhile, read what the nodes say of their steps as they go.

    Ansible tells only when its task has ended.
    """
    tails = {
        node.name: subprocess.Popen(
            [*BOUND, *lab.ssh_command(node.name, [FOLLOW_STEPS])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for node in lab.settings.nodes
    }
    readers = [
        threading.Thread(target=recorder.read_steps, args=(node, tail.stdout), daemon=True)
        for node, tail in tails.items()
    ]
    try:
        for reader in readers:
            reader.start()
        yield
    finally:
        for tail in tails.values():
            tail.terminate()
            tail.wait()
            if tail.stdin:
                tail.stdin.close()
        for reader in readers:
            reader.join()


class _Recorder:
    """Turns Ansible's events, and those of the steps on the nodes, into the journal's."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._journal = lab.journal
        self._started: dict[tuple[str, str], int] = {}
        self._ended: dict[tuple[str, str], str] = {}
        self._lock = threading.Lock()
        self._failures: dict[str, StepFailed] = {}
        self.unusable: JournalUnusable | None = None
        """Why a step that a node told of could not be recorded."""

    @property
    def failure(self) -> StepFailed | None:
        """Why the first node that failed did; what came before that on the node was rescued."""
        return next(iter(self._failures.values()), None)

    def read_steps(self, node: str, lines: IO[str]) -> None:
        """Record each line, a JSON object, that a node writes when the state of a step changes.

        All are read, also when they cannot be recorded any more: this is a thread of its own, and the node
        would wait with a full pipe.
        """
        for line in lines:
            try:
                self._record_step(node, json.loads(line))
            except ValueError:
                continue
            except JournalUnusable as error:
                self.unusable = error

    def take(self, event: dict[str, Any]) -> bool:
        """One event of ansible-runner (https://ansible.readthedocs.io/projects/runner/en/stable/intro/)."""
        data = event.get("event_data", {})
        node, task = data.get("host", ""), data.get("task", "")
        match event.get("event"):
            case "runner_on_start":
                self._journal.record("stacklab.task.started", node, task=task)
            case "runner_on_ok":
                seconds = round(data.get("duration", 0.0), 3)
                changed = bool(data.get("res", {}).get("changed"))
                self._journal.record(
                    "stacklab.task.passed", node, task=task, seconds=seconds, changed=changed
                )
                self._record_steps(node, data.get("res", {}))
            case "runner_on_failed" | "runner_on_unreachable":
                result = data.get("res", {})
                self._record_steps(node, result)
                failure = _failure(self._lab.name, node, task, result)
                self._journal.record(
                    "stacklab.task.failed", node, task=task, error=failure.message, detail=failure.detail
                )
                if not data.get("ignore_errors"):
                    self._failures[node] = failure
        return False

    def _record_steps(self, node: str, result: dict[str, Any]) -> None:
        for step in result.get("steps", []):
            self._record_step(node, step)

    def _record_step(self, node: str, step: dict[str, Any]) -> None:
        """Record a change of a step's state, once, whether the node told it or the task's result.

        Units that passed may fail all the same: the node looks at them again at the end.
        """
        which, state = (node, step["id"]), step["state"]
        with self._lock:
            if which in self._ended and (self._ended[which], state) != ("passed", "failed"):
                return
            if state == "started":
                self._started[which] = self._journal.record(STEP_STARTED, node, name=step["id"]).id
            elif state in ("passed", "failed"):
                self._ended[which] = state
                self._journal.record(
                    STEP_PASSED if state == "passed" else STEP_FAILED,
                    node,
                    name=step["id"],
                    step=self._started.get(which, 0),
                    seconds=round(step["end"] - step["start"], 3),
                    **({"error": step.get("output", "")} if state == "failed" else {}),
                )


def _failure(lab: str, node: str, task: str, result: dict[str, Any]) -> StepFailed:
    again = f"`stacklab up --lab {lab}` goes on from here"
    failed = [step for step in result.get("steps", []) if step["state"] == "failed"]
    if failed:
        service = failed[0]["id"].partition("/")[0]
        outputs = {step["id"]: step.get("output", "").rstrip() for step in failed}
        return StepFailed(
            f"{', '.join(outputs)} failed on node '{node}'",
            detail="\n\n".join(
                f"{name}: {said}" if len(failed) > 1 else said for name, said in outputs.items()
            ),
            hint=f"stacklab logs {service} --lab {lab}; mend it, and {again}",
        )
    words = {key: result[key] for key in ("msg", "stdout", "stderr", "exception") if result.get(key)}
    detail = "\n".join(str(value) for value in words.values()) or json.dumps(result)[:2000]
    return StepFailed(f"task '{task}' failed on node '{node}'", detail=detail, hint=again)
