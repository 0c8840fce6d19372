"""Tells Ironic of machines: enrols those that it does not know, has them inspected, and makes them available.

    OS_PASSWORD=... REDFISH_PASSWORD=... enroll.py KEYSTONE NAME=HOST:PORT...

NAME is the machine's, HOST:PORT is where its controller speaks Redfish. A machine that is deployed, or that
somebody has put aside, stays as it is. They belong to the project of the administrator, whose password it is.
"""

import os
import sys
import time
from typing import Any

import openstack
import requests

WAIT = 120  # seconds for each change of state
MOVING = ("verifying", "inspecting", "cleaning")
ACTIONS = {
    "enroll": ("manage", "inspect", "provide"),
    "manageable": ("inspect", "provide"),
    "inspect failed": ("inspect", "provide"),
    "clean failed": ("manage", "provide"),
}


def enrol(cloud: Any, name: str, address: str) -> None:
    """Have one machine available."""
    url, password = f"http://{address}", os.environ["REDFISH_PASSWORD"]
    info = {
        "redfish_address": url,
        "redfish_system_id": _system(url, password, name),
        "redfish_username": "admin",
        "redfish_password": password,
        "redfish_auth_type": "basic",  # sushy-tools has no sessions
    }
    node = cloud.baremetal.find_node(name)
    if node is None:
        node = cloud.baremetal.create_node(name=name, driver="redfish", driver_info=info)
    else:  # the password may be a new one; the API does not tell
        node = cloud.baremetal.update_node(_settled(cloud, name), driver_info=info)
    for action in ACTIONS.get(node.provision_state, ()):
        node = cloud.baremetal.set_node_provision_state(node, action, wait=True, timeout=WAIT)


def _settled(cloud: Any, name: str) -> Any:
    """A machine, once its state is none on the way to another: a run that was cut off leaves such."""
    for _ in range(WAIT):
        node = cloud.baremetal.find_node(name)
        if node.provision_state not in MOVING:
            return node
        time.sleep(1.0)
    raise SystemExit(f"the machine {name} is still '{node.provision_state}' after {WAIT} s")


def _system(url: str, password: str, name: str) -> str:
    """The path of the machine in the tree of its controller."""
    session = requests.Session()
    session.auth = ("admin", password)
    for member in session.get(f"{url}/redfish/v1/Systems", timeout=30).json()["Members"]:
        path = str(member["@odata.id"])
        if session.get(f"{url}{path}", timeout=30).json()["Name"] == name:
            return path
    raise SystemExit(f"the controller at {url} knows no machine {name}")


def main(auth_url: str, *machines: str) -> None:
    """Enrol all machines that the command line names."""
    cloud = openstack.connect(
        auth_url=auth_url,
        username="admin",
        password=os.environ["OS_PASSWORD"],
        project_name="admin",
        user_domain_name="Default",
        project_domain_name="Default",
        region_name="RegionOne",
    )
    for machine in machines:
        name, _, address = machine.partition("=")
        enrol(cloud, name, address)


if __name__ == "__main__":
    main(*sys.argv[1:])
