"""`stacklab tempest`: what OpenStack's own test suite has to know of a lab."""

from pathlib import Path
from typing import Annotated

import typer

from stacklab.cli.options import LabOption, Output, OutputOption, Verbose, examples
from stacklab.cli.screen import print_json
from stacklab.home import Home

EXAMPLES = examples(
    "stacklab tempest",
    "stacklab tempest --lab blue cloud/etc/tempest.conf",
    "stacklab exec -- tempest run --smoke",
)


def tempest(
    file: Annotated[
        Path,
        typer.Argument(metavar="[FILE]", dir_okay=False, help="Where to write it.", show_default=True),
    ] = Path("etc/tempest.conf"),
    lab: LabOption = "default",
    output: OutputOption = Output.TABLE,
    verbose: Verbose = False,
) -> None:
    """Write Tempest's configuration for a lab, which must run, into a file.

    In a folder that `tempest init` made; then `stacklab exec -- tempest run` tests the lab.
    """
    from stacklab.files import write_asked
    from stacklab.lab import Lab
    from stacklab.tempest import tempest_conf

    whole = file.absolute()
    workspace = whole.parent.parent if whole.parent.name == "etc" else whole.parent
    write_asked(file, tempest_conf(Lab.open(Home.from_environment(), lab), workspace), mode=0o600)
    if output is Output.JSON:
        print_json({"file": file, "lab": lab})
    else:
        typer.echo(f"{file}: how Tempest tests lab {lab}.")
