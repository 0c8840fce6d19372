#!/usr/bin/python
"""Ansible module: walk a graph of steps on a node, as many at a time as the graph and the node allow.

One task instead of one per command: it costs what its commands cost, and independent ones run together. A
step that passed leaves its stamp in /var/lib/stacklab/steps, so a run that was cut off goes on where it
stopped. The core, `Walk`, needs neither Ansible nor root. Standard library only: it runs on the node.
"""

import contextlib
import fcntl
import graphlib
import json
import os
import pwd
import select
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: converge
short_description: Walk a graph of steps on a node
options:
  file:
    description:
      - A JSON file on the node, a list of steps. A file, as steps hold passwords and Ansible logs its
        arguments.
      - "Every step: id; kind; after (ids of the steps it waits for); timeout in seconds; stamp (a hash, or
        empty)."
      - "kind command: run (shell text for /bin/sh -e, or a list of words); as (user); stdin.
        Passed over while its stamp is the one it last passed with."
      - "kind units: units, enabled and running in the end; files, paths of what they read. Those that run
        are restarted when the stamp is not the one of their last start, or a file was written since."
      - "whole: the name of something that several steps make together, a database for one. Until it was
        complete once, one of them that was cut off, or failed, has all of them done again, for it may have
        left a half. The shell text undo of its first step then runs before that step does."
      - "kind ports: ports, pairs of address and port that must accept. Given up early when a unit of a step
        that it waits for has failed."
    type: path
    required: true
  jobs:
    description: How many commands run at a time. Steps that only wait, for units and ports, do not count.
    type: int
    default: 4
"""

EXAMPLES = r"""
- converge: {file: /var/lib/stacklab/steps.json, jobs: 4}
"""

RETURN = r"""
steps:
  description: "For each step: id, state (passed, failed, skipped, not-run), and when it ran start, end
    (seconds since 1970), output (what the person should see: why it failed, then the last lines)."
  type: list
  returned: always
"""

STAMPS = Path("/var/lib/stacklab/steps")
LOGS = Path("/var/log/stacklab")
LOCK = Path("/run/stacklab-converge.pid")
KINDS = ("command", "units", "ports")
DEFAULT_TIMEOUT = 300.0
# systemctl waits 25 s for systemd's answer, and an emulated one that starts a dozen services needs longer.
PATIENT = {"SYSTEMD_BUS_TIMEOUT": "300"}
QUESTIONS, QUESTION_SECONDS = 5, 2.0  # how often it is asked, for it may take none, and the pause between
OUTPUT_LINES = 60
LOG_LINES = 30
TAIL_BYTES = 64 * 1024
POLL = 0.1
UNIT_CHECK = 1.0
GRACE = 5.0  # seconds between SIGTERM and SIGKILL
RESTARTS_ALLOWED = 2  # an OpenStack service may come up before its peer, and once more; then it is broken
RELOAD = "systemd/reload"
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class StepError(Exception):
    """A step failed; the text is what the person should see of it."""


class GraphError(Exception):
    """The steps do not make a graph that can be walked; one problem per line. Nothing was run."""


@dataclass(frozen=True)
class Step:
    """One step, as the module's documentation describes it."""

    id: str
    kind: str = "command"
    after: tuple[str, ...] = ()
    run: str | tuple[str, ...] = ()
    user: str = "root"
    stdin: str = ""
    units: tuple[str, ...] = ()
    ports: tuple[tuple[str, int], ...] = ()
    timeout: float = DEFAULT_TIMEOUT
    stamp: str = ""
    files: tuple[str, ...] = ()
    whole: str = ""
    undo: str = ""


