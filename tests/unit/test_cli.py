"""The command line: what is typed, what is printed where, and the exit code. No lab is built here."""

import errno
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from stacklab import errors
from stacklab.blueprint import UpRequest, resolve
from stacklab.cli.enter import become
from stacklab.cli.events import since
from stacklab.cli.failure import translate
from stacklab.cli.logs import units_of
from stacklab.cli.main import Stacklab, app, stacklab
from stacklab.cli.options import Verbose
from stacklab.cli.plan import lines
from stacklab.cli.request import requesting, up_command
from stacklab.cli.screen import print_table
from stacklab.home import DEFAULT_STATE, Home
from stacklab.images import usage
from stacklab.images.store import Store
from stacklab.lab import Lab, LabSettings
from stacklab.lab.lab import SOCKET_BYTES
from stacklab.plan import Plan, PlannedFile, PlannedImage, PlannedLayer
from stacklab.provide.provider import Node
from tests.unit.catalogs import write, write_service

runner = CliRunner()
VERBS = sorted(str(command.name) for command in app.registered_commands)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("STACKLAB_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("STACKLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("STACKLAB_LAB", raising=False)
    return Home.from_environment()


@pytest.fixture
def lab(home: Home) -> Iterator[Lab]:
    """A lab that has been made and is off."""
    lab = Lab(home, "blue")
    controller = Node("controller", "10.20.0.11", ("controller", "compute"), 8192, 4)
    lab.save(
        LabSettings(
            profile="openstack",
            release="epoxy",
            topology="all-in-one",
            node_kind="lxc",
            layer=1,
            nodes=(controller,),
            services=("mariadb", "keystone"),
        )
    )
    yield lab
    lab.journal.close()


# Help


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_has_help_with_examples(verb: str) -> None:
    result = runner.invoke(app, [verb, "--help"], terminal_width=200)
    assert result.exit_code == 0
    assert "Examples:" in result.output
    assert result.output.count(f" stacklab {verb}") >= 2


def test_a_short_option_means_the_same_with_every_verb() -> None:
    group = typer.main.get_command(app)
    assert isinstance(group, Stacklab)
    meanings: dict[str, set[str]] = {}
    for verb in VERBS:
        for parameter in group.commands[verb].params:
            for short in (option for option in parameter.opts if len(option) == 2):
                meanings.setdefault(short, set()).update({*parameter.opts} - {short})
    assert {short: long for short, long in meanings.items() if len(long) > 1} == {}


def test_the_verbs_of_the_issue_are_there() -> None:
    asked = """
        up plan status list verify exec shell ssh logs events graph services profiles stop start destroy
    """
    assert set(VERBS) >= set(asked.split())


def test_help_imports_nothing_heavy() -> None:
    heavy = (
        "ansible ansible_runner openstack keystoneauth1 libvirt pydantic jinja2 paramiko yaml stacklab.lab"
        " sqlite3 importlib.metadata urllib.request"
    )
    script = f"import sys, stacklab.cli.main;print([name for name in {heavy.split()} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_help_option_has_a_short_form_and_no_verb_means_help() -> None:
    assert runner.invoke(app, ["-h"]).exit_code == 0
    assert "Usage: stacklab" in runner.invoke(app, []).output


# Errors and exit codes


def failing(error: BaseException) -> typer.Typer:
    """A program with one verb, which raises."""
    program = typer.Typer(cls=Stacklab)
    program.callback()(stacklab)

    @program.command("up")
    def up(output: str = "table", verbose: Verbose = False) -> None:
        raise error

    @program.command("look")
    def look() -> None:
        raise error

    return program


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.StacklabError("x"), 1),
        (errors.UsageError("x"), 2),
        (errors.ModelError([]), 2),
        (errors.HostUnfit("x"), 3),
        (errors.StepFailed("x"), 1),
        (errors.LabBusy("x"), 1),
        (errors.CheckFailed("x"), 4),
        (errors.Interrupted("x"), 130),
        (KeyboardInterrupt(), 130),
        (RuntimeError("x"), 1),
        (typer.Exit(3), 3),
        (typer.Exit(0), 0),
    ],
)
def test_every_error_has_its_exit_code(error: BaseException, code: int) -> None:
    assert runner.invoke(failing(error), ["up"]).exit_code == code


def test_an_error_is_message_detail_and_what_to_do_next_on_stderr() -> None:
    error = errors.StepFailed(
        "keystone did not start", detail="line 1\n\nline 2", hint="stacklab logs keystone"
    )
    result = runner.invoke(failing(error), ["up"])
    assert result.stdout == ""
    assert (
        result.stderr == "error: keystone did not start\n  line 1\n\n  line 2\nnext: stacklab logs keystone\n"
    )


def test_problems_of_the_model_stand_in_the_first_column() -> None:
    problems = [
        errors.Problem(Path("/p/service.yaml"), 12, 3, "unknown key 'nmae'"),
        errors.Problem(Path("/p/service.yaml"), 2, 1, "duplicate key 'name'"),
    ]
    result = runner.invoke(failing(errors.ModelError(problems)), ["up"])
    assert result.stderr.splitlines() == [
        "error: 2 problems in the model",
        "/p/service.yaml:2:1: duplicate key 'name'",
        "/p/service.yaml:12:3: unknown key 'nmae'",
    ]


