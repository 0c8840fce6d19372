"""What runs where: the units of each service on each node, as systemd has them at this moment."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from stacklab.blueprint import Blueprint, parts_on
from stacklab.check.result import Unmet
from stacklab.check.units import unit_problems, units_on
from stacklab.lab.lab import Lab
from stacklab.provide.provider import Node, NodeState

ANSWER_SECONDS = 10.0
RUNS = "runs"

Placement = Mapping[str, Mapping[str, Mapping[str, str]]]
"""By service and node that it has a part on, and the unit there: `runs`, or what is wrong with it."""


def placement(lab: Lab, blueprint: Blueprint) -> Placement:
    """Ask all nodes at once which units of the services run; those of a node that is off are `off`."""

    def ask(node: Node) -> Mapping[str, Mapping[str, str]]:
        units = units_on(blueprint.services, node)
        if lab.provider.state(node) is not NodeState.RUNNING:
            return {service: dict.fromkeys(names, "off") for service, names in units.items()}
        every = [unit for names in units.values() for unit in names]
        try:
            wrong = unit_problems(lab, node, every, seconds=ANSWER_SECONDS)
        except Unmet as error:
            wrong = dict.fromkeys(every, str(error))
        return {service: {unit: wrong.get(unit, RUNS) for unit in names} for service, names in units.items()}

    with ThreadPoolExecutor(max_workers=max(len(blueprint.nodes), 1)) as pool:
        answers = dict(zip(blueprint.nodes, pool.map(ask, blueprint.nodes), strict=True))
    return {
        service.name: {
            node.name: said.get(service.name, {}) for node, said in answers.items() if parts_on(service, node)
        }
        for service in blueprint.services
    }