def read_steps(documents: Sequence[Mapping[str, Any]]) -> list[Step]:
    """Turn the plain values of a steps file into steps.

    When units are among them, a first step reloads systemd for all. Raises GraphError with every problem.
    """
    steps, problems = [], []
    for document in documents:
        run = document.get("run", ())
        step = Step(
            id=document["id"],
            kind=document.get("kind") or "command",
            after=tuple(document.get("after", ())),
            run=run if isinstance(run, str) else tuple(run),
            user=document.get("as") or "root",
            stdin=document.get("stdin", ""),
            units=tuple(document.get("units", ())),
            ports=tuple((address, int(port)) for address, port in document.get("ports", ())),
            timeout=float(document.get("timeout") or DEFAULT_TIMEOUT),
            stamp=document.get("stamp", ""),
            files=tuple(document.get("files", ())),
            whole=document.get("whole", ""),
            undo=document.get("undo", ""),
        )
        if step.kind not in KINDS:
            problems.append(f"{step.id}: kind {step.kind!r} is none of {', '.join(KINDS)}")
        elif not {"command": step.run, "units": step.units, "ports": step.ports}[step.kind]:
            problems.append(f"{step.id}: of kind {step.kind}, and names none")
        steps.append(step)
    known = [step.id for step in steps]
    problems += [
        f"{name}: stands there twice" for name in sorted({name for name in known if known.count(name) > 1})
    ]
    problems += [
        f"{step.id}: waits for {name}, which is not a step"
        for step in steps
        for name in step.after
        if name not in known
    ]
    try:
        graphlib.TopologicalSorter({step.id: step.after for step in steps}).prepare()
    except graphlib.CycleError as error:
        problems.append(f"steps wait for each other: {' -> '.join(error.args[1])}")
    if problems:
        raise GraphError("\n".join(problems))
    if any(step.kind == "units" for step in steps):
        reload = Step(RELOAD, run=("systemctl", "daemon-reload"))
        steps = [
            reload,
            *(
                Step(**{**vars(step), "after": (*step.after, RELOAD)}) if step.kind == "units" else step
                for step in steps
            ),
        ]
    return steps


@dataclass(frozen=True)
class Account:
    """The user that a command runs as, and its groups."""

    name: str
    home: str
    uid: int
    gid: int
    groups: tuple[int, ...]


def account_of(name: str) -> Account | None:
    """The account of that name, None when it is our own. Raises StepError when there is none."""
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        raise StepError(f"no user {name!r} on this node; is the service's package installed?") from None
    if entry.pw_uid == os.geteuid():
        return None
    groups = tuple(os.getgrouplist(name, entry.pw_gid))
    return Account(name, entry.pw_dir, entry.pw_uid, entry.pw_gid, groups)


class Processes:
    """Starts commands, each the leader of a process group, and can end all of them at once.

    account: gives the account of a user's name. Injected, as only root can become somebody else.
    """

    def __init__(self, account: Callable[[str], Account | None] = account_of) -> None:
        self._account = account
        self._running: set[int] = set()
        self.stopped = False

    def run(
        self, command: str | Sequence[str], user: str, stdin: str, timeout: float, output: IO[bytes]
    ) -> int:
        """Run to the end; output goes to the file `output`, so that a daemon left behind cannot hold us up.

        command: shell text, which ends at its first failing command, or a list of words.
        Returns the exit code. Raises StepError when the command cannot be started, takes longer than
        `timeout` seconds, or is stopped.
        """
        account = self._account(user)
        environment = {
            **PATIENT,
            "PATH": SYSTEM_PATH,
            "LANG": "C.UTF-8",
            "HOME": "/root",
            "USER": "root",
            "LOGNAME": "root",
        }
        switch: dict[str, Any] = {}
        if account:
            environment |= {"HOME": account.home, "USER": account.name, "LOGNAME": account.name}
            switch = {"user": account.uid, "group": account.gid, "extra_groups": account.groups}
        script = command if isinstance(command, str) else ""
        with self._in_memory(stdin) as source, self._in_memory(script) as text:
            argv = ["/bin/sh", "-e", f"/proc/self/fd/{text}"] if script else list(command)
            try:
                process = subprocess.Popen(
                    argv,
                    stdin=source,
                    pass_fds=[text] if script else [],
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    cwd="/",
                    start_new_session=True,
                    umask=0o022,
                    **switch,
                )
            except OSError as error:
                raise StepError(f"{argv[0]}: {error.strerror}") from None
        self._running.add(process.pid)
        try:
            if self.stopped:  # stop() came between the start and the line above
                self._end(process)
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._end(process)
            raise StepError(f"no end after {timeout:g} s, so it was killed") from None
        finally:
            self._running.discard(process.pid)
        if self.stopped and code < 0:
            raise StepError("interrupted")
        return code

    def stop(self) -> None:
        """End what runs and let nothing begin. May be called from a signal handler."""
        self.stopped = True
        for group in tuple(self._running):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGTERM)

    def kill(self) -> None:
        """End at once what `stop` did not."""
        for group in tuple(self._running):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)

    @staticmethod
    def _end(process: "subprocess.Popen[bytes]") -> None:
        for word in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, word)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)

    @staticmethod
    @contextlib.contextmanager
    def _in_memory(text: str) -> Iterator[int]:
        """A file to read `text` from. Passwords come this way: never on a disk, nor in `ps`."""
        if not text:
            yield subprocess.DEVNULL
            return
        with os.fdopen(os.memfd_create("text"), "w+b") as file:
            file.write(text.encode())
            file.seek(0)
            yield file.fileno()


