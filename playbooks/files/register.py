#!/usr/bin/python3
"""Makes the APIs of a cloud know what a layer brings: one process, a JSON document on standard input.

    {"auth": {"url", "user", "password", "project"}, "region",
     "users":    [{"name", "password", "roles": [..]}],      in the project `service`
     "roles":    [name, ..],                                 beside those of users; they stay for ever
     "services": [{"name", "type", "url"}],                  with public, internal and admin endpoint
     "flavors":  [{"name", "ram" (MiB), "vcpus", "disk" (GiB), "properties": {..}}],
     "networks": [{"name", "shared", "external", "type", "physical",
                   "subnet": {"name", "cidr", "gateway", "start", "end", "dns": [..]}}],
     "routers":  [{"name", "external", "subnets": [..]}],    names of networks and subnets
     "images":   [{"name", "format", "path", "kernel", "ramdisk"}],   public; the last two: names of images
     "rules":    [{"group", "protocol", "port"}],            ingress, in the administrator's project
     "volume_types": [{"name", "properties": {..},
                       "encryption": {"provider", "cipher", "key_size" (bits)}}]}

Any part may be left out. Prints {"created": [..], "updated": [..], "removed": [..]}. What is there already
and as wanted is left alone, so it may be run again at any time, and costs half a second then. Users and
services carry a mark, and those with it that are not wanted any more are removed; what others have made never
is.

DevStack spends a fifth of its time in starts of the `openstack` command; here one start and one login serve
all. The calls are made with keystoneauth1, not openstacksdk's proxies, as these ask each API for its
versions first.
"""

import hashlib
import ipaddress
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qsl, urlsplit

from keystoneauth1 import exceptions
from keystoneauth1.identity import v3
from keystoneauth1.session import Session

Entry = Mapping[str, Any]

INTERFACES = ("public", "internal", "admin")
DOMAIN = "default"
PROJECT = "service"
MARK = "Registered by stacklab"
THREADS = 8
TIMEOUT = 300  # seconds for one call; the first one to a service waits for its worker to load
RETRIES: dict[str, Any] = {
    "connect_retries": 5,
    "connect_retry_delay": 0.2,
    "status_code_retries": 5,
    "status_code_retry_delay": 0.2,
    "retriable_status_codes": [502, 503, 504],
}


class RegisterError(Exception):
    """An API refused or could not be reached; the text says which call and why."""


class Conflict(RegisterError):
    """It exists already: made by somebody else meanwhile, or by our own call whose answer was lost."""


class Api(Protocol):
    """The calls to a cloud that registering needs."""

    project: str

    def call(
        self, service: str, method: str, path: str, body: Any = None, params: Entry | None = None
    ) -> dict[str, Any]:
        """Call an API of that service type and return its answer, {} where it has none.

        Raises Conflict for HTTP 409, RegisterError for any other answer but success.
        """

    def upload(self, path: str, file: Path) -> None:
        """PUT a file's content to a path of the image service."""

    def accepts(self, user: str, password: str) -> bool:
        """Whether the user can log in with this password."""


