"""Tempest's configuration: what the services say, merged, with the ids of the cloud in it."""

import configparser
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from stacklab.blueprint import UpRequest, resolve
from stacklab.check.result import Unmet
from stacklab.errors import ModelError
from stacklab.home import Home
from stacklab.lab.lab import Lab
from stacklab.lab.secrets import placeholder_secrets
from stacklab.model.catalog import Catalog
from stacklab.render import HostFacts, Renderer
from stacklab.tempest import FILE, CloudFacts, merged
from tests.unit import catalogs


class Answers:
    """Answers for a cloud: documents by type of service and path."""

    def __init__(self, documents: Mapping[tuple[str, str], Any]) -> None:
        self.documents = documents

    def get(self, kind: str, path: str = "") -> Any:
        return self.documents[kind, path]


CLOUD = Answers(
    {
        ("image", "/v2/images?name=guest"): {"images": [{"id": "1a", "name": "guest"}]},
        ("compute", "/flavors"): {"flavors": [{"id": "2a", "name": "tiny"}, {"id": "2b", "name": "small"}]},
        ("network", "/v2.0/networks?name=provider"): {"networks": [{"id": "3a", "name": "provider"}]},
        ("network", "/v2.0/extensions"): {"extensions": [{"alias": "router"}, {"alias": "agent"}]},
    }
)


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    """Two services, `upper` above `lower`."""
    return catalogs.catalog(tmp_path, {"lower": "", "upper": "lower"}, "lower", "upper")


def parsed(text: str) -> configparser.RawConfigParser:
    parser = configparser.RawConfigParser()
    parser.read_string(text)
    return parser


def test_of_two_services_that_set_an_option_the_upper_one_wins(catalog: Catalog) -> None:
    lower, upper = catalog.service("lower"), catalog.service("upper")
    catalogs.write(lower.folder / FILE, "[network]\nkind = flat\nipv6 = false\n")
    catalogs.write(upper.folder / FILE, "[network]\nkind = own\n[service_available]\nUpper = true\n")
    text = merged((lower, upper), lambda file: file.read_text())
    assert text == "[network]\nkind = own\nipv6 = false\n\n[service_available]\nUpper = true\n\n"


def test_all_files_that_are_no_ini_are_told(catalog: Catalog) -> None:
    services = (catalog.service("lower"), catalog.service("upper"))
    for service in services:
        catalogs.write(service.folder / FILE, "kind = flat\n")
    with pytest.raises(ModelError) as raised:
        merged(services, lambda file: file.read_text())
    assert len(raised.value.problems) == 2


def test_ids_are_those_of_the_cloud() -> None:
    cloud = CloudFacts(CLOUD)
    assert (cloud.image("guest"), cloud.flavor("small"), cloud.network("provider")) == ("1a", "2b", "3a")
    assert cloud.extensions() == "agent,router"
    with pytest.raises(Unmet, match="no flavor named 'huge'"):
        cloud.flavor("huge")


def test_what_the_shipped_services_say_can_be_rendered(tmp_path: Path) -> None:
    home = Home(tmp_path / "state", tmp_path / "cache")
    layers = Catalog.load().profile("openstack").layers
    top = max(layer.number for layer in layers if layer.services)
    planned = tuple(name for layer in layers[:top] for name in layer.planned)
    blueprint = resolve(Lab(home, "blue"), UpRequest(lab="blue", layer=top, without_services=planned))
    secrets = placeholder_secrets(tmp_path / "none", blueprint.services)
    renderer = Renderer("blue", blueprint, secrets, HostFacts(kvm=False, openvswitch=False))
    words = {
        "cloud": CloudFacts(CLOUD),
        "workspace": "/work",
        "images": {"guest.qcow2": Path("/guest.qcow2")},
    }
    conf = parsed(merged(blueprint.services, lambda file: renderer.file(file, words)))
    assert conf["auth"]["admin_password"] == secrets["keystone"]["admin"]
    assert (conf["compute"]["image_ref"], conf["compute"]["flavor_ref_alt"]) == ("1a", "2b")
    names = {service.name for service in blueprint.services}
    optional = {"glance", "nova", "neutron", "cinder", "swift", "horizon"}
    assert {name: conf["service_available"].getboolean(name) for name in optional} == {
        name: name in names for name in optional
    }