@dataclass(frozen=True)
class UnitState:
    """What systemd says of a unit. See `systemctl show` and org.freedesktop.systemd1(5)."""

    name: str
    load: str = ""
    file: str = ""
    active: str = ""
    sub: str = ""
    result: str = ""
    kind: str = ""
    restarts: int = 0
    remains: bool = False

    @property
    def runs(self) -> bool:
        """Active, or a one-shot unit that has done its work and does not stay active after it."""
        ends = self.kind == "oneshot" and not self.remains
        return self.active == "active" or (ends and self.active == "inactive" and self.result == "success")

    def fault(self, restarts_before: int = 0) -> str:
        """Why the unit will not run without help; empty when nothing speaks against it."""
        if self.load in ("not-found", "masked", "bad-setting", "error"):
            return {"not-found": "there is no such unit; is its package installed?"}.get(
                self.load, f"is {self.load}"
            )
        again = self.restarts - restarts_before
        if self.active == "failed":
            return f"failed ({self.result})"
        if again > RESTARTS_ALLOWED:
            return f"ends again and again, {again} times now ({self.active}, {self.sub})"
        return ""


PROPERTIES = (
    "LoadState,UnitFileState,WantedBy,RequiredBy,ActiveState,SubState,Result,Type,NRestarts,RemainAfterExit"
)


class Systemd:
    """systemd as `systemctl` and `journalctl` show it."""

    def __init__(self, processes: Processes, logs: Path = Path("/var/log")) -> None:
        self._processes = processes
        self._logs = logs

    def states(self, units: Sequence[str]) -> list[UnitState]:
        """The state of each unit, in the order asked for."""
        shown = self._show(["systemctl", "show", f"--property={PROPERTIES}", "--", *units])
        states = []
        for unit, block in zip(units, shown.strip().split("\n\n"), strict=True):
            said = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
            pulled_in = said.get("WantedBy") or said.get("RequiredBy")
            if said.get("UnitFileState") == "enabled" and not pulled_in:
                said["UnitFileState"] = "disabled"  # an alias is all that it has, and no boot starts it
            states.append(
                UnitState(
                    unit,
                    said.get("LoadState", ""),
                    said.get("UnitFileState", ""),
                    said.get("ActiveState", ""),
                    said.get("SubState", ""),
                    said.get("Result", ""),
                    said.get("Type", ""),
                    int(said.get("NRestarts") or 0),
                    said.get("RemainAfterExit") == "yes",
                )
            )
        return states

    @staticmethod
    def _show(argv: Sequence[str]) -> str:
        """What `systemctl show` prints. Raises StepError when systemd takes no question, not even again."""
        for _ in range(QUESTIONS):
            done = subprocess.run(
                argv, capture_output=True, text=True, env={**os.environ, **PATIENT}, check=False
            )
            if done.returncode == 0:
                return done.stdout
            time.sleep(QUESTION_SECONDS)
        raise StepError(f"{' '.join(argv[:2])}: {done.stderr.strip() or done.returncode}")

    def call(self, words: Sequence[str], timeout: float, log: IO[bytes]) -> int:
        """Run `systemctl` with these words; it ends when the jobs it made have. Returns its exit code."""
        return self._processes.run(["systemctl", *words], "root", "", timeout, log)

    def logs(self, unit: str) -> str:
        """The last lines of the unit's journal, and of its log file where it writes one."""
        argv = [
            "journalctl",
            "--no-pager",
            "--quiet",
            f"--lines={LOG_LINES}",
            "--output=short-iso",
            f"--unit={unit}",
        ]
        said = subprocess.run(argv, capture_output=True, text=True, errors="replace", check=False).stdout
        parts = [f"--- journalctl -u {unit}\n{said.rstrip()}"]
        file = self.log_file(unit)
        if file:
            parts.append(f"--- {file}\n{tail(file, LOG_LINES)}")
        return "\n".join(parts)

    def log_file(self, unit: str) -> Path | None:
        """The log file of `nova-api.service` is nova/nova-api.log, or else the newest in the folder nova."""
        words = unit.removesuffix(".service").partition("@")[0].split("-")
        name = "-".join(words)
        for folder in ("-".join(words[:count]) for count in range(len(words), 0, -1)):
            files = [file for file in (self._logs / folder).glob("*.log") if file.stat().st_size]
            exact = [file for file in files if file.stem == name]
            if files:
                return exact[0] if exact else max(files, key=lambda file: file.stat().st_mtime)
        return None


