"""`stacklab checkpoint`: points in time of a lab, by name."""

from datetime import datetime
from typing import Annotated

import typer

from stacklab.cli.options import LabOption, Output, OutputOption, Verbose, Yes, confirm, examples
from stacklab.cli.progress import progress
from stacklab.cli.screen import print_json, print_table
from stacklab.home import Home

EXAMPLES = examples(
    "stacklab checkpoint save before-lunch",
    "stacklab checkpoint save in-the-middle --memory",
    "stacklab checkpoint restore before-lunch",
    "stacklab checkpoint ls",
    "stacklab checkpoint rm before-lunch",
)
app = typer.Typer(no_args_is_help=True, help="Keep points in time of a lab, data included.", epilog=EXAMPLES)

Name = Annotated[str, typer.Argument(metavar="NAME", help="The name of the checkpoint.")]


@app.command("save")
def save(
    name: Name,
    lab: LabOption = "default",
    memory: Annotated[
        bool, typer.Option("--memory", help="Keep what the nodes have in memory, too (node kind vm).")
    ] = False,
    output: OutputOption = Output.TABLE,
    verbose: Verbose = False,
) -> None:
    """Keep the lab as it is now; it runs on."""
    from stacklab import checkpoint
    from stacklab.lab import Lab

    home = Home.from_environment()
    with progress(home, output, verbose=verbose) as screen:
        checkpoint.save(Lab.open(home, lab), name, screen, memory=memory)
    if output is Output.TABLE:
        typer.echo(
            f"Lab {lab} is kept as {name}. `stacklab checkpoint restore {name} --lab {lab}` brings it back."
        )


@app.command("restore")
def restore(
    name: Name,
    lab: LabOption = "default",
    yes: Yes = False,
    output: OutputOption = Output.TABLE,
    verbose: Verbose = False,
) -> None:
    """Put the lab back; what came after the checkpoint is gone. On a terminal it asks."""
    from stacklab import checkpoint
    from stacklab.lab import Lab

    home = Home.from_environment()
    restored = Lab.open(home, lab)
    confirm(f"Put lab {lab} back on {name}? What came after that is gone.", yes=yes)
    with progress(home, output, verbose=verbose) as screen:
        checkpoint.restore_checkpoint(restored, name, screen)
    if output is Output.TABLE:
        typer.echo(f"Lab {lab} is as it was at {name}.")


@app.command("ls")
def list_(lab: LabOption = "default", output: OutputOption = Output.TABLE, verbose: Verbose = False) -> None:
    """List the checkpoints of the lab."""
    from stacklab import checkpoint
    from stacklab.images.usage import store_of
    from stacklab.lab import Lab

    home = Home.from_environment()
    store = store_of(home)
    found = checkpoint.checkpoints(Lab.open(home, lab), store)
    if output is Output.JSON:
        print_json([{"name": each.inputs["name"], "image": each.name, "built": each.built} for each in found])
    else:
        rows = [
            [each.inputs["name"], f"{datetime.fromtimestamp(each.built):%Y-%m-%d %H:%M}", each.name]
            for each in found
        ]
        print_table(["name", "saved", "image"], rows)


@app.command("rm")
def remove(
    name: Name, lab: LabOption = "default", output: OutputOption = Output.TABLE, verbose: Verbose = False
) -> None:
    """Forget a checkpoint."""
    from stacklab import checkpoint
    from stacklab.lab import Lab

    checkpoint.remove(Lab.open(Home.from_environment(), lab), name)
    if output is Output.JSON:
        print_json({"lab": lab, "checkpoint": name, "removed": True})
    else:
        typer.echo(f"Checkpoint {name} of lab {lab} is gone.")
