"""The passwords of a lab.

Random, made when a service first asks for them, kept in one file that only root reads.
"""

import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from stacklab.errors import LabDamaged
from stacklab.files import write_atomically
from stacklab.model.schema import identifier

if TYPE_CHECKING:
    from stacklab.model.service import Service

LENGTH_BYTES = 20


def read_secrets(file: Path) -> dict[str, dict[str, str]]:
    """The secrets in a file, by service and name; none where there is no file.

    Raises LabDamaged for a file that stacklab did not write.
    """
    if not file.exists():
        return {}
    try:
        known = yaml.safe_load(file.read_text())
        if not all(isinstance(secret, str) for names in known.values() for secret in names.values()):
            raise ValueError("a secret is not text")
    except (AttributeError, ValueError, yaml.YAMLError) as error:
        raise LabDamaged(
            f"{file} is damaged: it is not what stacklab wrote",
            detail=str(error),
            hint=f"mv {file} {file}.damaged, then `stacklab up`: it gives every service a new password",
        ) from error
    found: dict[str, dict[str, str]] = known
    return found


def ensure_secrets(file: Path, services: Iterable["Service"]) -> dict[str, dict[str, str]]:
    """The secrets of `services`, by service and name (`-` as `_` in both); missing ones are made."""
    known = read_secrets(file)
    wanted = {
        identifier(service.name): [identifier(name) for name in service.secrets] for service in services
    }
    complete = {
        service: {name: _old(known, service, name) or _make() for name in names}
        for service, names in wanted.items()
    }
    merged = {**known, **complete}
    if merged != known:
        _write(file, merged)
    return merged


def renew_secrets(file: Path, services: Iterable["Service"]) -> None:
    """Put new secrets of `services` in place of those in the file, all at once."""
    renewed = {
        identifier(service.name): {identifier(name): _make() for name in service.secrets}
        for service in services
    }
    _write(file, renewed)


def placeholder_secrets(file: Path, services: Iterable["Service"]) -> dict[str, dict[str, str]]:
    """The secrets as they are, with a placeholder for each that `up` would make; nothing is written."""
    known = read_secrets(file)
    return {
        identifier(service.name): {
            identifier(name): _old(known, identifier(service.name), identifier(name)) or "(made by up)"
            for name in service.secrets
        }
        for service in services
    }


def masked(text: str, known: Mapping[str, Mapping[str, str]]) -> str:
    """The text, with stars in the place of each secret: for screens and logs."""
    for secret in (secret for names in known.values() for secret in names.values()):
        text = text.replace(secret, "***")
    return text


def _old(known: Mapping[str, Mapping[str, str]], service: str, name: str) -> str | None:
    return known.get(service, {}).get(name)


def _make() -> str:
    return secrets.token_hex(LENGTH_BYTES)


def _write(file: Path, known: Mapping[str, Mapping[str, str]]) -> None:
    write_atomically(file, yaml.safe_dump(known), mode=0o600)
