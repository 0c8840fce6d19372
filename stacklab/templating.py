"""The two dialects of Jinja that stacklab renders.

Files of services use Jinja's own `{{ }}` and `{% %}`. Playbooks and libvirt's XML use `[[ ]]` and `[% %]`, so
that the braces of Ansible need no escaping. In both an undefined name is an error, never an empty string.
"""

import base64
import hashlib
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from stacklab.home import data_dir


def service_environment() -> Environment:
    """For the templates and command texts in service folders; with the fragments that they may include."""
    environment = Environment(
        loader=FileSystemLoader(data_dir() / "profiles" / "fragments"),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
    )
    environment.filters["salted_sha256"] = salted_sha256
    return environment


def salted_sha256(password: str) -> str:
    """The filter `salted_sha256`: a password as RabbitMQ keeps it, in base64.

    Four bytes of salt, then the SHA-256 of salt and password
    (https://www.rabbitmq.com/docs/passwords#computing-password-hash). The salt comes from the password, so
    that a file is rendered the same each time; these passwords are random, and never two the same.
    """
    salt = hashlib.sha256(f"salt {password}".encode()).digest()[:4]
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()


def stacklab_environment(folder: Path | None = None) -> Environment:
    """For stacklab's own templates, loaded from templates/."""
    return Environment(
        loader=FileSystemLoader(folder or data_dir() / "templates"),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
        block_start_string="[%",
        block_end_string="%]",
        variable_start_string="[[",
        variable_end_string="]]",
        comment_start_string="{#",
        comment_end_string="#}",
    )
