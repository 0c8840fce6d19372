"""The walk through a node's steps: order, stamps, failures, early ends. Real processes, a fake systemd."""

import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "playbooks" / "library"))
import converge

Results = dict[str, dict[str, Any]]


class FakeSystemd(converge.Systemd):
    """Units that run when started, but for those that are `broken`. `calls`: the words given to systemctl."""

    def __init__(
        self, units: Mapping[str, converge.UnitState] | None = None, broken: Sequence[str] = ()
    ) -> None:
        self.units = dict(units or {})
        self.broken = broken
        self.calls: list[list[str]] = []
        self.after_start: Callable[[], None] = lambda: None

    def states(self, units: Sequence[str]) -> list[converge.UnitState]:
        return [
            self.units.get(unit, converge.UnitState(unit, "loaded", "enabled", "inactive")) for unit in units
        ]

    def call(self, words: Sequence[str], timeout: float, log: IO[bytes]) -> int:
        self.calls.append(list(words))
        verb, names = words[0], [word for word in words[1:] if not word.startswith("-")]
        if verb == "reset-failed":
            self.units |= {state.name: replace(state, restarts=0) for state in self.states(names)}
        if verb not in ("start", "restart"):
            return 0
        for state in self.states(names):
            active = "failed" if state.name in self.broken else "active"
            result = "exit-code" if active == "failed" else "success"
            self.units[state.name] = replace(state, active=active, result=result)
        self.after_start()
        return 1 if set(names) & set(self.broken) else 0

    def logs(self, unit: str) -> str:
        return f"--- journalctl -u {unit}\nits last words"


