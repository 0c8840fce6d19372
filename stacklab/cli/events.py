"""`stacklab events`: what happened in a lab, from its journal."""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from typing import Annotated

import typer

from stacklab.cli.options import LabOption, Output, OutputOption, Verbose, examples
from stacklab.cli.progress import describe
from stacklab.cli.screen import print_json_line, print_table
from stacklab.event import Event
from stacklab.home import Home

EXAMPLES = examples(
    "stacklab events --since 10m",
    "stacklab events -f --type step --type node.crashed",
    "stacklab events --output json | jq -c .data",
)

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def since(value: str) -> datetime:
    """The time that was `30s`, `10m`, `2h` or `1d` ago, or an ISO 8601 time; without a zone it is local."""
    ago = re.fullmatch(r"(\d+)([smhd])", value)
    try:
        if ago:
            return datetime.now(UTC) - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
        return datetime.fromisoformat(value).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise typer.BadParameter(
            f"{value!r} is neither a length of time (30s, 10m, 2h, 1d) nor a time (2025-11-21T09:00)"
        ) from error


def events(
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes.")] = False,
    start: Annotated[
        datetime | None,
        typer.Option(
            "--since", parser=since, metavar="TIME", help="30s, 10m, 2h, 1d ago, or 2025-11-21T09:00."
        ),
    ] = None,
    types: Annotated[
        list[str] | None,
        typer.Option("--type", metavar="TYPE", help="Only these, such as step, step.failed or 'node.*'."),
    ] = None,
    lab: LabOption = "default",
    output: OutputOption = Output.TABLE,
    verbose: Verbose = False,
) -> None:
    """Show what happened in a lab.

    As JSON, each event is one line: a CloudEvents 1.0 object.
    """
    from stacklab.lab import Lab

    wanted = _filter(start, types or [])
    with Lab.open(Home.from_environment(), lab).journal as journal:
        if not follow:
            _print_all([event for event in journal.read() if wanted(event)], output)
            return
        try:
            for event in journal.follow():
                if wanted(event):
                    _print_one(event, output)
        except KeyboardInterrupt as error:  # the way to end it, and nothing to remark on
            raise typer.Exit(130) from error


def _filter(start: datetime | None, types: list[str]) -> Callable[[Event], bool]:
    patterns = [each.removeprefix("stacklab.") for each in types]

    def wanted(event: Event) -> bool:
        if start is not None and event.time < start:
            return False
        kind = event.type.removeprefix("stacklab.")
        return not patterns or any(
            kind == each or kind.startswith(f"{each}.") or fnmatchcase(kind, each) for each in patterns
        )

    return wanted


def _print_all(chosen: list[Event], output: Output) -> None:
    if output is Output.JSON:
        for event in chosen:
            print_json_line(event.cloudevent())
        return
    print_table(["time", "type", "event"], [_row(event) for event in chosen])


def _print_one(event: Event, output: Output) -> None:
    if output is Output.JSON:
        print_json_line(event.cloudevent())
        return
    when, kind, words = _row(event)
    typer.echo(f"{when}  {kind:<18}  {words}")


def _row(event: Event) -> tuple[str, str, str]:
    when = event.time.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    return when, event.type.removeprefix("stacklab."), describe(event, verbose=True)
