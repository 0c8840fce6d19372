"""`stacklab clone`: copies of a lab, side by side with it."""

from typing import Annotated

import typer

from stacklab.cli.options import Output, OutputOption, Verbose, examples
from stacklab.cli.progress import progress
from stacklab.home import Home

EXAMPLES = examples(
    "stacklab clone default copy",
    "stacklab clone default student --count 20",
    "stacklab clone default blue --new-secrets",
)


def clone(
    source: Annotated[str, typer.Argument(metavar="SRC", help="The lab to copy.")],
    destination: Annotated[
        str, typer.Argument(metavar="DST", help="The name of the copy; with --count, of DST-1, DST-2, ...")
    ],
    count: Annotated[
        int | None, typer.Option("--count", min=1, metavar="K", help="How many copies to make.")
    ] = None,
    new_secrets: Annotated[
        bool, typer.Option("--new-secrets", help="Give each passwords of its own.")
    ] = False,
    memory: Annotated[
        bool, typer.Option("--memory", help="Go on where SRC is instead of booting (node kind vm).")
    ] = False,
    output: OutputOption = Output.TABLE,
    verbose: Verbose = False,
) -> None:
    """Make copies of a lab with all its data.

    They run side by side with the same inside addresses, do not see each other, and share what they do not
    change.
    """
    from stacklab.checkpoint import clone as copy
    from stacklab.lab import Lab

    home = Home.from_environment()
    names = [f"{destination}-{number}" for number in range(1, count + 1)] if count else [destination]
    with progress(home, output, verbose=verbose) as screen:
        copy(Lab.open(home, source), names, screen, new_secrets=new_secrets, memory=memory)
    if output is Output.TABLE:
        typer.echo(f"Made of lab {source}: {', '.join(names)}. `stacklab shell --lab {names[0]}` enters it.")
