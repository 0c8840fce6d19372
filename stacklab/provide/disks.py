"""The disks of nodes, which are folders or files: copying them, and what is put into new ones."""

import io
import subprocess
import tarfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from stacklab.children import BOUND
from stacklab.errors import StepFailed
from stacklab.files import reach_disk
from stacklab.provide.provider import Node, NodeFile

CREATED = "created"
IMAGE = "lower"


def is_made(disk: Path) -> bool:
    """Whether the disk of a node, which is a folder, was made to its end and tells what it stands on."""
    image = disk / IMAGE
    return (disk / CREATED).exists() and image.exists() and image.stat().st_size > 0


def mark_made(disk: Path, files: Iterable[Path]) -> None:
    """Mark the disk of a node as made, when `files` of it have reached the disk of the machine."""
    reach_disk([*files, disk])
    (disk / CREATED).touch()


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


def archive_of(files: Mapping[str, NodeFile]) -> bytes:
    """A tar archive with `files`, owned by root.

    The directories above them are made by tar where they are missing.
    """
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path, file in files.items():
            data = file.text.encode()
            member = tarfile.TarInfo(path.lstrip("/"))
            member.size, member.mode, member.mtime = len(data), file.mode, int(time.time())
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()
