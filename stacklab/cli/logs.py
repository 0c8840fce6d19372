"""`stacklab logs`: what a service wrote."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stacklab.cli.enter import become
from stacklab.cli.options import LabOption, Verbose, complete_service, examples
from stacklab.errors import StacklabError, UsageError
from stacklab.home import Home

if TYPE_CHECKING:
    from stacklab.lab import Lab
    from stacklab.provide.provider import Node

EXAMPLES = examples("stacklab logs nova", "stacklab logs keystone -f", "stacklab logs neutron --lab blue")


def logs(
    service: Annotated[
        str,
        typer.Argument(
            metavar="SERVICE",
            autocompletion=complete_service,
            help="The service, as `stacklab services` lists it.",
        ),
    ],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes.")] = False,
    node: Annotated[
        str, typer.Option(metavar="NODE", help="The node, when the service runs on several.")
    ] = "",
    lab: LabOption = "default",
    verbose: Verbose = False,
) -> None:
    """Show what a service wrote on its node."""
    from stacklab.lab import Lab

    opened = Lab.open(Home.from_environment(), lab)
    where, units = units_of(opened, service, node)
    become(opened.logs_command(units, follow=follow, node=where), os.environ)


def units_of(lab: "Lab", name: str, node: str) -> tuple[str, list[str]]:
    """The node and the units on it that make up a service of the lab.

    node: that node, or empty for the first that runs a unit of the service.
    Raises UsageError for a name that is not there, and where the service has no unit.
    """
    nodes = [lab.node(node)] if node else lab.settings.nodes
    units_on = _units_by_node(lab, name)
    for each in nodes:
        units = units_on(each)
        if units:
            return each.name, units
    place = f"on node '{node}'" if node else f"in lab '{lab.name}'"
    raise UsageError(
        f"service '{name}' has no units {place}", hint="stacklab status shows the lab's services"
    )


def _units_by_node(lab: "Lab", name: str) -> "Callable[[Node], list[str]]":
    """What tells the units of a service on a node.

    Where the service's files cannot be read, which may be why somebody looks, the node itself is asked.
    """
    from stacklab.blueprint import parts_on
    from stacklab.model.catalog import Catalog, is_source
    from stacklab.render import STEPS_FILE
    from stacklab.steps import units_of_service

    try:
        folders = [folder for folder in map(Path, lab.settings.path) if is_source(folder)]
        service = Catalog.load(folders).service(name)
    except StacklabError:
        if name not in lab.settings.services:
            raise
        return lambda node: units_of_service(lab.run_on(node.name, ["cat", STEPS_FILE]).stdout, name)
    return lambda node: [unit for part in parts_on(service, node).values() for unit in part.units]
