"""Ironic on a real layer 1, with virtual bare metal: deployed as a user does it, and taken away again.

Costs some ten minutes on two cores without KVM, after the layer 1 that all lab tests share.
"""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.lab.program import Program, TestLab, wait_for

MACHINE = "controller-metal"
LIBVIRT = "qemu:///system?socket=/run/virtual-bare-metal/libvirt-sock"
CONSOLE = f"/var/log/libvirt/qemu/{MACHINE}-console.log"
DEPLOY_SECONDS = 240.0
BOOT_SECONDS = 300.0


def on_node(lab: TestLab, command: str) -> str:
    return lab.run("ssh", "controller", "--", command)


def machine(lab: TestLab) -> dict[str, Any]:
    found: dict[str, Any] = lab.openstack("baremetal", "node", "show", MACHINE)
    return found


@pytest.fixture(scope="module")
def lab(program: Program, layer1: TestLab) -> Iterator[TestLab]:
    """A lab thawed on layer 1, with Ironic added to it."""
    lab = TestLab(program, "metal")
    lab.up()
    lab.run("up", "--with", "ironic")
    yield lab
    lab.try_("destroy", "--yes")


@pytest.mark.slow
class TestBareMetal:
    def test_its_machine_was_inspected_and_waits_switched_off(self, lab: TestLab) -> None:
        found = machine(lab)
        assert (found["provision_state"], found["power_state"]) == ("available", "power off")
        assert found["properties"]["cpu_arch"] == "x86_64"
        ports = lab.openstack("baremetal", "port", "list", "--node", MACHINE)
        assert [port["address"] for port in ports] == ["52:54:00:6d:65:0b"]
        assert "shut off" in on_node(lab, f"virsh --connect {LIBVIRT} domstate {MACHINE}")

    def test_an_instance_boots_on_it(self, lab: TestLab) -> None:
        words = "server create --image guest-bare-metal --flavor bare-metal --network provider metal"
        lab.exec("openstack", *words.split())
        wait_for("the machine", lambda: machine(lab)["provision_state"] == "active", DEPLOY_SECONDS)
        assert machine(lab)["power_state"] == "power on"
        (address,) = lab.openstack("server", "show", "metal")["addresses"]["provider"]
        up = f"stacklab guest metal is up: {address}"
        wait_for("the guest", lambda: up in on_node(lab, f"cat {CONSOLE}"), BOOT_SECONDS)

    def test_without_its_instance_it_is_off_and_available_again(self, lab: TestLab) -> None:
        lab.exec("openstack", "server", "delete", "--wait", "metal")
        wait_for("the machine", lambda: machine(lab)["provision_state"] == "available", DEPLOY_SECONDS)
        assert machine(lab)["power_state"] == "power off"
        media = on_node(lab, f"virsh --connect {LIBVIRT} domblklist {MACHINE}")
        assert ".iso" not in media

    def test_without_ironic_nova_is_healthy(self, lab: TestLab) -> None:
        lab.run("up", "--without", "ironic")
        assert "baremetal" not in {service["Type"] for service in lab.openstack("service", "list")}
        lab.run("verify")
