"""The scenarios that a service's `checks` may name: what takes more than one command to find out."""

import importlib
import threading
from collections.abc import Callable, Mapping

from stacklab.check.cloud import Cloud
from stacklab.check.result import Checking
from stacklab.model.service import Scenario, Service

Play = Callable[[Cloud, Service, str], Checking]
"""Takes the cloud, the service that names it and the name of the check; gives a result for each step."""

SCENARIOS: Mapping[Scenario, str] = {
    "agents": "check_agents",
    "bare-metal": "check_bare_metal",
    "floating-ip": "check_floating_ip",
    "instance": "check_instance",
    "neighbours": "check_neighbours",
    "names": "check_names",
    "volumes": "check_volumes",
}
"""For each scenario, its function, in a module of this package that is called like the scenario."""

# Some import openstacksdk, which takes half a second, and comes out half made when threads do so at once.
_IMPORTING = threading.Lock()


def check_scenario(cloud: Cloud, service: Service, name: str, scenario: Scenario) -> Checking:
    """Play the scenario of that name."""
    yield from play_of(scenario)(cloud, service, name)


def play_of(scenario: Scenario) -> Play:
    """The function that plays a scenario."""
    with _IMPORTING:
        module = importlib.import_module(f"stacklab.check.{scenario.replace('-', '_')}")
    play: Play = getattr(module, SCENARIOS[scenario])
    return play
