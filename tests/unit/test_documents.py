"""Strict YAML: what the user wrote is what the model gets, and every mistake is told with its place."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from stacklab.errors import Problem
from stacklab.model.documents import Document, read_all
from stacklab.model.schema import Root, Size, Strict
from stacklab.model.topology import Role
from tests.unit.catalogs import write


class Part(Strict):
    size: Size = 0
    packages: tuple[str, ...] = ()
    role: Role = "controller"


class Thing(Root):
    text: str = ""
    count: int = 0
    shared: bool = False
    parts: Mapping[Role, Part] = {}
    items: tuple[Part, ...] = ()
    maybe: Part | None = None


HEAD = "version: 1\nname: thing\ntitle: A thing\n"


def parse(folder: Path, body: str) -> Thing:
    things, problems = read_all([write(folder / "thing.yaml", HEAD + body)], Thing)
    assert not problems
    return things[0]


def problems(folder: Path, body: str, head: str = HEAD) -> list[str]:
    """What is wrong, as line:column: message."""
    file = write(folder / "thing.yaml", head + body)
    _, found = read_all([file], Thing)
    return [str(each).removeprefix(f"{file}:") for each in sorted(found)]


@pytest.mark.parametrize(
    "text", ["3.10", "no", "on", "yes", "0640", "1e3", "null", "~", "2025-01-01", "1_000"]
)
def test_text_stays_what_the_user_wrote(tmp_path: Path, text: str) -> None:
    assert parse(tmp_path, f"text: {text}\n").text == text


def test_numbers_and_truth_values_are_read_where_the_model_wants_them(tmp_path: Path) -> None:
    thing = parse(tmp_path, "count: 12\nshared: no\n")
    assert (thing.count, thing.shared) == (12, False)


@pytest.mark.parametrize(
    ("written", "mebibytes"), [("400 MiB", 400), ("2 GiB", 2048), ("1.5GiB", 1536), ("1 TiB", 1048576)]
)
def test_sizes_are_held_in_mebibytes(tmp_path: Path, written: str, mebibytes: int) -> None:
    assert parse(tmp_path, f"maybe: {{size: {written}}}\n").maybe == Part(size=written)
    assert Part(size=written).size == mebibytes


@pytest.mark.parametrize("written", ["400", "400 MB", "a lot", "-1 GiB"])
def test_a_size_without_its_unit_is_refused(tmp_path: Path, written: str) -> None:
    assert problems(tmp_path, f"maybe: {{size: {written}}}\n") == [
        f"4:15: maybe.size: expected a size such as '400 MiB' or '2 GiB', got '{written}'"
    ]


def test_all_problems_of_a_document_are_told_at_once(tmp_path: Path) -> None:
    body = """\
text: [a]
count: many
shared: perhaps
parts:
  controler: {}
  compute: {packages: nova, pakages: [nova]}
items:
  - {role: boss}
  - nothing
coutn: 3
count: 4
"""
    assert problems(tmp_path, body) == [
        "4:7: text: expected text, got a list",
        "5:8: count: expected a whole number, got 'many'",
        "6:9: shared: expected true or false, got 'perhaps'",
        "8:3: parts.controler: expected 'controller', 'compute', 'network' or 'storage', got 'controler',"
        " did you mean 'controller'?",
        "9:23: parts.compute.packages: expected a list, got 'nova'",
        "9:29: unknown key 'pakages' in parts.compute, did you mean 'packages'?",
        "11:12: items.0.role: expected 'controller', 'compute', 'network' or 'storage', got 'boss'",
        "12:5: items.1: expected a mapping, got 'nothing'",
        "13:1: unknown key 'coutn', did you mean 'count'?",
        "14:1: duplicate key 'count', set in line 5",
    ]


def test_an_unknown_key_like_no_other_is_told_with_all_known_ones(tmp_path: Path) -> None:
    assert problems(tmp_path, "maybe: {xyz: 1}\n") == [
        "4:9: unknown key 'xyz' in maybe; known: size, packages, role"
    ]


def test_missing_keys_are_told_where_they_belong(tmp_path: Path) -> None:
    assert problems(tmp_path, "text: a\n", head="version: 1\n") == [
        "1:1: the key 'name' is missing",
        "1:1: the key 'title' is missing",
    ]


def test_another_version_is_refused(tmp_path: Path) -> None:
    assert problems(tmp_path, "name: thing\ntitle: A thing\n", head="version: 2\n") == [
        "1:10: version: this stacklab reads version 1, not '2'"
    ]


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ("text: 'open\n", "5:1: while scanning a quoted scalar, found unexpected end of stream"),
        ("text: a: b\n", "4:8: mapping values are not allowed in this context"),
        ("text: *a\n", "4:7: found undefined alias"),
        ("---\n", "4:1: expected a single document in the stream, but found another document"),
        ("text: !secret a\n", "4:7: the tag '!secret' is not read, write the plain value"),
        ("text: &a x\nitems: [*a]\n", "4:7: an alias repeats this value; aliases are not read"),
        ("? [a]\n: b\n", "4:3: a key must be plain text"),
        ("count:\n", "4:7: count: expected a whole number, got nothing"),
    ],
)
def test_what_is_not_plain_yaml_is_refused_with_its_place(tmp_path: Path, body: str, problem: str) -> None:
    assert problems(tmp_path, body)[0].startswith(problem)


def test_a_value_that_holds_itself_does_not_hang(tmp_path: Path) -> None:
    assert any("an alias repeats" in each for each in problems(tmp_path, "items: &a [*a]\n"))


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    assert problems(tmp_path, "# nothing\n", head="") == ["1:1: the file is empty"]


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "thing.yaml"
    file.write_bytes(b"version: \xff\n")
    _, found = read_all([file], Thing)
    assert "is not UTF-8" in str(found[0])


def test_a_missing_file_is_a_problem_like_any_other(tmp_path: Path) -> None:
    things, found = read_all([tmp_path / "none.yaml", write(tmp_path / "thing.yaml", HEAD)], Thing)
    assert [thing.name for thing in things] == ["thing"]
    assert str(found[0]) == f"{tmp_path}/none.yaml: is not there"


def test_places_lead_to_keys_and_indexes(tmp_path: Path) -> None:
    document = Document.read(
        write(tmp_path / "thing.yaml", HEAD + "items:\n  - {size: 1 MiB}\n  - {role: compute}\n")
    )
    assert isinstance(document, Document)
    assert document.position("items", 1, "role") == (6, 12)
    assert document.position("items", 7) == document.position("items")


@pytest.mark.parametrize("text", ["a:\n\tb: 1\n", "a: 1\nb:\n  c:\n  \td: 1\n"])
def test_a_tab_is_called_a_tab(tmp_path: Path, text: str) -> None:
    problem = Document.read(write(tmp_path / "thing.yaml", text))
    assert isinstance(problem, Problem)
    assert problem.message == "a tab: YAML is indented with spaces"
