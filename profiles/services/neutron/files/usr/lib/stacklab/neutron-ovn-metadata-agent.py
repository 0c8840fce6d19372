#!/usr/bin/python3
"""neutron-ovn-metadata-agent, fitted to a lab in two places.

It leaves an interface alone that has the address it is to get. With every port that comes or goes on a
network, the agent sets the address of its own interface there again, and Linux forgets whom it knew behind
it. OVN answers the question where an instance is, but hands it on to no machine of Ironic's: that one got no
answer from the metadata service, until it had asked for the agent's address by itself.

It forks the helpers that do its privileged work, as it is root, before it has any thread but those that
listen to them, and before it has read its configuration. Each would be one more Python that imports all of
Neutron, when the first instance boots.
"""

import sys

from neutron import privileged
from neutron.agent.linux.ip_lib import IpLinkCommand
from neutron.cmd.agents.ovn_metadata import main
from oslo_privsep.priv_context import Method

_set_address = IpLinkCommand.set_address


def set_address(self: IpLinkCommand, mac_address: str) -> None:
    """Set the address of the interface, if it is another one."""
    if self.address != mac_address:
        _set_address(self, mac_address)


IpLinkCommand.set_address = set_address
for context in (privileged.default, privileged.namespace_cmd, privileged.link_cmd):
    context.start(Method.FORK)
sys.exit(main())