def test_errors_are_json_when_json_is_asked_for() -> None:
    error = errors.StepFailed("no", detail="log", hint="do")
    result = runner.invoke(failing(error), ["up", "--output", "json"])
    assert result.stdout == ""
    assert json.loads(result.stderr) == {
        "error": {"kind": "StepFailed", "message": "no", "detail": "log", "hint": "do", "exit_code": 1}
    }
    problem = errors.Problem(Path("/p.yaml"), 2, 1, "wrong")
    result = runner.invoke(failing(errors.ModelError([problem])), ["up", "--output=json"])
    assert json.loads(result.stderr)["error"]["problems"] == [
        {"file": "/p.yaml", "line": 2, "column": 1, "message": "wrong"}
    ]


def test_wrong_usage_ends_with_2_in_words_or_json() -> None:
    for arguments in (
        ["nope"],
        ["status", "--lob", "x"],
        ["ssh"],
        ["up", "--layer", "0"],
        ["events", "--since", "x"],
    ):
        result = runner.invoke(app, arguments)
        assert result.exit_code == 2, arguments
        assert "Usage: stacklab" in result.stderr
    for words in (["-o", "json"], ["-vo", "json"], ["-ojson"], ["-vojson"], ["--output=json"]):
        result = runner.invoke(app, ["status", "--lob", "x", *words])
        assert result.exit_code == 2
        assert json.loads(result.stderr)["error"]["kind"] == "UsageError"


def test_json_for_the_command_in_the_lab_is_not_json_for_stacklab() -> None:
    result = runner.invoke(app, ["exec", "--", "openstack", "server", "list", "--output", "json"])
    assert result.exit_code == 2
    assert result.stderr.startswith("error: there is no lab 'default'")


def test_ctrl_c_says_that_up_goes_on_from_here() -> None:
    result = runner.invoke(failing(KeyboardInterrupt()), ["up", "--output", "a b"])
    assert (
        result.stderr
        == "error: interrupted\nnext: stacklab up --output 'a b'   (up again goes on from here)\n"
    )
    assert "goes on" not in runner.invoke(failing(KeyboardInterrupt()), ["look"]).stderr


def test_what_to_type_next_names_the_lab_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    program = typer.Typer(cls=Stacklab)
    program.callback()(stacklab)

    @program.command("up")
    def up(lab: str = "default", layer: int = 1) -> None:
        raise KeyboardInterrupt

    monkeypatch.setenv("STACKLAB_LAB", "blue")
    assert "stacklab up --lab blue --layer 2 " in runner.invoke(program, ["up", "--layer", "2"]).stderr
    assert "stacklab up --lab=red " in runner.invoke(program, ["up", "--lab=red"]).stderr


def test_an_unexpected_error_is_one_line_and_a_file_with_the_traceback(home: Home) -> None:
    result = runner.invoke(failing(ZeroDivisionError("division by zero")), ["up"])
    assert result.exit_code == 1
    first, second = result.stderr.splitlines()
    assert first.startswith("error: unexpected ZeroDivisionError: division by zero (test_cli.py:")
    (file,) = (home.cache / "tracebacks").iterdir()
    assert str(file) in second
    assert "Traceback (most recent call last)" in file.read_text()


@pytest.mark.parametrize("arguments", [["-v", "up"], ["up", "-v"], ["up", "--verbose"]])
def test_verbose_shows_the_traceback(home: Home, arguments: list[str]) -> None:
    result = runner.invoke(failing(ZeroDivisionError("x")), arguments)
    assert "Traceback (most recent call last)" in result.stderr
    assert not home.cache.exists()


def test_a_full_disk_and_missing_rights_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    result = runner.invoke(failing(OSError(28, "No space left on device", "/var/x")), ["up"])
    assert result.exit_code == 1
    assert "no space left on the disk: /var/x" in result.stderr
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    result = runner.invoke(failing(PermissionError(13, "Permission denied", "/var/x")), ["up"])
    assert result.exit_code == 3
    assert "next: sudo stacklab up" in result.stderr


@pytest.mark.parametrize("variable", ["STACKLAB_STATE", "STACKLAB_CACHE"])
@pytest.mark.parametrize("sign", [*" %\":,'\\\n$"])
def test_a_path_that_tools_would_misread_is_refused_at_once(
    variable: str, sign: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, f"/srv/my{sign}clouds")
    result = runner.invoke(app, ["list"])
    assert result.exit_code == 2
    assert variable in result.stderr and f"'{sign}'" in result.stderr
    assert result.stderr.endswith(f"next: export {variable}=/srv/my-clouds\n")
    unreadable = OSError(errno.EIO, "I/O error", "/srv/x")
    assert runner.invoke(failing(unreadable), ["up"]).exit_code == 1  # an error is told all the same


