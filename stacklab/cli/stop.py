"""`stacklab stop`: switch a lab off and keep it."""

import typer

from stacklab.cli.options import LabOption, Output, OutputOption, Verbose, examples
from stacklab.cli.progress import progress
from stacklab.home import Home

EXAMPLES = examples("stacklab stop", "stacklab stop --lab blue")


def stop(lab: LabOption = "default", output: OutputOption = Output.TABLE, verbose: Verbose = False) -> None:
    """Switch a lab off; its disks stay, and `stacklab start` brings it back."""
    from stacklab.lab import Lab

    home = Home.from_environment()
    stopped = Lab.open(home, lab)
    with stopped.locked(), progress(home, output, verbose=verbose) as screen:
        stopped.journal.subscribe(screen)
        stopped.stop()
    if output is Output.TABLE:
        typer.echo(f"Lab {lab} is off. `stacklab start --lab {lab}` brings it back.")
