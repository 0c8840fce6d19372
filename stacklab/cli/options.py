"""The options that several verbs share."""

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from stacklab.errors import StacklabError


class Output(StrEnum):
    """Who reads the output: a person or a program."""

    TABLE = "table"
    JSON = "json"


def _complete_lab(incomplete: str) -> list[str]:
    from stacklab.home import Home

    labs = Home.named().labs
    try:
        return sorted(lab.name for lab in labs.glob("[a-z]*") if lab.name.startswith(incomplete))
    except OSError:  # no labs yet, or not root: no suggestions
        return []


def complete_service(incomplete: str) -> list[str]:
    """The services of stacklab itself and of $STACKLAB_PATH, by their folders; the last one of a,b,c."""
    from stacklab.home import data_dir

    named = filter(None, os.environ.get("STACKLAB_PATH", "").split(os.pathsep))
    sources = [data_dir() / "profiles", *map(Path, named)]
    files = [file for source in sources for file in source.glob("services/*/service.yaml")]
    before, comma, begun = incomplete.rpartition(",")
    return sorted(
        {f"{before}{comma}{file.parent.name}" for file in files if file.parent.name.startswith(begun)}
    )


def complete_image(incomplete: str) -> list[str]:
    """The images in the cache."""
    from stacklab.home import Home

    files = (Home.named().cache / "images").glob("*/image.json")
    return sorted(file.parent.name for file in files if file.parent.name.startswith(incomplete))


def _set_verbose(context: typer.Context, value: bool) -> bool:
    if value:
        context.find_root().meta[VERBOSE] = True
    return value


VERBOSE = "stacklab.verbose"

LabOption = Annotated[
    str,
    typer.Option(
        "--lab",
        metavar="NAME",
        envvar="STACKLAB_LAB",
        autocompletion=_complete_lab,
        help="The lab to work on.",
    ),
]
OutputOption = Annotated[
    Output, typer.Option("--output", "-o", help="A table for people, or JSON for programs (errors, too).")
]
Verbose = Annotated[
    bool,
    typer.Option(
        "--verbose", "-v", callback=_set_verbose, help="Say more; show the traceback of an unexpected error."
    ),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def confirm(question: str, *, yes: bool) -> None:
    """Ask before something is discarded; not where there is no terminal, as scripts say what they mean.

    Raises StacklabError when the answer is no.
    """
    if not yes and has_terminal() and not ask(question):
        raise StacklabError("the answer was no: nothing was changed")


def ask(question: str) -> bool:
    """Ask on the terminal, beside what is printed for programs. Raises typer.Abort on Ctrl-C and Ctrl-D."""
    try:
        return typer.confirm(question, err=True)
    except typer.Abort:
        typer.echo(err=True)  # the line of the question
        raise


def has_terminal() -> bool:
    """Whether there is somebody to ask."""
    return sys.stdin.isatty()


def examples(*lines: str) -> str:
    """The epilog of a verb's help: a heading, then one line per example."""
    return "\n".join(["Examples:", *(f"  {line}" for line in lines)])
