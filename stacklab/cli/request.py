"""The options by which `up` and `plan` say what is to be built, and the command line that says the same."""

import shlex
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stacklab.cli.options import complete_service

if TYPE_CHECKING:
    from stacklab.blueprint import UpRequest


class NodeKind(StrEnum):
    """What the nodes of a lab are."""

    AUTO = "auto"
    LXC = "lxc"
    VM = "vm"
    HOST = "host"


Layer = Annotated[
    int | None,
    typer.Option(
        "--layer",
        "-l",
        min=1,
        metavar="N",
        help="Climb to this layer; by default where the lab stands, or 1.",
    ),
]
Profile = Annotated[str | None, typer.Option("--profile", metavar="NAME", help="The layer profile.")]
Release = Annotated[str | None, typer.Option("--release", metavar="NAME", help="The OpenStack release.")]
Topology = Annotated[
    str | None,
    typer.Option("--topology", metavar="NAME", help="The nodes and their roles: a name or a file."),
]
Computes = Annotated[
    int | None,
    typer.Option("--computes", min=1, metavar="K", help="A controller and K compute nodes beside it."),
]
NodeKindOption = Annotated[
    NodeKind | None, typer.Option("--node-kind", help="What nodes are; auto takes the best that works here.")
]
With = Annotated[
    list[str] | None,
    typer.Option(
        "--with", metavar="SERVICES", autocompletion=complete_service, help="Add services: a,b,c; repeatable."
    ),
]
Without = Annotated[
    list[str] | None,
    typer.Option(
        "--without",
        metavar="SERVICES",
        autocompletion=complete_service,
        help="Leave services out: a,b,c; repeatable.",
    ),
]
SearchPath = Annotated[
    list[Path] | None,
    typer.Option("--path", metavar="FOLDER", help="Look for services and profiles here, too; repeatable."),
]
AcceptHostKeys = Annotated[
    bool,
    typer.Option(
        "--accept-host-keys", help="Show the keys of hosts that are not known, and take them for right."
    ),
]
Offline = Annotated[bool, typer.Option("--offline", help="Build from the cache alone.")]
Locked = Annotated[
    Path | None,
    typer.Option(
        "--locked",
        metavar="FILE",
        dir_okay=False,
        help="Build the very versions that `stacklab lock` wrote.",
    ),
]


def service_names(options: list[str] | None) -> tuple[str, ...]:
    """The names that one of the two options above lists, each once: several behind commas, or one each."""
    names = (name.strip() for words in options or () for name in words.split(","))
    return tuple(dict.fromkeys(name for name in names if name))


def up_command(request: "UpRequest") -> str:
    """The command line of `stacklab up` that asks for the same."""
    single = {
        "--layer": request.layer,
        "--lab": None if request.lab == "default" else request.lab,
        "--profile": request.profile,
        "--release": request.release,
        "--topology": request.topology,
        "--node-kind": request.node_kind,
        "--locked": request.locked,
    }
    several = {
        "--with": request.with_services,
        "--without": request.without_services,
        "--path": request.path,
    }
    words = ["stacklab", "up"]
    words += [word for name, value in single.items() if value is not None for word in (name, str(value))]
    words += [word for name, values in several.items() for value in values for word in (name, str(value))]
    return shlex.join([*words, *(["--offline"] if request.offline else [])])
