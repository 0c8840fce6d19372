"""The scenario `agents`: all the processes of a service that report to its API are alive, on every node."""

from collections.abc import Callable, Mapping
from typing import Any

from stacklab.check.cloud import Cloud
from stacklab.check.result import Checking, Unmet, ask
from stacklab.model.service import Service

# They report every 10 s (Nova) or 30 s (Neutron); after a start, the last report before it may count as dead.
ALIVE_SECONDS = 90.0

Agents = dict[str, bool]
"""Whether each is alive, by its name and host."""


def check_agents(cloud: Cloud, service: Service, name: str) -> Checking:
    """Every agent that the service's API lists is alive, and every compute node has one."""
    yield ask(service.name, name, lambda: wait_for_agents(cloud, service))


def wait_for_agents(cloud: Cloud, service: Service) -> None:
    """Wait until all agents of a service are alive. Raises Unmet with those that are not after 90 s."""
    kinds = [endpoint.type for endpoint in service.identity.services if endpoint.type in _LISTS]
    if not kinds:
        raise Unmet(f"the scenario 'agents' knows services of type {', '.join(_LISTS)}, not {service.name}")
    for kind in kinds:
        _wait(cloud, kind)


def _wait(cloud: Cloud, kind: str) -> None:
    problems: list[str] = []

    def look() -> bool | None:
        agents = _LISTS[kind](cloud)
        problems[:] = [f"{agent} is down" for agent, alive in agents.items() if not alive]
        hosts = {agent.rpartition(" on ")[2].partition(".")[0] for agent in agents}
        for node in cloud.blueprint.nodes:
            if "compute" in node.roles and node.name not in hosts:
                problems.append(f"nothing reports from node '{node.name}'")
        return None if problems else True

    cloud.wait_for(look, ALIVE_SECONDS, lambda: "; ".join(problems))


def _compute(cloud: Cloud) -> Agents:
    """https://docs.openstack.org/api-ref/compute/#list-compute-services, but for what was disabled."""
    services: list[dict[str, Any]] = cloud.api.get("compute", "/os-services")["services"]
    return {
        f"{each['binary']} on {each['host']}": each["state"] == "up"
        for each in services
        if each["status"] == "enabled"
    }


def _network(cloud: Cloud) -> Agents:
    """https://docs.openstack.org/api-ref/network/v2/#agents."""
    agents: list[dict[str, Any]] = cloud.api.get("network", "/v2.0/agents")["agents"]
    return {
        f"{each['agent_type']} on {each['host']}": each["alive"] for each in agents if each["admin_state_up"]
    }


_LISTS: Mapping[str, Callable[[Cloud], Agents]] = {"compute": _compute, "network": _network}