class Cloud:
    """An Api over HTTP, as the administrator."""

    def __init__(self, auth: Entry, region: str) -> None:
        self._url: str = auth["url"].rstrip("/")
        self._region = region
        login = v3.Password(
            self._url,
            username=auth["user"],
            password=auth["password"],
            project_name=auth["project"],
            user_domain_id=DOMAIN,
            project_domain_id=DOMAIN,
        )
        self._session = Session(login, timeout=TIMEOUT)
        self._login = login
        try:
            access = login.get_access(self._session)
        except exceptions.Unauthorized:
            raise RegisterError(f"Keystone at {self._url} refuses the user {auth['user']!r}") from None
        except exceptions.ClientException as error:
            raise RegisterError(f"Keystone at {self._url} does not answer: {error}") from None
        self.project = str(access.project_id)

    def call(
        self, service: str, method: str, path: str, body: Any = None, params: Entry | None = None
    ) -> dict[str, Any]:
        """Call an API; see Api.call."""
        more: dict[str, Any] = {} if body is None else {"json": body}
        answer = self._request(service, method, path, params=params or {}, **more)
        return dict(answer.json()) if answer.content else {}

    def upload(self, path: str, file: Path) -> None:
        """PUT a file's content; see Api.upload."""
        with file.open("rb") as stream:
            headers = {"Content-Type": "application/octet-stream"}
            self._request("image", "PUT", path, data=stream, headers=headers, retry=False)

    def accepts(self, user: str, password: str) -> bool:
        """Log in once, without a project; see Api.accepts."""
        attempt = v3.Password(
            self._url, username=user, password=password, user_domain_id=DOMAIN, unscoped=True
        )
        try:
            attempt.get_access(self._session)
        except exceptions.Unauthorized:
            return False
        except exceptions.ClientException as error:
            raise RegisterError(f"logging in as {user!r}: {error}") from None
        return True

    def _request(self, service: str, method: str, path: str, retry: bool = True, **more: Any) -> Any:
        url = self._endpoint(service) + path
        try:
            return self._session.request(url, method, **(RETRIES if retry else {}), **more)
        except exceptions.HttpError as error:
            kind = Conflict if error.http_status == 409 else RegisterError
            raise kind(f"{method} {url}: HTTP {error.http_status}: {_reason(error)}") from None
        except exceptions.ClientException as error:
            raise RegisterError(f"{method} {url}: {error}") from None

    def _endpoint(self, service: str) -> str:
        """Where we log in, for the identity service; where the catalogue says, for others. No discovery."""
        if service == "identity":
            return self._url
        for again in (True, False):
            catalog = self._login.get_access(self._session).service_catalog
            try:
                url = catalog.url_for(service_type=service, interface="public", region_name=self._region)
            except exceptions.CatalogException:
                if again:  # our token's catalogue may be older than an endpoint that we made
                    self._login.invalidate()
            else:
                return str(url).rstrip("/")
        raise RegisterError(f"the catalogue has no service of type {service!r} in {self._region}")


def _reason(error: exceptions.HttpError) -> str:
    """The API's own words: nova, neutron, keystone and glance each wrap them in another way."""
    try:
        words = next(iter(error.response.json().values())) if error.response is not None else ""
        text = words.get("message") if isinstance(words, dict) else words
    except (AttributeError, ValueError, StopIteration):
        text = error.response.text[:300] if error.response is not None else ""
    return str(text or error.message)


