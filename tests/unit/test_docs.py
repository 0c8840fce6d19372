"""What the documentation says is what is there."""

import re
from pathlib import Path

import pytest
import typer.main
from typer.testing import CliRunner

from stacklab.cli.main import app
from stacklab.model.catalog import Catalog
from stacklab.model.service import Service

CHECKOUT = Path(__file__).parents[2]
PAGES = sorted([*CHECKOUT.glob("*.md"), *CHECKOUT.glob("docs/**/*.md")])
QUOTED = re.compile(r"<!-- file: (\S+) -->\n```\w*\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def text(page: str) -> str:
    return (CHECKOUT / page).read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(CHECKOUT)))
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text())
    missing = [each for each in targets if "://" not in each and not (page.parent / each).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(CHECKOUT)))
def test_files_that_a_page_quotes_are_the_files(page: Path) -> None:
    for name, quoted in QUOTED.findall(page.read_text()):
        assert quoted == text(name), f"{page} quotes another {name}"


def test_add_a_service_quotes_every_file_of_the_example() -> None:
    quoted = {name for name, _ in QUOTED.findall(text("docs/how-to/add-a-service.md"))}
    files = {path for path in (CHECKOUT / "examples/services/hello").rglob("*") if path.is_file()}
    assert quoted == {str(path.relative_to(CHECKOUT)) for path in files}


def test_the_example_service_is_valid() -> None:
    hello = Catalog.load([CHECKOUT / "examples"]).service("hello")
    assert hello.requires == ("keystone",)


def test_every_command_is_in_the_reference() -> None:
    documented = re.findall(r"^\| `(\w+)|, `(\w+)` ", text("docs/reference/cli.md"), re.MULTILINE)
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert set(commands) <= {word for pair in documented for word in pair}


def test_every_key_of_a_service_is_in_the_reference() -> None:
    reference = text("docs/reference/service.md")
    keys = {field.alias or name for name, field in Service.model_fields.items()}
    assert {key for key in keys if f"`{key}`" not in reference} == set()


def test_the_reference_of_services_is_current() -> None:
    written = CliRunner().invoke(app, ["services", "--reference"])
    assert written.exit_code == 0
    page = "docs/reference/services.md"
    assert written.stdout == text(page), f"type: stacklab services --reference > {page}"


def test_the_picture_of_the_layers_is_current() -> None:
    drawn = CliRunner().invoke(app, ["graph", "--format", "svg"])
    assert drawn.exit_code == 0
    assert drawn.stdout == text("docs/layers.svg"), "type: stacklab graph --format svg > docs/layers.svg"
