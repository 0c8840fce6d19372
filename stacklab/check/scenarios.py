"""The scenarios that a service's `checks` may name: what takes more than one command to find out."""

from collections.abc import Callable, Mapping

from stacklab.check.agents import check_agents
from stacklab.check.cloud import Cloud
from stacklab.check.result import Checking
from stacklab.model.service import Scenario, Service

Play = Callable[[Cloud, Service, str], Checking]
"""Takes the cloud, the service that names it and the name of the check; gives a result for each step."""


def _instance(cloud: Cloud, service: Service, name: str) -> Checking:
    from stacklab.check.instance import check_instance  # openstacksdk and paramiko take half a second

    return check_instance(cloud, service, name)


def _floating_ip(cloud: Cloud, service: Service, name: str) -> Checking:
    from stacklab.check.floating_ip import check_floating_ip

    return check_floating_ip(cloud, service, name)


def _names(cloud: Cloud, service: Service, name: str) -> Checking:
    from stacklab.check.names import check_names

    return check_names(cloud, service, name)


def _neighbours(cloud: Cloud, service: Service, name: str) -> Checking:
    from stacklab.check.neighbours import check_neighbours

    return check_neighbours(cloud, service, name)


def _volumes(cloud: Cloud, service: Service, name: str) -> Checking:
    from stacklab.check.volumes import check_volumes

    return check_volumes(cloud, service, name)


SCENARIOS: Mapping[Scenario, Play] = {
    "agents": check_agents,
    "floating-ip": _floating_ip,
    "instance": _instance,
    "neighbours": _neighbours,
    "names": _names,
    "volumes": _volumes,
}


def check_scenario(cloud: Cloud, service: Service, name: str, scenario: Scenario) -> Checking:
    """Play the scenario of that name."""
    yield from SCENARIOS[scenario](cloud, service, name)
