"""What stands in for Cinder's rootwrap."""

import subprocess
from pathlib import Path

PROGRAM = Path(__file__).parents[2] / "profiles/services/cinder/files/usr/local/bin/cinder-rootwrap"


def run(*command: str) -> "subprocess.CompletedProcess[str]":
    argv = ["sh", str(PROGRAM), "/etc/cinder/rootwrap.conf", *command]
    return subprocess.run(argv, capture_output=True, text=True, check=False)


def test_it_runs_the_command_and_passes_its_exit_code_on() -> None:
    done = run("sh", "-c", 'echo "$1"; exit 5', "sh", "two words")
    assert (done.stdout, done.returncode) == ("two words\n", 5)


def test_a_command_that_a_signal_ended_has_the_exit_code_by_which_cinder_knows_it() -> None:
    assert run("sh", "-c", "kill -SEGV $$").returncode == 139
