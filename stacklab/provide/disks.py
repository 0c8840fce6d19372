"""Copying the disks of nodes, which are folders or files."""

import subprocess
from pathlib import Path

from stacklab.children import BOUND
from stacklab.errors import StepFailed
from stacklab.provide.provider import Node


def copy_disk(source: Path, target: Path, node: Node) -> None:
    """Copy a file or a tree, with all that it has; the copying ends when this process does.

    Raises StepFailed when it cannot be done, on a full disk for one.
    """
    copy = ["cp", "--archive", "--reflink=auto", "--no-target-directory"]
    done = subprocess.run(
        [*BOUND, *copy, str(source), str(target)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise StepFailed(
            f"copying the disk of node '{node.name}' failed; the lab is as it was",
            detail=done.stderr[-2000:],
            hint="df -h shows where room is missing, stacklab images prune makes some",
        )
