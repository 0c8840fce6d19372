"""`stacklab services`: which services there are, and which layer of a profile each stands in."""

from typing import TYPE_CHECKING, Annotated

import typer

from stacklab.cli.options import Output, OutputOption, Verbose, examples
from stacklab.cli.request import Profile, SearchPath
from stacklab.cli.screen import print_json, print_table

if TYPE_CHECKING:
    from stacklab.model.service import Service

EXAMPLES = examples(
    "stacklab services",
    "stacklab services --profile starter-kit",
    "stacklab services --path ./my-services --output json",
    "stacklab services --reference > docs/reference/services.md",
)


def services(
    profile: Profile = None,
    path: SearchPath = None,
    reference: Annotated[
        bool, typer.Option("--reference", help="Print all that is known of them, as Markdown.")
    ] = False,
    output: OutputOption = Output.TABLE,
    verbose: Verbose = False,
) -> None:
    """List the services, with the layer of the profile that each stands in."""
    from stacklab.blueprint import DEFAULT_PROFILE
    from stacklab.model.catalog import Catalog
    from stacklab.model.picture import document
    from stacklab.model.reference import markdown

    graph = Catalog.load(path or ()).graph(profile or DEFAULT_PROFILE)
    if reference:
        typer.echo(markdown(graph), nl=False)
        return
    if output is Output.JSON:
        print_json(document(graph)["services"])
        return
    rows: list[tuple[str, ...]] = []
    for cut in graph.layers:
        rows += [_row(str(cut.number), service) for service in graph.services_of(cut.number)]
        rows += [(str(cut.number), name, "(planned, not built yet)", "", "") for name in cut.planned]
    rows += [_row("-", service) for service in graph.services.values() if service.name not in graph.standing]
    print_table(["layer", "service", "title", "requires", "uses"], rows)


def _row(layer: str, service: "Service") -> tuple[str, ...]:
    return layer, service.name, service.title, " ".join(service.requires), " ".join(service.uses)
