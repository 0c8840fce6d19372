"""How checks are asked, run, told and written down; the answers come from real servers on loopback."""

import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast, get_args
from xml.etree import ElementTree

import pytest

from stacklab.check import bare_metal, units
from stacklab.check.agents import Agent, wanted_agents
from stacklab.check.api import Api, request
from stacklab.check.cloud import LONGEST_PAUSE, Cloud, pause_after
from stacklab.check.commands import check_command, run_command
from stacklab.check.health import answers, ask_all, concerned_service
from stacklab.check.junit import write_junit
from stacklab.check.result import Checking, CheckResult, CheckState, Unasked, Unmet, ask
from stacklab.check.runner import Job, failure_of, run_jobs
from stacklab.check.scenarios import SCENARIOS, play_of
from stacklab.check.trial import Played, Trial, play
from stacklab.errors import Interrupted
from stacklab.model.catalog import Catalog
from stacklab.model.service import Scenario
from stacklab.provide.provider import Node
from tests.unit.interrupts import ctrl_c_once

PASSED, FAILED, SKIPPED = CheckState.PASSED, CheckState.FAILED, CheckState.SKIPPED


@pytest.mark.parametrize(("took", "pause"), [(0.0, 0.5), (0.2, 0.5), (2.0, 4.0), (60.0, LONGEST_PAUSE)])
def test_a_cloud_that_answers_slowly_is_asked_less_often(took: float, pause: float) -> None:
    assert pause_after(time.monotonic() - took, 0.5) == pytest.approx(pause, abs=0.1)