def tail(file: Path, lines: int) -> str:
    """The last lines of a file that may be large."""
    with file.open("rb") as stream:
        stream.seek(max(0, file.stat().st_size - TAIL_BYTES))
        return "\n".join(stream.read().decode(errors="replace").splitlines()[-lines:])


@dataclass
class Stamps:
    """Which steps passed, and with what: a file per step, put when it has passed, taken when it begins."""

    folder: Path

    def hold(self, step: Step) -> bool:
        """Whether the step passed with this very stamp, and no file of it was written since."""
        if not step.stamp:
            return False
        stamp = self._file(step)
        try:
            then = stamp.stat().st_mtime_ns
            return stamp.read_text() == step.stamp and all(
                Path(file).lstat().st_mtime_ns <= then for file in step.files
            )
        except OSError:
            return False

    def take(self, step: Step) -> None:
        """Forget that the step passed."""
        self._file(step).unlink(missing_ok=True)

    def put(self, step: Step) -> None:
        """Remember that the step passed."""
        if step.stamp:
            self._write(self._file(step), step.stamp)

    def renew(self, step: Step) -> None:
        """Where units ran before the node was switched off: remember that they start with what is there."""
        if step.kind == "units" and self._file(step).exists():
            self.put(step)

    def begin(self, step: Step) -> None:
        """Remember that a step of a whole has begun, until it passes."""
        self._write(self._file(step, ".begun"), step.whole)

    def end(self, step: Step) -> None:
        """The step has passed."""
        self._file(step, ".begun").unlink(missing_ok=True)

    def is_half_made(self, step: Step) -> bool:
        """Whether the step began, and never passed, and its whole was never complete."""
        return self._file(step, ".begun").exists() and not self._complete(step.whole).exists()

    def complete(self, whole: str) -> None:
        """Remember for ever that a whole was complete: it may hold from now on what nobody can make again."""
        if not self._complete(whole).exists():
            self._write(self._complete(whole), "")

    def _write(self, path: Path, text: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        pending = self.folder / f".{path.name}.new"
        with pending.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        pending.replace(path)

    def _file(self, step: Step, ending: str = "") -> Path:
        return self.folder / f"{step.id.replace('/', '.')}{ending}"

    def _complete(self, whole: str) -> Path:
        return self.folder / f"{whole.replace('/', '.')}.complete"


@dataclass
class Walk:
    """A walk through steps.

    logs: a folder that gets each command's whole output, as <id with / as .>.log. tell: is called with a
    result each time that a step's state changes (started, passed, failed, skipped). abandoned: says whether
    nobody waits for us any more.
    """

    steps: Sequence[Step]
    stamps: Stamps
    logs: Path
    processes: Processes
    systemd: Systemd
    tell: Callable[[Mapping[str, Any]], None] = lambda result: None
    abandoned: Callable[[], bool] = lambda: False
    results: dict[str, dict[str, Any]] = field(init=False)

    def __post_init__(self) -> None:
        self.results = {step.id: {"id": step.id, "state": "not-run"} for step in self.steps}
        self._by_id = {step.id: step for step in self.steps}
        self._restarts: dict[str, int] = {}  # of the units started by this walk, when they were
        self._half_made = {step.whole for step in self.steps if step.whole and self.stamps.is_half_made(step)}

    def go(self, jobs: int) -> bool:
        """Run each step after those it waits for; after a failure, all that does not wait for what failed.

        Returns whether all passed.
        """
        self.logs.mkdir(parents=True, exist_ok=True, mode=0o700)
        sorter = graphlib.TopologicalSorter({step.id: step.after for step in self.steps})
        sorter.prepare()
        ahead = self._steps_ahead()
        ready: list[str] = []
        running: dict[Future[None], str] = {}
        killing = 0.0
        with ThreadPoolExecutor(max(1, len(self.steps))) as pool:
            while True:
                # the longest way to the end first; ties in the order of the file
                ready = sorted([*ready, *sorter.get_ready()], key=lambda name: -ahead[name])
                for name in tuple(ready):
                    if self.processes.stopped:
                        break
                    counted = [other for other in running.values() if self._by_id[other].kind == "command"]
                    if self._by_id[name].kind == "command" and len(counted) >= jobs:
                        continue
                    ready.remove(name)
                    running[pool.submit(self._take, self._by_id[name])] = name
                if not running:
                    break
                done, _ = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
                for future in done:
                    name = running.pop(future)
                    future.result()
                    if self.results[name]["state"] != "failed":
                        sorter.done(name)
                if not self.processes.stopped and self.abandoned():
                    self.processes.stop()
                if self.processes.stopped:
                    killing = killing or time.monotonic() + GRACE
                    if time.monotonic() > killing:
                        self.processes.kill()
        if not self.processes.stopped:
            self._look_again()
        return all(result["state"] in ("passed", "skipped") for result in self.results.values())

    def _steps_ahead(self) -> dict[str, int]:
        """For each step, how many stand in the longest chain that waits for it."""
        ahead = dict.fromkeys(self._by_id, 0)
        order = graphlib.TopologicalSorter({step.id: step.after for step in self.steps}).static_order()
        for name in reversed(tuple(order)):
            for before in self._by_id[name].after:
                ahead[before] = max(ahead[before], ahead[name] + 1)
        return ahead

    def _take(self, step: Step) -> None:
        known = self.stamps.hold(step) and step.whole not in self._half_made
        if known and self._stands(step):
            self._note(step, "skipped")
            self._look_at_whole(step)
            return
        start = time.time()
        self._note(step, "started", start=start)
        do = {"command": self._run_command, "units": self._run_units, "ports": self._wait_for_ports}[
            step.kind
        ]
        try:
            if not known:
                self.stamps.take(step)
            if step.whole:
                self.stamps.begin(step)
            output = do(step, known)
            self.stamps.put(step)
            if step.whole:
                self.stamps.end(step)
        except (StepError, OSError, subprocess.SubprocessError) as error:
            self._note(step, "failed", start=start, end=time.time(), output=str(error))
        else:
            self._note(step, "passed", start=start, end=time.time(), output=output)
            self._look_at_whole(step)

    def _look_at_whole(self, step: Step) -> None:
        """When no step of a whole is left to do, it is complete."""
        parts = [self.results[other.id]["state"] for other in self.steps if other.whole == step.whole]
        if step.whole and set(parts) <= {"passed", "skipped"}:
            self.stamps.complete(step.whole)

    def _note(self, step: Step, state: str, **facts: Any) -> None:
        result = {"id": step.id, "state": state, **facts}
        self.results[step.id] = result
        self.tell(result)

    def _stands(self, step: Step) -> bool:
        """Whether a step that passed once needs nothing: a command stays done, a unit may have ended."""
        if step.kind == "command":
            return True
        if step.kind == "ports":
            return False
        states = self.systemd.states(step.units)
        self._restarts |= {state.name: state.restarts for state in states}
        return all(state.runs and state.file != "disabled" for state in states)

    def _run_command(self, step: Step, _known: bool) -> str:
        with self._log(step) as (log, path):
            try:
                code = 0
                if step.undo and step.whole in self._half_made:
                    code = self.processes.run(step.undo, "root", "", step.timeout, log)
                if not code:
                    code = self.processes.run(step.run, step.user, step.stdin, step.timeout, log)
            except StepError as error:
                raise StepError(_lines(str(error), tail(path, OUTPUT_LINES))) from None
            said = tail(path, OUTPUT_LINES)
        if code:
            word = f"exit code {code}" if code > 0 else f"killed by {signal.Signals(-code).name}"
            raise StepError(_lines(word, said))
        return said

    def _run_units(self, step: Step, known: bool) -> str:
        """Enable and start, or restart, in one call each; it returns when the units run or have failed."""
        deadline = time.monotonic() + step.timeout
        states = self.systemd.states(step.units)
        self._raise_faults([state for state in states if state.load != "loaded"])
        off = [state.name for state in states if state.file == "disabled"]
        # Also what systemd starts again and again, for a reason that may be mended: it is counted anew.
        spent = [each.name for each in states if each.active == "failed" or (each.restarts and not each.runs)]
        self._restarts |= dict.fromkeys(spent, 0)
        restart = bool(step.stamp) and not known
        calls = [["reset-failed", *spent]] * bool(spent)
        # the reload that `enable` does costs 0.3 s and more each time, and was done for all at the beginning
        calls += [["enable", "--quiet", "--no-reload", *off]] * bool(off)
        # Only what runs is restarted: what another one of them pulls in must not be stopped in its start.
        running = [state.name for state in states if state.active == "active"]
        calls += [["restart", *running]] * bool(restart and running)
        calls += [["start", *step.units]] * (not restart or len(running) < len(states))
        with self._log(step) as (log, path):
            for words in calls:
                try:
                    code = self.systemd.call(words, max(1.0, deadline - time.monotonic()), log)
                except StepError as error:
                    broken = [state.name for state in self.systemd.states(step.units) if not state.runs]
                    logs = [self.systemd.logs(unit) for unit in broken]
                    raise StepError(_lines(f"systemctl {words[0]}: {error}", *logs)) from None
                if code:
                    states = self.systemd.states(step.units)
                    self._raise_faults(states)
                    # systemd may be at it again already, as when a unit starts while a peer's end removes the
                    # folder in /run that they share
                    if not all(state.runs or state.active == "activating" for state in states):
                        raise StepError(
                            _lines(f"systemctl {' '.join(words)}: exit code {code}", tail(path, OUTPUT_LINES))
                        )
        while True:
            states = self.systemd.states(step.units)
            self._raise_faults(states)
            waiting = [state.name for state in states if not state.runs]
            if not waiting:
                break
            ended = any(state.active == "inactive" for state in states if not state.runs)
            if ended or time.monotonic() > deadline or self.processes.stopped:
                logs = [self.systemd.logs(unit) for unit in waiting]
                raise StepError(_lines(f"not active: {', '.join(waiting)}", *logs))
            time.sleep(POLL)
        self._restarts |= {state.name: state.restarts for state in states}
        return ""

    def _raise_faults(self, states: Sequence[UnitState]) -> None:
        faults = {state.name: state.fault(self._restarts.get(state.name, 0)) for state in states}
        broken = {unit: fault for unit, fault in faults.items() if fault}
        if broken:
            words = [f"{unit}: {fault}" for unit, fault in broken.items()]
            raise StepError(_lines(*words, *(self.systemd.logs(unit) for unit in broken)))

    def _wait_for_ports(self, step: Step, _known: bool) -> str:
        deadline = time.monotonic() + step.timeout
        units = [unit for name in step.after for unit in self._by_id[name].units]
        waiting, look = list(step.ports), time.monotonic() + UNIT_CHECK
        while waiting:
            waiting = [port for port in waiting if not _accepts(*port)]
            if not waiting:
                break
            now = time.monotonic()
            if units and now > look:
                look = now + UNIT_CHECK
                self._raise_faults(self.systemd.states(units))
            if now > deadline or self.processes.stopped:
                names = ", ".join(f"{address}:{port}" for address, port in waiting)
                word = (
                    "interrupted"
                    if self.processes.stopped
                    else f"after {step.timeout:g} s nothing accepts on {names}"
                )
                raise StepError(_lines(word, *(self.systemd.logs(unit) for unit in units)))
            time.sleep(POLL)
        return ""

    def _look_again(self) -> None:
        """A unit of Type=simple is active before it has read its configuration: look again at the end."""
        for step in self.steps:
            if step.kind != "units" or self.results[step.id]["state"] not in ("passed", "skipped"):
                continue
            try:
                self._raise_faults(self.systemd.states(step.units))
            except StepError as error:
                self.stamps.take(step)
                start = self.results[step.id].get("start", time.time())
                self._note(step, "failed", start=start, end=time.time(), output=str(error))

    @contextlib.contextmanager
    def _log(self, step: Step) -> Iterator[tuple[IO[bytes], Path]]:
        path = self.logs / f"{step.id.replace('/', '.')}.log"
        with path.open("wb") as log:
            path.chmod(0o600)
            yield log, path


def _accepts(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), timeout=1).close()
    except OSError:
        return False
    return True


