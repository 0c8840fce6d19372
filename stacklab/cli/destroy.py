"""`stacklab destroy`: remove a lab and all that it had."""

from collections.abc import Iterator
from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated

import typer

from stacklab.cli.options import (
    LabOption,
    Output,
    OutputOption,
    Verbose,
    Yes,
    confirm,
    examples,
    has_terminal,
)
from stacklab.cli.progress import progress
from stacklab.cli.screen import print_json
from stacklab.errors import UsageError
from stacklab.home import Home

if TYPE_CHECKING:
    from stacklab.lab import Lab

EXAMPLES = examples("stacklab destroy", "stacklab destroy --lab blue --yes")


def destroy(
    lab: LabOption = "default",
    yes: Yes = False,
    leave_unreachable: Annotated[
        bool,
        typer.Option(
            "--leave-unreachable",
            help="Leave hosts, or another machine's libvirt, that do not answer as they are.",
        ),
    ] = False,
    output: OutputOption = Output.TABLE,
    verbose: Verbose = False,
) -> None:
    """Remove a lab and all that it had; the cache stays."""
    from stacklab.lab import Lab

    home = Home.from_environment()
    try:
        doomed = Lab(home, lab)
        if not doomed.has_remains:
            doomed = Lab.open(home, lab)
    except UsageError as error:
        error.hint = "stacklab list"  # not how to make one
        raise
    if doomed.has_hosts and output is Output.TABLE:
        for line in what_stays(doomed):
            typer.echo(line, err=True)
    if not yes and not has_terminal():
        raise UsageError(
            f"destroying lab {lab} has to be confirmed, and there is no terminal to ask on",
            hint=f"stacklab destroy --lab {lab} --yes",
        )
    confirm(f"Destroy lab {lab} with everything in it?", yes=yes)
    with (
        doomed.locked(),
        progress(home, output, verbose=verbose) if doomed.has_hosts else nullcontext() as screen,
    ):
        if screen:
            doomed.journal.subscribe(screen)
        doomed.destroy(leave_unreachable=leave_unreachable)
    if output is Output.JSON:
        print_json({"lab": lab, "destroyed": True})
    else:
        typer.echo(f"Lab {lab} is gone.")


def what_stays(lab: "Lab") -> Iterator[str]:
    """What this will not undo on the lab's hosts, as was said before the first change of them."""
    found = [event.data["lines"] for event in lab.journal.read() if event.type == "stacklab.lab.lasting"]
    for lines in found[-1:]:
        yield "Stays on the hosts:"
        yield from (f"  {line}" for line in lines)
