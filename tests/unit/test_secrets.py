"""The passwords of a lab: made once, kept, renewed all at once, and handed to RabbitMQ in its own form."""

import base64
import hashlib
import stat
import struct
from pathlib import Path

import pytest

from stacklab.lab.secrets import ensure_secrets, masked, renew_secrets
from stacklab.model.catalog import Catalog
from stacklab.model.service import Service
from stacklab.templating import cephx_key, salted_sha256, service_environment


@pytest.fixture
def services() -> list[Service]:
    return [service for service in Catalog.load().services.values() if service.secrets]


def test_secrets_stay_and_new_services_get_theirs(tmp_path: Path, services: list[Service]) -> None:
    first = ensure_secrets(tmp_path / "secrets.yaml", services[:1])
    all_of_them = ensure_secrets(tmp_path / "secrets.yaml", services)
    assert all_of_them.items() > first.items()
    assert ensure_secrets(tmp_path / "secrets.yaml", services) == all_of_them


def test_renewed_secrets_are_all_other_ones_that_only_root_reads(
    tmp_path: Path, services: list[Service]
) -> None:
    file = tmp_path / "secrets.yaml"
    before = ensure_secrets(file, services)
    renew_secrets(file, services)
    after = ensure_secrets(file, services)
    assert {service: set(names) for service, names in after.items()} == {
        service: set(names) for service, names in before.items()
    }
    assert all(
        after[service][name] != before[service][name] for service in before for name in before[service]
    )
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_password_is_hashed_as_rabbitmq_checks_it() -> None:
    raw = base64.b64decode(salted_sha256("s3cret"))
    assert raw[4:] == hashlib.sha256(raw[:4] + b"s3cret").digest()
    assert salted_sha256("s3cret") == salted_sha256("s3cret") != salted_sha256("other")


def test_a_password_is_a_key_as_ceph_reads_it() -> None:
    kind, made_s, made_ns, length = struct.unpack_from("<HIIH", raw := base64.b64decode(cephx_key("s3cret")))
    assert (kind, made_s, made_ns, length) == (1, 0, 0, len(raw[12:])) == (1, 0, 0, 16)
    assert cephx_key("s3cret") == cephx_key("s3cret") != cephx_key("other")


def test_templates_have_the_filters() -> None:
    environment = service_environment()
    for made in (salted_sha256, cephx_key):
        text = environment.from_string(f"{{{{ 's3cret' | {made.__name__} }}}}").render()
        assert text == made("s3cret")


def test_a_command_is_shown_without_its_secrets() -> None:
    known = {"keystone": {"admin": "abc123"}, "nova": {"database": "def456"}}
    assert masked("login abc123 && login def456 there", known) == "login *** && login *** there"