class Node:
    """A walk's surroundings, in a temporary folder, that outlive it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stamps = converge.Stamps(folder / "stamps")
        self.systemd = FakeSystemd()
        self.processes = converge.Processes(account=lambda name: None)
        self.told: list[Mapping[str, Any]] = []
        self.abandoned = False

    def walk(self, *steps: dict[str, Any], jobs: int = 4) -> Results:
        walk = converge.Walk(
            converge.read_steps(steps),
            self.stamps,
            self.folder / "logs",
            self.processes,
            self.systemd,
            self.told.append,
            lambda: self.abandoned,
        )
        walk.go(jobs)
        return walk.results

    def has_passed(self, step: str) -> bool:
        return (step, "passed") in [(told["id"], told["state"]) for told in self.told]


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def when(happens: Callable[[], bool], do: Callable[[], None]) -> None:
    """Do something, in a thread, as soon as something else has happened; after 30 s all the same."""

    def watch() -> None:
        deadline = time.monotonic() + 30
        while not happens() and time.monotonic() < deadline:
            time.sleep(0.01)
        do()

    threading.Thread(target=watch, daemon=True).start()


def states(results: Results) -> dict[str, str]:
    return {name: result["state"] for name, result in results.items() if name != converge.RELOAD}


class TestReading:
    def test_every_problem_is_told_at_once(self) -> None:
        with pytest.raises(converge.GraphError) as caught:
            converge.read_steps(
                [
                    {"id": "a", "run": "true", "after": ["missing"]},
                    {"id": "b", "run": "true"},
                    {"id": "b", "run": "true"},
                    {"id": "c", "kind": "unit", "units": ["x"]},
                    {"id": "d", "kind": "ports"},
                ]
            )
        assert str(caught.value).splitlines() == [
            "c: kind 'unit' is none of command, units, ports",
            "d: of kind ports, and names none",
            "b: stands there twice",
            "a: waits for missing, which is not a step",
        ]

    def test_a_cycle_is_named(self) -> None:
        with pytest.raises(converge.GraphError, match=r"wait for each other: .*a.* -> "):
            converge.read_steps(
                [{"id": "a", "run": "true", "after": ["b"]}, {"id": "b", "run": "true", "after": ["a"]}]
            )

    def test_systemd_is_reloaded_once_and_before_all_units(self) -> None:
        steps = converge.read_steps(
            [{"id": f"{name}/units", "kind": "units", "units": [name]} for name in "ab"]
        )
        assert [step.id for step in steps] == [converge.RELOAD, "a/units", "b/units"]
        assert all(converge.RELOAD in step.after for step in steps[1:])


class TestOrder:
    def test_a_step_runs_after_those_it_waits_for(self, node: Node) -> None:
        trace = node.folder / "trace"
        results = node.walk(
            {"id": "last", "run": f"echo last >> {trace}", "after": ["a", "b"]},
            {"id": "b", "run": f"echo b >> {trace}", "after": ["a"]},
            {"id": "a", "run": f"sleep 0.1; echo a >> {trace}"},
        )
        assert trace.read_text().split() == ["a", "b", "last"]
        assert results["a"]["end"] <= results["b"]["start"]

    def test_independent_commands_run_at_the_same_time_up_to_jobs(self, node: Node) -> None:
        results = node.walk(*({"id": name, "run": "sleep 0.4"} for name in "abcd"), jobs=2)
        edges = sorted(
            [(r["start"], 1) for r in results.values()] + [(r["end"], -1) for r in results.values()]
        )
        at_once = [sum(step for _, step in edges[: count + 1]) for count in range(len(edges))]
        assert max(at_once) == 2

    def test_waiting_for_a_port_takes_no_job(self, node: Node) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        serve = f"import socket, time; s = socket.create_server(('127.0.0.1', {port})); time.sleep(1)"
        results = node.walk(
            {"id": "ready", "kind": "ports", "ports": [["127.0.0.1", port]], "timeout": 20},
            {"id": "serve", "run": [sys.executable, "-c", serve]},
            jobs=1,
        )
        assert states(results) == {"ready": "passed", "serve": "passed"}

    def test_the_longest_chain_goes_first(self, node: Node) -> None:
        results = node.walk(
            {"id": "alone", "run": "true"},
            {"id": "c", "run": "true", "after": ["b"]},
            {"id": "b", "run": "true", "after": ["a"]},
            {"id": "a", "run": "true"},
            jobs=1,
        )
        assert results["a"]["start"] < results["alone"]["start"]


class TestCommands:
    def test_shell_text_stops_at_its_first_failing_command(self, node: Node) -> None:
        result = node.walk({"id": "a", "run": "echo before\nfalse\necho after"})["a"]
        assert (result["state"], result["output"]) == ("failed", "exit code 1\nbefore")

    def test_words_reach_the_program_as_they_are(self, node: Node) -> None:
        assert node.walk({"id": "a", "run": ["printf", "%s|", "a b", "$HOME"]})["a"]["output"] == "a b|$HOME|"

    def test_standard_input_is_handed_over(self, node: Node) -> None:
        assert node.walk({"id": "a", "run": ["cat"], "stdin": "secret ä"})["a"]["output"] == "secret ä"

    def test_shell_text_is_not_in_the_list_of_processes_and_leaves_standard_input_free(
        self, node: Node
    ) -> None:
        step = {"id": "a", "run": "cat; tr '\\0' ' ' < /proc/$$/cmdline; : pass1234", "stdin": "given "}
        output = node.walk(step)["a"]["output"]
        assert output.startswith("given /bin/sh -e ")
        assert "pass1234" not in output

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root may become somebody else")
    def test_shell_text_can_be_read_by_the_user_that_it_is_for(self, node: Node) -> None:
        node.processes = converge.Processes()
        assert node.walk({"id": "a", "run": "id -un", "as": "nobody"})["a"]["output"] == "nobody"

    def test_the_output_is_kept_whole_in_a_file_and_its_end_in_the_result(self, node: Node) -> None:
        result = node.walk({"id": "nova/sync.schema", "run": "seq 1 500; echo oops >&2; exit 3"})[
            "nova/sync.schema"
        ]
        lines = result["output"].splitlines()
        assert lines[0] == "exit code 3"
        assert lines[-2:] == ["500", "oops"]
        assert len(lines) == 1 + converge.OUTPUT_LINES
        log = node.folder / "logs" / "nova.sync.schema.log"
        assert len(log.read_text().splitlines()) == 501
        assert log.stat().st_mode & 0o777 == 0o600

    def test_a_missing_program_is_named(self, node: Node) -> None:
        result = node.walk({"id": "a", "run": ["no-such-program"]})["a"]
        assert result["output"] == "no-such-program: No such file or directory"

    def test_a_missing_user_is_named(self, node: Node) -> None:
        node.processes = converge.Processes()
        result = node.walk({"id": "a", "run": "true", "as": "no-such-user"})["a"]
        assert result["output"] == "no user 'no-such-user' on this node; is the service's package installed?"

    def test_a_signal_is_named(self, node: Node) -> None:
        assert node.walk({"id": "a", "run": "kill -9 $$"})["a"]["output"] == "killed by SIGKILL"

    def test_a_command_that_takes_too_long_is_killed_with_its_children(self, node: Node) -> None:
        child = node.folder / "child"
        result = node.walk(
            {"id": "a", "run": f"echo begun; sleep 60 & echo $! > {child}; wait", "timeout": 3}
        )["a"]
        assert result["output"] == "no end after 3 s, so it was killed\nbegun"
        deadline = time.monotonic() + 5
        while is_running(int(child.read_text())) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not is_running(int(child.read_text()))

    def test_a_daemon_left_behind_does_not_hold_the_walk_up(self, node: Node) -> None:
        pid = node.folder / "pid"
        start = time.monotonic()
        result = node.walk({"id": "a", "run": f"sleep 30 & echo $! > {pid}; echo up"})["a"]
        os.kill(int(pid.read_text()), signal.SIGKILL)
        assert result["output"] == "up"
        assert time.monotonic() - start < 10


class TestFailure:
    def test_all_that_does_not_wait_for_it_goes_on(self, node: Node) -> None:
        results = node.walk(
            {"id": "slow", "run": "sleep 0.5"},
            {"id": "broken", "run": "exit 7"},
            {"id": "next", "run": "true", "after": ["slow"]},
            {"id": "behind", "run": "true", "after": ["broken"]},
            {"id": "further-behind", "run": "true", "after": ["behind", "next"]},
        )
        assert states(results) == {
            "slow": "passed",
            "broken": "failed",
            "next": "passed",
            "behind": "not-run",
            "further-behind": "not-run",
        }

    def test_each_change_is_told(self, node: Node) -> None:
        node.walk({"id": "a", "run": "true"}, {"id": "b", "run": "exit 1", "after": ["a"]})
        assert [(told["id"], told["state"]) for told in node.told] == [
            ("a", "started"),
            ("a", "passed"),
            ("b", "started"),
            ("b", "failed"),
        ]
        json.dumps(node.told)

    def test_stop_ends_what_runs(self, node: Node) -> None:
        begun = node.folder / "begun"
        when(begun.exists, node.processes.stop)
        results = node.walk(
            {"id": "a", "run": f"touch {begun}; sleep 60", "stamp": "1"},
            {"id": "b", "run": "true", "after": ["a"]},
        )
        assert states(results) == {"a": "failed", "b": "not-run"}
        assert results["a"]["output"] == "interrupted"
        assert not (node.folder / "stamps" / "a").exists()

    def test_a_walk_that_nobody_waits_for_ends(self, node: Node) -> None:
        node.abandoned = True
        assert states(node.walk({"id": "a", "run": "sleep 60"})) == {"a": "failed"}

    def test_a_closed_output_is_noticed(self) -> None:
        end, ours = os.pipe()
        reader = converge.Reader(ours, beat=0)
        assert not reader.is_gone()
        assert os.read(end, 10) == b"\n"
        os.close(end)
        assert reader.is_gone()
        os.close(ours)


class TestStamps:
    def test_a_step_that_passed_is_passed_over_while_its_stamp_holds(self, node: Node) -> None:
        step = {"id": "nova/schema", "run": "true", "stamp": "one"}
        assert [
            states(node.walk({**step, "stamp": stamp}))["nova/schema"] for stamp in ("one", "one", "two")
        ] == [
            "passed",
            "skipped",
            "passed",
        ]

    def test_a_step_without_a_stamp_runs_each_time(self, node: Node) -> None:
        assert [states(node.walk({"id": "a", "run": "true"}))["a"] for _ in range(2)] == ["passed", "passed"]

    def test_a_failed_step_runs_again_even_with_the_stamp_it_once_passed_with(self, node: Node) -> None:
        node.walk({"id": "a", "run": "true", "stamp": "one"})
        node.walk({"id": "a", "run": "false", "stamp": "two"})
        assert states(node.walk({"id": "a", "run": "true", "stamp": "one"})) == {"a": "passed"}

    def test_a_walk_cut_off_goes_on_where_it_stopped(self, node: Node) -> None:
        first = {"id": "a", "run": "true", "stamp": "1"}
        node.walk(first, {"id": "b", "run": "false", "stamp": "1", "after": ["a"]})
        assert states(node.walk(first, {"id": "b", "run": "true", "stamp": "1", "after": ["a"]})) == {
            "a": "skipped",
            "b": "passed",
        }


class TestWholes:
    """A table `made` that two steps fill in turn, and that cannot be filled twice."""

    def fill(self, node: Node, second: str = "true", more: str = "") -> dict[str, str]:
        table = node.folder / "made"
        whole = {"whole": "db", "stamp": f"1{more}"}
        first = {"id": "db", "run": f"mkdir {table}", "undo": f"rm -r {table}", **whole}
        last = {"id": "sync", "run": f"mkdir {table}/half; {second}", "after": ["db"], **whole}
        return states(node.walk(first, last))

    def test_one_that_was_left_half_made_is_made_anew(self, node: Node) -> None:
        assert self.fill(node, "exit 1") == {"db": "passed", "sync": "failed"}
        assert self.fill(node) == {"db": "passed", "sync": "passed"}
        assert self.fill(node) == {"db": "skipped", "sync": "skipped"}

    def test_a_half_that_was_left_by_a_killed_walk_is_found(self, node: Node) -> None:
        when((node.folder / "made" / "half").exists, node.processes.stop)
        assert self.fill(node, "sleep 60") == {"db": "passed", "sync": "failed"}
        node.processes = converge.Processes(account=lambda name: None)
        assert self.fill(node) == {"db": "passed", "sync": "passed"}

    def test_one_that_was_complete_once_is_never_undone(self, node: Node) -> None:
        self.fill(node)
        (node.folder / "made" / "data").touch()
        assert self.fill(node, more="later")["db"] == "failed"  # it is there
        assert self.fill(node, more="later")["db"] == "failed"
        assert (node.folder / "made" / "data").exists()


@pytest.fixture
def reload(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A systemctl for the one call that the walk makes as a command: daemon-reload."""
    program = tmp_path / "bin" / "systemctl"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/reloads\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(converge, "SYSTEM_PATH", f"{program.parent}:{converge.SYSTEM_PATH}")
    yield tmp_path / "reloads"


