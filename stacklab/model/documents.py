"""Strict YAML: every node keeps its place in the file, and every problem is told at once.

Scalars stay the text that the user wrote (`3.10`, `no`, `on`, `0640`) until a model asks for a number or a
truth value. Duplicate keys, tags and aliases are refused.
"""

import difflib
import re
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from stacklab.errors import Problem, UsageError

Step = str | int
Data = str | list["Data"] | dict[str, "Data"] | None
Fault = tuple[str, tuple[Step, ...]]
"""What is wrong, and the keys and indexes that lead to where."""

_PLAIN_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("str", "seq", "map")}
_Loader = getattr(yaml, "CBaseLoader", yaml.BaseLoader)


M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True)
class Document:
    """One YAML file: its plain data, and where in the file each value stands."""

    file: Path
    root: yaml.Node

    @classmethod
    def read(cls, file: Path) -> "Document | Problem":
        """The document in `file`, or what keeps it from being read."""
        try:
            root = yaml.compose(file.read_text(encoding="utf-8"), Loader=_Loader)
        except FileNotFoundError:
            return Problem(file, 0, 0, f"is not there{_misnamed(file)}")
        except OSError as error:
            return Problem(file, 0, 0, f"cannot be read: {error.strerror}")
        except UnicodeDecodeError as error:
            return Problem(file, 0, 0, f"is not UTF-8: {error.reason} at byte {error.start}")
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            what = ", ".join(filter(None, (error.context, error.problem)))
            if _tab_before(file, mark):
                what = "a tab: YAML is indented with spaces"
            return Problem(file, mark.line + 1 if mark else 0, mark.column + 1 if mark else 0, what)
        except yaml.YAMLError as error:
            return Problem(file, 0, 0, f"is not YAML: {' '.join(str(error).split())}")
        if root is None:
            return Problem(file, 1, 1, "the file is empty")
        return cls(file, root)

    def parse(self, model: type[M]) -> "tuple[M | None, list[Problem]]":
        """The document as a `model`, where it can be one, and all that is wrong in it."""
        data, problems = self._plain
        problems = list(problems)
        # How values fit together is asked of the plain data, so that it is told with what is wrong in each.
        faults: Callable[[Data], Iterable[Fault]] = getattr(model, "faults", lambda _: ())
        problems += [self.problem(message, *where) for message, where in faults(data)]
        try:
            parsed = model.model_validate(data, context=self)
        except ValidationError as error:
            for details in error.errors(include_url=False):
                problems += self._translate(details, model)
            return None, problems
        return parsed, problems

    def position(self, *where: Step) -> tuple[int, int]:
        """Line and column, counting from 1, of the deepest value that the keys and indexes lead to."""
        return _mark(self._node(where))

    def problem(self, message: str, *where: Step) -> Problem:
        """A problem at the value that `where` leads to."""
        return Problem(self.file, *self.position(*where), message)

    def problem_in(self, message: str, line: int, *where: Step) -> Problem:
        """A problem in a line, counting from 1, of the text that `where` leads to."""
        node = self._node(where)
        if isinstance(node, yaml.ScalarNode) and node.style == "|":  # its text begins in the next line
            return Problem(self.file, _mark(node)[0] + line, 1, message)
        return Problem(self.file, *_mark(node), message)

    def problem_at_key(self, message: str, *where: Step) -> Problem:
        """A problem at the key that `where` leads to."""
        return Problem(self.file, *self._key_position(where), message)

    @cached_property
    def _plain(self) -> tuple[Data, list[Problem]]:
        problems: list[Problem] = []
        seen: set[int] = set()

        def refuse(node: yaml.Node, message: str) -> None:
            problems.append(Problem(self.file, *_mark(node), message))

        def plain(node: yaml.Node) -> Data:
            if id(node) in seen:
                refuse(node, "an alias repeats this value; aliases are not read, write the value out")
                return None
            seen.add(id(node))
            if node.tag not in _PLAIN_TAGS:
                refuse(node, f"the tag '{node.tag}' is not read, write the plain value")
            if isinstance(node, yaml.SequenceNode):
                return [plain(item) for item in node.value]
            if isinstance(node, yaml.MappingNode):
                return mapping(node)
            empty = isinstance(node, yaml.ScalarNode) and node.value == "" and not node.style
            return None if empty else str(node.value)

        def mapping(node: yaml.MappingNode) -> Data:
            result: dict[str, Data] = {}
            first: dict[str, yaml.Node] = {}
            for key, value in node.value:
                if not isinstance(key, yaml.ScalarNode):
                    refuse(key, "a key must be plain text")
                elif key.value in first:
                    refuse(key, f"duplicate key '{key.value}', set in line {_mark(first[key.value])[0]}")
                else:
                    first[key.value] = key
                    result[key.value] = plain(value)
            return result

        return plain(self.root), problems

    def _translate(self, error: ErrorDetails, model: type[BaseModel]) -> list[Problem]:
        """A pydantic error as problems: where they stand in the file, in words that do not need the code."""
        context = error.get("ctx", {})
        where = tuple(step for step in error["loc"] if step != "[key]")
        if error["type"] == "wrong":
            return [self.problem(message, *where, *below) for message, below in context["messages"]]
        if error["type"] == "missing":
            return [self.problem(f"the key '{where[-1]}' is missing{_inside(where[:-1])}", *where[:-1])]
        if error["type"] == "extra_forbidden":
            known = _known_keys(model, where[:-1])
            near = did_you_mean(str(where[-1]), known) or f"; known: {', '.join(known)}"
            message = f"unknown key '{where[-1]}'{_inside(where[:-1])}{near}"
            return [Problem(self.file, *self._key_position(where), message)]
        position = self._key_position(where) if "[key]" in error["loc"] else self.position(*where)
        return [Problem(self.file, *position, f"{_label(where)}{_expectation(error)}")]

    def _node(self, where: Sequence[Step]) -> yaml.Node:
        """The deepest value that the keys and indexes lead to."""
        node = self.root
        for step in where:
            below = _child(node, step)
            if below is None:
                break
            node = below[1]
        return node

    def _key_position(self, where: Sequence[Step]) -> tuple[int, int]:
        key = node = self.root
        for step in where:
            below = _child(node, step)
            if below is None:
                break
            key, node = below
        return _mark(key)


