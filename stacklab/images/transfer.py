"""Images as one file: to a colleague, or into a CI runner, who thaw a lab without building anything.

The file is a tar archive with the image, all that it stands on and the guest, each with its manifest. An
import checks every file against it before the image takes its place in the store.
"""

import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from stacklab.children import BOUND
from stacklab.errors import StepFailed, UsageError
from stacklab.files import is_special, remove_tree
from stacklab.images.command import FULL
from stacklab.images.digest import MANIFEST, SEALED, damage, seal
from stacklab.images.store import Image, Store, key_of

CONTENTS = "contents.json"  # the names of the images; the first file, so that a file cut short is told
# Overlay's whiteouts and its marks of replaced folders are devices and extended attributes.
_TAR = (*BOUND, "tar", "--acls", "--xattrs", "--xattrs-include=*", "--numeric-owner", "--sparse")
_FULL = (FULL, "Wrote only")  # the latter where part of a block still fitted


def export_image(store: Store, image: Image, file: Path) -> list[Image]:
    """Write an image, with all that a lab on it needs, into one file; returns what went in.

    It holds passwords: only its owner may read it. Raises StepFailed when it cannot be written; no half file
    is left. Raises UsageError where there is something else than a file, such as a device.
    """
    if is_special(file):
        raise UsageError(f"{file} is no regular file, which is what an image is written into")
    file = Path(os.path.realpath(file))
    try:
        handle, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")  # of mode 0600
    except OSError as error:
        raise StepFailed(f"{file} could not be written", detail=str(error)) from error
    pending = Path(name)
    try:
        with os.fdopen(handle, "wb") as stream, store.kept():
            images = store.chain(image)
            images += [guest for guest in store.all("guest")[:1] if guest != image]
            _pack(store, images, file, stream)
        pending.rename(file)
    finally:
        pending.unlink(missing_ok=True)
    return images


def _pack(store: Store, images: Sequence[Image], file: Path, stream: IO[bytes]) -> None:
    for image in images:
        if not (image.folder / SEALED).exists():
            seal(image.folder)
    names = [image.name for image in images]
    with tempfile.TemporaryDirectory(prefix="stacklab-") as folder:
        (Path(folder) / CONTENTS).write_text(json.dumps(names))
        inside = [f"--directory={folder}", CONTENTS, f"--directory={store.folder}", *names]
        done = _tar(["--create", "--file=-", *inside], f"{file} could not be written", stream)
    if done.returncode != 0:
        raise StepFailed(f"{file} could not be written", detail=done.stderr[-2000:])


def import_images(store: Store, file: Path) -> list[str]:
    """Take the images in a file into the store; returns the names of those that were not there yet.

    Raises UsageError for a file that is none of ours or whose content is not what was exported, StepFailed
    when the disk is full, or where a lab stands on what a reboot has left of an image in it; then nothing of
    it is kept.
    """
    if not file.is_file():
        raise UsageError(f"there is no file {file}")
    store.folder.mkdir(parents=True, exist_ok=True)
    with store.kept():
        unpacked = Path(tempfile.mkdtemp(dir=store.folder, prefix=".building-import-"))
        try:
            images = _unpack(file, unpacked)
            # They carry the mark that they have reached the disk.
            subprocess.run(["sync", "--file-system", str(unpacked)], check=True)
            return store.take(images)
        finally:
            remove_tree(unpacked)


def _unpack(file: Path, folder: Path) -> list[Path]:
    """Unpack a file and check what is in it; returns the images' folders. Raises UsageError, StepFailed."""
    inside = ["--extract", "--file", str(file), "--directory", str(folder)]
    done = _tar(inside, f"{file} could not be imported")
    images = sorted(path for path in folder.iterdir() if _is_image(path))
    if done.returncode != 0 or not images or [path.name for path in images] != _contents(folder):
        raise UsageError(f"{file} is no file of images, or is cut short", detail=done.stderr[-2000:])
    broken = [f"{path.name}/{name}" for path in images for name in _damage(path)]
    if broken:
        raise UsageError(f"{file} is damaged", detail="\n".join(broken[:20]))
    return images


def _tar(
    arguments: Sequence[str], failed: str, output: int | IO[bytes] = subprocess.DEVNULL
) -> "subprocess.CompletedProcess[str]":
    """Run tar(1), whatever its exit code. Raises StepFailed, which begins with `failed`, on a full disk."""
    done = subprocess.run(
        [*_TAR, *arguments],
        stdout=output,
        stderr=subprocess.PIPE,
        errors="replace",
        env={**os.environ, "LC_ALL": "C"},
        check=False,
    )
    if done.returncode != 0 and any(words in done.stderr for words in _FULL):
        hint = "make room (df -h shows where); then the same command again"
        raise StepFailed(f"{failed}: no space left on the disk", detail=done.stderr[-2000:], hint=hint)
    return done


def _contents(folder: Path) -> list[str]:
    try:
        # As a set: of an exported guest, the name was once written twice.
        return sorted(set(json.loads((folder / CONTENTS).read_text())))
    except (OSError, ValueError, TypeError):
        return []


def _is_image(folder: Path) -> bool:
    try:
        record = json.loads((folder / "image.json").read_text())
        return folder.name == f"{record['kind']}-{key_of(record['inputs'])[:24]}"
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _damage(folder: Path) -> list[str]:
    return damage(folder) if (folder / MANIFEST).is_file() else [MANIFEST]