@pytest.mark.parametrize(("kind", "most"), [("lxc", 69), ("vm", 60)])
def test_a_state_folder_with_too_long_a_path_for_sockets_is_refused_at_once(
    kind: str, most: int, tmp_path: Path, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = tmp_path / ("x" * 60)
    monkeypatch.setenv("STACKLAB_STATE", str(state))
    result = runner.invoke(app, ["up", "--node-kind", kind])
    length = len(str(state)) + SOCKET_BYTES - most
    assert result.exit_code == 2
    assert f"/labs/default/run/libvirt/libvirt-sock is {length} bytes long; the path of" in result.stderr
    assert result.stderr.endswith(f"STACKLAB_STATE=FOLDER, one whose path has {most} bytes at most\n")
    assert not state.exists() and not home.cache.exists()


def test_a_copy_whose_path_would_be_too_long_for_sockets_is_refused_at_once(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = "x" * 31
    socket = f"{lab.home.labs}/{long}/run/libvirt/libvirt-sock"
    monkeypatch.setattr("stacklab.lab.lab.SOCKET_BYTES", len(socket) - 1)
    result = runner.invoke(app, ["clone", "blue", long])
    assert result.exit_code == 2
    assert f"{socket} is {len(socket)} bytes long" in result.stderr


def test_an_empty_variable_names_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STACKLAB_STATE", "")
    assert Home.named().state == DEFAULT_STATE


def test_a_closed_pipe_ends_quietly() -> None:
    script = f"{sys.executable} -m stacklab list --help | true"
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False)
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        ("list >&-", 0, ""),
        ("list <&- >&-", 0, ""),
        ("list >/dev/full", 1, "error: no space left on the disk\n"),
        ("destroy --lab blue <&-", 2, "no terminal to ask on"),
        ("down --to 9 --lab blue <&-", 2, "error: "),
    ],
)
def test_closed_streams_and_full_disks_are_no_fault(
    words: str, code: int, told: str, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    script = f"{sys.executable} -m stacklab {words}"
    done = subprocess.run(["sh", "-c", script], stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == code
    assert told in done.stderr if told else done.stderr == ""
    assert "unexpected" not in done.stderr and "OSError" not in done.stderr


def test_the_work_goes_on_without_a_word_when_nobody_reads_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = f"""
import sys
from pathlib import Path
from stacklab.cli.main import app, main
from stacklab.cli.progress import Json
from stacklab.journal import Journal

@app.command()
def work():
    with Journal(Path({str(tmp_path / "journal.db")!r})) as journal:
        journal.subscribe(Json())
        journal.record("one")
        journal.record("two")
        print(len(journal.read()), file=sys.stderr)

main()
"""
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    reader, pipe = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-c", script, "work"], stdout=pipe, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(pipe)
    assert (done.returncode, done.stderr) == (0, "2\n")


@pytest.mark.parametrize(
    ("path", "completed"),
    [
        ("/usr/bin:/bin", "/usr/bin:/bin:/usr/sbin:/sbin"),
        ("/usr/sbin:/usr/bin", "/usr/sbin:/usr/bin:/sbin"),
        ("/sbin:/usr/sbin", "/sbin:/usr/sbin"),
        ("", f"{os.defpath}:/usr/sbin:/sbin"),
    ],
)
def test_programs_of_root_are_found_without_its_path(path: str, completed: str) -> None:
    script = """
import os
from stacklab.cli.main import app, main

@app.command()
def work():
    print(os.environ["PATH"])

main()
"""
    argv = [sys.executable, "-c", script, "work"]
    environment = {**os.environ, "PATH": path}
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == f"{completed}\n"


# Labs


@pytest.mark.parametrize("verb", ["status", "events", "stop", "start", "destroy", "shell", "verify"])
def test_a_lab_that_is_not_there_is_wrong_usage(verb: str, lab: Lab) -> None:
    result = runner.invoke(app, [verb, "--lab", "green"])
    assert result.exit_code == 2
    assert "there is no lab 'green'; there is: blue" in result.stderr


def test_the_name_of_a_lab_that_is_not_there_is_answered_with_the_nearest(lab: Lab) -> None:
    result = runner.invoke(app, ["destroy", "--lab", "blu"])
    assert "there is no lab 'blu', did you mean 'blue'?\nnext: stacklab list\n" in result.stderr


@pytest.mark.parametrize("left", ["labs/.gone-green/journal.db", "locks/green"])
def test_destroy_goes_on_with_what_a_destroy_that_was_cut_off_has_left(lab: Lab, left: str) -> None:
    file = lab.home.state / left
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()
    assert runner.invoke(app, ["destroy", "--lab", "green", "--yes"]).exit_code == 0
    assert not file.exists() and not (lab.home.labs / ".gone-green").exists()
    assert runner.invoke(app, ["destroy", "--lab", "green", "--yes"]).exit_code == 2
    assert lab.exists


def test_destroying_what_is_not_there_gives_no_hint_to_make_it() -> None:
    result = runner.invoke(app, ["destroy", "--lab", "green", "--yes"])
    assert result.stderr == "error: there is no lab 'green'\nnext: stacklab list\n"


def test_a_lab_whose_up_was_cut_off_is_not_verified(lab: Lab) -> None:
    lab.save(lab.settings.model_copy(update={"layer": 0}))
    result = runner.invoke(app, ["verify", "--lab", "blue"])
    assert result.exit_code == 2
    assert "has not come up yet" in result.stderr
    assert "next: stacklab up --lab blue" in result.stderr


@pytest.mark.parametrize("name", ["Blue", "1st", "a_b", "../x", "a" * 32, ""])
def test_names_that_no_lab_can_have(name: str) -> None:
    result = runner.invoke(app, ["status", "--lab", name])
    assert result.exit_code == 2


def test_the_lab_may_come_from_the_environment(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STACKLAB_LAB", "blue")
    assert json.loads(runner.invoke(app, ["status", "-o", "json"]).stdout)["name"] == "blue"


def test_list(lab: Lab) -> None:
    assert runner.invoke(app, ["list"]).stdout.splitlines() == [
        "NAME  STATE  LAYER  PROFILE    RELEASE  TOPOLOGY    NODES",
        "blue  off    1      openstack  epoxy    all-in-one  lxc",
    ]
    (only,) = json.loads(runner.invoke(app, ["list", "--output", "json"]).stdout)
    assert only["name"] == "blue"
    assert only["running"] is False


@pytest.mark.parametrize("verb", ["list", "images ls", "images prune"])
def test_a_folder_beside_the_labs_is_none_of_them(verb: str, lab: Lab) -> None:
    shutil.copytree(lab.folder, lab.folder.with_name("blue.bak"))
    result = runner.invoke(app, verb.split())
    assert result.exit_code == 0, result.output
    assert "blue.bak" not in result.output


@pytest.mark.parametrize("verb", ["list", "images ls", "images prune"])
def test_a_lab_that_is_destroyed_meanwhile_is_passed_over(
    verb: str, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = Lab.all(lab.home)
    shutil.rmtree(lab.folder)
    monkeypatch.setattr(Lab, "all", lambda _: there)
    result = runner.invoke(app, verb.split())
    assert result.exit_code == 0, result.output
    assert "blue" not in result.output


def test_list_without_labs_says_how_to_make_one() -> None:
    assert "stacklab up --layer 1" in runner.invoke(app, ["list"]).stdout
    assert json.loads(runner.invoke(app, ["list", "-o", "json"]).stdout) == []


def test_status_shows_what_was_asked_for_beside_the_profile(lab: Lab) -> None:
    more = {"with_services": {"hello": 1, "swift": 1}, "without_services": ("nova",), "path": ("/srv/mine",)}
    more["services"] = ("keystone", "hello")
    lab.save(lab.settings.model_copy(update=more))
    shown = runner.invoke(app, ["status", "--lab", "blue"]).stdout
    for line in ("with      hello, swift (not up)", "without   nova", "path      /srv/mine"):
        assert line in shown.splitlines()


def test_status_of_a_lab_that_is_off(lab: Lab) -> None:
    lab.journal.record("stacklab.step.failed", "controller", name="configure", error="no answer", seconds=3)
    shown = runner.invoke(app, ["status", "--lab", "blue"])
    assert shown.exit_code == 0, shown.output
    assert "blue, off" in shown.stdout
    assert "1 of profile openstack, release epoxy" in shown.stdout
    assert "mariadb, keystone" in shown.stdout
    assert "configure (controller): failed after 3.0 s: no answer" in shown.stdout
    document = json.loads(runner.invoke(app, ["status", "--lab", "blue", "-o", "json"]).stdout)
    assert document["nodes"][0]["address"] == "10.20.0.11"
    assert document["last_event"]["type"] == "stacklab.step.failed"


# Events


def shown_types(*arguments: str) -> list[str]:
    result = runner.invoke(app, ["events", "--lab", "blue", "--output", "json", *arguments])
    assert result.exit_code == 0, result.output
    return [json.loads(line)["type"].removeprefix("stacklab.") for line in result.stdout.splitlines()]


def test_events_are_chosen_by_type_and_time(lab: Lab) -> None:
    for kind in ("step.started", "step.failed", "stepladder.x", "node.crashed"):
        lab.journal.record(f"stacklab.{kind}", name="x")
    assert shown_types() == ["step.started", "step.failed", "stepladder.x", "node.crashed"]
    assert shown_types("--type", "step") == ["step.started", "step.failed"]
    assert shown_types("--type", "stacklab.step.failed", "--type", "*.crashed") == [
        "step.failed",
        "node.crashed",
    ]
    assert len(shown_types("--since", "1m")) == 4
    assert shown_types("--since", "2999-01-01") == []


def test_events_as_a_table(lab: Lab) -> None:
    lab.journal.record("stacklab.node.crashed", "controller")
    header, line = runner.invoke(app, ["events", "--lab", "blue"]).stdout.splitlines()
    assert header.split() == ["TIME", "TYPE", "EVENT"]
    assert line.split()[2:] == ["node.crashed", "node", "controller:", "crashed"]


def test_events_follow_until_ctrl_c(lab: Lab) -> None:
    lab.journal.record("stacklab.lab.created")
    argv = [sys.executable, "-u", "-m", "stacklab", "events", "-f", "--lab", "blue", "-o", "json"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as follower:
        assert follower.stdout is not None
        assert follower.stderr is not None
        assert "lab.created" in follower.stdout.readline()
        lab.journal.record("stacklab.node.started", "controller")
        assert "node.started" in follower.stdout.readline()
        follower.send_signal(signal.SIGINT)
        assert follower.wait(timeout=10) == 130
        assert follower.stderr.read() == ""


@pytest.mark.parametrize(("text", "ago"), [("30s", 30), ("10m", 600), ("2h", 7200), ("1d", 86400)])
def test_since_takes_lengths_of_time(text: str, ago: int) -> None:
    assert abs((datetime.now(UTC) - since(text)) - timedelta(seconds=ago)) < timedelta(seconds=5)


def test_since_takes_times_local_unless_they_say_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    assert since("2025-11-21T09:00:00+02:00") == datetime(2025, 11, 21, 7, tzinfo=UTC)
    monkeypatch.setenv("TZ", "UTC-3")
    time.tzset()
    try:
        assert since("2025-11-21T09:00") == datetime(2025, 11, 21, 6, tzinfo=UTC)
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize("text", ["", "soon", "10", "10y", "2025-13-01", "0001-01-01", "99999999999d"])
def test_since_refuses_the_rest(text: str) -> None:
    with pytest.raises(typer.BadParameter):
        since(text)


# Plan


def test_a_plan_for_people() -> None:
    files = (
        PlannedFile("controller", "/etc/a", "add", "+new"),
        PlannedFile("controller", "/etc/b", "change", "-old\n+new"),
    )
    layer = PlannedLayer(1, ("mariadb", "keystone"), (("controller", "keystone/schema"),), files)
    images = (PlannedImage("base", "abc", True), PlannedImage("packages", "def", False))
    plan = Plan("blue", 1, images, ("controller",), (layer,))
    text = "\n".join(lines(plan, "stacklab up"))
    for words in (
        "base      abc  cached",
        "packages  def  to be built",
        "1 steps",
        "controller  keystone/schema",
    ):
        assert words in text
    assert "+ /etc/a\n    controller  ~ /etc/b\n        -old\n        +new\n" in text
    assert "+ /etc/a\n        +new" in "\n".join(lines(plan, "stacklab up", every_difference=True))
    assert list(lines(Plan("blue", 1, (), (), ()), "stacklab up"))[-1] == "Nothing to do."


def test_a_plan_ends_with_the_command_that_does_the_same() -> None:
    request = UpRequest(
        "blue",
        2,
        profile="starter-kit",
        computes=2,
        with_services=("hello", "motd"),
        path=(Path("/srv/my clouds"),),
        locked=Path("versions.yaml"),
        offline=True,
    )
    command = (
        "stacklab up --lab blue --layer 2 --profile starter-kit --computes 2"
        " --with hello --with motd --offline --path '/srv/my clouds' --locked versions.yaml"
    )
    assert up_command(request) == command
    assert up_command(UpRequest()) == "stacklab up"
    asked: list[UpRequest] = []
    program = typer.Typer()
    program.command()(requesting(asked.append))
    runner.invoke(program, shlex.split(command)[2:], catch_exceptions=False)
    assert asked == [request]
    layer = PlannedLayer(1, ("keystone",), (), ())
    assert list(lines(Plan("blue", 1, (), (), (layer,)), command))[-1].endswith(f": {command}")


# Destroy


def test_destroy_without_a_terminal_needs_yes(lab: Lab) -> None:
    result = runner.invoke(app, ["destroy", "--lab", "blue"])
    assert result.exit_code == 2
    assert "next: stacklab destroy --lab blue --yes" in result.stderr
    assert lab.exists


def answered(arguments: str, word: bytes = b"", output: Path | None = None) -> int:
    """The exit code of a verb on a terminal; its question, if it is to have one, is answered.

    output: takes standard output; all else comes from the terminal.
    """
    import pty

    pid, terminal = pty.fork()
    if pid == 0:
        if output:
            os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
        os.execv(sys.executable, [sys.executable, "-m", "stacklab", *arguments.split(), "--lab", "blue"])
    seen = b""
    while word and b"?" not in seen:
        seen += os.read(terminal, 1000)
    os.write(terminal, word)
    status = os.waitpid(pid, 0)[1]
    os.close(terminal)
    return os.waitstatus_to_exitcode(status)


def test_destroy_on_a_terminal_asks(lab: Lab) -> None:
    assert answered("destroy", b"n\n") == 1
    assert lab.exists


@pytest.mark.parametrize("verb", ["destroy", "down --to 1", "checkpoint restore nothing"])
def test_a_question_is_no_output_and_to_leave_it_open_is_an_interrupt(
    verb: str, lab: Lab, tmp_path: Path
) -> None:
    output = tmp_path / "output"
    ctrl_d = b"\x04"  # Ctrl-C does the same, unless it comes just before Python reads
    assert answered(f"{verb} --output json", ctrl_d, output) == 130
    assert output.read_text().strip() == ""
    assert lab.exists


def test_no_and_ctrl_c_at_a_question_are_told_as_json() -> None:
    for error, kind, code in (
        (typer.Abort(), "Interrupted", 130),
        (errors.StacklabError("the answer was no"), "StacklabError", 1),
    ):
        result = runner.invoke(failing(error), ["up", "--output", "json"])
        told = json.loads(result.stderr)["error"]
        assert (result.exit_code, told["kind"], told["exit_code"]) == (code, kind, code)


@pytest.mark.parametrize("verb", ["down --to 2", "checkpoint restore nothing"])
def test_what_gives_data_up_asks_on_a_terminal_and_nowhere_else(verb: str, lab: Lab) -> None:
    assert answered(verb, b"n\n") == 1
    refused = 2  # there is no such layer, and no such checkpoint: it has gone to work
    assert answered(verb, b"y\n") == refused
    assert answered(f"{verb} --yes") == refused
    assert runner.invoke(app, [*verb.split(), "--lab", "blue"]).exit_code == refused


# Into the lab


def run(script: Callable[[], object] | str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-c", str(script)], capture_output=True, text=True, check=False)


def test_becoming_a_command_passes_its_exit_code_and_signals_on() -> None:
    start = "import os; from stacklab.cli.enter import become; become({}, os.environ)"
    assert run(start.format(["sh", "-c", "exit 7"])).returncode == 7
    assert run(start.format(["sh", "-c", "kill -TERM $$"])).returncode == -signal.SIGTERM


def test_everything_behind_the_node_is_the_command(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lab, "ssh_command", lambda _, node, words: [sys.executable, "-c", f"print({words})"])
    monkeypatch.setattr("stacklab.cli.ssh.become", lambda argv, _: typer.echo(argv[-1]))
    for typed in ("controller ls -l --all", "controller -- ls -l --all"):
        result = runner.invoke(app, ["ssh", "--lab", "blue", *typed.split()])
        assert result.stdout == "print(['ls', '-l', '--all'])\n"
    late = runner.invoke(app, ["ssh", "controller", "--lab", "blue"], env={"STACKLAB_LAB": "blue"})
    assert late.exit_code == 2
    assert "put --lab before controller" in late.stderr


def test_a_program_that_is_not_there_is_named() -> None:
    with pytest.raises(errors.UsageError, match="no program 'no-such-program'"):
        become(["no-such-program"], {"PATH": "/usr/bin"})


def test_the_clouds_credentials_replace_those_of_any_other_cloud(lab: Lab) -> None:
    (lab.folder / "secrets.yaml").write_text("keystone: {admin: s3cret}\n")
    environment = lab.client_environment(
        {"OS_CLOUD": "work", "OS_TOKEN": "x", "HOME": "/root", "PATH": "/usr/bin", "no_proxy": "work.test"}
    )
    assert environment["no_proxy"] == "work.test,10.20.0.11"
    assert environment["OS_PASSWORD"] == "s3cret"
    assert environment["HOME"] == "/root"
    assert environment["STACKLAB_LAB"] == "blue"
    assert environment["PATH"] == f"{sys.prefix}/bin:/usr/bin"
    assert not {"OS_CLOUD", "OS_TOKEN"} & set(environment)


def test_the_logs_of_a_service_are_those_of_its_units(lab: Lab) -> None:
    node, units = units_of(lab, "keystone", "")
    assert node == "controller"
    assert units
    with pytest.raises(errors.UsageError, match="unknown service 'keystoen'"):
        units_of(lab, "keystoen", "")
    with pytest.raises(errors.UsageError, match="no node 'nope'"):
        units_of(lab, "keystone", "nope")


# A lab whose services have gone from where they were


@pytest.fixture
def orphan(lab: Lab, tmp_path: Path) -> Lab:
    """A lab that was built with the service `motd` of a folder that has been moved."""
    write_service(tmp_path / "moved", "motd")
    steps = [
        {"id": "motd/controller", "units": ["motd", "motd-timer"]},
        {"id": "nova/controller", "units": ["x"]},
    ]
    more = {"with_services": {"motd": 1}, "services": ("motd",), "path": (str(tmp_path / "old"),)}
    lab.save(lab.settings.model_copy(update=more))
    lab.run_on = lambda *_: subprocess.CompletedProcess([], 0, json.dumps(steps), "")  # type: ignore[method-assign]
    return lab


@pytest.mark.parametrize("verb", ["up", "plan", "verify"])
def test_services_that_have_gone_are_told_with_the_ways_to_go_on(
    verb: str, orphan: Lab, tmp_path: Path
) -> None:
    result = runner.invoke(app, [verb, "--lab", "blue"])
    assert result.exit_code == 2
    assert "lab 'blue' was built with the service 'motd', which cannot be found" in result.stderr
    assert f"{tmp_path}/old is not there" in result.stderr
    assert "stacklab up --lab blue --path FOLDER" in result.stderr
    assert "stacklab up --lab blue --without motd" in result.stderr


def test_each_of_these_ways_leads_on(orphan: Lab, tmp_path: Path) -> None:
    found = resolve(orphan, UpRequest(lab="blue", path=(tmp_path / "moved",)))
    assert found.settings.path == (str(tmp_path / "moved"),)
    assert "motd" in [service.name for service in found.services]
    without = resolve(orphan, UpRequest(lab="blue", without_services=("motd",)))
    assert "motd" not in [service.name for service in without.services]
    assert without.settings.with_services == {}
    assert without.settings.path == ()


def test_status_and_logs_need_no_files_of_services(orphan: Lab) -> None:
    assert runner.invoke(app, ["status", "--lab", "blue"]).exit_code == 0
    assert units_of(orphan, "motd", "") == ("controller", ["motd", "motd-timer"])


def test_why_units_are_missing_is_told_to_programs_too(orphan: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    state = replace(orphan.status(), running=True)
    monkeypatch.setattr(Lab, "status", lambda _: state)
    document = json.loads(runner.invoke(app, ["status", "--lab", "blue", "-o", "json"]).stdout)
    assert document["units"] == {}
    assert "the service 'motd', which cannot be found" in document["trouble"]


# What stacklab knows of a lab is damaged


@pytest.mark.parametrize("text", ["", "profile: openst", "profile: [", "\0"])
@pytest.mark.parametrize("verb", ["up", "plan", "status", "verify", "start", "stop", "logs nova"])
def test_damaged_settings_are_named_with_what_to_do(verb: str, text: str, lab: Lab) -> None:
    (lab.folder / "lab.yaml").write_text(text)
    result = runner.invoke(app, [*verb.split(), "--lab", "blue"])
    if verb == "stop" and result.exit_code == 0:
        return  # it is off, and nothing is asked of it
    assert result.exit_code == 1
    assert f"{lab.folder}/lab.yaml is damaged" in result.stderr
    assert "or stacklab destroy --lab blue" in result.stderr


def test_a_lab_with_damaged_settings_is_told_of_in_the_list_and_can_be_destroyed(
    lab: Lab, home: Home
) -> None:
    (lab.folder / "lab.yaml").write_text("profile: openst")
    listed = runner.invoke(app, ["list"])
    assert listed.exit_code == 0
    assert "blue/lab.yaml is damaged" in listed.stderr
    assert runner.invoke(app, ["destroy", "--lab", "blue", "--yes"]).exit_code == 0
    assert not lab.folder.exists()


def test_passwords_that_have_gone_or_are_damaged_are_told(lab: Lab) -> None:
    with pytest.raises(errors.LabDamaged, match="has gone") as gone:
        lab.environment()
    assert gone.value.hint.startswith("stacklab up --lab blue")
    (lab.folder / "secrets.yaml").write_text("keystone: {admin: ")
    with pytest.raises(errors.LabDamaged, match=r"secrets\.yaml is damaged"):
        lab.environment()
    lab.save(lab.settings.model_copy(update={"layer": 0}))
    (lab.folder / "secrets.yaml").unlink()
    with pytest.raises(errors.UsageError, match="no cloud yet"):
        lab.environment()


@pytest.mark.parametrize("verb", ["up", "verify", "start"])
def test_a_lab_whose_images_have_gone_says_so(verb: str, lab: Lab, home: Home) -> None:
    disk = lab.folder / "nodes" / "controller"
    write(disk / "lower", f"{home.cache}/images/base-1/tree")
    (disk / "created").touch()
    result = runner.invoke(app, [verb, "--lab", "blue"])
    assert result.exit_code == 1
    assert "stands on images that have gone" in result.stderr
    assert f"{home.cache}/images/base-1/tree (node 'controller')" in result.stderr


@pytest.mark.parametrize("thawing", ["", "layer-1"])
@pytest.mark.parametrize(
    "words",
    [
        *("up", "start", "down --to 1 --yes", "checkpoint save lunch", "checkpoint restore lunch --yes"),
        "clone blue green",
    ],
)
def test_a_lab_of_another_cache_names_it(
    words: str, thawing: str, lab: Lab, home: Home, tmp_path: Path
) -> None:
    lab.save(lab.settings.model_copy(update={"thawing": thawing}))
    tree = tmp_path / "images" / "images" / "base-1" / "tree"
    tree.mkdir(parents=True)
    write(lab.folder / "nodes" / "controller" / "lower", str(tree))
    result = runner.invoke(app, words.split(), env={"STACKLAB_LAB": "blue"})
    assert result.exit_code == 2
    told = f"lab 'blue' stands on images in {tmp_path}/images/images, and the cache is {home.cache}\n"
    assert f"{told}next: export STACKLAB_CACHE={tmp_path}/images\n" in result.stderr
    assert not home.cache.exists()


def test_a_folder_that_cannot_be_written_is_no_fault_of_stacklab(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "file", "")
    monkeypatch.setenv("STACKLAB_STATE", str(tmp_path / "file"))
    result = runner.invoke(app, ["up", "--layer", "1"])
    assert result.exit_code == 1
    assert "cannot be used: Not a directory" in result.stderr
    assert "STACKLAB_STATE and STACKLAB_CACHE name the folders" in result.stderr


def test_only_for_a_folder_of_stacklabs_own_the_variables_that_name_them_are_told(home: Home) -> None:
    refused = [
        IsADirectoryError(errno.EISDIR, "Is a directory", str(path))
        for path in (home.cache / "images", home.state.parent, "/root/versions.yaml")
    ]
    hints = [translate(error, again="", verbose=False).hint for error in refused]
    assert [bool(hint) for hint in hints] == [True, True, False]


@pytest.mark.parametrize(
    "verb", ["verify --junit .", "lock .", "tempest .", "images export layer-1 .", "up --locked ."]
)
def test_a_folder_in_the_place_of_a_file_is_refused_before_the_work(verb: str, lab: Lab) -> None:
    result = runner.invoke(app, verb.split(), env={"STACKLAB_LAB": "blue"})
    assert result.exit_code == 2
    assert "is a directory" in result.stderr


# Programs that read, and the tab key


def test_what_images_are_removed_is_told_to_programs_too(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stacklab.images.store.seal_in_background", lambda folder: None)
    image = Store(home.cache / "images").ensure("layer", {"x": 1}, lambda folder: None)
    done = runner.invoke(app, ["images", "rm", image.name, "--output", "json"])
    assert json.loads(done.stdout) == {"image": image.name, "removed": True}


def test_what_checkpoint_is_removed_is_told_to_programs_too(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stacklab.images.store.seal_in_background", lambda folder: None)
    Store(lab.home.cache / "images").ensure("checkpoint", {"lab": "blue", "name": "a"}, lambda folder: None)
    done = runner.invoke(app, ["checkpoint", "rm", "a", "--lab", "blue", "--output", "json"])
    assert json.loads(done.stdout) == {"lab": "blue", "checkpoint": "a", "removed": True}


def test_where_tempests_configuration_went_is_told_to_programs_too(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stacklab.tempest.tempest_conf", lambda *_: "[identity]\n")
    file = str(tmp_path / "tempest.conf")
    done = runner.invoke(app, ["tempest", file, "--lab", "blue", "--output", "json"])
    assert json.loads(done.stdout) == {"file": file, "lab": "blue"}


def test_images_are_listed_while_another_stacklab_adds_one(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stacklab.images.store.seal_in_background", lambda folder: None)
    store = Store(home.cache / "images")
    base, users = store.ensure("base", {"x": 1}, lambda folder: None), usage.users

    def users_and_then_one_more(home: Home, store: Store) -> Mapping[str, list[str]]:
        found = users(home, store)
        store.ensure("layer", {"x": 2}, lambda folder: None, parent=base)
        with pytest.raises(errors.LabBusy):
            usage.remove_unused(home, store, base)
        return found

    monkeypatch.setattr("stacklab.images.usage.users", users_and_then_one_more)
    listed = json.loads(runner.invoke(app, ["images", "ls", "--output", "json"]).stdout)
    assert {each["kind"]: each["used_by"] for each in listed} == {"base": [], "layer": []}
    assert listed[0]["shared_bytes"] == next(each["own_bytes"] for each in listed if each["kind"] == "base")


def test_no_image_goes_while_all_are_verified(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stacklab.images.store.seal_in_background", lambda folder: None)
    store = Store(home.cache / "images")
    made = store.ensure("base", {}, lambda folder: None)

    def damage_while_another_prunes(folder: Path) -> list[str]:
        with pytest.raises(errors.LabBusy):
            usage.prune(home, store, everything=True)
        return []

    monkeypatch.setattr("stacklab.images.digest.damage", damage_while_another_prunes)
    verified = runner.invoke(app, ["images", "verify", "--output", "json"])
    assert json.loads(verified.stdout) == {made.name: []}


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("status --lab b", ["blue"]),
        ("logs keys", ["keystone"]),
        ("up --with memc", ["memcached"]),
        ("up --without glance,memc", ["glance,memcached"]),
        ("images rm layer-", ["layer-1"]),
        ("destr", ["destroy"]),
    ],
)
def test_the_tab_key_completes(typed: str, completed: list[str], lab: Lab, home: Home) -> None:
    write(home.cache / "images" / "layer-1" / "image.json", "{}")
    words = f"stacklab {typed}"
    shell = {"COMP_WORDS": words, "COMP_CWORD": str(words.count(" ")), "_STACKLAB_COMPLETE": "complete_bash"}
    argv = [sys.executable, "-c", "from stacklab.cli.main import main; main()"]
    done = subprocess.run(argv, env=os.environ | shell, capture_output=True, text=True, check=False)
    assert done.stdout.split() == completed


# Tables


def test_tables_off_a_terminal_are_never_cut(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["name", "value"], [["a", "x" * 300], [None, 1]])
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["NAME  VALUE", f"a     {'x' * 300}", "      1"]


# The end of `up`


def test_the_next_commands_name_the_lab_unless_it_is_the_default() -> None:
    from stacklab.cli.up import what_next

    assert "stacklab exec -- openstack server list" in what_next("default")
    assert all("--lab blue" in line for line in what_next("blue"))
