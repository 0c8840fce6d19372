"""`stacklab verify`: whether the cloud does what it is there for."""

from pathlib import Path
from typing import Annotated

import typer

from stacklab.cli.options import LabOption, Output, OutputOption, Verbose, examples
from stacklab.cli.progress import progress
from stacklab.home import Home

EXAMPLES = examples("stacklab verify", "stacklab verify --lab blue --junit results.xml")


def verify(
    lab: LabOption = "default",
    junit: Annotated[
        Path | None, typer.Option("--junit", metavar="FILE", dir_okay=False, help="Write JUnit XML, too.")
    ] = None,
    output: OutputOption = Output.TABLE,
    verbose: Verbose = False,
) -> None:
    """Check that the cloud works.

    Its APIs, its agents, and an instance that boots, answers and goes. Ends with 4 when a check fails.
    """
    from stacklab.check import CheckState
    from stacklab.check import verify as check
    from stacklab.lab import Lab

    home = Home.from_environment()
    checked = Lab.open(home, lab)
    with progress(home, output, verbose=verbose) as screen:
        results = check(checked, screen, junit)
    if output is Output.TABLE:
        passed = sum(result.state is CheckState.PASSED for result in results)
        skipped = f", {len(results) - passed} skipped" if passed < len(results) else ""
        typer.echo(f"Lab {lab} does what it should: {passed} checks passed{skipped}.")
