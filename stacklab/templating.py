"""The two dialects of Jinja that stacklab renders.

Files of services use Jinja's own `{{ }}` and `{% %}`. Playbooks and libvirt's XML use `[[ ]]` and `[% %]`, so
that the braces of Ansible need no escaping. In both an undefined name is an error, never an empty string.
"""

import base64
import hashlib
import struct
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from jinja2 import (
    Environment,
    FileSystemLoader,
    StrictUndefined,
    Template,
    TemplateError,
    TemplateSyntaxError,
    nodes,
)
from jinja2.utils import missing

from stacklab.home import data_dir
from stacklab.model.documents import did_you_mean

WORDS = (
    "lab",
    "release",
    "node",
    "nodes",
    "nodes_by_role",
    "controller",
    "services",
    "secrets",
    "network",
    "host",
    "workers",
)
"""What templates and commands of services know; docs/reference/service.md explains each."""


class UndefinedWord(StrictUndefined):
    """A word that is not there: an error that names the nearest one that is."""

    @property
    def _undefined_message(self) -> str:
        name, parent = str(self._undefined_name), self._undefined_obj
        if parent is missing:
            return f"unknown word '{name}'{did_you_mean(name, WORDS)}"
        keys = parent if isinstance(parent, Mapping) else dir(parent)
        known = sorted(str(key) for key in keys if not str(key).startswith("_"))
        listed = f"; there is: {', '.join(known) or 'nothing'}" if isinstance(parent, Mapping) else ""
        return f"there is no '{name}'{did_you_mean(name, known) or listed}"


@cache
def service_environment() -> Environment:
    """For the templates and command texts in service folders; with the fragments that they may include."""
    environment = Environment(
        loader=FileSystemLoader(data_dir() / "profiles" / "fragments"),
        undefined=UndefinedWord,
        keep_trailing_newline=True,
        trim_blocks=True,
    )
    environment.filters["salted_sha256"] = salted_sha256
    environment.filters["cephx_key"] = cephx_key
    return environment


# The same texts are examined, and then rendered for each layer and each recipe: to read and to compile one
# takes many times longer than to render it, and is done once.
@cache
def service_tree(text: str) -> nodes.Template:
    """What Jinja reads in a text of a service. Raises TemplateSyntaxError."""
    return service_environment().parse(text)


@cache
def service_template(text: str) -> Template:
    """A text of a service, ready to be rendered. Raises TemplateSyntaxError."""
    return service_environment().from_string(service_tree(text))


FAILURES = (TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""What goes wrong in a text when it is rendered."""


def failure_in(error: Exception) -> tuple[int, str]:
    """Line, counting from 1 in the text that was rendered, and message of one of FAILURES."""
    if isinstance(error, TemplateSyntaxError):
        return error.lineno, f"not a Jinja template: {error.message}"
    line, trace = 1, error.__traceback__
    while trace is not None:  # Jinja rewrites tracebacks so that the text's own lines stand in them
        if trace.tb_frame.f_code.co_filename == "<template>":
            line = trace.tb_lineno
        trace = trace.tb_next
    kind = "" if isinstance(error, TemplateError) else f"{type(error).__name__}: "
    return line, f"cannot be rendered: {kind}{error}"


def salted_sha256(password: str) -> str:
    """The filter `salted_sha256`: a password as RabbitMQ keeps it, in base64.

    Four bytes of salt, then the SHA-256 of salt and password
    (https://www.rabbitmq.com/docs/passwords#computing-password-hash). The salt comes from the password, so
    that a file is rendered the same each time; these passwords are random, and never two the same.
    """
    salt = hashlib.sha256(f"salt {password}".encode()).digest()[:4]
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()


def cephx_key(password: str) -> str:
    """The filter `cephx_key`: a password as a key of Ceph, in base64.

    Type 1 (AES), the time of its making (none), the length, and 16 bytes that come from the password
    (CryptoKey::encode in Ceph's src/auth/Crypto.h; all little-endian).
    """
    key = hashlib.sha256(password.encode()).digest()[:16]
    return base64.b64encode(struct.pack("<HIIH", 1, 0, 0, len(key)) + key).decode()


@cache
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