def units(stamp: str = "", **more: Any) -> dict[str, Any]:
    return {
        "id": "nova/units",
        "kind": "units",
        "units": ["nova-api", "nova-conductor"],
        "stamp": stamp,
        **more,
    }


def test_a_unit_that_has_an_alias_alone_is_not_enabled(reload: Path, node: Node) -> None:
    """The package of BIND leaves the alias behind when the link that has it started at boot has gone."""
    (reload.parent / "bin" / "systemctl").write_text(
        "#!/bin/sh\n"
        "printf 'LoadState=loaded\\nUnitFileState=enabled\\nWantedBy=\\nRequiredBy=\\n\\n'\n"
        "printf 'LoadState=loaded\\nUnitFileState=enabled\\nWantedBy=multi-user.target\\nRequiredBy=\\n'\n"
    )
    found = converge.Systemd(node.processes).states(["named", "mariadb"])
    assert [state.file for state in found] == ["disabled", "enabled"]


@pytest.mark.parametrize("remains", [True, False])
def test_a_one_shot_unit_that_would_stay_active_has_not_run(remains: bool) -> None:
    """openvswitch-switch, whose switch does not start, is inactive, and nothing has failed in it."""
    ended = converge.UnitState("x", "loaded", "enabled", "inactive", "dead", "success", "oneshot")
    assert replace(ended, remains=remains).runs is not remains


