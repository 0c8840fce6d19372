"""The checks that every service has by itself: its units run, its endpoints answer with a token."""

import time
from dataclasses import replace
from functools import partial

from stacklab.check.cloud import Cloud
from stacklab.check.result import Checking, Unmet, ask
from stacklab.check.units import unit_problems, units_on
from stacklab.model.service import Endpoint, Service
from stacklab.provide.provider import Node

UNIT_SECONDS = 30.0


def check_units(cloud: Cloud, node: Node) -> Checking:
    """Every unit of every service on a node is active: one SSH call, one result per service."""
    by_service = units_on(cloud.services, node)
    several = len(cloud.blueprint.nodes) > 1
    name = "its units are active" + (f" on {node.name}" if several else "")
    units = [unit for units in by_service.values() for unit in units]
    problems: dict[str, str] = {}
    failure: Unmet | None = None
    begin = time.monotonic()
    try:
        problems = unit_problems(cloud.lab, node, units, seconds=UNIT_SECONDS)
    except Unmet as error:
        failure = error
    seconds = round(time.monotonic() - begin, 3)
    for service, own in by_service.items():
        yield replace(ask(service, name, partial(_judge, own, problems, failure)), seconds=seconds)


def _judge(units: tuple[str, ...], problems: dict[str, str], failure: Unmet | None) -> None:
    if failure:
        raise failure
    wrong = [f"{unit} is {problems[unit]}" for unit in units if unit in problems]
    if wrong:
        raise Unmet("; ".join(wrong))


def check_endpoint(cloud: Cloud, service: Service, endpoint: Endpoint) -> Checking:
    """The catalogue lists the endpoint, and each address that it has answers with a token."""

    def answers() -> None:
        for url in cloud.api.addresses(endpoint.type):
            cloud.api.probe(url)

    yield ask(service.name, f"the {endpoint.type} API answers with a token", answers)
