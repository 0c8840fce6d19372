"""Python packages that Debian does not carry: wheels, fetched on the machine and unpacked on the nodes.

The machine's own pip configuration says where from, as its apt configuration does for Debian's packages. Only
wheels of pure Python, each alone: what one depends on comes as a Debian package.
"""

import contextlib
import subprocess
import sys
import tempfile
from pathlib import Path

from stacklab.errors import StepFailed
from stacklab.images.packages import Downloads
from stacklab.lab.lab import Lab
from stacklab.provide.provider import Node

PLACE = "/usr/lib/stacklab/wheels"
PURE = "-py3-none-any.whl"
# On the node: the archive on standard input becomes the folder $1, whole or not at all.
UNPACK = """set -e; rm -rf "$1.new"; mkdir -p "$1.new"; cat > "$1.new.whl"
python3 -m zipfile -e "$1.new.whl" "$1.new"; rm -f "$1.new.whl"
python3 -m compileall -q "$1.new" || true
rm -rf "$1"; mv "$1.new" "$1" """


def place(requirement: str) -> str:
    """The folder on a node where the wheel of `NAME==VERSION` is unpacked: the same for every version."""
    return f"{PLACE}/{requirement.partition('==')[0]}"


def is_on(lab: Lab, node: Node, requirement: str) -> bool:
    """Whether the node has this version of it."""
    folder = f"{place(requirement)}/{_stem(requirement)}.dist-info"
    return lab.run_on(node.name, ["test", "-d", folder]).returncode == 0


def put_on(lab: Lab, node: Node, requirement: str, downloads: Downloads) -> None:
    """Unpack the wheel of `NAME==VERSION` on a node that runs.

    Raises StepFailed with pip's own words when it cannot be had, with the node's when it cannot be unpacked.
    """
    wheel = fetch(requirement, downloads)
    command = lab.ssh_command(node.name, ["sh", "-c", UNPACK, "sh", place(requirement)])
    with wheel.open("rb") as stream:
        done = subprocess.run(command, stdin=stream, capture_output=True, text=True, check=False)
    if done.returncode:
        raise StepFailed(f"cannot unpack {wheel.name} on node '{node.name}'", detail=done.stderr.strip())


def fetch(requirement: str, downloads: Downloads) -> Path:
    """The file of a wheel, downloaded when the cache has none. Raises StepFailed with pip's own words."""
    folder = downloads.folder / "wheels"
    file = folder / f"{_stem(requirement)}{PURE}"
    if file.is_file():
        return file
    if not downloads.online:
        raise StepFailed(f"the cache has no {file.name}", hint="once without --offline")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as new:
        words = ["download", "--quiet", "--no-deps", "--only-binary=:all:", f"--dest={new}", requirement]
        done = subprocess.run(
            [sys.executable, "-m", "pip", "--disable-pip-version-check", *words],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise StepFailed(
                f"pip cannot fetch {requirement}", detail=done.stderr.strip(), hint="pip config list"
            )
        if not (Path(new) / file.name).is_file():
            found = ", ".join(sorted(each.name for each in Path(new).iterdir()))
            raise StepFailed(f"{requirement} is no wheel of pure Python, but {found}")
        with contextlib.suppress(FileExistsError):  # another command was faster
            (Path(new) / file.name).rename(file)
    return file


def _stem(requirement: str) -> str:
    """How the names of wheels begin: https://packaging.python.org/specifications/binary-distribution-format."""
    name, _, version = requirement.partition("==")
    return f"{name.lower().replace('-', '_').replace('.', '_')}-{version}"
