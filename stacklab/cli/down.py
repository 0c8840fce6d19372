"""`stacklab down`: step back to a layer."""

from typing import Annotated

import typer

from stacklab.cli.options import LabOption, Output, OutputOption, Verbose, Yes, confirm, examples
from stacklab.cli.progress import progress
from stacklab.home import Home

EXAMPLES = examples("stacklab down --to 1", "stacklab down --to 1 --lab blue")


def down(
    to: Annotated[int, typer.Option("--to", min=1, metavar="N", help="The layer to step back to.")],
    lab: LabOption = "default",
    yes: Yes = False,
    output: OutputOption = Output.TABLE,
    verbose: Verbose = False,
) -> None:
    """Step back to a layer as it was when it came up.

    Whatever happened since then is gone: keep it with `stacklab checkpoint save` first. On a terminal it
    asks.
    """
    from stacklab.lab import Lab
    from stacklab.restore import down as step_down

    home = Home.from_environment()
    lowered = Lab.open(home, lab)
    confirm(f"Step lab {lab} down to layer {to}? What came after that is gone.", yes=yes)
    with progress(home, output, verbose=verbose) as screen:
        step_down(lowered, to, screen)
    if output is Output.TABLE:
        typer.echo(f"Lab {lab} is on layer {to}, as it was when it came up.")