class Registry:
    """What a document wants, against what the cloud has. `created`, `updated`: what was done."""

    def __init__(self, api: Api, region: str) -> None:
        self.api = api
        self.region = region
        self.created: list[str] = []
        self.updated: list[str] = []
        self.removed: list[str] = []

    def register(self, document: Entry) -> None:
        """Register all parts of a document; parts that do not need each other at the same time.

        Raises RegisterError for the first thing that could not be done; others may have been.
        """
        for parts in (
            ("users", "roles", "services"),
            ("flavors", "networks", "images", "rules", "volume_types"),
            ("routers",),
        ):
            wanted = [(getattr(self, part), document[part]) for part in parts if document.get(part)]
            try:
                at_once(lambda part: part[0](part[1]), wanted)
            except Conflict:  # looking again tells whether what exists is what is wanted
                at_once(lambda part: part[0](part[1]), wanted)

    # Keystone: https://docs.openstack.org/api-ref/identity/v3/

    def users(self, wanted: Sequence[Entry]) -> None:
        """Users with their roles in the project `service`; those of services that have gone are removed.

        A password is set only where it does not fit.
        """
        have_roles, have_users, projects = at_once(
            lambda path: self._all("identity", path[0], path[1], path[2]),
            [
                ("/roles", "roles", {}),
                ("/users", "users", {"domain_id": DOMAIN}),
                ("/projects", "projects", {"domain_id": DOMAIN, "name": PROJECT}),
            ],
        )
        if not projects:
            body = {"project": {"name": PROJECT, "domain_id": DOMAIN, "description": "Users of services"}}
            projects = [self.api.call("identity", "POST", "/projects", body)["project"]]
            self.created.append(f"project {PROJECT}")
        project = projects[0]["id"]
        roles = self._with_roles(have_roles, {role for user in wanted for role in user["roles"]})
        users = {user["name"]: user for user in have_users}
        assignments = self._all(
            "identity", "/role_assignments", "role_assignments", {"scope.project.id": project}
        )
        held = {(each["user"]["id"], each["role"]["id"]) for each in assignments if "user" in each}

        def register(user: Entry) -> None:
            found = self._user(user, users.get(user["name"]))
            for role in user["roles"]:
                if (found, roles[role]) not in held:
                    path = f"/projects/{project}/users/{found}/roles/{roles[role]}"
                    self.api.call("identity", "PUT", path)
                    self.created.append(f"role {role} of {user['name']}")

        at_once(register, wanted)
        at_once(lambda user: self._remove("users", user), _gone(have_users, wanted, "name"))

    def roles(self, wanted: Sequence[str]) -> None:
        """Roles that the administrator may give to users, and with them the right to what services guard."""
        self._with_roles(self._all("identity", "/roles", "roles"), set(wanted))

    def _with_roles(self, have: Sequence[Entry], wanted: set[str]) -> dict[str, str]:
        """The ids of roles by their names, once those that are wanted are among them."""
        roles = {role["name"]: str(role["id"]) for role in have}
        for name in sorted(wanted - roles.keys()):
            roles[name] = self.api.call("identity", "POST", "/roles", {"role": {"name": name}})["role"]["id"]
            self.created.append(f"role {name}")
        return roles

    def _remove(self, kind: str, thing: Entry) -> None:
        self.api.call("identity", "DELETE", f"/{kind}/{thing['id']}")
        self.removed.append(f"{kind.removesuffix('s')} {thing.get('name', thing['id'])}")

    def _user(self, user: Entry, found: Entry | None) -> str:
        name, password = user["name"], user["password"]
        if found is None:
            body = {"user": {"name": name, "password": password, "domain_id": DOMAIN, "description": MARK}}
            self.created.append(f"user {name}")
            return str(self.api.call("identity", "POST", "/users", body)["user"]["id"])
        change: dict[str, Any] = {} if found.get("enabled", True) else {"enabled": True}
        if found.get("description") != MARK:
            change["description"] = MARK
        if change or not self.api.accepts(name, password):  # with `enabled` unset any password is refused
            change["password"] = password
            self.api.call("identity", "PATCH", f"/users/{found['id']}", {"user": change})
            self.updated.append(f"user {name}")
        return str(found["id"])

    def services(self, wanted: Sequence[Entry]) -> None:
        """Services, each with an endpoint per interface in the region; one whose URL has changed is moved.

        A service that has gone is removed with its endpoints.
        """
        have_services, have_endpoints, regions = at_once(
            lambda name: self._all("identity", f"/{name}", name), ["services", "endpoints", "regions"]
        )
        if self.region not in {region["id"] for region in regions}:
            self.api.call("identity", "POST", "/regions", {"region": {"id": self.region}})
            self.created.append(f"region {self.region}")
        services = {service["type"]: service for service in have_services}
        endpoints = {
            (endpoint["service_id"], endpoint["interface"]): endpoint
            for endpoint in have_endpoints
            if endpoint["region_id"] == self.region
        }

        def register_service(service: Entry) -> str:
            found = services.get(service["type"])
            own = {"name": service["name"], "description": MARK}
            body = {"service": {**own, "type": service["type"]}}
            if found is None:
                self.created.append(f"service {service['name']}")
                return str(self.api.call("identity", "POST", "/services", body)["service"]["id"])
            if any(found.get(key) != value for key, value in own.items()):
                self.api.call("identity", "PATCH", f"/services/{found['id']}", body)
                self.updated.append(f"service {service['name']}")
            return str(found["id"])

        def register_endpoint(of: tuple[str, Entry, str]) -> None:
            service_id, service, interface = of
            found = endpoints.get((service_id, interface))
            if found is None:
                body = {"service_id": service_id, "interface": interface, "url": service["url"]}
                self.api.call(
                    "identity", "POST", "/endpoints", {"endpoint": {**body, "region_id": self.region}}
                )
                self.created.append(f"endpoint {service['name']} {interface}")
            elif found["url"] != service["url"]:
                body = {"url": service["url"]}
                self.api.call("identity", "PATCH", f"/endpoints/{found['id']}", {"endpoint": body})
                self.updated.append(f"endpoint {service['name']} {interface}")

        ids = at_once(register_service, wanted)
        pairs = zip(ids, wanted, strict=True)
        at_once(register_endpoint, [(name, service, face) for name, service in pairs for face in INTERFACES])
        gone = _gone(have_services, wanted, "type")
        left = {service["id"] for service in gone}
        at_once(
            lambda endpoint: self.api.call("identity", "DELETE", f"/endpoints/{endpoint['id']}"),
            [endpoint for endpoint in have_endpoints if endpoint["service_id"] in left],
        )
        at_once(lambda service: self._remove("services", service), gone)

    # Nova: https://docs.openstack.org/api-ref/compute/

    def flavors(self, wanted: Sequence[Entry]) -> None:
        """Flavors. One of another size is replaced: no API changes one, and instances keep a copy."""
        have = self._all("compute", "/flavors/detail", "flavors", {"is_public": "None"})
        flavors = {flavor["name"]: flavor for flavor in have}

        def register(flavor: Entry) -> None:
            size = {key: flavor[key] for key in ("ram", "vcpus", "disk")}
            properties = flavor.get("properties") or {}
            found = flavors.get(flavor["name"])
            if found and all(found[key] == value for key, value in size.items()):
                self._set_properties(found["id"], properties)
                return
            if found:
                self.api.call("compute", "DELETE", f"/flavors/{found['id']}")
            body = {"flavor": {"name": flavor["name"], **size}}
            new = self.api.call("compute", "POST", "/flavors", body)["flavor"]["id"]
            self._set_properties(new, properties)
            (self.updated if found else self.created).append(f"flavor {flavor['name']}")

        at_once(register, wanted)

    def _set_properties(self, flavor: str, properties: Entry) -> None:
        """The flavor's extra specs; those that somebody has added stay."""
        if properties:  # what is set is set again: to ask costs as much
            path = f"/flavors/{flavor}/os-extra_specs"
            self.api.call("compute", "POST", path, {"extra_specs": dict(properties)})

    # Cinder: https://docs.openstack.org/api-ref/block-storage/v3/

    def volume_types(self, wanted: Sequence[Entry]) -> None:
        """Types of volumes, public. One that is encrypted is so from the beginning: no volume has it yet."""
        have = self._all("volumev3", "/types", "volume_types", {"is_public": "None"})
        types = {kind["name"]: kind for kind in have}

        def register(kind: Entry) -> None:
            found, properties = types.get(kind["name"]), kind["properties"]
            if found is None:
                body = {"volume_type": {"name": kind["name"], "extra_specs": properties}}
                found = self.api.call("volumev3", "POST", "/types", body)["volume_type"]
                self.created.append(f"volume type {kind['name']}")
            elif any(found["extra_specs"].get(key) != value for key, value in properties.items()):
                body = {"extra_specs": properties}
                self.api.call("volumev3", "POST", f"/types/{found['id']}/extra_specs", body)
                self.updated.append(f"volume type {kind['name']}")
            path = f"/types/{found['id']}/encryption"
            if kind.get("encryption") and not self.api.call("volumev3", "GET", path).get("provider"):
                body = {"encryption": {**kind["encryption"], "control_location": "front-end"}}
                self.api.call("volumev3", "POST", path, body)

        at_once(register, wanted)

    # Neutron: https://docs.openstack.org/api-ref/network/v2/

    def networks(self, wanted: Sequence[Entry]) -> None:
        """Networks of the administrator's project, each with its subnet."""

        def register(network: Entry) -> None:
            mine = {"name": network["name"], "project_id": self.api.project}
            found = self._all("network", "/v2.0/networks", "networks", mine)
            access = {
                "shared": bool(network.get("shared")),
                "router:external": bool(network.get("external")),
            }
            kind = {
                "provider:network_type": network.get("type"),
                "provider:physical_network": network.get("physical"),
            }
            if found:
                network_id = found[0]["id"]
                change = {key: value for key, value in access.items() if found[0][key] != value}
                if change:
                    self.api.call("network", "PUT", f"/v2.0/networks/{network_id}", {"network": change})
                    self.updated.append(f"network {network['name']}")
            else:
                body = {
                    "name": network["name"],
                    **access,
                    **{key: value for key, value in kind.items() if value},
                }
                answer = self.api.call("network", "POST", "/v2.0/networks", {"network": body})
                network_id = answer["network"]["id"]
                self.created.append(f"network {network['name']}")
            if network.get("subnet"):
                self._subnet(network_id, network["subnet"])

        at_once(register, wanted)

    def _subnet(self, network_id: str, subnet: Entry) -> None:
        wanted: dict[str, Any] = {"name": subnet["name"], "dns_nameservers": list(subnet.get("dns") or ())}
        if subnet.get("gateway"):
            wanted["gateway_ip"] = subnet["gateway"]
        if subnet.get("start"):
            wanted["allocation_pools"] = [{"start": subnet["start"], "end": subnet["end"]}]
        for found in self._all("network", "/v2.0/subnets", "subnets", {"network_id": network_id}):
            if found["cidr"] != subnet["cidr"]:
                continue
            change = {key: value for key, value in wanted.items() if found[key] != value}
            if change:
                self.api.call("network", "PUT", f"/v2.0/subnets/{found['id']}", {"subnet": change})
                self.updated.append(f"subnet {subnet['name']}")
            return
        version = ipaddress.ip_network(subnet["cidr"]).version
        body = {"network_id": network_id, "cidr": subnet["cidr"], "ip_version": version, **wanted}
        self.api.call("network", "POST", "/v2.0/subnets", {"subnet": body})
        self.created.append(f"subnet {subnet['name']}")

    def routers(self, wanted: Sequence[Entry]) -> None:
        """Routers of the administrator's project, with their gateways and interfaces."""
        at_once(self._router, wanted)

    def _router(self, router: Entry) -> None:
        external = self._id_of("networks", router["external"])
        subnets = [self._id_of("subnets", name) for name in router["subnets"]]
        mine = {"name": router["name"], "project_id": self.api.project}
        found = self._all("network", "/v2.0/routers", "routers", mine)
        gateway = {"external_gateway_info": {"network_id": external}}
        if found:
            router_id = found[0]["id"]
            if (found[0]["external_gateway_info"] or {}).get("network_id") != external:
                self.api.call("network", "PUT", f"/v2.0/routers/{router_id}", {"router": gateway})
                self.updated.append(f"router {router['name']}")
        else:
            body = {"router": {"name": router["name"], **gateway}}
            router_id = self.api.call("network", "POST", "/v2.0/routers", body)["router"]["id"]
            self.created.append(f"router {router['name']}")
        ports = self._all("network", "/v2.0/ports", "ports", {"device_id": router_id})
        has = {address["subnet_id"] for port in ports for address in port["fixed_ips"]}
        for subnet in subnets:
            if subnet not in has:
                path = f"/v2.0/routers/{router_id}/add_router_interface"
                self.api.call("network", "PUT", path, {"subnet_id": subnet})

    def _id_of(self, kind: str, name: str) -> str:
        """The id of a network or subnet of the administrator's project. Raises RegisterError without one."""
        mine = {"name": name, "project_id": self.api.project}
        found = self._all("network", f"/v2.0/{kind}", kind, mine)
        if not found:
            raise RegisterError(f"there is no {kind.removesuffix('s')} '{name}' for a router")
        return str(found[0]["id"])

    def rules(self, wanted: Sequence[Entry]) -> None:
        """Rules that let IPv4 traffic in to security groups of the administrator's project."""
        mine = {"project_id": self.api.project}
        have = self._all("network", "/v2.0/security-groups", "security_groups", mine)
        groups = {group["name"]: group for group in have}
        for name in dict.fromkeys(rule["group"] for rule in wanted):
            if name not in groups:
                answer = self.api.call(
                    "network", "POST", "/v2.0/security-groups", {"security_group": {"name": name}}
                )
                groups[name] = answer["security_group"]
                self.created.append(f"security group {name}")

        def register(rule: Entry) -> None:
            group, port = groups[rule["group"]], rule.get("port")
            body = {
                "direction": "ingress",
                "ethertype": "IPv4",
                "protocol": rule["protocol"],
                "port_range_min": port,
                "port_range_max": port,
            }
            for known in group["security_group_rules"]:
                from_all = not known.get("remote_group_id") and known.get("remote_ip_prefix") in (
                    None,
                    "0.0.0.0/0",
                )
                if from_all and all(known[key] == value for key, value in body.items()):
                    return
            body["security_group_id"] = group["id"]
            self.api.call("network", "POST", "/v2.0/security-group-rules", {"security_group_rule": body})
            self.created.append(f"rule {rule['protocol']}{f' {port}' if port else ''} of {rule['group']}")

        at_once(register, wanted)

    # Glance: https://docs.openstack.org/api-ref/image/v2/

    def images(self, wanted: Sequence[Entry]) -> None:
        """Public images. Glance keeps a digest of what it holds: an unchanged file is not uploaded again."""
        booted_by = {name for image in wanted for name in (image.get("kernel"), image.get("ramdisk")) if name}
        at_once(self._image, [image for image in wanted if image["name"] in booted_by])
        at_once(self._image, [image for image in wanted if image["name"] not in booted_by])

    def _image(self, image: Entry) -> None:
        file = Path(image["path"])
        if not file.is_file():
            raise RegisterError(f"image {image['name']}: there is no file {file} on this node")
        found = self._all("image", "/v2/images", "images", {"name": image["name"], "owner": self.api.project})
        parts = {
            f"{part}_id": self._image_id(image[part]) for part in ("kernel", "ramdisk") if image.get(part)
        }
        if any(
            known["disk_format"] == image["format"] and parts.items() <= known.items() and _holds(known, file)
            for known in found
        ):
            return
        body = {
            "name": image["name"],
            "disk_format": image["format"],
            "container_format": "bare",
            "visibility": "public",
            **parts,
        }
        new = self.api.call("image", "POST", "/v2/images", body)["id"]
        try:
            self.api.upload(f"/v2/images/{new}/file", file)
        except RegisterError:
            self.api.call("image", "DELETE", f"/v2/images/{new}")
            raise
        for old in found:  # also those whose upload was cut off
            self.api.call("image", "DELETE", f"/v2/images/{old['id']}")
        (self.updated if found else self.created).append(f"image {image['name']}")

    def _image_id(self, name: str) -> str:
        found = self._all("image", "/v2/images", "images", {"name": name, "owner": self.api.project})
        if not found:
            raise RegisterError(f"there is no image '{name}', which another one is booted by")
        return str(found[0]["id"])

    def _all(self, service: str, path: str, key: str, params: Entry | None = None) -> list[dict[str, Any]]:
        """Everything of a list, page by page."""
        answer = self.api.call(service, "GET", path, params=params)
        found = list(answer[key])
        while following := _next_page(answer, key):
            answer = self.api.call(service, "GET", path, params={**(params or {}), **following})
            found += answer[key]
        return found


