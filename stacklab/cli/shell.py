"""`stacklab shell`: a shell in the lab's network, with the cloud's credentials."""

import os

import typer

from stacklab.cli.enter import become
from stacklab.cli.options import LabOption, Verbose, examples
from stacklab.home import Home

EXAMPLES = examples("stacklab shell", "stacklab shell --lab blue")


def shell(lab: LabOption = "default", verbose: Verbose = False) -> None:
    """Open a shell in the lab, with the cloud's credentials.

    It is in the lab's network and on this machine's files; `exit` leaves it.
    """
    from stacklab.lab import Lab

    entered = Lab.open(Home.from_environment(), lab)
    environment = entered.client_environment(os.environ)
    typer.echo(f"In lab {lab}: try `openstack server list`; `exit` leaves.", err=True)
    become(entered.enter_command([environment.get("SHELL") or "/bin/sh"]), environment)
