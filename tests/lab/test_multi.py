"""A controller and two compute nodes, and what only several nodes can get wrong.

Costs more than four minutes on two cores, when the packages image of the session's first lab is there. The
tests run in the order of the file.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab.machine import Machine, left_over_since
from tests.lab.program import Program, TestLab, wait_for

pytestmark = pytest.mark.slow

NODES = ["controller", "compute-1", "compute-2"]
COMPUTES = NODES[1:]
TUNNEL = "10.99.7.0/24"
MEBIBYTES = 8


@pytest.fixture(scope="module")
def before(program: Program) -> Machine:
    return Machine.look(program.state)


@pytest.fixture(scope="module")
def three(program: Program, before: Machine) -> Iterator[TestLab]:
    lab = TestLab(program, "test-three")
    try:
        lab.up("--computes", "2")
        yield lab
    finally:
        lab.try_("destroy", "--yes")


def units(lab: TestLab) -> dict[str, Any]:
    """By service, node and unit, what `status` says of it."""
    found: dict[str, Any] = json.loads(lab.run("status", "--output", "json"))["units"]
    return found


def troubles(lab: TestLab) -> list[str]:
    return [
        f"{unit} on {node}: {state}"
        for by_node in units(lab).values()
        for node, states in by_node.items()
        for unit, state in states.items()
        if state != "runs"
    ]


def test_each_node_runs_what_its_roles_ask_for(three: TestLab) -> None:
    assert [node["name"] for node in three.status()["nodes"]] == NODES
    where = {service: sorted(by_node) for service, by_node in units(three).items()}
    assert where["keystone"] == ["controller"]
    assert where["nova"] == where["ovn"] == where["neutron"] == sorted(NODES)
    assert "nova-compute" not in units(three)["nova"]["controller"]
    assert troubles(three) == []
    hosts = {
        each["Host"] for each in three.openstack("compute", "service", "list", "--service", "nova-compute")
    }
    assert hosts == set(COMPUTES)


def test_the_cloud_was_checked_with_an_instance_on_each_compute_node(three: TestLab) -> None:
    passed = [event["data"]["name"] for event in three.events(["check.passed"])]
    assert "instances on all compute nodes: the one on compute-1 reaches the one on compute-2" in passed


def test_instances_on_different_nodes_talk_over_a_tenant_network(three: TestLab, tmp_path: Path) -> None:
    """Ping, and a file over TCP, through Geneve."""
    key = tmp_path / "key"
    three.exec("sh", "-c", f"ssh-keygen -q -t ed25519 -N '' -f {key}")
    three.exec("openstack", "keypair", "create", "--public-key", f"{key}.pub", "tester")
    three.exec("openstack", "network", "create", "--provider-network-type", "geneve", "tenant")
    three.exec(
        *f"openstack subnet create --network tenant --subnet-range {TUNNEL} --gateway none tenant".split()
    )
    for node in COMPUTES:
        words = "--image guest --flavor tiny --key-name tester --network provider --network tenant --wait"
        three.exec("openstack", "server", "create", *words.split(), "--host", node, f"on-{node}")
    addresses = {}
    for node in COMPUTES:
        server = three.openstack("server", "show", f"on-{node}")
        assert server["OS-EXT-SRV-ATTR:host"] == node
        addresses[node] = {network: found[0] for network, found in server["addresses"].items()}

    def inside(node: str, command: str) -> str | None:
        """What a command prints in the instance on a node; None while it fails."""
        options = "-F/dev/null -oBatchMode=yes -oStrictHostKeyChecking=no -oUserKnownHostsFile=/dev/null"
        target = f"root@{addresses[node]['provider']}"
        done = three.try_exec("ssh", *options.split(), "-oLogLevel=ERROR", f"-i{key}", target, command)
        return done.stdout if done.returncode == 0 else None

    first, second = COMPUTES
    wait_for("SSH of the guests", lambda: all(inside(node, "true") is not None for node in COMPUTES), 180)
    other = addresses[second]["tenant"]
    assert f"bytes from {other}" in (inside(first, f"ping -c 3 -W 5 {other}") or "")
    # A listener that only sends: another one ends with the first end of what it is sent.
    inside(second, f"head -c {MEBIBYTES * 2**20} /dev/urandom > /tmp/file")
    inside(second, "nc -ll -p 7000 -e cat /tmp/file < /dev/null > /dev/null 2>&1 &")
    sent = inside(second, "sha256sum < /tmp/file")
    wait_for("the file", lambda: inside(first, f"nc -w 20 {other} 7000 < /dev/null | sha256sum") == sent, 60)
    three.exec("openstack", "server", "delete", "--wait", *(f"on-{node}" for node in COMPUTES))
    three.exec("openstack", "network", "delete", "tenant")


def test_a_compute_node_that_dies_is_told_and_up_brings_it_back(three: TestLab) -> None:
    three.namespace.run(["sh", "-c", "kill -9 $(cat /run/libvirt/lxc/compute-2.pid)"])
    states = {node["name"]: node["state"] for node in three.status()["nodes"]}
    assert states == {"controller": "running", "compute-1": "running", "compute-2": "stopped"}
    assert "nova-compute on compute-2: off" in troubles(three)
    three.up()
    assert troubles(three) == []
    three.run("verify")


def test_all_nodes_stop_and_start(three: TestLab) -> None:
    three.run("stop")
    assert {node["state"] for node in three.status()["nodes"]} == {"stopped"}
    three.run("start")
    assert troubles(three) == []


def test_the_next_lab_of_three_nodes_is_thawed(three: TestLab) -> None:
    three.run("destroy", "--yes")
    three.up("--computes", "2")
    assert "thaw" in three.steps("passed")
    assert "packages" not in three.steps("started")
    three.run("verify")


def test_nothing_of_three_nodes_stays(three: TestLab, before: Machine) -> None:
    three.run("destroy", "--yes")
    assert left_over_since(before, three.program.state) == {}
