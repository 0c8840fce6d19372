"""Removing what scenarios have made, by its name, until no API knows it any more.

Names are `stacklab-check-` and eight hex digits, so that nothing of a user is ever touched.
"""

import contextlib
import re
import time
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from openstack import exceptions
from openstack.connection import Connection

from stacklab.check.agents import VOLUMES
from stacklab.check.cloud import Cloud, pause_after
from stacklab.check.result import Unmet

PREFIX = "stacklab-check-"
OURS = re.compile(re.escape(PREFIX) + r"[0-9a-f]{8}")
TOP = "test."
"""The domain above the zones that scenarios make; reserved: RFC 2606."""

DELETE_SECONDS = 180.0  # a detached volume on LVM is a dozen programs, one after the other
POLL_SECONDS = 0.5
AGAIN_SECONDS = 20.0  # what was to be removed, and is still there, is told so again
REFUSALS = (exceptions.ConflictException, exceptions.BadRequestException)  # it is in use by another thing


@dataclass(frozen=True)
class _Kind:
    """A kind of things that scenarios make in a project.

    word: for people. service: the type of the service that keeps them; client: what openstacksdk calls that,
    and noun: them. owner: the query for those of one project, where others' are listed, too. label: what
    holds their name; below: what stands behind it there.
    """

    word: str
    service: str
    client: str
    noun: str
    owner: str = ""
    label: str = "name"
    below: str = ""

    def all(self, api: Connection) -> Iterable[Any]:
        """Those of the project."""
        query = {self.owner: api.current_project_id} if self.owner else {}
        things: Iterable[Any] = getattr(getattr(api, self.client), f"{self.noun}s")(**query)
        return things

    def name(self, thing: Any) -> str:
        """What a scenario called it, if it was one that made it."""
        return str(getattr(thing, self.label) or "").removesuffix(self.below)

    def delete(self, api: Connection, thing: Any) -> None:
        """Ask for its end. Raises openstacksdk's errors, but none when it is gone."""
        getattr(getattr(api, self.client), f"delete_{self.noun}")(thing.id, ignore_missing=True)


_INSTANCE = _Kind("instance", "compute", "compute", "server")
# It goes last, so that Neutron finds its records; and not during a change, which makes it anew in BIND.
_ZONE = _Kind("zone", "dns", "dns", "zone", below=f".{TOP}")
_KINDS = (
    _INSTANCE,
    _Kind("key pair", "compute", "compute", "keypair"),
    _Kind("image", "image", "image", "image", owner="owner"),
    _Kind("floating IP", "network", "network", "ip", owner="project_id", label="description"),
    _Kind("port", "network", "network", "port", owner="project_id"),
    _Kind("network", "network", "network", "network", owner="project_id"),
    _Kind("volume", VOLUMES, "block_storage", "volume"),
    _Kind("snapshot", VOLUMES, "block_storage", "snapshot"),
    _Kind("backup", VOLUMES, "block_storage", "backup"),
    _ZONE,
)
"""In the order in which they can go."""


def remove_leftovers(cloud: Cloud, api: Connection, under_way: Collection[str]) -> None:
    """Remove what earlier runs that were killed have left. under_way: names of what runs now."""
    named = {kind.name(thing) for kind in _kinds(cloud) for thing in kind.all(api)}
    for name in sorted({name for name in named if OURS.fullmatch(name)} - set(under_way)):
        remove(cloud, api, name)


def remove(cloud: Cloud, api: Connection, name: str) -> None:
    """Remove what has that name, instances, networks and all else, and return when it is gone.

    Raises Unmet with what remains. It does not heed `stopping`: what was made has to go also after Ctrl-C.
    """
    kinds = looked = _kinds(cloud)
    instances: set[str] = set()
    told: dict[str, float] = {}
    seconds = DELETE_SECONDS * cloud.lab.patience
    deadline = time.monotonic() + seconds
    while True:
        began = time.monotonic()
        found = [(kind, thing) for kind in looked for thing in kind.all(api) if kind.name(thing) == name]
        instances |= {thing.id for kind, thing in found if kind is _INSTANCE}
        for kind, thing in found:
            if kind is _ZONE and (found[0][0] is not _ZONE or thing.status == "PENDING"):
                continue
            if time.monotonic() - told.get(thing.id, -AGAIN_SECONDS) >= AGAIN_SECONDS:
                with contextlib.suppress(*REFUSALS):
                    kind.delete(api, thing)
                    told[thing.id] = time.monotonic()
        remains = [f"{kind.word} {thing.id} ({getattr(thing, 'status', 'there')})" for kind, thing in found]
        remains += _traces(api, instances)
        if not remains and looked == kinds:
            return
        if time.monotonic() > deadline:
            raise Unmet(f"after {seconds:.0f} s there still is: {', '.join(remains)}")
        if remains:  # a list is much work for a cloud: none is asked for twice that had nothing
            looked = list(dict.fromkeys(kind for kind, _ in found))
            time.sleep(pause_after(began, POLL_SECONDS))
        else:  # but once more at the end, for what was still on its way into being
            looked = kinds


def _traces(api: Connection, instances: Iterable[str]) -> Iterator[str]:
    """What other services still keep of instances."""
    for uuid in instances:
        for port in api.network.ports(device_id=uuid):
            yield f"port {port.id}"
        if api.placement.get(f"/allocations/{uuid}").json().get("allocations"):
            yield f"allocation of {uuid}"


def _kinds(cloud: Cloud) -> list[_Kind]:
    """What the services of the cloud keep."""
    return [kind for kind in _KINDS if kind.service in cloud.api.token.catalog]
