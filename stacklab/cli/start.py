"""`stacklab start`: switch a lab on again, after `stop`, a reboot or a power cut."""

import typer

from stacklab.cli.options import LabOption, Output, OutputOption, Verbose, examples
from stacklab.cli.progress import progress
from stacklab.home import Home

EXAMPLES = examples("stacklab start", "stacklab start --lab blue")


def start(lab: LabOption = "default", output: OutputOption = Output.TABLE, verbose: Verbose = False) -> None:
    """Switch a lab on again, after `stop`, a reboot or a power cut."""
    from stacklab.lab import Lab
    from stacklab.restore import start as start_lab

    home = Home.from_environment()
    started = Lab.open(home, lab)
    with progress(home, output, verbose=verbose) as screen:
        start_lab(started, screen)
    if output is Output.TABLE:
        typer.echo(f"Lab {lab} is on. `stacklab status --lab {lab}` shows how it does.")