class Server(ThreadingHTTPServer):
    """Answers each path with a status, headers and a body, and keeps what it was asked."""

    daemon_threads = True

    def __init__(self, pages: Mapping[str, tuple[int, Mapping[str, str], object]]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.pages = pages
        self.asked: list[tuple[str, str, str]] = []
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        self.server.asked.append((self.path, self.headers.get("X-Auth-Token", ""), body))
        status, headers, document = self.server.pages.get(self.path, (404, {}, {"error": "no such page"}))
        data = json.dumps(document).encode()
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    do_POST = do_GET

    def log_message(self, format: str, *args: object) -> None:
        pass


Serve = Callable[[Mapping[str, tuple[int, Mapping[str, str], object]]], Server]


@pytest.fixture
def serve() -> Iterator[Serve]:
    servers: list[Server] = []

    def start(pages: Mapping[str, tuple[int, Mapping[str, str], object]]) -> Server:
        server = Server(pages)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def closed_port() -> str:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        return f"http://127.0.0.1:{server.server_port}/"


# Over HTTP


def test_any_status_is_an_answer(serve: Serve) -> None:
    server = serve({"/": (300, {}, ["v2"]), "/bad": (503, {}, "later")})
    assert request(f"{server.url}/").status == 300
    assert request(f"{server.url}/bad").json() == "later"


def test_redirects_are_followed_with_the_token(serve: Serve) -> None:
    server = serve({"/v2.1": (302, {"Location": "/v2.1/"}, ""), "/v2.1/": (200, {}, "versions")})
    assert request(f"{server.url}/v2.1", token="secret").json() == "versions"
    assert [(path, token) for path, token, _ in server.asked] == [("/v2.1", "secret"), ("/v2.1/", "secret")]


def test_nobody_listening_is_unmet() -> None:
    url = closed_port()
    with pytest.raises(Unmet, match=r"does not answer: .*refused"):
        request(url)


def test_proxies_of_the_environment_are_ignored(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", closed_port())
    assert request(f"{serve({'/': (200, {}, 'here')}).url}/").json() == "here"


def test_a_silent_server_is_unmet_in_time() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/"
        with pytest.raises(Unmet, match="timed out"):
            request(url, seconds=0.1)


CREDENTIALS = {
    "OS_USERNAME": "admin",
    "OS_PASSWORD": "secret",
    "OS_PROJECT_NAME": "admin",
    "OS_USER_DOMAIN_ID": "default",
    "OS_PROJECT_DOMAIN_ID": "default",
}


def token_page(catalog: Mapping[str, str]) -> tuple[int, Mapping[str, str], object]:
    """What POST /v3/auth/tokens answers: https://docs.openstack.org/api-ref/identity/v3/#authentication."""
    services = [
        {"type": kind, "endpoints": [{"interface": where, "url": url} for where in ("admin", "public")]}
        for kind, url in catalog.items()
    ]
    return 201, {"x-subject-token": "the-token"}, {"token": {"project": {"id": "p1"}, "catalog": services}}


def test_one_token_serves_all_threads(serve: Serve) -> None:
    image = serve({"/v2/images": (200, {}, {"images": []})})
    keystone = serve({"/v3/auth/tokens": token_page({"image": image.url})})
    api = Api({**CREDENTIALS, "OS_AUTH_URL": f"{keystone.url}/v3"})
    threads = [threading.Thread(target=api.get, args=("image", "/v2/images")) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(keystone.asked) == 1
    assert json.loads(keystone.asked[0][2])["auth"]["scope"]["project"]["name"] == "admin"
    assert [(path, token) for path, token, _ in image.asked] == [("/v2/images", "the-token")] * 8


def test_no_token_says_what_keystone_said(serve: Serve) -> None:
    keystone = serve({"/v3/auth/tokens": (401, {}, {"error": {"message": "wrong password"}})})
    with pytest.raises(Unmet, match="status 401") as caught:
        Api({**CREDENTIALS, "OS_AUTH_URL": f"{keystone.url}/v3"}).token  # noqa: B018
    assert "wrong password" in caught.value.detail


def test_an_unknown_type_names_those_in_the_catalogue(serve: Serve) -> None:
    keystone = serve({"/v3/auth/tokens": token_page({"image": "http://i", "compute": "http://c"})})
    with pytest.raises(Unmet, match="'volume'; it lists compute, image"):
        Api({**CREDENTIALS, "OS_AUTH_URL": f"{keystone.url}/v3"}).addresses("volume")


def test_an_api_without_a_page_at_its_address_is_asked_further_up(serve: Serve) -> None:
    volume = serve({"/v3/": (200, {}, "versions")})
    keystone = serve({"/v3/auth/tokens": token_page({})})
    api = Api({**CREDENTIALS, "OS_AUTH_URL": f"{keystone.url}/v3"})
    api.probe(f"{volume.url}/v3/p1")
    assert [path for path, _, _ in volume.asked] == ["/v3/p1", "/v3/"]


def test_an_api_that_fails_is_not_asked_further_up(serve: Serve) -> None:
    compute = serve({"/v2.1": (500, {}, "no network endpoint"), "/": (200, {}, "")})
    keystone = serve({"/v3/auth/tokens": token_page({})})
    api = Api({**CREDENTIALS, "OS_AUTH_URL": f"{keystone.url}/v3"})
    with pytest.raises(Unmet, match=r"/v2.1 answers 500"):
        api.probe(f"{compute.url}/v2.1")


# The quick look


def test_below_500_is_healthy(serve: Serve) -> None:
    server = serve({"/fine": (300, {}, ""), "/broken": (500, {}, "")})
    assert answers(f"{server.url}/fine") == []
    assert answers(f"{server.url}/unknown") == []
    assert answers(f"{server.url}/broken") == [f"{server.url}/broken answers 500"]


def test_the_quick_look_asks_all_at_once() -> None:
    meeting = threading.Barrier(5, timeout=5.0)

    def question() -> list[str]:
        meeting.wait()  # breaks unless all five are asked at the same time
        return ["late"]

    assert ask_all([question] * 5) == ["late"] * 5


# Units


SHOWN = """\
Result=success
LoadState=loaded
ActiveState=active
SubState=running

Result=exit-code
LoadState=loaded
ActiveState=activating
SubState=auto-restart

Result=success
LoadState=not-found
ActiveState=inactive
SubState=dead

Result=success
LoadState=loaded
ActiveState=active
SubState=exited
"""


def test_units_are_judged_by_what_systemd_says_of_them() -> None:
    words = [units.problem(state) for state in units.parse(SHOWN)]
    assert words == ["", "activating (auto-restart), exit-code", "there is no such unit", ""]


# Commands


def command(text: str, *, seconds: float = 30.0, stopping: threading.Event | None = None) -> str:
    return run_command(
        ["sh", "-c", text],
        {"PATH": os.defpath},
        name=text,
        seconds=seconds,
        stopping=stopping or threading.Event(),
    )


def test_a_command_gives_its_output() -> None:
    assert command("echo out; echo err >&2") == "out\nerr\n"


def test_a_failing_command_shows_the_end_of_its_output() -> None:
    with pytest.raises(Unmet, match="ended with 3") as caught:
        command("seq 100; exit 3")
    assert caught.value.detail.splitlines()[-1] == "100"
    assert len(caught.value.detail.splitlines()) == 20


def test_a_slow_command_is_ended_with_all_that_it_started() -> None:
    begin = time.monotonic()
    with pytest.raises(Unmet, match="has not ended") as caught:
        command("echo begun; sleep 60 | sleep 60", seconds=3.0)
    assert caught.value.detail == "begun"
    assert time.monotonic() - begin < 10  # a sleep that lived on would hold the pipe


def test_a_command_ends_when_the_checks_do() -> None:
    stopping = threading.Event()
    stopping.set()
    with pytest.raises(Interrupted):
        command("sleep 60", stopping=stopping)


class ThisMachine:
    """A lab whose network is this machine's: its commands are run as they are."""

    def enter_command(self, argv: Sequence[str]) -> list[str]:
        return list(argv)

    def client_environment(self, environment: Mapping[str, str]) -> dict[str, str]:
        return dict(environment)


def test_the_passwords_in_the_command_of_a_check_are_not_in_the_list_of_processes(tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    service = Catalog.load().service("keystone")
    renderer = SimpleNamespace(secrets={}, text=lambda text: text.replace("{{ password }}", "pass1234"))
    cloud = SimpleNamespace(lab=ThisMachine(), renderer=renderer, stopping=threading.Event())
    text = f"tr '\\0' ' ' < /proc/$$/cmdline > {seen}; : {{{{ password }}}}"
    (result,) = check_command(cast(Cloud, cloud), service, "greets", text)
    assert result.state is CheckState.PASSED
    assert seen.read_text().startswith("sh ")
    assert "pass1234" not in seen.read_text()


# Agents


def test_the_agents_of_a_node_are_known_by_its_units() -> None:
    services = [service for cut in Catalog.load(()).graph("openstack").cuts(1, (), ()) for service in cut]
    nodes = [Node("one", "10.20.0.11", ("controller",), 1, 1), Node("two", "10.20.0.12", ("compute",), 1, 1)]
    assert set(wanted_agents(services, nodes, "compute")) == {
        Agent("nova-conductor", "one"),
        Agent("nova-scheduler", "one"),
        Agent("nova-compute", "two"),
    }
    assert {agent.host for agent in wanted_agents(services, nodes, "network")} == {"two"}
    assert Agent("ovn-controller", "two") in wanted_agents(services, nodes, "network")


# Asking and running


def test_what_a_question_raises_is_its_failure() -> None:
    def unmet() -> None:
        raise Unmet("not so", detail="because")

    def broken() -> None:
        raise KeyError("servers")

    assert ask("nova", "fine", lambda: None).state is PASSED
    said = ask("nova", "unmet", unmet)
    assert (said.state, said.error, said.detail) == (FAILED, "not so", "because")
    assert ask("nova", "broken", broken).error == "KeyError: 'servers'"


def test_what_cannot_be_asked_is_skipped_with_what_follows_and_still_cleaned_up() -> None:
    done: list[str] = []

    def taken() -> None:
        raise Unasked("no machine is free")

    trial = cast(
        Played,
        SimpleNamespace(cloud=SimpleNamespace(heed_stop=lambda: None), remove=lambda: done.append("removed")),
    )
    ironic = Catalog.load().graph("openstack").services["ironic"]
    steps = [("a machine is available", taken), ("it boots", lambda: done.append("booted"))]
    results = list(play(trial, steps, ironic, "metal"))
    assert [(each.state, each.error) for each in results] == [
        (CheckState.SKIPPED, "no machine is free"),
        (CheckState.SKIPPED, "'a machine is available' skipped"),
        (PASSED, ""),
    ]
    assert done == ["removed"]


@pytest.mark.parametrize("states", [["active"], ["active", "active"]])
def test_whoever_has_deployed_all_machines_is_not_told_that_none_is_free(states: list[str]) -> None:
    with pytest.raises(Unasked, match=r"no machine is free: m0.* deployed already"):
        machines_in(*states).find_room()


@pytest.mark.parametrize("states", [["deploy failed"], ["active", "error"], ["active", "available"], []])
def test_a_machine_that_is_stuck_is_looked_for_in_placement(states: list[str]) -> None:
    with pytest.raises(LookupError, match="flavor"):
        machines_in(*states).find_room()


def machines_in(*states: str) -> Trial:
    """A trial on a machine of Ironic's, in a cloud whose machines are in these states."""
    machines = [
        SimpleNamespace(name=f"m{number}", provision_state=state) for number, state in enumerate(states)
    ]

    def find_flavor(name: str, **_: bool) -> None:
        raise LookupError(f"flavor {name}")

    cloud = SimpleNamespace(cleared=threading.Event())
    cloud.cleared.set()
    api = SimpleNamespace(
        baremetal=SimpleNamespace(nodes=lambda **_: machines),
        compute=SimpleNamespace(find_flavor=find_flavor),
    )
    return bare_metal._Machine(cast(Cloud, cloud), connection=cast(Any, api))


def job(*results: CheckResult) -> Job:
    def run() -> Checking:
        yield from results

    return run


def result(name: str, state: CheckState = PASSED, service: str = "nova", error: str = "") -> CheckResult:
    return CheckResult(service, name, state, 0.5, error)


def test_all_checks_run_whatever_fails() -> None:
    recorded: list[CheckResult] = []
    jobs = [job(result("a", FAILED), result("b", SKIPPED)), job(result("c"))]
    results = run_jobs(jobs, recorded.append, threading.Event(), workers=2)
    assert sorted(each.name for each in results) == ["a", "b", "c"]
    assert sorted(each.name for each in recorded) == ["a", "b", "c"]


def test_no_more_run_at_once_than_there_are_workers() -> None:
    running, most, lock = 0, 0, threading.Lock()

    def work() -> Checking:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.02)
        with lock:
            running -= 1
        yield result("x")

    assert len(run_jobs([work] * 8, lambda _: None, threading.Event(), workers=2)) == 8
    assert most == 2


def test_ctrl_c_lets_running_checks_put_away_what_they_made() -> None:
    stopping, put_away, under_way = threading.Event(), threading.Event(), threading.Event()
    begun = []

    def long_check() -> Checking:
        begun.append(1)
        try:
            under_way.set()
            stopping.wait(30)
            if stopping.is_set():
                raise Interrupted("the checks were interrupted")
            yield result("never")
        finally:
            put_away.set()

    with pytest.raises(KeyboardInterrupt), ctrl_c_once(under_way):
        run_jobs([long_check, long_check], lambda _: None, stopping, workers=1)
    assert put_away.is_set()
    assert begun == [1]


def test_a_check_is_closed_when_its_result_cannot_be_recorded() -> None:
    put_away = threading.Event()

    def check() -> Checking:
        try:
            yield result("first")
            yield result("second")
        finally:
            put_away.set()

    def record(_: CheckResult) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        run_jobs([check], record, threading.Event())
    assert put_away.is_set()


# Telling


def test_one_failure_is_told_in_the_first_line() -> None:
    error = failure_of([result("a token is issued", FAILED, "keystone", "no answer")], 9, ["log"], "blue")
    assert error.message == "the check 'a token is issued' of keystone failed: no answer"
    assert error.detail == "log"
    assert error.exit_code == 4
    assert "stacklab logs --lab blue keystone" in error.hint
    assert error.hint.endswith("stacklab verify --lab blue")


def test_checks_of_up_lead_back_to_up_which_goes_on_to_the_layer_that_failed() -> None:
    error = failure_of([result("one", FAILED, "swift", "x")], 9, [], "blue", "up")
    assert error.hint.endswith("stacklab up --lab blue")


def test_several_failures_are_all_told() -> None:
    failed = [
        result("one", FAILED, "nova", "x"),
        CheckResult("glance", "two", FAILED, 1.0, "y", "line\nline"),
    ]
    error = failure_of(failed, 9, ["the log of nova"], "default")
    assert error.message == "2 of 9 checks failed"
    assert error.detail == "nova, one: x\n\nglance, two: y\n    line\n    line\n\nthe log of nova"
    assert "--lab" not in error.hint


# JUnit


def test_junit_has_a_case_for_each_check(tmp_path: Path) -> None:
    results = [
        CheckResult("keystone", "a token is issued", PASSED, 1.25),
        CheckResult("nova", "an instance boots", FAILED, 60.0, "<no> & never", "console\x1b[0m\x00\nend"),
        CheckResult("nova", "SSH works", SKIPPED, 0.0, "'an instance boots' failed"),
    ]
    file = tmp_path / "deep" / "results.xml"
    began = datetime.now(UTC) - timedelta(seconds=70)
    write_junit(file, results, lab="blue", layers={"keystone": 1, "nova": 2}, began=began)

    top = ElementTree.parse(file).getroot()
    (suite,) = top.findall("testsuite")
    assert (top.get("tests"), suite.get("failures"), suite.get("skipped")) == ("3", "1", "1")
    assert 70 <= float(suite.get("time", "")) < 80
    token, boot, ssh = suite.findall("testcase")
    assert (token.get("classname"), token.get("name"), token.get("time")) == (
        "layer-1.keystone",
        "a token is issued",
        "1.250",
    )
    assert list(token) == []
    failure = boot.find("failure")
    assert failure is not None
    assert failure.get("message") == "<no> & never"
    assert failure.text == "console\N{REPLACEMENT CHARACTER}[0m\N{REPLACEMENT CHARACTER}\nend"
    skipped = ssh.find("skipped")
    assert skipped is not None
    assert skipped.get("message") == "'an instance boots' failed"


def test_what_is_missing_leads_to_the_service_whose_logs_tell_more() -> None:
    services = Catalog.load().services.values()
    for words, service in (
        ("nova-compute on node 'controller' has not reported yet", "nova"),
        ("http://10.20.0.11:9292/ answers 503", "glance"),
        ("rabbitmq-server on node 'controller' is failed (failed), exit-code", "rabbitmq"),
        ("node 'controller' is stopped", ""),
    ):
        assert concerned_service(services, ["node 'x' is stopped", words]) == service


def test_each_scenario_that_a_service_may_name_can_be_played() -> None:
    assert set(SCENARIOS) == set(get_args(Scenario))
    assert all(callable(play_of(scenario)) for scenario in SCENARIOS)
