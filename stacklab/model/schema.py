"""What all documents are made of: the base of their models, and the kinds of values in them."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr
from pydantic_core import PydanticCustomError

from stacklab.errors import Problem
from stacklab.model.documents import Document, Step, shown

T = TypeVar("T")


def _mebibytes(value: object) -> object:
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?(MiB|GiB|TiB)", value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"expected a size such as '400 MiB' or '2 GiB', got {shown(value)}")
    return int(float(match[1]) * {"MiB": 1, "GiB": 1024, "TiB": 1024**2}[match[2]])


def _name(value: object) -> object:
    if not isinstance(value, str) or not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", value):
        raise ValueError(f"expected a name of lowercase letters, digits and hyphens, got {shown(value)}")
    return value


def _not_empty(items: tuple[T, ...]) -> tuple[T, ...]:
    # Not Field(min_length=1), for which pydantic does not count the items that are wrong.
    if not items:
        raise ValueError("expected at least one")
    return items


def _version(value: object) -> object:
    if str(value) != "1":
        raise ValueError(f"this stacklab reads version 1, not {shown(value)}")
    return 1


Size = Annotated[int, BeforeValidator(_mebibytes)]
"""Written as "400 MiB", "2 GiB" or "1 TiB"; held in MiB."""

Name = Annotated[str, BeforeValidator(_name)]
"""What services, profiles, nodes and secrets are called: a valid host name and part of a path."""

Word = Annotated[str, Field(min_length=1)]
"""Text that is not empty."""

NotEmpty = AfterValidator(_not_empty)
"""In `Annotated[tuple[X, ...], NotEmpty]`: at least one."""

Port = Annotated[int, Field(ge=1, le=65535)]
"""A TCP port."""

Version = Annotated[Literal[1], BeforeValidator(_version)]
"""The version of the format that a document is written in."""


def identifier(name: str) -> str:
    """A service's or secret's name as templates write it."""
    return name.replace("-", "_")


class Strict(BaseModel):
    """A part of a document: unknown keys are refused, values never change."""

    # A part is built into the documents that hold it: to build it for itself, too, takes longer than to read.
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


class Root(Strict):
    """A whole document: it has a version and a name, and knows the file that it was read from."""

    version: Version
    name: Name
    title: str

    _document: Document = PrivateAttr()

    def model_post_init(self, context: Any) -> None:
        """Keep the document, which `Document.parse` passes as the context of the validation."""
        self._document = context

    @property
    def file(self) -> Path:
        """The YAML file that this was read from."""
        return self._document.file

    def problem(self, message: str, *where: Step) -> Problem:
        """A problem at the value that the keys and indexes `where` lead to."""
        return self._document.problem(message, *where)

    def problem_in(self, message: str, line: int, *where: Step) -> Problem:
        """A problem in a line, counting from 1, of the text that `where` leads to."""
        return self._document.problem_in(message, line, *where)

    def problem_at_key(self, message: str, *where: Step) -> Problem:
        """A problem at the key that `where` leads to."""
        return self._document.problem_at_key(message, *where)

    def place(self, *where: Step) -> str:
        """file:line:column of the value that the keys and indexes `where` lead to."""
        line, column = self._document.position(*where)
        return f"{self.file}:{line}:{column}"


def wrong(message: str, *where: Step) -> PydanticCustomError:
    """For an "after" validator to raise: what is wrong, at the keys and indexes `where` below the value."""
    return all_wrong([(message, where)])


def all_wrong(found: Sequence[tuple[str, tuple[Step, ...]]]) -> PydanticCustomError:
    """For an "after" validator that finds several things wrong: each with its place, as for `wrong`."""
    return PydanticCustomError("wrong", "{messages}", {"messages": list(found)})
