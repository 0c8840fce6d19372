"""`stacklab exec`: one command in the lab's network, with the cloud's credentials."""

import os
from typing import Annotated

import typer

from stacklab.cli.enter import become
from stacklab.cli.options import LabOption, Verbose, examples
from stacklab.home import Home

EXAMPLES = examples(
    "stacklab exec -- openstack server list",
    "stacklab exec --lab blue -- openstack image list -f json",
    "stacklab exec -- ping -c 3 10.30.0.100",
)


def exec_(
    command: Annotated[list[str], typer.Argument(metavar="COMMAND", help="The command and its arguments.")],
    lab: LabOption = "default",
    verbose: Verbose = False,
) -> None:
    """Run a command in the lab, with the cloud's credentials.

    It runs in the lab's network and on this machine's files. Its exit code is passed on.
    """
    from stacklab.lab import Lab

    entered = Lab.open(Home.from_environment(), lab)
    environment = entered.client_environment(os.environ)
    become(entered.enter_command(command), environment)
