"""The source keeps the rules of the house; as tests, so that pytest's last line speaks for all of it."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[1]


def run(*argv: str) -> None:
    done = subprocess.run(argv, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.fail(f"{' '.join(argv)}\n{done.stdout}{done.stderr}", pytrace=False)


def test_ruff_finds_nothing() -> None:
    run(sys.executable, "-m", "ruff", "check", "--quiet", ".")


def test_mypy_finds_nothing() -> None:
    run(sys.executable, "-m", "mypy", "--no-error-summary")


def test_shellcheck_finds_nothing() -> None:
    scripts = ["bootstrap", ".ci/run", *map(str, (CHECKOUT / "benchmarks").glob("*.sh"))]
    scripts.append("profiles/services/cinder/files/usr/local/bin/cinder-rootwrap")
    run(str(Path(sys.executable).with_name("shellcheck")), *scripts)


def test_the_wheel_carries_profiles_playbooks_and_templates(tmp_path: Path) -> None:
    run(sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path))
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        carried = set(archive.namelist())
    for folder in ("profiles", "playbooks", "templates"):
        files = (path for path in (CHECKOUT / folder).rglob("*") if path.is_file())
        wanted = {path.relative_to(CHECKOUT) for path in files if "__pycache__" not in path.parts}
        assert wanted
        assert not {f"stacklab/_data/{path}" for path in wanted} - carried
