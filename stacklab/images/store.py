"""The store of images: each whole or absent, addressed by the hash of all that went into it.

    images/packages-3f9c.../image.json    what it is, what it was made of, what it stands on
    images/packages-3f9c.../tree/         its root tree (an overlay directory where it stands on another
    image) images/packages-3f9c.../synced        it has reached the disk

An image is built in `.building-...` and renamed when it is complete. Writing gigabytes through to the disk is
not waited for: an image that is not marked `synced` is good until the machine reboots, and dropped when found
after that.
"""

import hashlib
import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stacklab import lock
from stacklab.files import remove_tree, write_atomically

_BUILDING = ".building-"


def key_of(inputs: Mapping[str, Any]) -> str:
    """The key of an image: the SHA-256, in hex, of its inputs (plain JSON values) in canonical form."""
    canonical = json.dumps(inputs, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


@dataclass(frozen=True)
class Image:
    """A complete image in the store."""

    kind: str
    key: str
    folder: Path
    parent: str
    inputs: Mapping[str, Any]

    @property
    def tree(self) -> Path:
        """Its root tree."""
        return self.folder / "tree"


class Store:
    """The images below `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find(self, kind: str, inputs: Mapping[str, Any]) -> Image | None:
        """The complete image of that kind made from exactly these inputs, or None."""
        folder = self._folder(kind, key_of(inputs))
        try:
            record = json.loads((folder / "image.json").read_text())
        except (OSError, ValueError):
            return None
        if record["boot"] != _boot_id() and not (folder / "synced").exists():
            return None
        return Image(kind, record["key"], folder, record["parent"], record["inputs"])

    def ensure(
        self, kind: str, inputs: Mapping[str, Any], build: Callable[[Path], None], parent: Image | None = None
    ) -> Image:
        """The image made from these inputs; `build` makes it, in the empty folder that it is given.

        Another process that builds the same image is waited for, and its result taken. What an interrupted
        build left behind is removed. An error of `build` is passed on, and no image is left.
        """
        key = key_of(inputs)
        final = self._folder(kind, key)
        self.folder.mkdir(parents=True, exist_ok=True)
        with lock.hold(self.folder / f".{final.name}.lock", f"the image {final.name}", wait=True):
            found = self.find(kind, inputs)
            if found:
                return found
            for left in [final, *self.folder.glob(f"{_BUILDING}{final.name}-*")]:
                remove_tree(left)
            building = Path(tempfile.mkdtemp(dir=self.folder, prefix=f"{_BUILDING}{final.name}-"))
            try:
                building.chmod(0o755)
                build(building)
                record = {
                    "kind": kind,
                    "key": key,
                    "parent": parent.folder.name if parent else "",
                    "inputs": dict(inputs),
                    "boot": _boot_id(),
                    "built": time.time(),
                }
                write_atomically(building / "image.json", json.dumps(record, indent=1))
                building.rename(final)
            finally:
                remove_tree(building)
        _mark_when_synced(final)
        return Image(kind, key, final, parent.folder.name if parent else "", inputs)

    def chain(self, image: Image) -> list[Image]:
        """The image and those it stands on, top first."""
        found = [image]
        while found[-1].parent:
            folder = self.folder / found[-1].parent
            record = json.loads((folder / "image.json").read_text())
            found.append(Image(record["kind"], record["key"], folder, record["parent"], record["inputs"]))
        return found

    def _folder(self, kind: str, key: str) -> Path:
        return self.folder / f"{kind}-{key[:24]}"


def _mark_when_synced(folder: Path) -> None:
    """Let the kernel write the image out in the background, and only then mark it."""
    subprocess.Popen(
        ["sh", "-c", 'sync -f "$1" && touch "$1/synced"', "sync", str(folder)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