def _lines(*parts: str) -> str:
    return "\n".join(part for part in parts if part)


class Reader:
    """Whoever reads our output, and may be gone: the connection broke, or Ansible was killed.

    Without this the work would go on unseen, against that of the next `stacklab up`. A killed Ansible leaves
    an ssh that notices nothing until it has something to pass on, so from time to time it gets an empty line,
    which does no harm in front of the result.
    """

    def __init__(self, descriptor: int = 1, beat: float = 3.0) -> None:
        self._descriptor = descriptor
        self._beat = beat
        self._next = time.monotonic() + beat

    def is_gone(self) -> bool:
        """Whether nobody reads any more."""
        if time.monotonic() > self._next:
            self._next += self._beat
            with contextlib.suppress(OSError):
                os.write(self._descriptor, b"\n")
        poll = select.poll()
        poll.register(self._descriptor, 0)  # POLLHUP and POLLERR are told always
        return any(event & (select.POLLHUP | select.POLLERR) for _, event in poll.poll(0))


@contextlib.contextmanager
def alone(lock: Path, patience: float = 30.0) -> Iterator[None]:
    """Be the only walk on this node. One that is still there was left by a run that was cut off: it is ended.

    Raises GraphError when it does not end within `patience` seconds.
    """
    handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with os.fdopen(handle, "r+") as file:
        deadline, asked = time.monotonic() + patience, False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                holder = file.read().strip()
                file.seek(0)
                if holder and not asked:
                    asked = True
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(holder), signal.SIGTERM)
                if time.monotonic() > deadline:
                    raise GraphError(
                        f"process {holder} walks the steps of this node, and does not end"
                    ) from None
                time.sleep(POLL)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        try:
            yield
        finally:
            file.seek(0)
            file.truncate(0)


