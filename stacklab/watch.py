"""What happens to the nodes of a lab on its libvirtd, in the lab's journal: a killed QEMU within a moment.

Run as `python -m stacklab.watch FOLDER NAME SOCKET PREFIX` by the lab's first process, which starts it again
when it ends, and for another machine's libvirtd besides. It imports little: it is there for as long as the
lab runs.
"""

import contextlib
import sys
import time
from pathlib import Path
from typing import Any

import libvirt

from stacklab.journal import Journal, JournalUnusable
from stacklab.lab.namespace import libvirt_uri

DRIVERS = ("lxc", "qemu")
# https://libvirt.org/html/libvirt-libvirt-domain.html#virDomainEventType and the details of each
EVENTS = {
    libvirt.VIR_DOMAIN_EVENT_STARTED: "started",
    libvirt.VIR_DOMAIN_EVENT_SUSPENDED: "suspended",
    libvirt.VIR_DOMAIN_EVENT_RESUMED: "resumed",
    libvirt.VIR_DOMAIN_EVENT_STOPPED: "stopped",
    libvirt.VIR_DOMAIN_EVENT_SHUTDOWN: "shutdown",
    libvirt.VIR_DOMAIN_EVENT_CRASHED: "crashed",
}
STOPPED = {
    libvirt.VIR_DOMAIN_EVENT_STOPPED_SHUTDOWN: "shut down",
    libvirt.VIR_DOMAIN_EVENT_STOPPED_DESTROYED: "ended by force",
    libvirt.VIR_DOMAIN_EVENT_STOPPED_CRASHED: "crashed",
    libvirt.VIR_DOMAIN_EVENT_STOPPED_SAVED: "saved with its memory",
    libvirt.VIR_DOMAIN_EVENT_STOPPED_FAILED: "its process has ended",
}
UNEXPECTED = (libvirt.VIR_DOMAIN_EVENT_STOPPED_CRASHED, libvirt.VIR_DOMAIN_EVENT_STOPPED_FAILED)
RETRY_SECONDS = 0.2


def watch(journal: Journal, socket: Path, prefix: str) -> None:
    """Record what libvirtd tells of domains whose names begin with `prefix`, until it ends.

    Raises libvirtError when it takes no connection.
    """
    ended: list[int] = []

    def record(_connection: object, domain: Any, event: int, detail: int, _opaque: object) -> None:
        if event not in EVENTS or not domain.name().startswith(prefix):
            return
        node = domain.name().removeprefix(prefix)
        why = STOPPED.get(detail, "") if event == libvirt.VIR_DOMAIN_EVENT_STOPPED else ""
        with contextlib.suppress(JournalUnusable):  # a full disk; what comes later may find room
            if why and detail in UNEXPECTED:
                journal.record("stacklab.node.crashed", node, error=why)
            else:
                journal.record(f"stacklab.domain.{EVENTS[event]}", node, **({"why": why} if why else {}))

    connections = []
    for driver in DRIVERS[-1:] if prefix else DRIVERS:
        connection = libvirt.open(libvirt_uri(driver, socket))
        connections.append(connection)  # it is closed when nobody holds it
        connection.domainEventRegisterAny(None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, record, None)
        connection.registerCloseCallback(lambda _connection, reason, _opaque: ended.append(reason), None)
    while not ended:
        libvirt.virEventRunDefaultImpl()


def main() -> None:
    """Watch for ever; libvirtd may be just starting, or be started again."""
    folder, lab, socket, prefix = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), sys.argv[4]
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    libvirt.virEventRegisterDefaultImpl()
    journal = Journal(folder / "journal.db", lab=lab)
    while True:
        with contextlib.suppress(libvirt.libvirtError):
            watch(journal, socket, prefix)
        time.sleep(RETRY_SECONDS)


if __name__ == "__main__":
    main()
