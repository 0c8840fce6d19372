"""The options by which `up` and `plan` say what is to be built, and the command line that says the same."""

import shlex
from collections.abc import Callable
from dataclasses import fields
from enum import StrEnum
from functools import wraps
from inspect import Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stacklab.cli.options import LabOption, complete_service

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
        help="Climb to this layer; by default the one that was asked for last, or 1.",
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
Connect = Annotated[
    str | None,
    typer.Option(
        "--connect",
        metavar="URI",
        help="Run the nodes, as virtual machines, on another machine's libvirt: qemu+ssh://root@HOST/system.",
    ),
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


def _request(
    layer: Layer = None,
    lab: LabOption = "default",
    profile: Profile = None,
    release: Release = None,
    topology: Topology = None,
    computes: Computes = None,
    node_kind: NodeKindOption = None,
    connect: Connect = None,
    with_services: With = None,
    without_services: Without = None,
    path: SearchPath = None,
    locked: Locked = None,
    offline: Offline = False,
) -> "UpRequest":
    from stacklab.blueprint import UpRequest

    return UpRequest(
        lab=lab,
        layer=layer,
        profile=profile,
        release=release,
        topology=topology,
        computes=computes,
        node_kind=node_kind,
        connect=connect,
        with_services=service_names(with_services),
        without_services=service_names(without_services),
        path=tuple(path or ()),
        locked=locked,
        offline=offline,
    )


def requesting(verb: Callable[..., None]) -> Callable[..., None]:
    """A verb that is handed what these options ask for, as a request, in front of its own options."""
    asked = signature(_request).parameters
    parameters = [*asked.values(), *list(signature(verb).parameters.values())[1:]]

    @wraps(verb)
    def command(**options: Any) -> None:
        request = _request(**{name: options.pop(name) for name in asked})
        verb(request, **options)

    command.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {each.name: each.annotation for each in parameters}
    return command


def up_command(request: "UpRequest") -> str:
    """The command line of `stacklab up` that asks for the same."""
    words = ["stacklab", "up"]
    for asked in fields(request):
        option = f"--{asked.name.removesuffix('_services').replace('_', '-')}"
        value = getattr(request, asked.name)
        if value is True:
            words.append(option)
        elif value != asked.default:
            several = value if isinstance(value, tuple) else (value,)
            words += [word for each in several for word in (option, str(each))]
    return shlex.join(words)