@pytest.mark.usefixtures("reload")
class TestUnits:
    def test_units_are_enabled_and_started_in_one_call_each(self, node: Node, reload: Path) -> None:
        node.systemd.units["nova-api"] = converge.UnitState("nova-api", "loaded", "disabled", "inactive")
        assert states(node.walk(units())) == {"nova/units": "passed"}
        assert node.systemd.calls == [
            ["enable", "--quiet", "--no-reload", "nova-api"],
            ["start", "nova-api", "nova-conductor"],
        ]
        assert reload.read_text() == "daemon-reload\n"

    def test_they_are_restarted_when_their_stamp_changed_and_left_alone_when_it_holds(
        self, node: Node
    ) -> None:
        seen = [states(node.walk(units(stamp)))["nova/units"] for stamp in ("one", "one", "two")]
        assert seen == ["passed", "skipped", "passed"]
        assert [words[0] for words in node.systemd.calls] == ["start", "restart"]

    def test_one_that_has_ended_is_started_though_the_stamp_holds(self, node: Node) -> None:
        node.walk(units("one"))
        node.systemd.units["nova-api"] = converge.UnitState("nova-api", "loaded", "enabled", "inactive")
        assert states(node.walk(units("one"))) == {"nova/units": "passed"}
        assert node.systemd.calls[-1][0] == "start"

    def test_they_are_restarted_when_a_file_of_theirs_was_written_since(self, node: Node) -> None:
        file = node.folder / "nova.conf"
        file.touch()
        of = units("one", files=[str(file)])
        assert states(node.walk(of)) == {"nova/units": "passed"}
        assert states(node.walk(of)) == {"nova/units": "skipped"}
        os.utime(file, (time.time() + 1, time.time() + 1))
        assert states(node.walk(of)) == {"nova/units": "passed"}
        assert [words[0] for words in node.systemd.calls] == ["start", "restart"]

    def test_one_that_ended_again_and_again_for_what_was_mended_since_is_not_told_as_broken(
        self, node: Node
    ) -> None:
        trying = converge.UnitState("nova-api", "loaded", "enabled", "activating", "auto-restart", restarts=9)
        node.systemd.units["nova-api"] = trying
        assert states(node.walk(units("one"))) == {"nova/units": "passed"}
        assert node.systemd.calls[0] == ["reset-failed", "nova-api"]

    def test_a_failed_unit_is_told_with_its_last_words(self, node: Node) -> None:
        node.systemd.broken = ["nova-api"]
        result = node.walk(units("one"))["nova/units"]
        assert result["output"] == "nova-api: failed (exit-code)\n--- journalctl -u nova-api\nits last words"
        node.systemd.broken = []
        node.walk(units("one"))
        assert ["reset-failed", "nova-api"] in node.systemd.calls

    def test_a_start_that_systemd_tries_again_by_itself_is_waited_for(self, node: Node) -> None:
        trying = converge.UnitState("api", "loaded", "enabled", "activating", "auto-restart")
        calls: list[list[str]] = []

        def call(words: Sequence[str], timeout: float, log: IO[bytes]) -> int:
            calls.append(list(words))
            node.systemd.units["api"] = trying
            threading.Timer(0.2, running).start()
            return 1

        def running() -> None:
            node.systemd.units["api"] = replace(trying, active="active", sub="running", restarts=1)

        node.systemd.call = call  # type: ignore[method-assign]
        results = node.walk({"id": "api/start", "kind": "units", "units": ["api"]})
        assert results["api/start"]["state"] == "passed", results
        assert calls == [["start", "api"]]

    def test_a_unit_that_does_not_exist_is_told_before_anything_is_started(self, node: Node) -> None:
        node.systemd.units["nova-api"] = converge.UnitState("nova-api", "not-found")
        assert "there is no such unit" in node.walk(units())["nova/units"]["output"]
        assert node.systemd.calls == []

    def test_a_unit_that_ends_after_its_start_fails_the_step(self, node: Node) -> None:
        crashed = node.folder / "crashed"

        def crash() -> None:
            started = node.systemd.units["nova-api"]
            node.systemd.units["nova-api"] = replace(started, active="failed", result="exit-code")
            crashed.touch()

        node.systemd.after_start = lambda: when(lambda: node.has_passed("nova/units"), crash)
        results = node.walk(
            units("one"), {"id": "other", "run": f"until [ -e {crashed} ]; do sleep 0.1; done"}
        )
        assert node.has_passed("nova/units")
        assert states(results) == {"nova/units": "failed", "other": "passed"}
        assert not (node.folder / "stamps" / "nova.units").exists()

    def test_waiting_for_a_port_ends_when_the_unit_behind_it_ends_again_and_again(self, node: Node) -> None:
        def loop() -> None:
            node.systemd.units["nova-api"] = replace(node.systemd.units["nova-api"], restarts=5)

        node.systemd.after_start = lambda: when(lambda: node.has_passed("nova/units"), loop)
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        ready = {"id": "nova/ready", "kind": "ports", "ports": [["127.0.0.1", port]], "after": ["nova/units"]}
        start = time.monotonic()
        results = node.walk(units(), ready)
        assert results["nova/ready"]["output"].startswith("nova-api: ends again and again, 5 times now")
        assert time.monotonic() - start < 10


