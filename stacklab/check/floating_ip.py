"""The scenario `floating-ip`: an instance on a network of one's own is reached from outside, and reaches
out.
"""

from stacklab.check.cloud import Cloud
from stacklab.check.result import Checking, Unmet
from stacklab.check.trial import PROVIDER, Trial, play
from stacklab.model.service import Service
from stacklab.model.topology import PROVIDER as PROVIDER_NETWORK

TENANT = "private"


def check_floating_ip(cloud: Cloud, service: Service, name: str) -> Checking:
    """An instance on the network `private` gets an address by DHCP there, and a floating IP leads to it."""
    trial = _Tenant(cloud, network=TENANT)
    steps = [
        ("a compute node has room", trial.find_room),
        ("a key pair is accepted", trial.import_key),
        ("an instance on a tenant network becomes active", trial.boot),
        ("it gets its address", trial.find_address),
        ("its console says that it is up", trial.read_console),
        ("it gets a floating IP", trial.associate),
        ("SSH through the floating IP works", trial.log_in),
        ("metadata answer from inside", trial.read_metadata),
        ("it reaches the outside", trial.reach_out),
    ]
    yield from play(trial, steps, service, name)


class _Tenant(Trial):
    def associate(self) -> None:
        """A floating IP of the provider network leads to the instance, and is where it is reached from now
        on.
        """
        network = self.api.network
        (port,) = network.ports(device_id=self.server)
        outside = network.find_network(PROVIDER, ignore_missing=False)
        floating = network.create_ip(floating_network_id=outside.id, port_id=port.id, description=self.name)
        if floating.fixed_ip_address != self.address:
            raise Unmet(f"it leads to {floating.fixed_ip_address}, not to {self.address}")
        self.address = floating.floating_ip_address

    def reach_out(self) -> None:
        """What lies behind the router answers a ping from inside: the gateway of that network."""
        with self.console_in_failure():
            own = self.cloud.blueprint.settings.provider
            self.ping(own.gateway if own else PROVIDER_NETWORK.gateway)
