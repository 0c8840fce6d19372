"""Real labs for the tests of this folder: built once by the program, and destroyed whatever happens.

The cache is new for every session, so that the first lab is built from nothing; only downloaded packages
are taken from the machine's own cache, where it has some. STACKLAB_TEST_CACHE=FOLDER uses that cache as it
is, images and all: quicker while a test is being written, and no proof of a cold build.
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from stacklab.home import DEFAULT_CACHE
from tests.lab.machine import TESTS_FOLDER, Machine
from tests.lab.program import Program, TestLab

DOWNLOADS = "packages"


@pytest.fixture(scope="session")
def program() -> Iterator[Program]:
    """stacklab with a state and a cache of the tests' own; every lab of it is destroyed at the end."""
    if os.geteuid() != 0:
        pytest.skip("building a lab needs root")
    # /var/tmp is on a disk, where /tmp may be memory; and the sockets of a lab need a short path.
    folder = Path(tempfile.mkdtemp(prefix=TESTS_FOLDER.strip("/"), dir="/var/tmp"))
    program = Program(state=folder / "state", cache=_cache(folder))
    try:
        yield program
    finally:
        program.end()
        for file in sorted((program.state / "labs").glob("*/lab.yaml")):
            program.run("destroy", "--lab", file.parent.name, "--yes")
        shutil.rmtree(folder, ignore_errors=True)


def _cache(folder: Path) -> Path:
    given = os.environ.get("STACKLAB_TEST_CACHE")
    if given:
        return Path(given)
    cache = folder / "cache"
    cache.mkdir()
    downloads = DEFAULT_CACHE / DOWNLOADS
    if downloads.is_dir():  # links where they can be had, copies elsewhere
        linked = subprocess.run(["cp", "-al", str(downloads), str(cache)], check=False, capture_output=True)
        if linked.returncode != 0:
            shutil.rmtree(cache / DOWNLOADS, ignore_errors=True)  # cp refuses links to what it copies
            subprocess.run(["cp", "-a", str(downloads), str(cache)], check=True)
    return cache


@pytest.fixture(scope="session")
def machine_before(program: Program) -> Machine:
    """The machine before the first lab of the session."""
    return Machine.look(program.state)


@pytest.fixture(scope="session")
def layer1(program: Program, machine_before: Machine) -> Iterator[TestLab]:
    """A lab on layer 1, built from nothing by `stacklab up --layer 1`; about five minutes on two cores."""
    lab = TestLab(program, "test-one")
    try:
        lab.up()
        yield lab
    finally:
        lab.try_("destroy", "--yes")
