"""Layer 2 on a real layer 1: the climb, what it brings, services that come and go, down and up again.

Costs three quarters of an hour on two cores, after the layer 1 that all lab tests share. The tests run in the
order of the file.
"""

import base64
import re
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from stacklab.model.catalog import Catalog
from tests.lab.program import EXAMPLES, Program, TestLab

pytestmark = pytest.mark.slow

LAYER = Catalog.load().profile("openstack").layers[1]
UP = ("up", "--layer", "2", *(["--without", ",".join(LAYER.planned)] if LAYER.planned else []))
# What a climb has no reason to touch: nothing of layer 2 is wired to them.
UNTOUCHED = (
    "mariadb",
    "rabbitmq-server",
    "memcached",
    "keystone",
    "placement-api",
    "ovn-northd",
    "ovs-vswitchd",
)
BROKEN = """\
version: 1
name: broken
title: A service that does not come up
requires: [keystone]
parts:
  controller: {units: [broken]}
"""
BROKEN_UNIT = """\
[Service]
ExecStart=/bin/sh -c 'echo the flux capacitor is missing >&2; exit 1'

[Install]
WantedBy=multi-user.target
"""


def on_node(lab: TestLab, command: str) -> str:
    return lab.run("ssh", "controller", "--", command)


def types(lab: TestLab) -> set[str]:
    """The types of the services in the catalogue."""
    return {service["Type"] for service in lab.openstack("service", "list")}


def started(lab: TestLab) -> str:
    """When each unit that a climb leaves alone was started."""
    return on_node(lab, f"systemctl show --property=Id,ActiveEnterTimestampMonotonic {' '.join(UNTOUCHED)}")


REQUEST = ("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=signer")


def openssl(*arguments: str) -> bytes:
    return subprocess.run(["openssl", *arguments], capture_output=True, check=True).stdout


# Put an object, print it and remove it, as programs for S3 do: https://docs.aws.amazon.com/AmazonS3/latest/API
S3 = """
import hashlib, hmac, sys, time, urllib.request
access, secret = sys.argv[1:]
def ask(verb, path, body=b""):
    now, digest = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime()), hashlib.sha256(body).hexdigest()
    headers = {"host": "10.20.0.11:8080", "x-amz-content-sha256": digest, "x-amz-date": now}
    told = [f"{name}:{value}" for name, value in headers.items()]
    lines = [verb, path, "", *told, "", ";".join(headers), digest]
    scope, key = f"{now[:8]}/us-east-1/s3/aws4_request", f"AWS4{secret}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    text = ["AWS4-HMAC-SHA256", now, scope, hashlib.sha256("\\n".join(lines).encode()).hexdigest()]
    signature = hmac.digest(key, "\\n".join(text).encode(), "sha256").hex()
    signed = f"SignedHeaders={';'.join(headers)}, Signature={signature}"
    headers["Authorization"] = f"AWS4-HMAC-SHA256 Credential={access}/{scope}, {signed}"
    request = urllib.request.Request(f"http://10.20.0.11:8080{path}", body or None, headers, method=verb)
    return urllib.request.urlopen(request).read()
ask("PUT", "/bucket")
ask("PUT", "/bucket/object", b"hello")
print(ask("GET", "/bucket/object").decode())
ask("DELETE", "/bucket/object")
ask("DELETE", "/bucket")
"""


@pytest.fixture(scope="module")
def lab(program: Program, layer1: TestLab) -> Iterator[TestLab]:
    """A lab thawed on layer 1."""
    lab = TestLab(program, "layer-two")
    lab.up()
    yield lab
    lab.try_("destroy", "--yes")


class TestTheClimb:
    def test_it_does_nothing_of_layer_1_again(self, lab: TestLab) -> None:
        below = set(lab.status()["services"])
        units, before = started(lab), lab.steps("passed")
        lab.run(*UP)
        done = lab.steps("passed")[len(before) :]
        once_only = [name for name in done if re.match(r".+/(database$|resources$|sync\.|init\.)", name)]
        assert once_only
        assert not {"base image", "packages", "guest image"} & set(done)
        assert not [name for name in once_only if name.partition("/")[0] in below]
        assert started(lab) == units

    def test_the_services_of_layer_2_are_in_the_catalogue(self, lab: TestLab) -> None:
        assert lab.status()["layer"] == 2
        assert {"object-store", "key-manager"} <= types(lab)
        assert set(LAYER.services) <= set(lab.status()["services"])

    def test_verify_finds_the_cloud_well(self, lab: TestLab, tmp_path: Path) -> None:
        report = tmp_path / "verify.xml"
        lab.run("verify", "--junit", str(report))
        assert "SSH through the floating IP works" in report.read_text()

    def test_up_again_runs_no_ansible_and_changes_nothing(self, lab: TestLab) -> None:
        before = lab.events(["task", "node"])
        lab.run("up")
        assert lab.events(["task", "node"]) == before


