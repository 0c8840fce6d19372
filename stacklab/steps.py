"""The steps that bring services up on a node, as a graph: each waits for just what it needs.

    S/database      its databases and their user                needs mariadb
    S/sync.NAME     its schema, in order                        needs S/database
    S/init.NAME     its first data, in order                    needs its schema, and what it requires ready
    S/ROLE          its systemd units for a role of the node run, restarted where their files changed
    S/ROLE.ready    their ports accept
    identity        users, roles, services and endpoints        needs keystone ready
    S/resources     what it has made through the APIs           needs S, and what it uses, ready
    S/final.NAME    what can only be done when all runs, on all nodes

A step that has a stamp is not run again while its stamp, the hash of what went into it, stays the same.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from stacklab.blueprint import parts_on
from stacklab.model.schema import identifier
from stacklab.model.service import Command, Network, Service
from stacklab.model.topology import LabNetwork
from stacklab.provide.provider import Node

IDENTITY = "identity"
DATABASE_SERVICE = "mariadb"
IDENTITY_SERVICE = "keystone"
REGISTER = ["/usr/bin/python3", "/usr/lib/stacklab/register.py"]


@dataclass(frozen=True)
class Step:
    """One step on a node, as `playbooks/library/converge.py` takes it.

    kind: command, units or ports. run: shell text, or a list of words. timeout: in seconds. files: the paths
    of what units read. whole: what the step makes together with others. undo: shell text that takes away what
    a cut-off step of it has left.
    """

    id: str
    kind: str
    after: tuple[str, ...] = ()
    run: str | list[str] = ""
    as_user: str = "root"
    stdin: str = ""
    units: tuple[str, ...] = ()
    ports: tuple[tuple[str, int], ...] = ()
    timeout: int = 300
    stamp: str = ""
    files: tuple[str, ...] = ()
    whole: str = ""
    undo: str = ""

    def document(self) -> dict[str, Any]:
        """The step as plain values; what it does not use is left out."""
        named = {
            "id": self.id,
            "kind": self.kind,
            "after": list(self.after),
            "run": self.run,
            "as": self.as_user if self.kind == "command" else "",
            "stdin": self.stdin,
            "units": list(self.units),
            "ports": [list(port) for port in self.ports],
            "timeout": self.timeout,
            "stamp": self.stamp,
            "files": list(self.files),
            "whole": self.whole,
            "undo": self.undo,
        }
        return {name: value for name, value in named.items() if value}


@dataclass(frozen=True)
class Scope:
    """What the steps of one node are made for.

    provider: the provider network. services: those of the lab up to the layer, in order. alone: the lab has
    no other node. files: a service's files on the node, content by path. render: renders the text of a
    service's command. secrets: by service and name. admin: how to log in. image_digests: of the files of
    images to upload, by image.
    """

    node: Node
    controller: Node
    provider: LabNetwork
    services: Sequence[Service]
    alone: bool
    secrets: dict[str, dict[str, str]]
    files: Callable[[Service], Mapping[str, bytes]]
    render: Callable[[Service, Command], str]
    admin: dict[str, str]
    image_digests: dict[str, str]


def node_steps(scope: Scope) -> list[Step]:
    """The steps of one node, for one layer and the ones below it."""
    builder = _Builder(scope)
    for service in scope.services:
        builder.add_service(service)
    return builder.finish()


def final_steps(scope: Scope) -> list[Step]:
    """The steps of one node for when the units of all nodes run."""
    return [
        step for service in scope.services for step in _chain(scope, service, "final", service.finalise, ())
    ]


class _Builder:
    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.steps: list[Step] = []
        self.ready: dict[str, tuple[str, ...]] = {}
        self.is_controller = scope.node == scope.controller

    def add_service(self, service: Service) -> None:
        scope = self.scope
        required = tuple(step for name in service.requires for step in self.ready.get(name, ()))
        before: tuple[str, ...] = required
        if self.is_controller and service.database:
            self._add(_database_step(scope, service, self.ready.get(DATABASE_SERVICE, ())))
            database = f"{service.name}/database"
            synced = _chain(scope, service, "sync", service.database.sync, (database,))
            self._add(*(replace(step, whole=database) for step in synced))
            before += (synced[-1].id if synced else database,)
        first = _chain(scope, service, "init", service.initialise, before)
        self._add(*first)
        before = (first[-1].id,) if first else before
        if service.name != IDENTITY_SERVICE and IDENTITY in self._ids():
            before += (IDENTITY,)
        self._add_units(service, before)
        if self.is_controller and service.name == IDENTITY_SERVICE:
            self._add(_identity_step(scope, self.ready[IDENTITY_SERVICE]))

    def _add_units(self, service: Service, before: tuple[str, ...]) -> None:
        """What runs for the controller's role is up before what runs for the others."""
        done = before
        for role, part in sorted(
            parts_on(service, self.scope.node).items(), key=lambda item: item[0] != "controller"
        ):
            name = f"{service.name}/{role}"
            if part.units:
                files = self.scope.files(service)
                stamp = _hash(hashlib.sha256(b"\0".join(files.values())).hexdigest(), part.units)
                self._add(Step(name, "units", done, units=part.units, stamp=stamp, files=tuple(files)))
                done = (name,)
            if part.ports:
                ports = tuple((self.scope.node.address, port) for port in part.ports)
                self._add(Step(f"{name}.ready", "ports", done, ports=ports))
                done = (f"{name}.ready",)
        self.ready[service.name] = done

    def finish(self) -> list[Step]:
        """The steps; on a lab of one node with those that need all units to run."""
        for service in self.scope.services:
            if self.is_controller and _has_resources(service):
                needed = (service.name, *service.requires, *service.uses)
                waits = (step for name in needed for step in self.ready.get(name, ()))
                self._add(_resources_step(self.scope, service, tuple(dict.fromkeys(waits))))
        if self.scope.alone:
            everything = tuple(step.id for step in self.steps)
            for step in final_steps(self.scope):
                self._add(replace(step, after=step.after or everything))
        return self.steps

    def _add(self, *steps: Step) -> None:
        self.steps.extend(steps)

    def _ids(self) -> set[str]:
        return {step.id for step in self.steps}


