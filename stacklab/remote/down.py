"""Stepping down on hosts, where no image keeps the lower layer: what came above it is undone, in reverse.

What goes is written into the lab's settings before the first of it does, and each step may be done again: a
`down` that was cut off is completed by the next `down` or `up`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from stacklab.blueprint import Blueprint, UpRequest, resolve
from stacklab.host.checks import host_facts
from stacklab.lab.lab import Lab
from stacklab.lab.settings import SteppingDown
from stacklab.model.schema import identifier
from stacklab.provide.host import HostProvider
from stacklab.remote.climb import HostClimb


def down_on_hosts(lab: Lab, whole: Blueprint, layer: int) -> None:
    """Take the services above `layer` off the hosts of a lab: their units, data, files and packages.

    whole: the lab as it stands. Users, services and endpoints in Keystone go as the lower layer is applied.
    """
    if lab.settings.stepping_down:
        finish_down(lab)
        if lab.settings.layer == layer:
            return
    settings = lab.settings
    lower = replace(whole, target=layer, cuts=whole.cuts[:layer])
    staying = {service.name for service in lower.services}
    known = {service.name: service for service in whole.services}
    gone = [known[name] for name in reversed(settings.services) if name not in staying and name in known]
    pending = SteppingDown(
        services={each.name: tuple(each.database.names) if each.database else () for each in gone},
        layers=tuple(range(layer + 1, settings.layer + 1)),
    )
    lab.journal.forget("layer-")
    update = {
        "layer": layer,
        "target": layer,
        "unfrozen": 0,
        "with_services": _added_below(whole, layer),
        "stepping_down": pending,
    }
    lab.save(settings.model_copy(update=update))
    finish_down(lab)


def finish_down(lab: Lab) -> None:
    """Do what is left of a step down; nothing happens where there is none."""
    pending = lab.settings.stepping_down
    if pending is None:
        return
    lower = resolve(lab, UpRequest(lab=lab.name))
    provider = lab.provider
    assert isinstance(provider, HostProvider)
    names = list(pending.services)
    lab.start()
    climb = HostClimb(lab, lower, host_facts(lab.home, lab.settings), online=True)
    if names:
        climb.retire(names)
    climb.apply(climb.render(lower.target))
    with lab.journal.step("drop databases", lab.controller.name):
        drop_databases(lab, pending.services)
    labels = [f"layer-{number}" for number in pending.layers]
    for node in lower.nodes:
        with lab.journal.step("remove packages", node.name):
            if names:
                provider.ledger(node, "forget", *names)
            if labels:
                provider.ledger(node, "undo", *labels)
    lab.save(lab.settings.model_copy(update={"stepping_down": None}))


def drop_databases(lab: Lab, services: Mapping[str, Sequence[str]]) -> None:
    """Drop the databases of services, given by the services' names, and the users of these."""
    statements = [
        statement
        for service, databases in services.items()
        if databases
        for statement in (
            *(f"DROP DATABASE IF EXISTS `{name}`;" for name in databases),
            f"DROP USER IF EXISTS '{identifier(service)}'@'%';",
        )
    ]
    if statements:
        lab.run_on(lab.controller.name, ["mariadb"], stdin="\n".join(statements), check=True)


def _added_below(blueprint: Blueprint, layer: int) -> dict[str, int]:
    return {name: number for name, number in blueprint.settings.with_services.items() if number <= layer}