class TestWhatItBrings:
    def test_all_of_it_comes_back_after_a_stop(self, lab: TestLab) -> None:
        lab.run("stop")
        lab.run("start")
        lab.run("verify")

    def test_an_object_is_put_and_got_by_s3(self, lab: TestLab) -> None:
        pair = lab.openstack("ec2", "credentials", "create")
        assert lab.exec("python3", "-c", S3, pair["access"], pair["secret"]).strip() == "hello"
        lab.exec("openstack", "ec2", "credentials", "delete", pair["access"])

    def test_an_object_survives_a_restart_of_swift(self, lab: TestLab, tmp_path: Path) -> None:
        sent, found = tmp_path / "sent", tmp_path / "found"
        sent.write_bytes(secrets.token_bytes(300_000))
        lab.exec("openstack", "container", "create", "kept")
        lab.exec("openstack", "object", "create", "kept", str(sent), "--name", "object")
        on_node(lab, "systemctl restart swift-proxy swift-account swift-container swift-object")
        lab.run("start")
        lab.exec("openstack", "object", "save", "kept", "object", "--file", str(found))
        assert found.read_bytes() == sent.read_bytes()

    def test_a_secret_can_be_stored_by_command(self, lab: TestLab) -> None:
        made = lab.openstack("secret", "store", "--name", "word", "--payload", "open sesame")
        told = lab.openstack("secret", "get", "--payload", made["Secret href"])
        assert told["Payload"] == "open sesame"
        lab.exec("openstack", "secret", "delete", made["Secret href"])

    def test_glance_takes_what_is_signed_and_refuses_what_is_not_what_was_signed(
        self, lab: TestLab, tmp_path: Path
    ) -> None:
        key, certificate, data = tmp_path / "key", tmp_path / "certificate", tmp_path / "data"
        data.write_bytes(secrets.token_bytes(100_000))
        openssl(*REQUEST, "-keyout", str(key), "-out", str(certificate))
        pss = ("-sigopt", "rsa_padding_mode:pss", "-sigopt", "rsa_pss_saltlen:-2")
        signature = openssl("dgst", "-sha256", "-sign", str(key), *pss, str(data))
        stored = lab.openstack(
            *("secret", "store", "--secret-type", "certificate", "--algorithm", "RSA"),
            *("--payload-content-type", "application/octet-stream", "--payload-content-encoding", "base64"),
            *("--payload", base64.b64encode(certificate.read_bytes()).decode()),
        )["Secret href"]
        image = (
            *("openstack", "image", "create", "signed", "--disk-format", "raw", "--container-format", "bare"),
            *("--property", f"img_signature={base64.b64encode(signature).decode()}"),
            *("--property", f"img_signature_certificate_uuid={stored.rpartition('/')[2]}"),
            *("--property", "img_signature_hash_method=SHA-256"),
            *("--property", "img_signature_key_type=RSA-PSS"),
        )
        refused = lab.try_exec(*image, "--file", str(certificate))
        assert refused.returncode != 0
        assert not lab.openstack("image", "list", "--name", "signed", "--status", "active")
        lab.exec(*image, "--file", str(data))
        (taken,) = lab.openstack("image", "list", "--name", "signed", "--status", "active")
        lab.exec("openstack", "image", "delete", taken["ID"])
        lab.exec("openstack", "secret", "delete", stored)


