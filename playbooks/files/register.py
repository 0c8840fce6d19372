#!/usr/bin/python3
"""Registers what a layer needs in the cloud's own APIs, in one process: a JSON document comes in on standard input.

    {"auth": {"url", "user", "password", "project"}, "region",
     "users": [{"name", "password", "roles"}],            in the project `service`
     "services": [{"name", "type", "url"}],               each with a public, internal and admin endpoint
     "flavors": [...], "networks": [...], "images": [{"name", "format", "path"}], "rules": [...]}

Every part may be left out. What is there already is left alone, so it may be run again. Prints {"created": [...]}.
"""

import hashlib
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openstack

INTERFACES = ("public", "internal", "admin")
DIGEST = "stacklab_sha256"


class Registry:
    """The cloud's APIs, and a list of what was made in them."""

    def __init__(self, document: dict[str, Any]) -> None:
        auth = document["auth"]
        self.region = document["region"]
        self.cloud = openstack.connect(
            auth_url=auth["url"],
            username=auth["user"],
            password=auth["password"],
            project_name=auth["project"],
            user_domain_id="default",
            project_domain_id="default",
            region_name=self.region,
        )
        self.created: list[str] = []

    def users(self, wanted: list[dict[str, Any]]) -> None:
        """The users, with their roles in the project `service`."""
        identity = self.cloud.identity
        project = identity.find_project("service") or identity.create_project(
            name="service", domain_id="default"
        )
        roles = {role.name: role for role in identity.roles()}
        for name in {name for user in wanted for name in user["roles"]} - set(roles):
            roles[name] = identity.create_role(name=name)
        present = {user.name: user for user in identity.users(domain_id="default")}

        def register(user: dict[str, Any]) -> None:
            found = present.get(user["name"])
            if found is None:
                found = identity.create_user(
                    name=user["name"], password=user["password"], domain_id="default"
                )
                self.created.append(f"user {user['name']}")
            else:
                identity.update_user(found, password=user["password"])
            for role in user["roles"]:
                identity.assign_project_role_to_user(project, found, roles[role])

        _all(register, wanted)

    def services(self, wanted: list[dict[str, Any]]) -> None:
        """The services with their endpoints; an endpoint whose URL has changed is moved."""
        identity = self.cloud.identity
        present = {service.type: service for service in identity.services()}
        endpoints = {(endpoint.service_id, endpoint.interface): endpoint for endpoint in identity.endpoints()}

        def register(service: dict[str, Any]) -> None:
            found = present.get(service["type"])
            if found is None:
                found = identity.create_service(name=service["name"], type=service["type"])
                self.created.append(f"service {service['name']}")
            for interface in INTERFACES:
                endpoint = endpoints.get((found.id, interface))
                if endpoint is None:
                    identity.create_endpoint(
                        service_id=found.id, interface=interface, url=service["url"], region_id=self.region
                    )
                elif endpoint.url != service["url"]:
                    identity.update_endpoint(endpoint, url=service["url"])

        _all(register, wanted)

    def flavors(self, wanted: list[dict[str, Any]]) -> None:
        """The flavors; `ram` in MiB, `disk` in GiB."""
        present = {flavor.name for flavor in self.cloud.compute.flavors()}
        for flavor in wanted:
            if flavor["name"] not in present:
                self.cloud.compute.create_flavor(**flavor)
                self.created.append(f"flavor {flavor['name']}")

    def networks(self, wanted: list[dict[str, Any]]) -> None:
        """The networks, each with its subnet."""
        network = self.cloud.network
        for entry in wanted:
            found = network.find_network(entry["name"])
            if found is None:
                provider = {
                    "provider_network_type": entry["type"],
                    "provider_physical_network": entry["physical"],
                }
                found = network.create_network(
                    name=entry["name"],
                    is_shared=entry["shared"],
                    is_router_external=entry["external"],
                    **{key: value for key, value in provider.items() if value},
                )
                self.created.append(f"network {entry['name']}")
            subnet = entry["subnet"]
            if subnet and network.find_subnet(subnet["name"], network_id=found.id) is None:
                network.create_subnet(
                    network_id=found.id,
                    name=subnet["name"],
                    ip_version=4,
                    cidr=subnet["cidr"],
                    gateway_ip=subnet["gateway"],
                    allocation_pools=[{"start": subnet["start"], "end": subnet["end"]}],
                    dns_nameservers=list(subnet["dns"]),
                )

    def rules(self, wanted: list[dict[str, Any]]) -> None:
        """Rules that let traffic in to security groups of the project of the administrator."""
        network, project = self.cloud.network, self.cloud.current_project_id
        groups = {group.name: group for group in network.security_groups(project_id=project)}
        for rule in wanted:
            group = groups[rule["group"]]
            port = rule["port"]
            known = {
                (each["protocol"], each["port_range_min"])
                for each in group.security_group_rules
                if each["direction"] == "ingress" and not each.get("remote_group_id")
            }
            if (rule["protocol"], port) not in known:
                network.create_security_group_rule(
                    security_group_id=group.id,
                    direction="ingress",
                    ethertype="IPv4",
                    protocol=rule["protocol"],
                    port_range_min=port,
                    port_range_max=port,
                )
                self.created.append(f"rule {rule['protocol']} of {rule['group']}")

    def images(self, wanted: list[dict[str, Any]]) -> None:
        """Public images; one whose file has changed is uploaded again, and the old one goes."""
        for entry in wanted:
            digest = hashlib.sha256(Path(entry["path"]).read_bytes()).hexdigest()
            old = list(self.cloud.image.images(name=entry["name"], owner=self.cloud.current_project_id))
            if any(image.status == "active" and image.properties.get(DIGEST) == digest for image in old):
                continue
            self.cloud.image.create_image(
                entry["name"],
                filename=entry["path"],
                disk_format=entry["format"],
                container_format="bare",
                visibility="public",
                validate_checksum=False,
                **{DIGEST: digest},
            )
            for image in old:
                self.cloud.image.delete_image(image)
            self.created.append(f"image {entry['name']}")


def _all(register: Any, wanted: list[Any]) -> None:
    """Each at the same time as the others; the first error is raised."""
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(register, wanted))


def main() -> None:
    """Register what standard input names."""
    document = json.load(sys.stdin)
    registry = Registry(document)
    for part in ("users", "services", "flavors", "networks", "rules", "images"):
        if document.get(part):
            getattr(registry, part)(document[part])
    print(json.dumps({"created": registry.created}))


if __name__ == "__main__":
    main()
