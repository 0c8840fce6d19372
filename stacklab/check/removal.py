"""Removing what scenarios have made, by its name, until no API knows it any more.

Names are `stacklab-check-` and eight hex digits, so that nothing of a user is ever touched.
"""

import contextlib
import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from openstack import exceptions
from openstack.connection import Connection

from stacklab.check.agents import VOLUMES
from stacklab.check.cloud import Cloud
from stacklab.check.result import Unmet

PREFIX = "stacklab-check-"
OURS = re.compile(re.escape(PREFIX) + r"[0-9a-f]{8}")
DELETE_SECONDS = 90.0


def remove_leftovers(cloud: Cloud, api: Connection, under_way: Collection[str]) -> None:
    """Remove what earlier runs that were killed have left. under_way: names of what runs now."""
    project = api.current_project_id
    named = [
        *(server.name for server in api.compute.servers()),
        *(key.name for key in api.compute.keypairs()),
        *(image.name for image in api.image.images(owner=project)),
        *(floating.description for floating in api.network.ips(project_id=project)),
        *(network.name for network in api.network.networks(project_id=project)),
        *(thing.name for kind in _storage(cloud, api) for thing in kind.list()),
    ]
    for name in sorted({name for name in named if name and OURS.fullmatch(name)} - set(under_way)):
        remove(cloud, api, name)


def remove(cloud: Cloud, api: Connection, name: str) -> None:
    """Remove what has that name, instances, networks and all else, and return when it is gone.

    Raises Unmet with what remains. It does not heed `stopping`: what was made has to go also after Ctrl-C.
    """
    servers = [server for server in api.compute.servers(name=f"^{name}$") if server.name == name]
    for server in servers:
        api.compute.delete_server(server, ignore_missing=True)
    for floating in api.network.ips(description=name):
        api.network.delete_ip(floating, ignore_missing=True)
    api.compute.delete_keypair(name, ignore_missing=True)
    for image in api.image.images(name=name, owner=api.current_project_id):
        api.image.delete_image(image.id, ignore_missing=True)
    deadline = time.monotonic() + DELETE_SECONDS * cloud.lab.patience
    while remains := list(_remains(cloud, api, name, [server.id for server in servers])):
        for network in api.network.networks(name=name):
            with contextlib.suppress(exceptions.ConflictException):  # an instance is still on it
                api.network.delete_network(network, ignore_missing=True)
        for kind in _storage(cloud, api):
            for thing in kind.list(name=name):
                with contextlib.suppress(
                    exceptions.ConflictException, exceptions.BadRequestException
                ):  # in use
                    kind.delete(thing.id)
        if time.monotonic() > deadline:
            raise Unmet(f"after {DELETE_SECONDS:.0f} s there still is: {', '.join(remains)}")
        time.sleep(0.5)


def _remains(cloud: Cloud, api: Connection, name: str, servers: list[str]) -> Iterator[str]:
    """What is still there of the things of that name, and of the instances with these ids."""
    for server in api.compute.servers(name=f"^{name}$"):
        yield f"instance {server.id} ({server.status}, task {server.task_state})"
    for uuid in servers:
        for port in api.network.ports(device_id=uuid):
            yield f"port {port.id}"
        if api.placement.get(f"/allocations/{uuid}").json().get("allocations"):
            yield f"allocation of {uuid}"
    for network in api.network.networks(name=name):
        yield f"network {network.id}"
    for floating in api.network.ips(description=name):
        yield f"floating IP {floating.floating_ip_address}"
    if api.compute.find_keypair(name, ignore_missing=True):
        yield f"key pair {name}"
    for image in api.image.images(name=name):
        yield f"image {image.id}"
    for kind in _storage(cloud, api):
        for thing in kind.list(name=name):
            yield f"{kind.word} {thing.id} ({thing.status})"


@dataclass(frozen=True)
class _Kind:
    """A kind of things that Cinder keeps."""

    word: str
    list: Callable[..., Iterable[Any]]
    delete: Callable[[str], object]


def _storage(cloud: Cloud, api: Connection) -> list[_Kind]:
    """What Cinder keeps, in the order in which it can be deleted; nothing where there is no Cinder."""
    if VOLUMES not in cloud.api.token.catalog:
        return []
    storage = api.block_storage
    return [
        _Kind("volume", storage.volumes, storage.delete_volume),
        _Kind("snapshot", storage.snapshots, storage.delete_snapshot),
        _Kind("backup", storage.backups, storage.delete_backup),
    ]
