"""Stepping down on hosts, where no image keeps the lower layer: what came above it is undone, in reverse.

Each step may be done again, so that a `down` that was cut off is completed by the next.
"""

from dataclasses import replace

from stacklab.blueprint import Blueprint
from stacklab.host.checks import host_facts
from stacklab.lab.lab import Lab
from stacklab.model.service import Service, identifier
from stacklab.provide.host import HostProvider
from stacklab.remote.climb import HostClimb


def down_on_hosts(lab: Lab, whole: Blueprint, layer: int) -> None:
    """Take the services above `layer` off the hosts of a lab: their units, data, files and packages.

    whole: the lab as it stands. Users, services and endpoints in Keystone go as the lower layer is applied.
    """
    lower = replace(whole, target=layer, cuts=whole.cuts[:layer])
    staying = {service.name for service in lower.services}
    known = {service.name: service for service in whole.services}
    gone = [known[name] for name in lab.settings.services if name not in staying and name in known]
    names = [service.name for service in reversed(gone)]
    provider = lab.provider
    assert isinstance(provider, HostProvider)
    lab.start()
    lab.journal.forget("layer-")
    for node in whole.nodes if names else ():
        with lab.journal.step("stop services", node.name, services=names):
            provider.ledger(node, "retire", *names)
    settings = lab.settings
    below = {"layer": layer, "target": layer, "unfrozen": 0, "with_services": _added_below(whole, layer)}
    lab.save(settings.model_copy(update=below))
    climb = HostClimb(lab, lower, host_facts(lab.home, settings), online=True)
    climb.apply(climb.render(layer))
    with lab.journal.step("drop databases", lab.controller.name):
        drop_databases(lab, gone)
    labels = [f"layer-{number}" for number in range(layer + 1, settings.layer + 1)]
    for node in whole.nodes:
        with lab.journal.step("remove packages", node.name):
            if names:
                provider.ledger(node, "forget", *names)
            if labels:
                provider.ledger(node, "undo", *labels)


def drop_databases(lab: Lab, services: list[Service]) -> None:
    """Drop the databases of services, and the users of these."""
    statements = [
        statement
        for service in services
        if service.database
        for statement in (
            *(f"DROP DATABASE IF EXISTS `{name}`;" for name in service.database.names),
            f"DROP USER IF EXISTS '{identifier(service.name)}'@'%';",
        )
    ]
    if statements:
        lab.run_on(lab.controller.name, ["mariadb"], stdin="\n".join(statements), check=True)


def _added_below(blueprint: Blueprint, layer: int) -> dict[str, int]:
    return {name: number for name, number in blueprint.settings.with_services.items() if number <= layer}
