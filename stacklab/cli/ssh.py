"""`stacklab ssh`: onto a node of the lab."""

import os
from typing import Annotated

import typer

from stacklab.cli.enter import become
from stacklab.cli.options import LabOption, Verbose, examples
from stacklab.errors import UsageError
from stacklab.home import Home

EXAMPLES = examples(
    "stacklab ssh controller",
    "stacklab ssh controller systemctl --failed",
    "stacklab ssh --lab blue controller sh -c 'ls /etc/nova | wc -l'",
)


def ssh(
    node: Annotated[str, typer.Argument(metavar="NODE", help="The node, as `stacklab status` lists it.")],
    command: Annotated[
        list[str] | None, typer.Argument(metavar="COMMAND", help="Run this instead of a shell.")
    ] = None,
    lab: LabOption = "default",
    verbose: Verbose = False,
) -> None:
    """Log in to a node of the lab as root, or run a command on it: everything after NODE.

    The exit code is passed on.
    """
    from stacklab.lab import Lab

    words = command or []
    if words[:1] == ["--"]:
        words = words[1:]
    elif words and words[0].startswith("-"):
        raise UsageError(
            f"what follows NODE is a command, not '{words[0]}'", hint=f"put {words[0]} before {node}"
        )
    become(Lab.open(Home.from_environment(), lab).ssh_command(node, words), os.environ)
