"""Errors on their way to the person: the one place where they become words and an exit code."""

import errno
import json
import os
import tempfile
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import typer

from stacklab.errors import HostUnfit, Interrupted, ModelError, StacklabError
from stacklab.home import Home

# What the machine refuses, and no fault of the program.
_REFUSED = {errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EIO, errno.EDQUOT}


def translate(error: BaseException, *, again: str, verbose: bool) -> StacklabError:
    """The error to show for an exception of any kind.

    again: the command as it was typed. verbose: put the traceback of an unexpected one into the detail
    (otherwise it is written to a file that the hint names).
    """
    if isinstance(error, StacklabError):
        return error
    if isinstance(error, KeyboardInterrupt | typer.Abort):  # the latter at a question
        return Interrupted("interrupted", hint=again)
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return StacklabError(
            f"no space left on the disk{_of(error)}",
            hint=f"make room (df -h shows where), then again: {again}",
        )
    if isinstance(error, PermissionError) and os.geteuid() != 0:
        return HostUnfit(f"only root may do this{_of(error)}", hint=f"sudo {again}")
    if isinstance(error, OSError) and error.errno in _REFUSED and error.filename:
        ours = "STACKLAB_STATE and STACKLAB_CACHE name the folders that stacklab writes to"
        return StacklabError(
            f"{error.filename} cannot be used: {error.strerror}",
            hint=ours if _is_ours(Path(str(error.filename))) else "",
        )
    return _unexpected(error, again=again, verbose=verbose)


def show(error: StacklabError, *, as_json: bool) -> None:
    """Print an error on standard error: message, detail and the next thing to type; or one JSON object."""
    if as_json:
        typer.echo(json.dumps({"error": _document(error)}, ensure_ascii=False), err=True)
        return
    heading = typer.style("error:", fg=typer.colors.RED, bold=True)
    typer.echo(f"{heading} {error.message}", err=True)
    # Problems keep the first column: editors jump to `file:line:column: message`.
    margin = "" if isinstance(error, ModelError) else "  "
    for line in error.detail.splitlines():
        typer.echo(f"{margin}{line}".rstrip(), err=True)
    if error.hint:
        typer.echo(f"{typer.style('next:', bold=True)} {error.hint}", err=True)


def show_usage(error: typer.TyperException) -> None:
    """Print as JSON what Typer itself found wrong in the command line."""
    document = {"kind": "UsageError", "message": error.format_message(), "exit_code": error.exit_code}
    typer.echo(json.dumps({"error": document}, ensure_ascii=False), err=True)


def _document(error: StacklabError) -> dict[str, Any]:
    document: dict[str, Any] = {"kind": type(error).__name__, "message": error.message}
    if isinstance(error, ModelError):
        document["problems"] = [
            {"file": str(each.file), "line": each.line, "column": each.column, "message": each.message}
            for each in error.problems
        ]
    elif error.detail:
        document["detail"] = error.detail
    if error.hint:
        document["hint"] = error.hint
    return document | {"exit_code": error.exit_code}


def _unexpected(error: BaseException, *, again: str, verbose: bool) -> StacklabError:
    text = "".join(traceback.format_exception(error))
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    message = f"unexpected {type(error).__name__}: {str(error) or 'no message'}{where}"
    if verbose:
        return StacklabError(message, detail=text, hint="this is a fault of stacklab; please report it")
    file = _write_traceback(text)
    return StacklabError(message, hint=f"this is a fault of stacklab; please report it with {file}")


def _write_traceback(text: str) -> Path:
    """Write a traceback where it can be found later: in the cache, or else with the temporary files."""
    name = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-"
    for folder in (Home.named().cache / "tracebacks", Path(tempfile.gettempdir())):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            handle, file = tempfile.mkstemp(prefix=name, suffix=".txt", dir=folder)
        except OSError:
            continue
        with os.fdopen(handle, "w") as stream:
            stream.write(text)
        return Path(file)
    return Path(os.devnull)


def _is_ours(path: Path) -> bool:
    """Whether a path is in one of stacklab's own folders, or on the way to one."""
    home = Home.named()
    return any(path.is_relative_to(own) or own.is_relative_to(path) for own in (home.state, home.cache))


def _of(error: OSError) -> str:
    return f": {error.filename}" if error.filename else ""