def read_all(files: Iterable[Path], model: type[M]) -> tuple[list[M], list[Problem]]:
    """The files as a `model`, those that can be one, and all that is wrong in any of them."""
    parsed: list[M] = []
    problems: list[Problem] = []
    for file in files:
        document = Document.read(file)
        if isinstance(document, Problem):
            problems.append(document)
            continue
        result, wrongs = document.parse(model)
        problems += wrongs
        if result is not None:
            parsed.append(result)
    return parsed, problems


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown word: the known one that is nearest, if any is near."""
    near = difflib.get_close_matches(word, sorted(known), n=1)
    return f", did you mean '{near[0]}'?" if near else ""


def _tab_before(file: Path, mark: yaml.Mark | None) -> bool:
    """Whether a tab stands in the indentation of a line."""
    lines = file.read_text(encoding="utf-8").splitlines()
    line = lines[mark.line] if mark and mark.line < len(lines) else ""
    return "\t" in line[: len(line) - len(line.lstrip())]


def _misnamed(file: Path) -> str:
    """The end of a sentence about a file that is not there: one beside it that may be meant."""
    stem = file.stem.lower().rstrip("s")
    near = sorted(each.name for each in file.parent.glob("*") if each.stem.lower().rstrip("s") == stem)
    return f"; is '{near[0]}' meant to be it?" if near else ""


def unknown(kind: str, name: str, known: Iterable[str]) -> UsageError:
    """The error for a name that is not known: with the nearest one that is, and all of them."""
    known = sorted(known)
    message = f"unknown {kind} '{name}'{did_you_mean(name, known)}"
    return UsageError(message, hint=f"known: {', '.join(known)}" if known else "")


def _mark(node: yaml.Node) -> tuple[int, int]:
    return node.start_mark.line + 1, node.start_mark.column + 1


def _child(node: yaml.Node, step: Step) -> tuple[yaml.Node, yaml.Node] | None:
    """The key (the item itself, in a list) and the value that one step below `node` leads to."""
    if isinstance(node, yaml.MappingNode):
        return next(((key, value) for key, value in node.value if key.value == step), None)
    if isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
        return node.value[step], node.value[step]
    return None


def _inside(where: Sequence[Step]) -> str:
    return f" in {'.'.join(map(str, where))}" if where else ""


def _label(where: Sequence[Step]) -> str:
    return f"{'.'.join(map(str, where))}: " if where else ""


def shown(value: object) -> str:
    """A value as an error message shows it."""
    if value is None:
        return "nothing"
    if isinstance(value, (list, tuple)):
        return "a list"
    return "a mapping" if isinstance(value, dict) else f"'{value}'"


_EXPECTED = {
    "int": "a whole number",
    "bool": "true or false",
    "string": "text",
    "tuple": "a list",
    "model": "a mapping",
    "mapping": "a mapping",
}


def _expectation(error: ErrorDetails) -> str:
    kind, context, got = error["type"], error.get("ctx", {}), shown(error["input"])
    if kind == "value_error":
        return str(context["error"])
    if kind == "literal_error":
        known = re.findall(r"'([^']*)'", context["expected"])
        return f"expected {context['expected']}, got {got}{did_you_mean(str(error['input']), known)}"
    expected = _EXPECTED.get(kind.split("_")[0]) if kind.endswith(("_type", "_parsing")) else None
    message = f"expected {expected}" if expected else re.sub(r"^\w+ should", "should", error["msg"])
    return f"{message}, got {got}"


def _known_keys(model: type[BaseModel], where: Sequence[Step]) -> list[str]:
    """The keys that the model at `where` takes."""
    annotation: Any = model
    for step in where:
        for inner in _models_and_containers(annotation):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                fields = {field.alias or name: field for name, field in inner.model_fields.items()}
                annotation = fields[str(step)].annotation
            else:
                annotation = typing.get_args(inner)[0 if isinstance(step, int) else -1]
    return [
        field.alias or name
        for inner in _models_and_containers(annotation)
        for name, field in inner.model_fields.items()
    ]


def _models_and_containers(annotation: Any) -> list[Any]:
    """`X | None` and annotated types are looked through."""
    origin = typing.get_origin(annotation)
    if origin is Annotated:
        return _models_and_containers(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return [inner for inner in typing.get_args(annotation) if inner is not types.NoneType]
    return [annotation]
