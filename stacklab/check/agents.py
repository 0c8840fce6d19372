"""The scenario `agents`: all the processes of a service that report to its API are alive, on every node."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

from stacklab.check.cloud import Cloud
from stacklab.check.result import Checking, Unmet, ask
from stacklab.check.units import units_on
from stacklab.model.service import Service
from stacklab.provide.provider import Node

_NEVER = datetime(1970, 1, 1)  # naive, as the API's times are: UTC

# They report every 10 s (Nova) or 30 s (Neutron); after a start, the last report before it may count as dead.
ALIVE_SECONDS = 75.0

VOLUMES = "volumev3"

# The units whose processes report to an API of a type, each under the name of its unit. A process can live on
# after its agent has died in it, and then it is in no list: what should run on a node has to be listed.
REPORTING: Mapping[str, frozenset[str]] = {
    "compute": frozenset({"nova-compute", "nova-compute-ironic", "nova-conductor", "nova-scheduler"}),
    "network": frozenset({"neutron-ovn-agent", "neutron-ovn-metadata-agent", "ovn-controller"}),
    VOLUMES: frozenset({"cinder-backup", "cinder-scheduler", "cinder-volume"}),
}
# A second process of a kind on a node calls itself by another name of the node.
SECOND: Mapping[str, tuple[str, str]] = {"nova-compute-ironic": ("nova-compute", "-ironic")}


@dataclass(frozen=True, order=True)
class Agent:
    """A process that reports to an API: its name and the name of its node."""

    name: str
    host: str

    @classmethod
    def of(cls, unit: str, node: Node) -> "Agent":
        """How the process of a unit reports."""
        name, suffix = SECOND.get(unit, (unit, ""))
        return cls(name, f"{node.name}{suffix}")

    def __str__(self) -> str:
        return f"{self.name} on node '{self.host}'"


def check_agents(cloud: Cloud, service: Service, name: str) -> Checking:
    """Every agent of the lab that the API lists is alive, and all that should be there are listed."""
    yield ask(service.name, name, lambda: wait_for_agents(cloud, service))


def wait_for_agents(cloud: Cloud, service: Service) -> None:
    """Wait until all agents of a service are alive. Raises Unmet with those that are not after 75 s."""
    kinds = [endpoint.type for endpoint in service.identity.services if endpoint.type in _LISTS]
    if not kinds:
        raise Unmet(f"the scenario 'agents' knows services of type {', '.join(_LISTS)}, not {service.name}")
    for kind in kinds:
        _wait(cloud, kind)


def _wait(cloud: Cloud, kind: str) -> None:
    wanted = wanted_agents(cloud.services, cloud.blueprint.nodes, kind)
    problems: list[str] = []

    def look() -> bool | None:
        alive = _LISTS[kind](cloud)
        # What has left the lab stays in the list, and is down for ever.
        ours = [agent for agent in sorted(alive) if agent in wanted or agent.name not in REPORTING[kind]]
        problems[:] = [f"{agent} is down" for agent in ours if not alive[agent]]
        problems.extend(f"{agent} does not report" for agent in wanted if agent not in alive)
        return None if problems else True

    cloud.wait_for(look, ALIVE_SECONDS, lambda: ", ".join(problems))


def wanted_agents(services: Iterable[Service], nodes: Iterable[Node], kind: str) -> list[Agent]:
    """The agents that have to be in the list of an API, as the units on the nodes tell."""
    services = list(services)
    return [
        Agent.of(unit, node)
        for node in nodes
        for units in units_on(services, node).values()
        for unit in units
        if unit in REPORTING[kind]
    ]


def silent_since(cloud: Cloud, moment: datetime) -> list[str]:
    """The services of Nova and Cinder that have not reported since `moment`, in words; for use in the lab's
    network.

    After a start the APIs call them up for a minute, by what they reported before they were stopped. Cinder's
    scheduler, which has started, too, makes no volume before a backend has told it what it has.
    """
    moment = moment.astimezone(UTC).replace(tzinfo=None)
    silent: list[object] = []
    endpoints = {each.type for service in cloud.services for each in service.identity.services}
    for kind in sorted(endpoints & _SERVICES):
        reported = {
            _agent(each): datetime.fromisoformat(each["updated_at"] or "1970-01-01")
            for each in cloud.api.get(kind, "/os-services")["services"]
        }
        wanted = wanted_agents(cloud.services, cloud.blueprint.nodes, kind)
        silent += [agent for agent in wanted if reported.get(agent, _NEVER) < moment]
    if VOLUMES in endpoints and not cloud.api.get(VOLUMES, "/scheduler-stats/get_pools")["pools"]:
        silent.append("a backend of volumes")
    return [f"{each} has not reported yet" for each in silent]


def _services(kind: str, cloud: Cloud) -> dict[Agent, bool]:
    """https://docs.openstack.org/api-ref/compute/#list-compute-services; Cinder's list is the same."""
    alive: dict[Agent, bool] = {}
    for each in cloud.api.get(kind, "/os-services")["services"]:
        agent = _agent(each)
        alive[agent] = each["state"] == "up" and alive.get(agent, True)
    return alive


def _network(cloud: Cloud) -> dict[Agent, bool]:
    """https://docs.openstack.org/api-ref/network/v2/#list-all-agents."""
    agents: list[dict[str, Any]] = cloud.api.get("network", "/v2.0/agents")["agents"]
    return {_agent(each): each["alive"] for each in agents}


def _agent(listed: Mapping[str, Any]) -> Agent:
    """Who that is; Cinder adds the backend to the host: controller@ceph."""
    return Agent(listed["binary"], re.split("[.@]", listed["host"])[0])


_SERVICES = REPORTING.keys() - {"network"}
_LISTS: Mapping[str, Callable[[Cloud], dict[Agent, bool]]] = {
    "network": _network,
    **{kind: partial(_services, kind) for kind in _SERVICES},
}
"""For each type of API, whether each of its agents is alive."""
