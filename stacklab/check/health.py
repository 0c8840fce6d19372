"""The quick look of `up` at a lab that stands: under a second, nothing heavy imported, nothing changed."""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import partial

from stacklab.blueprint import Blueprint
from stacklab.check.agents import silent_since
from stacklab.check.api import Api, request
from stacklab.check.cloud import Cloud
from stacklab.check.result import Unmet
from stacklab.check.units import unit_problems, units_on
from stacklab.errors import StepFailed
from stacklab.lab.lab import Lab
from stacklab.model.service import Service
from stacklab.provide.provider import Node, NodeState

LOOK_SECONDS = 10.0


def is_healthy(lab: Lab, blueprint: Blueprint) -> bool:
    """Whether the lab's cloud runs, by a quick look; why not is recorded in the journal as
    `stacklab.lab.unhealthy`.
    """
    problems = look(lab, blueprint)
    if problems:
        lab.journal.record("stacklab.lab.unhealthy", lab.name, problems=problems)
    return not problems


def look(lab: Lab, blueprint: Blueprint) -> list[str]:
    """What a quick look finds wrong: nodes, units, endpoints that do not answer, no token. All are asked at
    once.
    """
    stopped = [node for node in blueprint.nodes if lab.provider.state(node) is not NodeState.RUNNING]
    if stopped:
        return [f"node '{node.name}' is {lab.provider.state(node)}" for node in stopped]
    address = lab.controller.address
    api = Api(lab.environment(), seconds=LOOK_SECONDS * lab.patience)
    questions: list[Callable[[], list[str]]] = []
    for node in blueprint.nodes:
        questions.append(partial(_units, lab, blueprint, node))
    for service in blueprint.services:
        if "identity" in service.provides:
            questions.append(partial(_token, api))
        for endpoint in service.identity.services:
            questions.append(partial(answers, f"http://{address}:{endpoint.port}/"))
    try:
        with lab.namespace.network():
            return ask_all(questions)
    except StepFailed as error:
        return [error.message]


def look_after_start(cloud: Cloud, moment: datetime) -> list[str]:
    """What is wrong with a cloud whose lab was started at `moment`, with little work for its busy nodes.

    What comes up last is asked for last: endpoints, services of Nova and Cinder that have reported since,
    and then everything that `look` asks for.
    """
    endpoints = [endpoint for service in cloud.services for endpoint in service.identity.services]
    address = cloud.lab.controller.address
    try:
        with cloud.lab.namespace.network():
            missing = ask_all([partial(answers, f"http://{address}:{each.port}/") for each in endpoints])
            if not missing:
                missing = silent_since(cloud, moment)
    except (Unmet, StepFailed) as error:
        return [str(error)]
    return missing or look(cloud.lab, cloud.blueprint)


def ask_all(questions: Sequence[Callable[[], list[str]]]) -> list[str]:
    """Ask all questions at once, in the calling thread's network; returns the problems that they tell of."""
    with ThreadPoolExecutor(max_workers=max(len(questions), 1)) as pool:
        return [
            problem
            for future in [pool.submit(question) for question in questions]
            for problem in future.result()
        ]


def concerned_service(services: Iterable[Service], problems: Iterable[str]) -> str:
    """The name of the first service whose unit or endpoint one of the problems tells of; or empty."""
    services = list(services)
    for words in problems:
        for service in services:
            units = {unit for part in service.parts.values() for unit in part.units}
            ports = [endpoint.port for endpoint in service.identity.services]
            if units & set(words.split()) or any(f":{port}/" in words for port in ports):
                return service.name
    return ""


def answers(url: str) -> list[str]:
    """Whether anything healthy serves this URL: any status below 500 is an answer."""
    try:
        status = request(url, seconds=LOOK_SECONDS).status
    except Unmet as error:
        return [str(error)]
    return [f"{url} answers {status}"] if status >= 500 else []


def _token(api: Api) -> list[str]:
    try:
        api.token  # noqa: B018 - it is issued when it is asked for
    except Unmet as error:
        return [str(error)]
    return []


def _units(lab: Lab, blueprint: Blueprint, node: Node) -> list[str]:
    units = [unit for units in units_on(blueprint.services, node).values() for unit in units]
    try:
        problems = unit_problems(lab, node, units, seconds=LOOK_SECONDS)
    except Unmet as error:
        return [str(error)]
    return [f"{unit} on node '{node.name}' is {words}" for unit, words in problems.items()]