def _chain(
    scope: Scope, service: Service, phase: str, commands: Iterable[Command], after: tuple[str, ...]
) -> list[Step]:
    """Commands as steps, each after the one before it."""
    steps: list[Step] = []
    for command in commands:
        if command.on not in scope.node.roles:
            continue
        text = scope.render(service, command)
        step = Step(
            f"{service.name}/{phase}.{command.name}",
            "command",
            (steps[-1].id,) if steps else after,
            run=text,
            as_user=command.user,
            stamp=_hash(text, command.user),
        )
        steps.append(step)
    return steps


def _database_step(scope: Scope, service: Service, after: tuple[str, ...]) -> Step:
    """One statement per database and user; each may be run again.

    A schema whose making was cut off is made anew: MariaDB commits each change of a table by itself, and the
    migrations of OpenStack stumble over it. Names come from the strict model, and need no quoting.
    """
    assert service.database is not None
    user = identifier(service.name)
    password = scope.secrets[user]["database"]
    statements = [
        f"CREATE USER IF NOT EXISTS '{user}'@'%';",
        f"ALTER USER '{user}'@'%' IDENTIFIED BY '{password}';",
    ]
    for name in service.database.names:
        statements.append(f"CREATE DATABASE IF NOT EXISTS `{name}` CHARACTER SET utf8mb4;")
        statements.append(f"GRANT ALL ON `{name}`.* TO '{user}'@'%';")
    sql = "\n".join(statements)
    drop = " ".join(f"DROP DATABASE IF EXISTS `{name}`;" for name in service.database.names)
    return Step(
        f"{service.name}/database",
        "command",
        after,
        run=["mariadb"],
        stdin=sql,
        stamp=_hash(sql),
        whole=f"{service.name}/database",
        undo=f"mariadb --execute '{drop}'",
    )


def _identity_step(scope: Scope, after: tuple[str, ...]) -> Step:
    users, services = [], []
    for service in scope.services:
        name = identifier(service.name)
        if service.identity.user:
            password = scope.secrets[name]["identity"]
            users.append({"name": service.identity.user, "password": password, "roles": ["admin", "service"]})
        for endpoint in service.identity.services:
            url = f"http://{scope.controller.address}:{endpoint.port}{endpoint.path}"
            services.append({"name": endpoint.name, "type": endpoint.type, "url": url})
    roles = [role for service in scope.services for role in service.identity.roles]
    return _register(scope, IDENTITY, after, {"users": users, "roles": roles, "services": services})


def _resources_step(scope: Scope, service: Service, after: tuple[str, ...]) -> Step:
    resources = service.resources
    document = {
        "flavors": [flavor.model_dump() for flavor in resources.flavors],
        "networks": [_network(scope, network) for network in resources.networks],
        "routers": [router.model_dump() for router in resources.routers],
        "rules": [rule.model_dump() for rule in resources.rules],
        "volume_types": [kind.model_dump() for kind in resources.volume_types],
        "images": [
            {
                "name": image.name,
                "format": image.format,
                "path": image_path(image.file),
                "kernel": image.kernel,
                "ramdisk": image.ramdisk,
            }
            for image in resources.images
        ],
    }
    return _register(scope, f"{service.name}/resources", after, document)


def _network(scope: Scope, network: Network) -> dict[str, Any]:
    """A network as it is registered; the provider network of hosts has the addresses of their site."""
    document = network.model_dump()
    if network.physical == "provider" and document["subnet"]:
        own = scope.provider
        document["subnet"] |= {"cidr": own.cidr, "gateway": own.gateway, "start": own.start, "end": own.end}
    return document


def _register(scope: Scope, step: str, after: tuple[str, ...], wanted: dict[str, Any]) -> Step:
    text = json.dumps({"auth": scope.admin, "region": "RegionOne", **wanted}, sort_keys=True)
    digests = [scope.image_digests[image["name"]] for image in wanted.get("images", ())]
    return Step(step, "command", after, run=REGISTER, stdin=text, stamp=_hash(text, digests))


def _has_resources(service: Service) -> bool:
    resources = service.resources
    return any(getattr(resources, name) for name in type(resources).model_fields)


def image_path(file: str) -> str:
    """Where on the controller an image's file is put before it is uploaded."""
    return f"/var/lib/stacklab/images/{file}"


def _hash(*inputs: object) -> str:
    return hashlib.sha256(repr(inputs).encode()).hexdigest()


def units_of_steps(text: str) -> set[str]:
    """The units that a file of steps, as it was rendered, starts; none where there is no text."""
    return {unit for step in json.loads(text or "[]") for unit in step.get("units", ())}


def units_of_service(text: str, service: str) -> list[str]:
    """The units of one service in the text of a file of steps; none where the text is empty."""
    steps = json.loads(text) if text else []
    return [unit for step in steps if step["id"].startswith(f"{service}/") for unit in step.get("units", ())]