def main() -> None:
    """Take the module's arguments, walk, and tell Ansible."""
    module = AnsibleModule(
        {"file": {"type": "path", "required": True}, "jobs": {"type": "int", "default": 4}}
    )
    LOGS.mkdir(parents=True, exist_ok=True)
    lock = threading.Lock()
    processes = Processes()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: processes.stop())
    try:
        steps = read_steps(json.loads(Path(module.params["file"]).read_text()))
        progress = LOGS / "steps.jsonl"
        progress.touch(mode=0o600)
        with progress.open("a") as log, alone(LOCK):

            def tell(result: Mapping[str, Any]) -> None:
                with lock:
                    log.write(json.dumps({"time": time.time(), **result}) + "\n")
                    log.flush()

            systemd = Systemd(processes)
            walk = Walk(steps, Stamps(STAMPS), LOGS / "steps", processes, systemd, tell, Reader().is_gone)
            passed = walk.go(module.params["jobs"])
    except (GraphError, OSError, ValueError, KeyError) as error:
        module.fail_json(msg=f"{module.params['file']}: {error}", steps=[])
    results = list(walk.results.values())
    waits = {step.id for step in steps if step.kind == "ports" or step.id == RELOAD}
    changed = any(result["state"] == "passed" for result in results if result["id"] not in waits)
    if passed:
        module.exit_json(changed=changed, steps=results)
    broken = [
        f"{result['id']}: {result['output'].partition(chr(10))[0]}"
        for result in results
        if result["state"] == "failed"
    ]
    module.fail_json(msg="; ".join(broken) or "interrupted", changed=changed, steps=results)


if __name__ == "__main__":
    main()
