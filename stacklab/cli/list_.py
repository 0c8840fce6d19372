"""`stacklab list`: the labs of this machine."""

import typer

from stacklab.cli.options import Output, OutputOption, Verbose, examples
from stacklab.cli.screen import print_json, print_table
from stacklab.errors import LabDamaged
from stacklab.home import Home

EXAMPLES = examples("stacklab list", "stacklab list --output json")


def list_(output: OutputOption = Output.TABLE, verbose: Verbose = False) -> None:
    """List the labs of this machine."""
    from stacklab.lab import Lab

    labs, there = [], Lab.all(Home.from_environment())
    for lab in there:
        try:
            settings = lab.settings
        except FileNotFoundError:  # it was destroyed just now
            continue
        except LabDamaged as error:
            typer.echo(f"{error.message}; {error.hint}", err=True)
            continue
        labs.append(
            {
                "name": lab.name,
                "running": lab.namespace.pid() is not None,
                "layer": settings.layer,
                "profile": settings.profile,
                "release": settings.release,
                "topology": settings.topology,
                "node_kind": settings.node_kind,
            }
        )
    if output is Output.JSON:
        print_json(labs)
        return
    if not there:
        typer.echo("No labs on this machine. `stacklab up --layer 1` makes one.")
        return
    headers = ["name", "state", "layer", "profile", "release", "topology", "nodes"]
    print_table(
        headers,
        [
            [
                lab["name"],
                "on" if lab["running"] else "off",
                lab["layer"],
                lab["profile"],
                lab["release"],
                lab["topology"],
                lab["node_kind"],
            ]
            for lab in labs
        ],
    )
