"""What register.py makes in a cloud, and that it makes nothing twice.

The cloud is a fake at the level of API calls, as Keystone and the others cannot run here. What it knows of
them was seen in runs against the real ones, and the lab tests build each layer with the same program.
"""

import hashlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "playbooks" / "files"))
import register

REGION = "RegionOne"


class FakeCloud:
    """Keeps what it is given. Answers lists in pages of two, as real APIs do for larger ones."""

    project = "admin-project"

    def __init__(self) -> None:
        self.things: dict[str, list[dict[str, Any]]] = {
            "roles": [{"id": "r-admin", "name": "admin"}],
            "regions": [],
            "security-groups": [{"id": "g0", "name": "default", "security_group_rules": []}],
        }
        self.passwords: dict[str, str] = {}
        self.calls: list[str] = []
        self.lose_answer_of = ""

    def call(
        self, service: str, method: str, path: str, body: Any = None, params: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        parts = path.removeprefix("/v2.0").removeprefix("/v2").strip("/").split("/")
        if method != "GET":
            self.calls.append(f"{method} {service} {parts[0]}")
        if parts[0] == "projects" and len(parts) > 2:
            self._of("role_assignments").append(
                {"user": {"id": parts[3]}, "role": {"id": parts[5]}, "scope": {"project": {"id": parts[1]}}}
            )
            return {}
        if parts[0] == "types" and len(parts) > 2:
            kind = next(thing for thing in self._of("types") if thing["id"] == parts[1])
            if method == "POST":
                kind[parts[2]] = kind.get(parts[2], {}) | body[parts[2]]
            return dict(kind.get(parts[2], {}))
        if method == "GET":
            return self._list(parts[0], dict(params or {}))
        if method == "DELETE":
            self.things[parts[0]] = [thing for thing in self._of(parts[0]) if thing["id"] != parts[1]]
            return {}
        if parts[-1] == "add_router_interface":
            port = {"device_id": parts[1], "fixed_ips": [{"subnet_id": body["subnet_id"]}]}
            self._of("ports").append({"id": f"p-{len(self._of('ports'))}", **port})
            return {}
        if method == "PATCH" or method == "PUT":
            thing = next(thing for thing in self._of(parts[0]) if thing["id"] == parts[1])
            change = dict(next(iter(body.values())))
            if "password" in change:
                self.passwords[thing["name"]] = change.pop("password")
            thing |= change
            return {}
        if parts[-1] == "os-extra_specs":
            next(thing for thing in self._of(parts[0]) if thing["id"] == parts[1]).update(body)
            return {}
        return self._create(parts[0], body)

    def upload(self, path: str, file: Path) -> None:
        self.calls.append("PUT image data")
        if file.stat().st_size == 0:
            raise register.RegisterError("HTTP 413: no room")
        image = next(image for image in self._of("images") if image["id"] == path.split("/")[3])
        digest = hashlib.sha512(file.read_bytes()).hexdigest()
        image |= {
            "status": "active",
            "size": file.stat().st_size,
            "os_hash_algo": "sha512",
            "os_hash_value": digest,
        }

    def accepts(self, user: str, password: str) -> bool:
        return self.passwords.get(user) == password

    def names(self, kind: str) -> list[str]:
        return sorted(thing["name"] for thing in self._of(kind))

    def _of(self, kind: str) -> list[dict[str, Any]]:
        return self.things.setdefault(kind, [])

    def _list(self, kind: str, params: dict[str, Any]) -> dict[str, Any]:
        first = int(params.pop("marker", 0))
        wanted = {key: value for key, value in params.items() if key in ("name", "network_id", "device_id")}
        found = [
            dict(thing)
            for thing in self._of(kind)
            if all(thing[key] == value for key, value in wanted.items())
        ]
        following = f"http://api/{kind}?marker={first + 2}" if first + 2 < len(found) else None
        more: dict[str, Any] = {"links": {"next": following}}
        if kind in ("flavors", "networks"):
            more = {f"{kind}_links": [{"rel": "next", "href": following}]} if following else {}
        key = "volume_types" if kind == "types" else kind.replace("-", "_")
        return {key: found[first : first + 2], **more}

    def _create(self, kind: str, body: dict[str, Any]) -> dict[str, Any]:
        wrapped = len(body) == 1
        thing = dict(next(iter(body.values())) if wrapped else body)
        thing.setdefault("id", f"{kind}-{len(self.calls)}-{len(self._of(kind))}")
        if kind == "users":
            self.passwords[thing["name"]] = thing.pop("password")
        if kind == "security-group-rules":
            group = next(
                group for group in self._of("security-groups") if group["id"] == thing["security_group_id"]
            )
            group["security_group_rules"].append(thing)
        if kind == "security-groups":
            thing["security_group_rules"] = []
        if kind == "images":
            thing |= {"status": "queued", "size": None}
        self._of(kind).append(thing)
        if self.lose_answer_of == kind:
            self.lose_answer_of = ""
            raise register.Conflict(f"POST {kind}: HTTP 409")
        return {next(iter(body)): thing} if wrapped else thing


@pytest.fixture
def cloud() -> FakeCloud:
    return FakeCloud()


def run(cloud: FakeCloud, document: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    registry = register.Registry(cloud, REGION)
    cloud.calls.clear()
    registry.register(document)
    return sorted(registry.created), sorted(registry.updated)


def identity(**change: Any) -> dict[str, Any]:
    names = ["glance", "nova", "placement"]
    return {
        "users": [
            {"name": name, "password": f"secret-{name}", "roles": ["admin", "service"]} for name in names
        ],
        "services": [{"name": name, "type": f"{name}-type", "url": f"http://c/{name}"} for name in names],
        **change,
    }


class TestIdentity:
    def test_users_get_their_roles_and_services_three_endpoints_each(self, cloud: FakeCloud) -> None:
        run(cloud, identity())
        assert cloud.names("users") == ["glance", "nova", "placement"]
        assert cloud.names("projects") == ["service"]
        assert cloud.names("roles") == ["admin", "service"]
        assert len(cloud.things["role_assignments"]) == 6
        endpoints = {
            (each["service_id"], each["interface"], each["region_id"]) for each in cloud.things["endpoints"]
        }
        assert len(endpoints) == 9
        assert {interface for _, interface, _ in endpoints} == {"public", "internal", "admin"}
        assert [region["id"] for region in cloud.things["regions"]] == [REGION]

    def test_roles_of_services_are_made_once(self, cloud: FakeCloud) -> None:
        wanted = identity(roles=["key-manager:service-admin"])
        assert "role key-manager:service-admin" in run(cloud, wanted)[0]
        assert cloud.names("roles") == ["admin", "key-manager:service-admin", "service"]
        assert run(cloud, wanted) == ([], [])

    def test_a_second_run_changes_nothing(self, cloud: FakeCloud) -> None:
        run(cloud, identity())
        assert run(cloud, identity()) == ([], [])
        assert cloud.calls == []

    def test_a_password_is_set_only_where_it_does_not_fit(self, cloud: FakeCloud) -> None:
        run(cloud, identity())
        cloud.passwords["nova"] = "another"
        assert run(cloud, identity()) == ([], ["user nova"])
        assert cloud.calls == ["PATCH identity users"]
        assert cloud.passwords["nova"] == "secret-nova"

    def test_a_user_that_was_disabled_is_enabled(self, cloud: FakeCloud) -> None:
        run(cloud, identity())
        cloud.things["users"][0]["enabled"] = False
        assert run(cloud, identity())[1] == ["user " + cloud.things["users"][0]["name"]]
        assert cloud.things["users"][0]["enabled"] is True

    def test_an_endpoint_whose_url_changed_is_moved(self, cloud: FakeCloud) -> None:
        run(cloud, identity())
        moved = {"name": "nova", "type": "nova-type", "url": "http://c/v2.1"}
        created, updated = run(cloud, identity(services=[moved]))
        assert (created, len(updated)) == ([], 3)
        assert [each["url"] for each in cloud.things["endpoints"]].count("http://c/v2.1") == 3

    def test_endpoints_of_another_region_are_left_alone(self, cloud: FakeCloud) -> None:
        run(cloud, identity())
        for endpoint in cloud.things["endpoints"]:
            endpoint["region_id"] = "Elsewhere"
        assert len(run(cloud, identity())[0]) == 9
        assert len(cloud.things["endpoints"]) == 18

    def test_what_a_service_had_goes_with_it_and_what_others_made_stays(self, cloud: FakeCloud) -> None:
        run(cloud, identity())
        cloud.things["users"].append({"id": "u", "name": "somebody", "domain_id": "default"})
        cloud.things["services"].append({"id": "s", "name": "keystone", "type": "identity"})
        whole = identity()
        left = {kind: [each for each in whole[kind] if each["name"] != "nova"] for kind in whole}
        assert run(cloud, left) == ([], [])
        assert cloud.names("users") == ["glance", "placement", "somebody"]
        assert cloud.names("services") == ["glance", "keystone", "placement"]
        assert len(cloud.things["endpoints"]) == 6
        assert len(run(cloud, whole)[0]) == 7  # the user, its two roles, the service and three endpoints

    def test_what_has_no_mark_gets_it(self, cloud: FakeCloud) -> None:
        run(cloud, identity())
        for thing in (*cloud.things["users"], *cloud.things["services"]):
            del thing["description"]
        assert len(run(cloud, identity())[1]) == 6
        assert run(cloud, identity()) == ([], [])

    def test_a_call_whose_answer_was_lost_is_looked_up(self, cloud: FakeCloud) -> None:
        cloud.lose_answer_of = "services"
        run(cloud, identity())
        assert cloud.names("services") == ["glance", "nova", "placement"]
        assert len(cloud.things["endpoints"]) == 9


class TestFlavors:
    def test_flavors_are_made_once_and_replaced_when_of_another_size(self, cloud: FakeCloud) -> None:
        flavors = [{"name": name, "ram": 128, "vcpus": 1, "disk": 0} for name in ("tiny", "small", "medium")]
        assert run(cloud, {"flavors": flavors})[0] == ["flavor medium", "flavor small", "flavor tiny"]
        assert run(cloud, {"flavors": flavors}) == ([], [])
        flavors[1]["ram"] = 256
        assert run(cloud, {"flavors": flavors}) == ([], ["flavor small"])
        assert cloud.names("flavors") == ["medium", "small", "tiny"]

    def test_properties_are_set_on_new_flavors_and_on_those_that_are_there(self, cloud: FakeCloud) -> None:
        flavor = {"name": "metal", "ram": 128, "vcpus": 1, "disk": 0}
        run(cloud, {"flavors": [flavor]})
        run(cloud, {"flavors": [{**flavor, "properties": {"resources:CUSTOM_METAL": "1"}}]})
        assert cloud.things["flavors"][0]["extra_specs"] == {"resources:CUSTOM_METAL": "1"}


class TestVolumeTypes:
    def test_types_are_made_once_with_properties_and_encryption(self, cloud: FakeCloud) -> None:
        sealed = {"provider": "luks", "cipher": "aes-xts-plain64", "key_size": 256}
        types: list[dict[str, Any]] = [
            {"name": "plain", "properties": {"volume_backend_name": "ceph"}, "encryption": None},
            {"name": "sealed", "properties": {"volume_backend_name": "ceph"}, "encryption": sealed},
        ]
        assert run(cloud, {"volume_types": types})[0] == ["volume type plain", "volume type sealed"]
        assert run(cloud, {"volume_types": types}) == ([], [])
        made = {kind["name"]: kind for kind in cloud.things["types"]}
        assert made["sealed"]["encryption"] == {**sealed, "control_location": "front-end"}
        assert "encryption" not in made["plain"]
        types[0]["properties"] = {"volume_backend_name": "lvm"}
        assert run(cloud, {"volume_types": types}) == ([], ["volume type plain"])
        assert cloud.things["types"][0]["extra_specs"] == {"volume_backend_name": "lvm"}


SUBNET = {
    "name": "provider",
    "cidr": "10.30.0.0/24",
    "gateway": "10.30.0.1",
    "start": "10.30.0.100",
    "end": "10.30.0.200",
}
NETWORK = {
    "name": "provider",
    "shared": True,
    "external": True,
    "type": "flat",
    "physical": "provider",
    "subnet": SUBNET,
}


class TestNetworks:
    def test_a_provider_network_with_its_subnet(self, cloud: FakeCloud) -> None:
        assert run(cloud, {"networks": [NETWORK]})[0] == ["network provider", "subnet provider"]
        (network,), (subnet,) = cloud.things["networks"], cloud.things["subnets"]
        assert network["provider:physical_network"] == "provider"
        assert network["router:external"] is True
        assert subnet["allocation_pools"] == [{"start": "10.30.0.100", "end": "10.30.0.200"}]
        assert run(cloud, {"networks": [NETWORK]}) == ([], [])

    def test_a_network_of_a_tenant_names_no_physical_one(self, cloud: FakeCloud) -> None:
        run(cloud, {"networks": [{"name": "inside", "type": None, "physical": None, "subnet": None}]})
        assert set(cloud.things["networks"][0]) == {"id", "name", "shared", "router:external"}

    def test_what_changed_is_brought_up_to_date(self, cloud: FakeCloud) -> None:
        run(cloud, {"networks": [NETWORK]})
        changed = {**NETWORK, "shared": False, "subnet": {**SUBNET, "dns": ["10.30.0.1"]}}
        assert run(cloud, {"networks": [changed]})[1] == ["network provider", "subnet provider"]
        assert cloud.things["subnets"][0]["dns_nameservers"] == ["10.30.0.1"]

    def test_a_router_gets_its_gateway_and_an_interface_on_each_subnet_once(self, cloud: FakeCloud) -> None:
        inside = {"name": "inside", "subnet": {**SUBNET, "name": "inside", "cidr": "192.168.0.0/24"}}
        router = {"name": "edge", "external": "provider", "subnets": ["inside"]}
        document = {"networks": [NETWORK, inside], "routers": [router]}
        assert "router edge" in run(cloud, document)[0]
        networks = {network["name"]: network["id"] for network in cloud.things["networks"]}
        (made,) = cloud.things["routers"]
        assert made["external_gateway_info"] == {"network_id": networks["provider"]}
        (port,) = cloud.things["ports"]
        assert (port["device_id"], len(port["fixed_ips"])) == (made["id"], 1)
        assert run(cloud, document) == ([], [])
        assert cloud.calls == []

    def test_a_router_to_a_network_that_is_not_there_is_told(self, cloud: FakeCloud) -> None:
        router = {"name": "edge", "external": "nowhere", "subnets": []}
        with pytest.raises(register.RegisterError, match="there is no network 'nowhere'"):
            run(cloud, {"routers": [router]})

    def test_rules_let_traffic_in_once(self, cloud: FakeCloud) -> None:
        rules = [
            {"group": "default", "protocol": "icmp", "port": None},
            {"group": "web", "protocol": "tcp", "port": 80},
        ]
        created = ["rule icmp of default", "rule tcp 80 of web", "security group web"]
        assert run(cloud, {"rules": rules})[0] == created
        assert run(cloud, {"rules": rules}) == ([], [])


class TestImages:
    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        file = tmp_path / "guest.qcow2"
        file.write_bytes(b"first")
        return file

    def document(self, file: Path) -> dict[str, Any]:
        return {"images": [{"name": "guest", "format": "qcow2", "path": str(file)}]}

    def test_an_unchanged_file_is_not_uploaded_again(self, cloud: FakeCloud, file: Path) -> None:
        assert run(cloud, self.document(file))[0] == ["image guest"]
        assert run(cloud, self.document(file)) == ([], [])
        assert cloud.calls == []

    def test_a_changed_file_takes_the_place_of_the_old_one(self, cloud: FakeCloud, file: Path) -> None:
        run(cloud, self.document(file))
        old = cloud.things["images"][0]["id"]
        file.write_bytes(b"other")
        assert run(cloud, self.document(file)) == ([], ["image guest"])
        assert [image["id"] == old for image in cloud.things["images"]] == [False]

    def test_an_upload_that_was_cut_off_is_done_again(self, cloud: FakeCloud, file: Path) -> None:
        run(cloud, self.document(file))
        cloud.things["images"][0]["status"] = "saving"
        run(cloud, self.document(file))
        assert [image["status"] for image in cloud.things["images"]] == ["active"]

    def test_a_failed_upload_leaves_no_empty_image(self, cloud: FakeCloud, file: Path) -> None:
        file.write_bytes(b"")
        with pytest.raises(register.RegisterError, match="no room"):
            run(cloud, self.document(file))
        assert cloud.things["images"] == []

    def test_an_image_names_those_that_it_is_booted_by(self, cloud: FakeCloud, file: Path) -> None:
        parts = [{"name": name, "format": "raw", "path": str(file)} for name in ("kernel", "ramdisk")]
        whole = {
            "name": "guest", "format": "qcow2", "path": str(file), "kernel": "kernel", "ramdisk": "ramdisk"
        }  # fmt: skip
        run(cloud, {"images": [whole, *parts]})
        ids = {image["name"]: image["id"] for image in cloud.things["images"]}
        guest = next(image for image in cloud.things["images"] if image["name"] == "guest")
        assert (guest["kernel_id"], guest["ramdisk_id"]) == (ids["kernel"], ids["ramdisk"])
        assert run(cloud, {"images": [whole, *parts]}) == ([], [])

    def test_a_missing_file_is_named(self, cloud: FakeCloud, tmp_path: Path) -> None:
        with pytest.raises(
            register.RegisterError, match=r"image guest: there is no file .*/none on this node"
        ):
            run(cloud, self.document(tmp_path / "none"))


def test_a_keystone_that_cannot_be_reached_is_named() -> None:
    auth = {"url": "http://127.0.0.1:1/v3", "user": "admin", "password": "secret", "project": "admin"}
    with pytest.raises(
        register.RegisterError, match=r"Keystone at http://127\.0\.0\.1:1/v3 does not answer"
    ) as caught:
        register.Cloud(auth, REGION)
    assert "secret" not in str(caught.value)
