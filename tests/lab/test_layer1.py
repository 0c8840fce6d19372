"""A real layer 1, from nothing to nothing. Costs about 15 minutes on two cores without KVM.

The tests run in the order of the file: they share one lab that is built from nothing, and a second one that
is killed half-way, resumed, lives beside the first for a while and is destroyed.
"""

import json
import os
import secrets
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stacklab.blueprint import as_it_stands
from stacklab.check import trial
from stacklab.check.cloud import Cloud
from stacklab.check.result import Unmet
from stacklab.check.trial import Trial
from stacklab.home import Home
from stacklab.lab.lab import Lab
from tests.lab.machine import Machine, await_end, descendants, left_over_since, name_of, parent_of
from tests.lab.program import EXAMPLES, LONG_ENOUGH, Program, TestLab, wait_for

IMAGE_SECONDS = 300.0  # for an emulated instance to boot and answer
API_SECONDS = 240.0  # for the services of a node that was just switched on
WELL_SECONDS = 900.0  # for its cloud: `verify` may take minutes to fail, and is to be tried again then
# Ask for an address eight times at once, each until something accepts; the status codes are printed.
AT_ONCE = """
import sys, time, urllib.error, urllib.request
from concurrent.futures import ThreadPoolExecutor
url, token = sys.argv[1:]
def get(_):
    for _ in range(1200):
        try:
            return urllib.request.urlopen(urllib.request.Request(url, headers={"X-Auth-Token": token})).status
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            time.sleep(0.05)
with ThreadPoolExecutor(8) as pool:
    print(*pool.map(get, range(8)))
"""

# Send a body of 20 kB without a token, 200 times, each on a connection of its own; the status lines are
# printed, each once.
REFUSED = """
import socket, sys
port, path = sys.argv[1:]
head = f"POST /{path} HTTP/1.1\\r\\nHost: x\\r\\nContent-Length: 20000\\r\\n\\r\\n".encode()
lines = set()
for _ in range(200):
    with socket.create_connection(("10.20.0.11", int(port)), 30) as one:
        one.sendall(head + b"x" * 20000)
        lines.add(one.makefile("rb").read().split(b"\\r\\n")[0].decode())
print(*lines, sep="\\n")
"""


# Log in with an application credential and ask for paths of Nova's; the status codes are printed.
WITH_RULES = """
import json, sys, urllib.error, urllib.request
name, secret, *paths = sys.argv[1:]
method = {"methods": ["application_credential"], "application_credential": {"id": name, "secret": secret}}
asked = json.dumps({"auth": {"identity": method}}).encode()
request = urllib.request.Request("http://10.20.0.11:5000/v3/auth/tokens", asked)
request.add_header("Content-Type", "application/json")
token = urllib.request.urlopen(request).headers["X-Subject-Token"]
for path in paths:
    address = f"http://10.20.0.11:8774/v2.1/{path}"
    try:
        print(urllib.request.urlopen(urllib.request.Request(address, headers={"X-Auth-Token": token})).status)
    except urllib.error.HTTPError as error:
        print(error.code)
"""


@pytest.fixture(scope="module")
def key(program: Program) -> Path:
    file = program.state.parent / "probe-key"
    argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(file)]
    subprocess.run(argv, check=True)
    return file


@pytest.fixture(scope="module")
def probe(layer1: TestLab, key: Path) -> Iterator[dict[str, Any]]:
    """An instance with a key, as the README boots it; ACTIVE."""
    layer1.exec("openstack", "keypair", "create", "--public-key", f"{key}.pub", "probe")
    words = "server create --image guest --flavor tiny --network provider --key-name probe --wait probe"
    yield layer1.openstack(*words.split())
    layer1.try_exec("openstack", "server", "delete", "--wait", "probe")
    layer1.try_exec("openstack", "keypair", "delete", "probe")


def ssh(lab: TestLab, key: Path, address: str, *command: str) -> str:
    """What the command prints on the instance; "" when it does not answer (yet)."""
    options = "-oStrictHostKeyChecking=no -oUserKnownHostsFile=/dev/null -oBatchMode=yes -oConnectTimeout=5"
    argv = ["ssh", "-F/dev/null", f"-i{key}", *options.split(), f"root@{address}", *command]
    done = lab.try_exec(*argv)
    return done.stdout if done.returncode == 0 else ""


