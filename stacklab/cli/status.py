"""`stacklab status`: one lab at a glance."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import typer

from stacklab.cli.options import LabOption, Output, OutputOption, Verbose, examples
from stacklab.cli.progress import describe
from stacklab.cli.screen import print_json, print_table
from stacklab.errors import StacklabError
from stacklab.home import Home

if TYPE_CHECKING:
    from stacklab.check.placement import Placement
    from stacklab.event import Event
    from stacklab.journal import Journal
    from stacklab.lab import Lab

EXAMPLES = examples("stacklab status", "stacklab status --lab blue --output json")


def status(lab: LabOption = "default", output: OutputOption = Output.TABLE, verbose: Verbose = False) -> None:
    """Show how a lab does: what it is built from, its nodes and what runs on each, the last event."""
    from stacklab.lab import Lab
    from stacklab.lab.lab import summary

    seen = Lab.open(Home.from_environment(), lab)
    state = seen.status()
    with seen.journal as journal:
        newest = _newest(journal)
    running, trouble = _placement(seen) if state.running and state.settings.layer else ({}, "")
    if output is Output.JSON:
        last = newest.cloudevent() if newest else None
        print_json(summary(state) | {"units": running, "trouble": trouble, "last_event": last})
        return
    settings = state.settings
    typer.echo(f"lab       {state.name}, {'on' if state.running else 'off'}")
    typer.echo(
        f"layer     {settings.layer or 'none yet'} of profile {settings.profile}, release {settings.release}"
    )
    typer.echo(f"services  {', '.join(settings.services) or 'none yet'}")
    added = [name if name in settings.services else f"{name} (not up)" for name in settings.with_services]
    for word, values in (
        ("with", added),
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
            [node.name, state.nodes[node.name], node.address, node.kind, " ".join(node.roles)]
            for node in settings.nodes
        ],
    )
    if trouble:
        typer.echo(f"\nWhat runs on them cannot be told: {trouble}")
    if running:
        typer.echo("")
        names = [node.name for node in settings.nodes]
        print_table(["service", *names], list(_rows(running, names)))
        for service, node, unit, words in _troubles(running):
            typer.echo(f"{unit} ({service}) on {node}: {words}")


def _placement(lab: "Lab") -> "tuple[Placement, str]":
    """What runs where; or why that cannot be told: the files of the services may have gone or be broken."""
    from stacklab.blueprint import as_it_stands
    from stacklab.check.placement import placement

    try:
        return placement(lab, as_it_stands(lab)), ""
    except StacklabError as error:
        return {}, error.message


def _rows(running: "Placement", nodes: Sequence[str]) -> Iterator[list[str]]:
    """A row for each service: how many of its units run on each node."""
    for service, by_node in running.items():
        cells = []
        for node in nodes:
            units = by_node.get(node)
            well = sum(state == "runs" for state in (units or {}).values())
            cells.append("" if units is None else "-" if not units else f"{well}/{len(units)}")
        yield [service, *cells]


def _troubles(running: "Placement") -> Iterator[tuple[str, str, str, str]]:
    """Service, node, unit and what is wrong with it."""
    for service, by_node in running.items():
        for node, units in by_node.items():
            for unit, state in units.items():
                if state != "runs":
                    yield service, node, unit, state


def _newest(journal: "Journal") -> "Event | None":
    events = journal.read(after=journal.newest() - 1)
    return events[-1] if events else None
