"""The two dialects of Jinja that stacklab renders.

Files of services use Jinja's own `{{ }}` and `{% %}`. Playbooks and libvirt's XML use `[[ ]]` and `[% %]`, so
that the braces of Ansible need no escaping. In both an undefined name is an error, never an empty string.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from stacklab.home import data_dir


def service_environment(filters: Mapping[str, Callable[..., Any]]) -> Environment:
    """For the templates and command texts in service folders."""
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True, trim_blocks=True)
    environment.filters.update(filters)
    return environment


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
