"""Tempest, OpenStack's own test suite, against a lab on layer 1: a small set, from login to an instance.

Costs about ten minutes beside the lab itself, and fetches Tempest from PyPI.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab.program import Program, TestLab

pytestmark = pytest.mark.slow

SET = r"""
    tempest\.api\.identity\.v3\.test_(api_discovery|tokens|application_credentials)
    tempest\.api\.image\.v2\.test_images\.BasicOperationsImagesTest
    tempest\.api\.compute\.servers\.test_create_server\.ServersTestJSON
    tempest\.api\.compute\.servers\.test_server_actions\.ServerActionsTestJSON\.test_(reboot_server_hard|resize_server_confirm)\b
    tempest\.scenario\.test_server_basic_ops
"""


@pytest.fixture(scope="module")
def tempest(program: Program) -> Path:
    """The `tempest` command."""
    venv = program.state.parent / "tempest"
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    subprocess.run([str(venv / "bin" / "pip"), "install", "--quiet", "tempest"], check=True)
    return venv / "bin" / "tempest"


def test_a_set_from_login_to_an_instance_passes(layer1: TestLab, tempest: Path, tmp_path: Path) -> None:
    workspace = tmp_path / "cloud"
    subprocess.run([str(tempest), "init", str(workspace)], check=True, capture_output=True)
    conf = workspace / "etc" / "tempest.conf"
    layer1.run("tempest", str(conf))
    assert conf.stat().st_mode & 0o777 == 0o600
    run = f"cd {workspace} && exec {tempest} run --concurrency 2 --regex '{'|'.join(SET.split())}'"
    done = layer1.try_exec("sh", "-c", run)
    assert done.returncode == 0, done.stdout[-8000:]
    counts = dict(re.findall(r"- (Passed|Failed|Skipped): (\d+)", done.stdout))
    assert int(counts["Passed"]) >= 25, counts
    assert counts["Failed"] == "0"
