"""The keys of hosts that nobody knows: shown to the user, who says whether they are right."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import typer

from stacklab.cli.options import ask, has_terminal
from stacklab.cli.progress import Progress

if TYPE_CHECKING:
    from stacklab.remote.connection import HostKey


def asking(screen: Progress, *, always: bool) -> "Callable[[Sequence[HostKey]], bool]":
    """What asks the user about host keys, with the screen held meanwhile. always: take them for right.

    Where there is no terminal to ask on, they are refused.
    """

    def accept(keys: "Sequence[HostKey]") -> bool:
        if not always and not has_terminal():
            return False
        screen.__exit__(None, None, None)
        try:
            for key in keys:
                where = f"{key.node.name} ({key.node.address}, port {key.node.port})"
                typer.echo(f"host key of {where}: {key.algorithm} {key.fingerprint}", err=True)
            return always or ask("Are these the right ones?")
        finally:
            screen.__enter__()

    return accept
