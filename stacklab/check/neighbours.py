"""The scenario `neighbours`: an instance on each compute node, and all of them on a network of their own.

A lab with one compute node has none to ask about.
"""

from collections.abc import Callable
from functools import partial

from stacklab.check.cloud import Cloud
from stacklab.check.result import Checking
from stacklab.check.trial import PROVIDER, Trial, play
from stacklab.model.service import Service

SUBNET = "10.99.0.0/24"
LARGE_BYTES = 1414  # of a ping: the headers, its own and Geneve's, make it 1500


def check_neighbours(cloud: Cloud, service: Service, name: str) -> Checking:
    """Instances on different nodes reach each other through a tunnel, with small packets and large ones."""
    nodes = [node.name for node in cloud.blueprint.nodes if "compute" in node.roles]
    if len(nodes) < 2:
        return
    first = _First(cloud, node=nodes[0])
    first.more = (first.name,)
    others = [
        Trial(cloud, more=first.more, node=node, name=first.name, key=first.key, connection=first.api)
        for node in nodes[1:]
    ]
    trials = [first, *others]
    steps: list[tuple[str, Callable[[], None]]] = [
        ("compute nodes have room", first.find_room),
        ("a key pair is accepted", first.import_key),
        ("a network of their own is made", first.make_network),
        *((f"an instance becomes active on {trial.node}", trial.boot) for trial in trials),
        *((f"the one on {trial.node} gets its addresses", trial.find_address) for trial in trials),
        *(
            (f"the console of the one on {trial.node} says that it is up", trial.read_console)
            for trial in trials
        ),
        *(
            (f"the one on {nodes[0]} reaches the one on {each.node}", partial(first.reach, each))
            for each in others
        ),
    ]
    yield from play(first, steps, service, name)


class _First(Trial):
    def make_network(self) -> None:
        """A network in a tunnel, which has no way out: what comes through came from the other node."""
        network = self.api.network.create_network(name=self.name, provider_network_type="geneve")
        self.api.network.create_subnet(
            name=self.name, network_id=network.id, ip_version=4, cidr=SUBNET, gateway_ip=None
        )

    def reach(self, other: Trial) -> None:
        """The other instance answers on their network, and on the provider's."""
        with self.console_in_failure():
            for network, size in ((self.name, 56), (self.name, LARGE_BYTES), (PROVIDER, 56)):
                self.ping(other.addresses[network], size)