class TestComingAndGoing:
    def test_a_service_that_is_left_out_is_gone_from_the_cloud(self, lab: TestLab) -> None:
        lab.run("up", "--without", "swift,barbican,self-service-networking")
        assert not {"object-store", "key-manager"} & types(lab)
        users = {user["Name"] for user in lab.openstack("user", "list")}
        assert not {"swift", "barbican"} & users
        assert {"nova", "glance", "neutron"} <= users
        running = on_node(lab, "systemctl list-units --state=running --plain --no-legend")
        assert "swift" not in running
        assert "barbican" not in running
        assert "barbican" not in on_node(lab, "cat /etc/nova/nova.conf")
        refused = lab.try_exec("openstack", "network", "create", "mine")
        assert "No tenant network is available" in refused.stderr

    def test_it_comes_back_with_its_data(self, lab: TestLab, tmp_path: Path) -> None:
        lab.run("up", "--with", "swift,barbican,self-service-networking")
        found = tmp_path / "found"
        lab.exec("openstack", "object", "save", "kept", "object", "--file", str(found))
        assert found.stat().st_size == 300_000
        assert "barbican" in on_node(lab, "cat /etc/nova/nova.conf")
        lab.run("verify")

    def test_images_go_to_swift_where_that_is_chosen(self, lab: TestLab) -> None:
        lab.run("up", "--with", "glance-on-swift")
        lab.run("up", "--without", "glance-on-swift")


class TestFaults:
    @pytest.fixture
    def catalog(self, tmp_path: Path) -> Path:
        """A source with a service that works, hello, and one that does not come up."""
        shutil.copytree(EXAMPLES, tmp_path / "source")
        unit = tmp_path / "source/services/broken/files/etc/systemd/system/broken.service"
        unit.parent.mkdir(parents=True)
        unit.write_text(BROKEN_UNIT)
        (tmp_path / "source/services/broken/service.yaml").write_text(BROKEN)
        return tmp_path / "source"

    def test_a_service_that_does_not_come_up_is_told_by_its_log_and_the_rest_is_there(
        self, lab: TestLab, catalog: Path
    ) -> None:
        failed = lab.try_("up", "--with", "broken,hello", "--path", str(catalog))
        assert failed.returncode == 1
        assert "broken/controller failed" in failed.stderr
        assert "the flux capacitor is missing" in failed.stderr
        ask = "import urllib.request as u; print(u.urlopen('http://10.20.0.11:8099/').read().decode())"
        assert f"hello from {lab.name}" in lab.exec("python3", "-c", ask)
        lab.exec("openstack", "container", "list")
        lab.run("up", "--without", "broken,hello")
        assert "greeting" not in types(lab)

    def test_too_little_memory_is_told_with_figures_and_nothing_is_touched(
        self, lab: TestLab, catalog: Path
    ) -> None:
        with (catalog / "services/broken/service.yaml").open("a") as file:
            file.write("needs: {memory: 900 GiB, disk: 90000 GiB}\n")
        before = lab.events(["task", "node", "step"])
        refused = lab.try_("up", "--with", "broken", "--path", str(catalog))
        assert refused.returncode == 3
        assert re.search(r"GiB of memory are free, and the lab takes 900\.\d GiB", refused.stderr)
        assert "90000.5 GiB are needed" in refused.stderr
        assert lab.events(["task", "node", "step"]) == before


def climb_down_and_up(lab: TestLab) -> None:
    lab.run("down", "--to", "1")
    assert lab.status()["layer"] == 1
    assert "object-store" not in types(lab)
    lab.run(*UP)
    assert lab.status()["layer"] == 2
    lab.run("verify")


class TestDownAndUp:
    def test_down_and_up_again_leaves_the_cloud_healthy(self, lab: TestLab) -> None:
        climb_down_and_up(lab)

    def test_and_twice_more(self, lab: TestLab) -> None:
        for _ in range(2):
            climb_down_and_up(lab)


@pytest.mark.parametrize("names", [*LAYER.services, "glance-on-swift", "swift,barbican"])
def test_each_service_comes_up_on_layer_1_by_itself(program: Program, layer1: TestLab, names: str) -> None:
    lab = TestLab(program, "single")
    try:
        lab.up()
        lab.up("--with", names)
        assert set(names.split(",")) <= set(lab.status()["services"])
        assert lab.status()["layer"] == 1
    finally:
        lab.run("destroy", "--yes")


@pytest.mark.parametrize("names", ["cinder", "cinder-backup", "designate"])
def test_what_only_uses_nova_comes_up_without_it(program: Program, names: str) -> None:
    lab = TestLab(program, "no-nova")
    try:
        lab.up("--without", "nova,neutron,placement", "--with", names)
        assert "compute" not in types(lab)
    finally:
        lab.run("destroy", "--yes")