class TestPorts:
    def test_a_port_that_nobody_opens_is_named(self, node: Node) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        step = {"id": "ready", "kind": "ports", "ports": [["127.0.0.1", port]], "timeout": 0.3}
        assert node.walk(step)["ready"]["output"] == f"after 0.3 s nothing accepts on 127.0.0.1:{port}"


class TestLogFiles:
    @pytest.mark.parametrize(
        ("unit", "found"),
        [
            ("nova-api", "nova/nova-api.log"),
            ("nova-api.service", "nova/nova-api.log"),
            ("neutron-ovn-metadata-agent", "neutron/neutron-server.log"),
            ("mariadb", None),
        ],
    )
    def test_the_log_of_a_unit_is_found(self, tmp_path: Path, unit: str, found: str | None) -> None:
        for age, name in enumerate(
            ["nova/nova-api.log", "nova/nova-conductor.log", "neutron/neutron-server.log"]
        ):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text("line\n")
            os.utime(tmp_path / name, (1000 + age, 1000 + age))
        systemd = converge.Systemd(converge.Processes(), tmp_path)
        assert systemd.log_file(unit) == (tmp_path / found if found else None)


class TestAlone:
    def test_a_walk_that_was_left_behind_is_ended(self, tmp_path: Path) -> None:
        lock = tmp_path / "lock"
        child = os.fork()
        if child == 0:  # pragma: no cover
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
            try:
                with converge.alone(lock):
                    (tmp_path / "held").touch()
                    time.sleep(60)
            finally:
                os._exit(0)
        while not (tmp_path / "held").exists():
            time.sleep(0.01)
        with converge.alone(lock, patience=10):
            assert lock.read_text() == str(os.getpid())
        os.waitpid(child, 0)
        assert lock.read_text() == ""


def is_running(process: int) -> bool:
    """A zombie that waits for its parent has ended."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] not in ("Z", "X")
    except FileNotFoundError:
        return False
