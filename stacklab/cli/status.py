"""`stacklab status`: one lab at a glance."""

from typing import TYPE_CHECKING

import typer

from stacklab.cli.options import LabOption, Output, OutputOption, Verbose, examples
from stacklab.cli.progress import describe
from stacklab.cli.screen import print_json, print_table
from stacklab.home import Home

if TYPE_CHECKING:
    from stacklab.journal import Event, Journal

EXAMPLES = examples("stacklab status", "stacklab status --lab blue --output json")


def status(lab: LabOption = "default", output: OutputOption = Output.TABLE, verbose: Verbose = False) -> None:
    """Show how a lab does: what it is built from, its nodes, the last event."""
    from stacklab.lab import Lab
    from stacklab.lab.lab import summary

    seen = Lab.open(Home.from_environment(), lab)
    state = seen.status()
    with seen.journal as journal:
        newest = _newest(journal)
    if output is Output.JSON:
        print_json(summary(state) | {"last_event": newest.cloudevent() if newest else None})
        return
    settings = state.settings
    typer.echo(f"lab       {state.name}, {'on' if state.running else 'off'}")
    typer.echo(
        f"layer     {settings.layer or 'none yet'} of profile {settings.profile}, release {settings.release}"
    )
    typer.echo(f"services  {', '.join(settings.services) or 'none yet'}")
    for word, values in (
        ("with", settings.with_services),
        ("without", settings.without_services),
        ("path", settings.path),
    ):
        if values:
            typer.echo(f"{word:<9} {', '.join(values)}")
    if newest:
        typer.echo(
            f"last      {describe(newest, verbose=True)}, {newest.time.astimezone():%Y-%m-%d %H:%M:%S}"
        )
    typer.echo("")
    print_table(
        ["node", "state", "address", "kind", "roles"],
        [
            [node.name, state.nodes[node.name], node.address, settings.node_kind, " ".join(node.roles)]
            for node in settings.nodes
        ],
    )


def _newest(journal: "Journal") -> "Event | None":
    events = journal.read(after=journal.newest() - 1)
    return events[-1] if events else None
