"""The domains of a lab's own libvirtd: what nodes of all kinds that libvirt runs have in common."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import libvirt

from stacklab.errors import StepFailed
from stacklab.lab.namespace import Namespace
from stacklab.model.topology import MANAGEMENT, PROVIDER, LabNetwork
from stacklab.templating import stacklab_environment

NETWORKS = {"management": MANAGEMENT, "provider": PROVIDER}
PRESS_SECONDS = 5.0
ENDED = (libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_OPERATION_INVALID)


class Domains:
    """The domains of one lab that a driver of libvirt runs.

    namespace: the lab's, running. driver: lxc or qemu.
    """

    def __init__(self, namespace: Namespace, driver: str) -> None:
        self._namespace = namespace
        self._driver = driver
        self._templates = stacklab_environment()

    def describe(self, template: str, **values: object) -> str:
        """The description of a domain, from a template of templates/libvirt."""
        return self._templates.get_template(f"libvirt/{template}").render(**values)

    def start(self, xml: str) -> None:
        """Start the domain that is described.

        Raises StepFailed with libvirt's own words and the end of its newest log.
        """
        with self.connection() as connection:
            connection.createXML(xml, 0)

    def restore(self, xml: str, memory: Path) -> None:
        """Let a domain go on whose memory was saved, as it is described now. Raises as `start`."""
        with self.connection() as connection:
            connection.restoreFlags(str(memory), xml, libvirt.VIR_DOMAIN_SAVE_RUNNING)

    def is_active(self, name: str) -> bool:
        """Whether there is a domain of that name, which runs."""
        with self.connection() as connection:
            return is_active(connection, name)

    def shut_down(self, name: str, seconds: float) -> None:
        """Press the power button, where there is such a domain; end it by force after `seconds`.

        It is pressed again every few seconds: who has just booted has nobody yet who hears it.
        """
        with self.connection() as connection:
            deadline, next_press = time.monotonic() + seconds, 0.0
            while is_active(connection, name):
                with absent(*ENDED):
                    if time.monotonic() > deadline:
                        connection.lookupByName(name).destroy()
                    elif time.monotonic() > next_press:
                        connection.lookupByName(name).shutdown()
                        next_press = time.monotonic() + PRESS_SECONDS
                time.sleep(0.1)

    def destroy(self, name: str) -> None:
        """End a domain by force, if there is one."""
        with self.connection() as connection, absent(*ENDED):
            connection.lookupByName(name).destroy()

    @contextlib.contextmanager
    def connection(self) -> Iterator[libvirt.virConnect]:
        """A connection to libvirtd. Raises StepFailed for an error of libvirt, with the end of its log."""
        connection = self._namespace.connect(self._driver)
        try:
            yield connection
        except libvirt.libvirtError as error:
            raise StepFailed(f"libvirt: {error}", detail=self._log_tail(), hint="stacklab doctor") from error
        finally:
            with contextlib.suppress(libvirt.libvirtError):  # libvirtd has ended, and the connection with it
                connection.close()

    def start_networks(self) -> None:
        """Start the networks of the lab, which are bridges, where they are not there."""
        with self.connection() as connection:
            for name, network in NETWORKS.items():
                self._start_network(connection, name, network)

    def _start_network(self, connection: libvirt.virConnect, name: str, network: LabNetwork) -> None:
        with absent(libvirt.VIR_ERR_NO_NETWORK):
            if connection.networkLookupByName(name).isActive():
                return
        xml = self._templates.get_template("libvirt/network.xml.j2")
        connection.networkCreateXML(xml.render(name=name, network=network))

    def _log_tail(self) -> str:
        logs = sorted(
            (self._namespace.folder / "libvirt" / "log").rglob("*.log"), key=lambda file: file.stat().st_mtime
        )
        return "\n".join(logs[-1].read_text(errors="replace").splitlines()[-15:]) if logs else ""


def is_active(connection: libvirt.virConnect, name: str) -> bool:
    """Whether there is a domain of that name, which runs, or is paused."""
    active = False
    with absent(*ENDED):
        active = bool(connection.lookupByName(name).isActive())
    return active


@contextlib.contextmanager
def absent(*codes: int) -> Iterator[None]:
    """Leave the block when libvirt says, by one of these codes, that the thing is not there any more."""
    try:
        yield
    except libvirt.libvirtError as error:
        if error.get_error_code() not in codes:
            raise
