"""Running a rendered layer: ansible-runner in the lab's network, each task and step recorded in the journal."""

import json
import os
import sys
from pathlib import Path
from typing import Any

from stacklab.errors import Interrupted, StepFailed
from stacklab.home import data_dir
from stacklab.journal import Journal
from stacklab.lab.lab import Lab

TAIL_LINES = 40


def run_playbook(lab: Lab, folder: Path) -> None:
    """Run the playbook in `folder` on the lab's nodes.

    Raises StepFailed with the node, the service, the step and its output.
    """
    import ansible_runner

    recorder = _Recorder(lab.journal)
    with lab.namespace.network():
        runner = ansible_runner.run(
            private_data_dir=str(lab.folder / "ansible"),
            project_dir=str(folder),
            inventory=str(folder / "inventory.yml"),
            playbook="playbook.yml",
            ident=folder.name,
            rotate_artifacts=5,
            quiet=True,
            envvars=_environment(lab),
            event_handler=recorder.take,
        )
    if recorder.failure:
        raise recorder.failure
    if runner.status == "canceled":
        raise Interrupted("interrupted")
    if runner.status != "successful":
        output = Path(runner.config.artifact_dir, "stdout")
        tail = output.read_text(errors="replace").splitlines()[-TAIL_LINES:] if output.exists() else []
        raise StepFailed(f"the playbook of {folder.name} failed", detail="\n".join(tail), hint=f"less {output}")


def _environment(lab: Lab) -> dict[str, str]:
    """Settings of Ansible for few, fat tasks: one SSH connection each, nothing written to the node, no ssh left behind."""
    return {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "ANSIBLE_LIBRARY": str(data_dir() / "playbooks" / "library"),
        "ANSIBLE_PIPELINING": "True",
        "ANSIBLE_SSH_ARGS": "-oControlMaster=no",
        "ANSIBLE_PRIVATE_KEY_FILE": str(lab.folder / "ssh" / "key"),
        "ANSIBLE_LOCAL_TEMP": str(lab.folder / "ansible" / "tmp"),
        "ANSIBLE_RETRY_FILES_ENABLED": "False",
        "ANSIBLE_NOCOLOR": "True",
        "ANSIBLE_FORKS": "20",
        "ANSIBLE_DEPRECATION_WARNINGS": "False",
    }


class _Recorder:
    """Turns Ansible's events into the journal's, and the first failure into an error."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self.failure: StepFailed | None = None

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
                self._journal.record("stacklab.task.passed", node, task=task, seconds=seconds, changed=changed)
                self._record_steps(node, data.get("res", {}))
            case "runner_on_failed" | "runner_on_unreachable":
                result = data.get("res", {})
                self._record_steps(node, result)
                failure = _failure(node, task, result)
                self._journal.record("stacklab.task.failed", node, task=task, error=failure.message, detail=failure.detail)
                self.failure = self.failure or failure
        return False

    def _record_steps(self, node: str, result: dict[str, Any]) -> None:
        for step in result.get("steps", []):
            if step["state"] in ("passed", "failed"):
                self._journal.record(
                    f"stacklab.step.{step['state']}",
                    node,
                    name=step["id"],
                    seconds=round(step["end"] - step["start"], 3),
                    **({"error": step.get("output", "")} if step["state"] == "failed" else {}),
                )


def _failure(node: str, task: str, result: dict[str, Any]) -> StepFailed:
    failed = [step for step in result.get("steps", []) if step["state"] == "failed"]
    if failed:
        step = failed[0]
        service = step["id"].partition("/")[0]
        return StepFailed(
            f"{step['id']} failed on node '{node}'",
            detail=step.get("output", "").rstrip(),
            hint=f"stacklab logs {service}; mend it, and `stacklab up` again goes on from here",
        )
    words = {key: result[key] for key in ("msg", "stdout", "stderr", "exception") if result.get(key)}
    detail = "\n".join(str(value) for value in words.values()) or json.dumps(result)[:2000]
    return StepFailed(f"task '{task}' failed on node '{node}'", detail=detail, hint="`stacklab up` again goes on from here")
