"""Designate on a real layer 1: what a user types, the wiring in Neutron, and Neutron without it again.

Costs some four minutes on two cores, after the layer 1 that all lab tests share.
"""

from collections.abc import Iterator

import pytest

from tests.lab.program import Program, TestLab, wait_for

pytestmark = pytest.mark.slow

NAME_SERVER = "10.20.0.11"
ASK = """
import sys, dns.message, dns.query
answer = dns.query.udp(dns.message.make_query(sys.argv[1], "A"), sys.argv[2], timeout=5)
print(" ".join(str(value) for rrset in answer.answer for value in rrset))
"""


def on_node(lab: TestLab, command: str) -> str:
    return lab.run("ssh", "controller", "--", command)


def resolved(lab: TestLab, name: str) -> str:
    """The addresses that the name server has for a name, asked from the lab's network."""
    return lab.exec("python3", "-c", ASK, name, NAME_SERVER).strip()


@pytest.fixture(scope="module")
def lab(program: Program, layer1: TestLab) -> Iterator[TestLab]:
    """A lab thawed on layer 1, with Designate added to it."""
    lab = TestLab(program, "names")
    lab.up()
    lab.run("up", "--with", "designate")
    yield lab
    lab.try_("destroy", "--yes")


def test_a_record_that_was_typed_resolves(lab: TestLab) -> None:
    lab.exec("openstack", "zone", "create", "--email", "hostmaster@example.test", "example.test.")
    wait_for(
        "the zone",
        lambda: lab.openstack("zone", "show", "example.test.")["status"] == "ACTIVE",
        60,
    )
    record = ("--type", "A", "--record", "192.0.2.7", "example.test.", "www")
    lab.exec("openstack", "recordset", "create", *record)
    wait_for("the record", lambda: resolved(lab, "www.example.test") == "192.0.2.7", 60)


def test_a_restart_of_the_node_keeps_the_zones(lab: TestLab) -> None:
    lab.run("stop")
    lab.run("start")
    wait_for("the record", lambda: resolved(lab, "www.example.test") == "192.0.2.7", 60)


def test_a_name_of_a_floating_ip_resolves(lab: TestLab) -> None:
    words = "floating ip create --dns-name gate --dns-domain example.test. provider"
    address = lab.openstack(*words.split())["floating_ip_address"]
    wait_for("the name", lambda: resolved(lab, "gate.example.test") == address, 60)
    lab.exec("openstack", "floating", "ip", "delete", address)
    wait_for("its end", lambda: resolved(lab, "gate.example.test") == "", 60)


def test_without_it_neutron_is_healthy_and_knows_nothing_of_it(lab: TestLab) -> None:
    lab.run("up", "--without", "designate")
    running = on_node(lab, "systemctl list-units --state=running --plain --no-legend")
    assert "designate" not in running
    assert "named" not in running
    assert "designate" not in on_node(
        lab, "cat /etc/neutron/neutron.conf /etc/neutron/plugins/ml2/ml2_conf.ini"
    )
    lab.run("verify")
