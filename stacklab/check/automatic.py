"""The checks that every service has without asking for them: its units run, its endpoints answer with a
token.
"""

from collections.abc import Iterator

from stacklab.check.cloud import Cloud
from stacklab.check.result import CheckResult, Unmet, ask
from stacklab.check.units import unit_problems, units_on
from stacklab.model.service import Endpoint, Service
from stacklab.provide.provider import Node

UNIT_SECONDS = 30.0


def check_units(cloud: Cloud, node: Node) -> Iterator[CheckResult]:
    """Every unit of every service on a node is active: one SSH call, one result per service."""
    by_service = units_on(cloud.services, node)
    several = len(cloud.blueprint.nodes) > 1
    problems: dict[str, str] = {}
    failure: Unmet | None = None
    try:
        problems = unit_problems(
            cloud.lab, node, [unit for units in by_service.values() for unit in units], seconds=UNIT_SECONDS
        )
    except Unmet as error:
        failure = error
    for service, units in by_service.items():
        name = "its units are active" + (f" on {node.name}" if several else "")
        yield ask(service, name, lambda units=units: _judge(units, problems, failure))  # type: ignore[misc]


def _judge(units: tuple[str, ...], problems: dict[str, str], failure: Unmet | None) -> None:
    if failure:
        raise failure
    wrong = [f"{unit} is {problems[unit]}" for unit in units if unit in problems]
    if wrong:
        raise Unmet("; ".join(wrong))


def check_endpoint(cloud: Cloud, service: Service, endpoint: Endpoint) -> Iterator[CheckResult]:
    """The catalogue lists the endpoint, and each address that it has answers with a token."""

    def answers() -> None:
        for url in cloud.api.addresses(endpoint.type):
            cloud.api.probe(url)

    yield ask(service.name, f"the {endpoint.type} API answers with a token", answers)
