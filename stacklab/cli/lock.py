"""`stacklab lock`: write down the versions of all packages of a lab."""

from pathlib import Path
from typing import Annotated

import typer

from stacklab.cli.options import LabOption, Output, OutputOption, Verbose, examples
from stacklab.cli.screen import print_json
from stacklab.home import Home

EXAMPLES = examples(
    "stacklab lock",
    "stacklab lock --lab blue blue.yaml",
    "stacklab up --layer 1 --lab green --locked blue.yaml",
)


def lock(
    file: Annotated[
        Path,
        typer.Argument(metavar="[FILE]", dir_okay=False, help="Where to write them.", show_default=True),
    ] = Path("versions.yaml"),
    lab: LabOption = "default",
    output: OutputOption = Output.TABLE,
    verbose: Verbose = False,
) -> None:
    """Write the exact versions of all packages of a lab, which must run, into a file.

    `stacklab up --locked FILE` builds those and no others.
    """
    from stacklab.files import write_asked
    from stacklab.lab import Lab
    from stacklab.versions import versions_of

    versions = versions_of(Lab.open(Home.from_environment(), lab))
    write_asked(file, versions.yaml())
    if output is Output.JSON:
        print_json(versions.model_dump())
    else:
        typer.echo(f"{file}: {len(versions.packages)} packages of lab {lab}.")