class TestOneLab:
    def test_up_ends_with_the_lab_on_layer_1(self, layer1: TestLab) -> None:
        status = layer1.status()
        assert status["layer"] == 1
        assert status["running"]
        assert {node["state"] for node in status["nodes"]} == {"running"}

    def test_the_services_of_layer_1_are_in_the_catalogue(self, layer1: TestLab) -> None:
        types = {service["Type"] for service in layer1.openstack("service", "list")}
        assert {"identity", "image", "placement", "network", "compute"} <= types

    def test_an_instance_is_active_and_has_an_address_of_the_provider_network(
        self, probe: dict[str, Any]
    ) -> None:
        assert probe["status"] == "ACTIVE"
        (address,) = probe["addresses"]["provider"]
        assert address.startswith("10.30.0.")

    def test_the_instance_answers_ssh_with_the_injected_key(
        self, layer1: TestLab, probe: dict[str, Any], key: Path
    ) -> None:
        (address,) = probe["addresses"]["provider"]
        said = wait_for("SSH to the instance", lambda: ssh(layer1, key, address, "uname"), IMAGE_SECONDS)
        assert said.strip() == "Linux"

    def test_the_instance_reaches_the_apis(self, layer1: TestLab, probe: dict[str, Any], key: Path) -> None:
        (address,) = probe["addresses"]["provider"]
        said = ssh(layer1, key, address, "wget", "-qO-", "http://10.20.0.11:5000/v3")
        assert json.loads(said)["version"]["status"] == "stable"

    def test_an_instance_that_is_rebooted_is_reached_again(
        self, layer1: TestLab, probe: dict[str, Any], key: Path
    ) -> None:
        (address,) = probe["addresses"]["provider"]
        asked = ("cat", "/proc/sys/kernel/random/boot_id")
        before = ssh(layer1, key, address, *asked)
        layer1.exec("openstack", "server", "reboot", "--wait", "probe")
        after = wait_for("SSH", lambda: ssh(layer1, key, address, *asked), IMAGE_SECONDS)
        assert before and after != before

    def test_the_metadata_service_does_not_forget_whom_it_knows_when_an_instance_comes_and_goes(
        self, layer1: TestLab, probe: dict[str, Any]
    ) -> None:
        # OVN tells it where an instance is, but not where a machine of Ironic's is.
        with_device = "cd /sys/class/net && ip neighbour %s 10.30.0.250 dev $(ls -d tap*)"
        inside = "ip netns exec $(ip netns | grep -o '^ovnmeta-[^ ]*') sh -c '%s'"
        known = "lladdr 02:00:00:00:00:01 nud stale"
        layer1.run("ssh", "controller", "--", inside % (with_device % "replace" + f" {known}"))
        words = "server create --image guest --flavor tiny --network provider --wait passer-by"
        layer1.exec("openstack", *words.split())
        layer1.exec("openstack", "server", "delete", "--wait", "passer-by")
        assert "02:00:00:00:00:01" in layer1.run("ssh", "controller", "--", inside % (with_device % "show"))

    def test_verify_finds_the_cloud_well(self, layer1: TestLab, tmp_path: Path) -> None:
        report = tmp_path / "verify.xml"
        layer1.run("verify", "--junit", str(report))
        assert "<testcase" in report.read_text()

    @pytest.mark.filterwarnings("ignore::openstack.warnings.RemovedInSDK50Warning")  # it warns of itself
    def test_room_is_waited_for_where_no_node_has_brought_the_class_of_resources_yet(
        self, layer1: TestLab, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        property_ = "resources:CUSTOM_UNHEARD_OF=1"
        layer1.exec("openstack", "flavor", "create", "--property", property_, "unheard-of")
        monkeypatch.setattr(trial, "ROOM_SECONDS", 1.0)
        lab = Lab.open(Home(layer1.program.state, layer1.program.cache), layer1.name)
        cloud = Cloud.of(lab, as_it_stands(lab), 1)
        with lab.namespace.network(), pytest.raises(Unmet, match=r"no node with room for .* after 1 s"):
            Trial(cloud, flavor="unheard-of").find_room()
        layer1.exec("openstack", "flavor", "delete", "unheard-of")

    def test_exec_passes_the_exit_code_of_the_command_on(self, layer1: TestLab) -> None:
        assert layer1.try_exec("sh", "-c", "exit 42").returncode == 42

    @pytest.mark.parametrize(("port", "path"), [(8778, "resource_providers"), (8774, "v2.1/servers")])
    def test_who_is_refused_gets_that_answer_and_no_reset_connection(
        self, layer1: TestLab, port: int, path: str
    ) -> None:
        said = layer1.exec("python3", "-c", REFUSED, str(port), path)
        assert said.splitlines() == ["HTTP/1.1 401 Unauthorized"]

    def test_an_application_credential_may_do_what_its_rules_say(self, layer1: TestLab) -> None:
        rules = json.dumps([{"service": "compute", "method": "GET", "path": "/v2.1/servers"}])
        words = ("application", "credential", "create", "reader", "--access-rules", rules)
        made = layer1.openstack(*words)
        told = layer1.exec("python3", "-c", WITH_RULES, made["ID"], made["Secret"], "servers", "flavors")
        assert told.split() == ["200", "401"]
        layer1.exec("openstack", "application", "credential", "delete", "reader")

    def test_up_again_runs_no_ansible_and_changes_nothing(self, layer1: TestLab) -> None:
        before = layer1.events(["task", "node"])
        layer1.up()
        assert layer1.events(["task", "node"]) == before

    def test_the_services_take_replies_when_they_come(self, layer1: TestLab) -> None:
        ask = "from oslo_messaging._drivers.amqpdriver import ReplyWaiters as w; print(w.get.__module__)"
        told = layer1.run("ssh", "controller", "--", f"runuser -u glance -- python3 -c '{ask}'")
        assert told.strip() == "stacklab_rpc"

    def test_secrets_appear_in_no_log_and_no_event(self, layer1: TestLab) -> None:
        password = layer1.exec("printenv", "OS_PASSWORD").strip()
        assert len(password) >= 16
        assert password not in json.dumps(layer1.events())
        folder = layer1.program.state / "labs" / layer1.name
        readable = [file for file in folder.rglob("*.log") if file.is_file() and not file.is_symlink()]
        outside_nodes = [file for file in readable if "nodes" not in file.relative_to(folder).parts]
        assert not [file for file in outside_nodes if password in file.read_text(errors="replace")]


@pytest.fixture(scope="class")
def second(program: Program, layer1: TestLab) -> Iterator[TestLab]:
    """The name of a second lab, not built yet; destroyed at the end."""
    lab = TestLab(program, "test-two")
    yield lab
    lab.try_("destroy", "--yes")


@pytest.fixture(scope="class")
def unknown_service(program: Program) -> list[str]:
    """Options for a service that no lab has ever had: there is no layer to thaw, and `up` builds one."""
    folder = program.state.parent / "unknown"
    shutil.copytree(EXAMPLES, folder)
    with (folder / "services/hello/files/etc/hello.ini.j2").open("a") as file:
        file.write(f"# {secrets.token_hex()}\n")
    return ["--with", "hello", "--path", str(folder)]


@pytest.fixture(scope="class")
def before_second(program: Program, layer1: TestLab) -> Machine:
    """The machine with one lab on it, before there is a second."""
    return Machine.look(program.state, labs=[layer1.namespace.group])


@pytest.fixture(scope="class")
def running_up(
    second: TestLab,
    before_second: Machine,
    unknown_service: list[str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator["subprocess.Popen[bytes]"]:
    """An `up` of the second lab in the middle of its work on the node."""
    log = tmp_path_factory.mktemp("up") / "up.log"
    up = second.start("up", "--layer", "1", *unknown_service, log=log)
    try:
        wait_for(
            "the schema of a database",
            lambda: any("/sync." in name for name in second.once_only()) or up.poll() is not None,
            LONG_ENOUGH,
        )
        assert up.poll() is None, log.read_text()
        yield up
    finally:
        up.kill()
        up.wait()


class TestASecondLab:
    def test_another_command_is_told_who_works_on_the_lab(
        self, second: TestLab, running_up: "subprocess.Popen[bytes]"
    ) -> None:
        for verb in (("up",), ("stop",), ("destroy", "--yes")):
            refused = second.try_(*verb)
            assert refused.returncode == 1
            assert f"process {running_up.pid}" in refused.stderr
        assert running_up.poll() is None

    def test_up_goes_on_after_kill_9(self, second: TestLab, running_up: "subprocess.Popen[bytes]") -> None:
        family = descendants(running_up.pid)
        running_up.kill()
        running_up.wait()
        await_end(family)
        done, before = second.once_only(), second.steps("started")
        assert done
        second.up()
        assert second.status()["layer"] == 1
        assert not {"base image", "packages", *done} & set(second.steps("started")[len(before) :])

    def test_two_labs_have_the_same_addresses(self, layer1: TestLab, second: TestLab) -> None:
        addresses = [[node["address"] for node in lab.status()["nodes"]] for lab in (layer1, second)]
        assert addresses[0] == addresses[1]

    def test_what_is_created_in_one_is_not_in_the_other(self, layer1: TestLab, second: TestLab) -> None:
        layer1.exec("openstack", "flavor", "create", "--ram", "64", "--disk", "1", "only-in-one")
        names = [{flavor["Name"] for flavor in lab.openstack("flavor", "list")} for lab in (layer1, second)]
        assert "only-in-one" in names[0] - names[1]

    def test_a_server_in_one_is_not_reached_from_the_other(self, layer1: TestLab, second: TestLab) -> None:
        listen = ("python3", "-m", "http.server", "--bind", "10.20.0.1", "18080")
        ask = "import socket; socket.create_connection(('10.20.0.1', 18080), 5)"
        argv = layer1.program.argv("exec", "--lab", layer1.name, "--", *listen)
        server = subprocess.Popen(
            argv,
            env=layer1.program.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            wait_for("the server", lambda: layer1.try_exec("python3", "-c", ask).returncode == 0, 30.0)
            refused = second.try_exec("python3", "-c", ask)
            assert refused.returncode != 0
            assert "refused" in refused.stderr
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait()

    def test_destroy_leaves_nothing(self, second: TestLab, before_second: Machine) -> None:
        second.run("destroy", "--yes")
        program = second.program
        assert not left_over_since(before_second, program.state)
        traces = [path for path in program.state.rglob("*") if second.name in path.name]
        assert not traces
        assert second.try_("status").returncode == 2


class TestAServiceFromOutside:
    """docs/how-to/add-a-service.md, step 4."""

    def test_it_joins_a_lab_that_stands(self, layer1: TestLab) -> None:
        layer1.up("--with", "hello", "--path", str(EXAMPLES))
        (entry,) = (each for each in layer1.openstack("catalog", "list") if each["Name"] == "hello")
        assert entry["Type"] == "greeting"
        ask = "import urllib.request as u; print(u.urlopen('http://10.20.0.11:8099/').read().decode())"
        assert f"hello from {layer1.name}" in layer1.exec("python3", "-c", ask)

    def test_up_later_keeps_it(self, layer1: TestLab) -> None:
        layer1.up()
        assert "hello" in layer1.status()["services"]


class TestFaults:
    @pytest.mark.parametrize(
        ("unit", "url"),
        [
            ("keystone", "http://10.20.0.11:5000/v3/roles"),
            ("glance-api", "http://10.20.0.11:9292/v2/images"),
            ("placement-api", "http://10.20.0.11:8778/resource_providers"),
            ("neutron-api", "http://10.20.0.11:9696/v2.0/networks"),
            ("nova-api", "http://10.20.0.11:8774/v2.1/servers"),
        ],
    )
    def test_the_first_requests_after_a_start_are_all_answered(
        self, layer1: TestLab, unit: str, url: str
    ) -> None:
        token = layer1.openstack("token", "issue")["id"]
        for _ in range(3):
            layer1.run("ssh", "controller", "--", "systemctl", "restart", unit)
            assert set(layer1.exec("python3", "-c", AT_ONCE, url, token).split()) == {"200"}

    def test_up_mends_a_configuration_that_was_broken_by_hand(self, layer1: TestLab) -> None:
        layer1.run("ssh", "controller", "--", "echo '[[[' > /etc/nova/nova.conf; systemctl restart nova-api")
        assert layer1.try_exec("openstack", "server", "list").returncode != 0
        layer1.up()
        layer1.exec("openstack", "server", "list")

    def test_a_killed_libvirtd_is_started_again_and_its_nodes_live_on(self, layer1: TestLab) -> None:
        def found(name: str) -> set[int]:
            return {pid for pid in layer1.processes() if name_of(pid) == name}

        def libvirtd() -> list[int]:
            """The lab's own: its nodes run one for their instances, too."""
            return [pid for pid in found("libvirtd") if parent_of(pid) == layer1.namespace.pid()]

        containers = found("libvirt_lxc")
        nodes = layer1.status()["nodes"]
        (killed,) = libvirtd()
        os.kill(killed, signal.SIGKILL)
        assert layer1.status()["nodes"] == nodes
        assert libvirtd() not in ([], [killed])
        assert found("libvirt_lxc") == containers
        layer1.run("start")
        layer1.exec("openstack", "token", "issue")

    def test_a_power_cut_loses_no_record(
        self, layer1: TestLab, probe: dict[str, Any], machine_before: Machine
    ) -> None:
        def records() -> tuple[set[str], set[str]]:
            images = {image["ID"] for image in layer1.openstack("image", "list")}
            return images, {server["ID"] for server in layer1.openstack("server", "list")}

        def answers() -> bool:
            return all(
                layer1.try_exec("openstack", kind, "list").returncode == 0 for kind in ("image", "server")
            )

        before = records()
        assert probe["id"] in before[1]
        for pid in layer1.processes():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:  # it ended with another
                continue
        wait_for("the end of the lab's processes", lambda: not layer1.processes(), 30.0)
        left = left_over_since(machine_before, layer1.program.state)
        assert not {"processes", "namespaces", "mounts", "interfaces", "firewall"} & left.keys(), left
        assert not layer1.status()["running"]

        layer1.run("start")
        wait_for("the APIs", answers, API_SECONDS)
        assert records() == before

    def test_the_cloud_is_well_after_the_power_cut(self, layer1: TestLab) -> None:
        wait_for("verify", lambda: layer1.try_("verify").returncode == 0, WELL_SECONDS)

    def test_an_instance_shuts_down_with_its_node_and_loses_nothing(
        self, layer1: TestLab, probe: dict[str, Any], key: Path
    ) -> None:
        (address,) = probe["addresses"]["provider"]
        command = "echo kept > /root/kept; cat /root/kept"  # which is not on its disk yet
        assert wait_for("SSH", lambda: ssh(layer1, key, address, command), IMAGE_SECONDS) == "kept\n"
        layer1.run("stop")
        layer1.run("start")
        said = wait_for("SSH", lambda: ssh(layer1, key, address, "cat", "/root/kept"), IMAGE_SECONDS)
        assert said == "kept\n"

    def test_what_a_crash_leaves_of_a_port_in_neutron_alone_is_made_in_ovn(self, layer1: TestLab) -> None:
        port = layer1.openstack("port", "create", "--network", "provider", "half")["id"]
        forget = (
            "UPDATE ovn_revision_numbers r JOIN standardattributes s ON s.id = r.standard_attr_id "
            f"SET r.revision_number = -1, s.created_at = NOW() - INTERVAL 1 HOUR "
            f"WHERE r.resource_uuid = '{port}'"
        )
        names = "ovn-nbctl --bare --columns=name list Logical_Switch_Port"
        cut = f'ovn-nbctl lsp-del {port} && mariadb --execute "{forget}" neutron && {names}'
        assert port not in layer1.run("ssh", "controller", "--", cut)
        assert port in layer1.run(
            "ssh", "controller", "--", f"systemctl start neutron-ovn-maintenance && {names}"
        )
        layer1.exec("openstack", "port", "delete", port)
