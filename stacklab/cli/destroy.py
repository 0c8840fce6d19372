"""`stacklab destroy`: remove a lab and all that it had."""

import sys

import typer

from stacklab.cli.options import LabOption, Output, OutputOption, Verbose, Yes, examples
from stacklab.cli.screen import print_json
from stacklab.errors import UsageError
from stacklab.home import Home

EXAMPLES = examples("stacklab destroy", "stacklab destroy --lab blue --yes")


def destroy(
    lab: LabOption = "default",
    yes: Yes = False,
    output: OutputOption = Output.TABLE,
    verbose: Verbose = False,
) -> None:
    """Remove a lab and all that it had; the cache stays."""
    from stacklab.lab import Lab

    try:
        doomed = Lab.open(Home.from_environment(), lab)
    except UsageError as error:
        error.hint = "stacklab list"  # not how to make one
        raise
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError(
                f"destroying lab {lab} has to be confirmed, and there is no terminal to ask on",
                hint=f"stacklab destroy --lab {lab} --yes",
            )
        typer.confirm(f"Destroy lab {lab} with everything in it?", abort=True)
    with doomed.locked():
        doomed.destroy()
    if output is Output.JSON:
        print_json({"lab": lab, "destroyed": True})
    else:
        typer.echo(f"Lab {lab} is gone.")
