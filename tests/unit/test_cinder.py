"""What Cinder is told follows from the services beside it; each node gets the files of its roles alone."""

from configparser import ConfigParser
from dataclasses import replace
from pathlib import Path

import pytest

from stacklab.blueprint import Blueprint, UpRequest, resolve
from stacklab.home import Home
from stacklab.lab.lab import Lab
from stacklab.lab.secrets import placeholder_secrets
from stacklab.model.catalog import Catalog
from stacklab.render import HostFacts, Rendered, Renderer

SECRET = "/etc/libvirt/secrets/5aca1ab0-ceff-4ce0-8c1d-000000000001"
HOST = HostFacts(kvm=False, openvswitch=False)


@pytest.fixture
def layer1(tmp_path: Path) -> Blueprint:
    return resolve(Lab(Home(tmp_path / "state", tmp_path / "cache"), "blue"), UpRequest(lab="blue", layer=1))


def render(blueprint: Blueprint, *names: str, host: HostFacts = HOST) -> Rendered:
    cuts = Catalog.load().graph("openstack").cuts(1, names)
    blueprint = replace(blueprint, cuts=cuts)
    secrets = placeholder_secrets(Path("/nonexistent"), blueprint.services)
    return Renderer("blue", blueprint, secrets, host).layer(1)


def config(rendered: Rendered, path: str = "/etc/cinder/cinder.conf") -> ConfigParser:
    parser = ConfigParser(interpolation=None)
    parser.read_string(rendered.files["controller"][path].content.decode())
    return parser


def test_volumes_lie_in_ceph(layer1: Blueprint) -> None:
    rendered = render(layer1, "cinder")
    cinder = config(rendered)
    assert cinder["DEFAULT"]["enabled_backends"] == cinder["DEFAULT"]["default_volume_type"] == "ceph"
    assert SECRET.endswith(cinder["ceph"]["rbd_secret_uuid"])
    assert "lvm" not in cinder
    assert "backup_driver" not in cinder["DEFAULT"]
    assert "key_manager" not in cinder
    assert {"nova", "service_user"} <= set(cinder.sections())
    assert "cinder" in config(rendered, "/etc/nova/nova.conf")


@pytest.mark.parametrize("path", ["/etc/cinder/cinder.conf", "/etc/nova/nova.conf"])
def test_on_a_slow_node_what_reports_less_often_counts_as_dead_later(layer1: Blueprint, path: str) -> None:
    quick = config(render(layer1, "cinder"), path)["DEFAULT"]
    slow = config(render(layer1, "cinder", host=replace(HOST, patience=4.0)), path)["DEFAULT"]
    for name in ("report_interval", "service_down_time"):
        assert int(slow[name]) == 4 * int(quick[name])
    assert int(quick["service_down_time"]) >= 6 * int(quick["report_interval"])


def test_the_key_of_qemu_is_the_one_that_ceph_knows(layer1: Blueprint) -> None:
    rendered = render(layer1, "cinder")
    keyring = config(rendered, "/etc/ceph/ceph.client.cinder.keyring")["client.cinder"]["key"]
    secret = rendered.files["controller"][f"{SECRET}.base64"]
    assert secret.content.decode() == keyring
    assert secret.mode == 0o600
    (pool,) = [step for step in rendered.steps["controller"] if step.id == "cinder/init.pool"]
    assert keyring in pool.run


def test_lvm_is_the_default_where_it_is_chosen(layer1: Blueprint) -> None:
    cinder = config(render(layer1, "cinder-on-lvm"))["DEFAULT"]
    assert (cinder["enabled_backends"], cinder["default_volume_type"]) == ("ceph,lvm", "lvm")


def test_backups_and_keys_are_wired_with_their_services(layer1: Blueprint) -> None:
    cinder = config(render(layer1, "cinder-backup", "encrypted-volumes"))
    assert cinder["DEFAULT"]["backup_driver"].endswith("SwiftBackupDriver")
    assert cinder["key_manager"]["backend"] == "barbican"


def test_a_node_gets_the_files_of_its_roles(layer1: Blueprint) -> None:
    (controller,) = layer1.nodes
    compute = replace(controller, name="compute-1", address="10.20.0.21", roles=("compute",))
    settings = layer1.settings.model_copy(update={"nodes": (controller, compute)})
    rendered = render(replace(layer1, settings=settings), "encrypted-volumes")
    here = {path for path in rendered.files["compute-1"] if "cinder" in path or "barbican" in path}
    assert all(path.endswith("/stacklab-elsewhere.conf") for path in here)
    assert {f"{SECRET}.xml", f"{SECRET}.base64"} <= set(rendered.files["compute-1"])
