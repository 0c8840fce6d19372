"""`stacklab plan`: what `up` would do; nothing is touched."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import typer

from stacklab.cli.options import Output, OutputOption, Verbose, examples
from stacklab.cli.request import requesting, up_command
from stacklab.cli.screen import print_json
from stacklab.home import Home

if TYPE_CHECKING:
    from stacklab.blueprint import UpRequest
    from stacklab.plan import Plan

EXAMPLES = examples(
    "stacklab plan --layer 1",
    "stacklab plan --layer 1 --profile starter-kit --with memcached",
    "stacklab plan --output json | jq '.layers[].steps'",
)


_SIGNS = {"add": "+", "change": "~", "remove": "-"}


@requesting
def plan(request: "UpRequest", output: OutputOption = Output.TABLE, verbose: Verbose = False) -> None:
    """Show what `up` would do.

    Steps, files with their differences (of new ones, too, with -v) and what is cached. Nothing is touched.
    """
    from stacklab.plan import make_plan

    planned = make_plan(Home.from_environment(), request)
    if output is Output.JSON:
        print_json(planned)
        return
    for line in lines(planned, up_command(request), every_difference=verbose):
        typer.echo(line)


REASONS_SHOWN = 12


def _start_lines(plan: "Plan") -> Iterator[str]:
    start = plan.start
    if start is None:
        return
    if start.image:
        yield f"  start  {start.image}, an image of layer {start.layer}"
    if start.closest:
        yield f"  {start.closest} does not match:"
        yield from (f"         {reason}" for reason in start.reasons[:REASONS_SHOWN])
        if len(start.reasons) > REASONS_SHOWN:
            yield f"         and {len(start.reasons) - REASONS_SHOWN} more"


def lines(plan: "Plan", command: str, *, every_difference: bool = False) -> Iterator[str]:
    """A plan for people.

    command: the command line that does it. every_difference: of new files, too; otherwise only of those that
    change.
    """
    yield f"Lab {plan.lab}, up to layer {plan.layer}."
    if not (plan.nodes or plan.layers):
        yield "Nothing to do."
        return
    yield from _start_lines(plan)
    for image in () if plan.start and plan.start.image else plan.images:
        yield f"  image  {image.kind:<9} {image.key[:12]}  {'cached' if image.cached else 'to be built'}"
    if plan.seeded:
        yield "  layers come from containers, as KVM does not work here"
    for node in plan.nodes:
        yield f"  node   {node:<9} to be made"
    for layer in plan.layers:
        yield ""
        yield f"Layer {layer.number}: {', '.join(layer.services)}"
        yield f"  {len(layer.steps)} steps"
        yield from (f"    {node}  {step}" for node, step in layer.steps)
        yield f"  {len(layer.files)} files"
        for file in layer.files:
            yield f"    {file.node}  {_SIGNS.get(file.action, file.action)} {file.path}"
            if every_difference or file.action == "change":
                yield from (f"        {line}" for line in file.difference.splitlines())
    yield ""
    yield f"Nothing was touched. This does it: {command}"
