"""What verbs print with: tables, JSON, and words for times and lengths of time."""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import Any

import typer

from stacklab.event import rfc3339


def on_terminal() -> bool:
    """Whether standard output is a terminal that can redraw lines, and show the signs that are drawn."""
    drawable = (sys.stdout.encoding or "").lower().startswith("utf")
    return drawable and sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def print_json(value: object) -> None:
    """Print a value (dataclasses, paths, times and sets are fine) as indented JSON."""
    typer.echo(json.dumps(value, default=plain, indent=2, ensure_ascii=False))


def print_json_line(value: object) -> None:
    """Print a value as one line of JSON, at once, for a reader that follows."""
    typer.echo(json.dumps(value, default=plain, ensure_ascii=False))


def plain(value: Any) -> Any:
    """What `json.dumps` may write in the place of a value that it does not know."""
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, datetime):
        return rfc3339(value)
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, set | frozenset):
        return sorted(value)
    if isinstance(value, Mapping):
        return dict(value)
    return str(value)


def print_table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print rows under headers: a Rich table on a terminal, elsewhere aligned columns that are never cut."""
    cells = [["" if cell is None else str(cell) for cell in row] for row in rows]
    if on_terminal():
        from rich.box import SIMPLE_HEAD
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(*headers, box=SIMPLE_HEAD, header_style="bold", pad_edge=False)
        for row in cells:
            table.add_row(*map(Text, row))
        Console().print(table)
        return
    widths = [max(map(len, column)) for column in zip(headers, *cells, strict=True)]
    for row in [[header.upper() for header in headers], *cells]:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def seconds_text(seconds: float) -> str:
    """A length of time for people: 0.4 s, 12 s, 3 min 05 s, 1 h 02 min."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"