def _gone(have: Iterable[Entry], wanted: Iterable[Entry], key: str) -> list[Entry]:
    """Of what is there, what carries the mark and is not wanted any more."""
    names = {each[key] for each in wanted}
    return [each for each in have if each.get("description") == MARK and each[key] not in names]


def _next_page(answer: Entry, key: str) -> dict[str, str]:
    """The parameters of a list's next page: Keystone has `links`, Nova, Neutron KEY_links, Glance `next`."""
    links = answer.get(f"{key}_links") or ()
    after = next((link["href"] for link in links if link["rel"] == "next"), None)
    after = after or answer.get("next") or (answer.get("links") or {}).get("next")
    query = parse_qsl(urlsplit(after or "").query)
    return {name: value for name, value in query if name in ("marker", "limit")}


def _holds(image: Entry, file: Path) -> bool:
    """Whether an image is whole and holds what the file does."""
    if (
        image["status"] != "active"
        or image.get("size") != file.stat().st_size
        or not image.get("os_hash_value")
    ):
        return False
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, image["os_hash_algo"]).hexdigest() == str(image["os_hash_value"])


def at_once(do: Callable[[Any], Any], wanted: Iterable[Any]) -> list[Any]:
    """Do it for each at the same time; the results in order. The first error is raised when all ended."""
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(do, wanted))


def main() -> int:
    """Register what standard input asks for. Returns the exit code."""
    document = json.load(sys.stdin)
    try:
        registry = Registry(Cloud(document["auth"], document["region"]), document["region"])
        registry.register(document)
    except RegisterError as error:
        print(error, file=sys.stderr)
        return 1
    done = {"created": registry.created, "updated": registry.updated, "removed": registry.removed}
    print(json.dumps({what: sorted(names) for what, names in done.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
