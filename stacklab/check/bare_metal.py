"""The scenario `bare-metal`: a machine of Ironic's is deployed through Nova, and freed again."""

from typing import Any

from stacklab.check.cloud import Cloud
from stacklab.check.result import Checking, Unasked, Unmet
from stacklab.check.trial import Trial, play
from stacklab.check.units import on_node
from stacklab.model.service import Service

FLAVOR, IMAGE = "bare-metal", "guest-bare-metal"
AVAILABLE_SECONDS = 90.0
LOG_SECONDS = 15.0
# Where the virtual bare metal writes what its serial ports say.
CONSOLE = "/var/log/libvirt/qemu/{machine}-console.log"


def check_bare_metal(cloud: Cloud, service: Service, name: str) -> Checking:
    """A machine that is off is deployed through Nova; the guest boots on it, and is reached."""
    trial = _Machine(cloud, image=IMAGE, flavor=FLAVOR)
    steps = [
        ("a machine is available", trial.find_room),
        ("a key pair is accepted", trial.import_key),
        ("an instance on a machine becomes active", trial.boot),
        ("the machine is on, and deployed", trial.find_machine),
        ("it gets its address", trial.find_address),
        ("its console says that it is up", trial.read_console),
        ("SSH with its key works", trial.log_in),
        ("metadata answer from inside", trial.read_metadata),
        ("without the instance the machine is off, and available", trial.release),
    ]
    yield from play(trial, steps, service, name)


class _Machine(Trial):
    machine: str = ""

    def find_room(self) -> None:
        """A machine is available; whoever has deployed all of them has nothing to find out."""
        self.clear()
        machines = self._machines()
        if machines and all(each.provision_state == "active" for each in machines):
            raise Unasked(f"no machine is free: {', '.join(each.name for each in machines)} deployed already")
        super().find_room()

    def find_machine(self) -> None:
        """Ironic says which machine it is, that it is deployed, and that it is on."""
        found = [each for each in self._machines() if each.instance_id == self.server]
        if not found:
            raise Unmet("no machine of Ironic's belongs to the instance")
        (self.machine,) = (each.name for each in found)
        state = (found[0].provision_state, found[0].power_state)
        if state != ("active", "power on"):
            raise Unmet(f"machine {self.machine} is {', '.join(map(str, state))}, not active, power on")

    def release(self) -> None:
        """Without its instance the machine is off, and available for the next one."""
        self.api.compute.delete_server(self.server, ignore_missing=True)
        states: list[str] = []

        def look() -> bool | None:
            states[:] = [
                f"{each.provision_state}, {each.power_state}"
                for each in self._machines()
                if each.name == self.machine
            ]
            return states == ["available, power off"] or None

        self.cloud.wait_for(look, AVAILABLE_SECONDS, lambda: f"machine {self.machine} is {' '.join(states)}")

    def _machines(self) -> list[Any]:
        return list(self.api.baremetal.nodes(details=True))

    def _read_console(self) -> str:
        """What the serial port of the machine said, from the node that it lives on."""
        (node,) = (each for each in self.cloud.blueprint.nodes if f"{each.name}-metal" == self.machine)
        command = ["cat", CONSOLE.format(machine=self.machine)]
        said = on_node(self.cloud.lab, node, command, seconds=LOG_SECONDS)
        return said.stdout.replace("\r", "")
