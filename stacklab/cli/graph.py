"""`stacklab graph`: the services, the layers and what needs what, as a picture."""

from enum import StrEnum
from typing import Annotated

import typer

from stacklab.cli.options import Verbose, examples
from stacklab.cli.request import Profile, SearchPath
from stacklab.cli.screen import print_json

EXAMPLES = examples(
    "stacklab graph",
    "stacklab graph --format svg > layers.svg",
    "stacklab graph --profile starter-kit --format dot | dot -Tpng > layers.png",
)


class Format(StrEnum):
    """What the picture is written as."""

    MERMAID = "mermaid"
    DOT = "dot"
    SVG = "svg"
    JSON = "json"


FormatOption = Annotated[Format, typer.Option("--format", help="What to write the graph as.")]


def graph(
    format_: FormatOption = Format.MERMAID,
    profile: Profile = None,
    path: SearchPath = None,
    verbose: Verbose = False,
) -> None:
    """Draw the services in their layers, with arrows to what each requires and uses."""
    from stacklab.blueprint import DEFAULT_PROFILE
    from stacklab.model import picture
    from stacklab.model.catalog import Catalog
    from stacklab.model.drawing import svg

    drawn = Catalog.load(path or ()).graph(profile or DEFAULT_PROFILE)
    if format_ is Format.JSON:
        print_json(picture.document(drawn))
        return
    write = {Format.MERMAID: picture.mermaid, Format.DOT: picture.dot, Format.SVG: svg}[format_]
    typer.echo(write(drawn), nl=False)
