"""The store of images: each whole or absent, addressed by the hash of all that went into it.

    packages-3f9c.../image.json      what it is, what it was made of, what it stands on
    packages-3f9c.../tree/           its root tree: whole, or an overlay directory on the images it stands on
    layer-77ab.../nodes/NAME/        the same, for an image of a whole lab: a tree for each node
    layer-77ab.../lab/               what else such a lab needs
    packages-3f9c.../manifest.json   a digest of each of its files
    packages-3f9c.../sealed          it has reached the disk

An image is built in `.building-...` and renamed when it is complete. Writing gigabytes through to the disk is
not waited for, except for a checkpoint that the user keeps: an image that is not sealed is good until the
machine reboots. After that it counts as absent until its digests were found to be right.
"""

import hashlib
import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stacklab import lock
from stacklab.errors import StepFailed, UsageError
from stacklab.files import boot_id, reach_disk, remove_tree, write_atomically
from stacklab.home import Home
from stacklab.images.digest import MANIFEST, SEALED, damage, seal, seal_in_background

_BUILDING = ".building-"
_STATES = ".states"


def key_of(inputs: Mapping[str, Any]) -> str:
    """The key of an image: the SHA-256, in hex, of its inputs (plain JSON values) in canonical form."""
    canonical = json.dumps(inputs, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


@dataclass(frozen=True)
class Image:
    """A complete image in the store.

    kind: base, packages, guest, disk, seed, layer, checkpoint. stands_on: the names of the images below it,
    top first. title: what a person knows it by. built: seconds since the epoch.
    """

    kind: str
    key: str
    folder: Path
    inputs: Mapping[str, Any]
    stands_on: tuple[str, ...] = ()
    title: str = ""
    built: float = 0.0

    @property
    def name(self) -> str:
        """The name of its folder, by which other images and labs know it."""
        return self.folder.name

    @property
    def tree(self) -> Path:
        """Its root tree."""
        return self.folder / "tree"

    @property
    def nodes(self) -> tuple[str, ...]:
        """The nodes that it has trees of."""
        return tuple(sorted(folder.name for folder in (self.folder / "nodes").glob("*")))

    def tree_of(self, node: str) -> Path:
        """Its tree for a node: the node's own, or the one for all."""
        own = self.folder / "nodes" / node
        return own if own.is_dir() else self.tree


class Store:
    """The images below `folder`.

    state: the folder of the labs that may stand on them; other commands may use others, of which the store
    keeps a record. needed_by: tells what stands on an image, by the image's name.
    """

    def __init__(
        self,
        folder: Path,
        state: Path | None = None,
        needed_by: Callable[[str], Sequence[str]] = lambda name: (),
    ) -> None:
        self.folder = folder
        self._state = state
        self._needed_by = needed_by
        self._lost: set[Path] = set()

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Meanwhile nobody removes an image: for whoever is about to stand on one."""
        with lock.hold(self.folder / ".use.lock", "the store of images", wait=True, shared=True):
            self._remember_state()
            yield

    def states(self) -> list[Path]:
        """The folders whose labs may stand on these images: those that have used the store and have labs."""
        found = []
        for record in (self.folder / _STATES).glob("*.path"):
            with suppress(FileNotFoundError):  # the last of its labs is just destroyed
                found.append(Path(record.read_text()))
        return sorted(found)

    def forget(self, state: Path) -> None:
        """Forget a folder whose labs have all been destroyed, or are gone for good."""
        self._record_of(state).unlink(missing_ok=True)
        if state == self._state:
            self._remember_state()  # another command may have made a lab just now, and seen the record

    def _remember_state(self) -> None:
        if self._state is None or not Home(self._state, self.folder).labs.is_dir():
            return
        record = self._record_of(self._state)
        if not record.exists():
            write_atomically(record, str(self._state))

    def _record_of(self, state: Path) -> Path:
        return self.folder / _STATES / f"{hashlib.sha256(str(state).encode()).hexdigest()[:16]}.path"

    def cleared(self) -> AbstractContextManager[None]:
        """Meanwhile nobody builds an image or stands on one.

        Raises LabBusy, with who does, when somebody is at it.
        """
        return lock.hold(self.folder / ".use.lock", "the store of images")

    def find(self, kind: str, inputs: Mapping[str, Any]) -> Image | None:
        """The complete image of that kind made from exactly these inputs, or None."""
        return self._read(self._folder(kind, key_of(inputs)))

    def get(self, name: str) -> Image:
        """The image whose name begins with `name`.

        Raises UsageError where there is none, or more than one.
        """
        found = [image for image in self.all() if image.name.startswith(name)]
        if len(found) == 1:
            return found[0]
        what = "no image is" if not found else f"{len(found)} images are"
        raise UsageError(f"{what} called '{name}'", hint="stacklab images ls")

    def all(self, kind: str = "") -> list[Image]:
        """Every complete image, or those of one kind; the newest first."""
        found = (self._read(file.parent) for file in self.folder.glob(f"{kind or '[a-z]*'}-*/image.json"))
        return sorted((image for image in found if image), key=lambda image: -image.built)

    def holds(self, name: str) -> bool:
        """Whether an image of that full name is there, complete."""
        return self._read(self.folder / name) is not None

    def secure(self, name: str) -> bool:
        """Whether an image is there, complete; one whose sealing was cut off is sealed after all."""
        folder = self.folder / name
        if not self.holds(name):
            return False
        if not (folder / SEALED).exists():
            seal_in_background(folder)
        return True

    def chain(self, image: Image) -> list[Image]:
        """The image and those it stands on, top first. Raises UsageError when one of them is not there."""
        return [image, *(self.get(name) for name in image.stands_on)]

    def ensure(
        self,
        kind: str,
        inputs: Mapping[str, Any],
        build: Callable[[Path], None],
        *,
        parent: Image | None = None,
        title: str = "",
    ) -> Image:
        """The image made from these inputs; `build` makes it, in the empty folder that it is given.

        Another process that builds the same image is waited for, and its result taken. What an interrupted
        build left behind is removed. An error of `build` is passed on, and no image is left.

        Raises StepFailed when a lab stands on what a reboot has left of it.
        """
        stands_on = [parent.name, *parent.stands_on] if parent else []
        return self.add(kind, inputs, build, stands_on=stands_on, title=title)

    def add(
        self,
        kind: str,
        inputs: Mapping[str, Any],
        build: Callable[[Path], None],
        *,
        stands_on: Sequence[str],
        title: str = "",
        durable: bool = False,
    ) -> Image:
        """Like `ensure`, for an image that stands on those named in `stands_on`, top first.

        durable: a new one is there when it, and all that it stands on, has reached the disk.
        """
        final = self._folder(kind, key_of(inputs))
        self.folder.mkdir(parents=True, exist_ok=True)
        with lock.hold(self._lock(final), f"the image {final.name}", wait=True):
            if self.secure(final.name):
                return self.get(final.name)
            self.make_way(final)
            for left in list(self.folder.glob(f"{_BUILDING}{final.name}-*")):
                remove_tree(left)
            building = Path(tempfile.mkdtemp(dir=self.folder, prefix=f"{_BUILDING}{final.name}-"))
            try:
                building.chmod(0o755)
                build(building)
                record = {
                    "kind": kind,
                    "key": key_of(inputs),
                    "inputs": dict(inputs),
                    "stands_on": list(stands_on),
                    "title": title,
                    "built": time.time(),
                    "boot": boot_id(),
                }
                write_atomically(building / "image.json", json.dumps(record, indent=1))
                if durable:
                    for folder in (*(self.folder / name for name in stands_on), building):
                        if not (folder / SEALED).exists():
                            seal(folder)
                building.rename(final)
            finally:
                remove_tree(building)
        if durable:
            reach_disk([self.folder])
        else:
            seal_in_background(final)
        return self.get(final.name)

    def take(self, folders: Sequence[Path]) -> list[str]:
        """Move complete images, which lie on the same disk, into the store where it has none of that name.

        Returns the names of those. One that another process is building is waited for. Raises StepFailed, and
        takes none, when a lab stands on what a reboot has left of one.
        """
        with ExitStack() as locks:
            for folder in sorted(folders):
                what = f"the image {folder.name}"
                locks.enter_context(lock.hold(self._lock(folder), what, wait=True))
            taken = [folder for folder in folders if not self.holds(folder.name)]
            for folder in taken:
                self.make_way(self.folder / folder.name)
            for folder in taken:
                folder.rename(self.folder / folder.name)
        return [folder.name for folder in taken]

    def remove(self, image: Image) -> None:
        """Remove an image that nothing stands on.

        It is out of the way at once, whatever happens meanwhile.
        """
        gone = self.folder / f"{_BUILDING}{image.name}-gone"
        with lock.hold(self._lock(image.folder), f"the image {image.name}", wait=True):
            remove_tree(gone)
            image.folder.rename(gone)
            remove_tree(gone)

    def make_way(self, folder: Path) -> None:
        """Remove what is left of an image that may not have reached the disk.

        Raises StepFailed, with who, when something stands on it all the same.
        """
        needed = self._needed_by(folder.name) if folder.exists() else ()
        if needed:
            raise StepFailed(
                f"{folder.name} may not have reached the disk before a reboot, and is in use",
                detail="\n".join(needed),
                hint="destroy what stands on it, and try again",
            )
        remove_tree(folder)

    def leftovers(self) -> Iterator[Path]:
        """What interrupted builds and removals left, and images that a reboot kept from reaching the disk."""
        yield from self.folder.glob(f"{_BUILDING}*")
        for folder in self.folder.glob("[a-z]*-*"):
            if folder.is_dir() and self._read(folder) is None:
                yield folder

    def size(self, image: Image) -> int:
        """What the image takes on the disk, in bytes, without those that it stands on."""
        done = subprocess.run(
            ["du", "--summarize", "--block-size=1", str(image.folder)],
            capture_output=True,
            text=True,
            check=False,  # a file that goes meanwhile, of a seal in the making, is none of the image's
        )
        return int(done.stdout.split()[0])

    def name_of(self, tree: Path) -> str:
        """The name of the image that a root tree belongs to."""
        return tree.relative_to(self.folder).parts[0]

    def _read(self, folder: Path) -> Image | None:
        """The image in a folder; None unless it, and all that it stands on, is complete."""
        try:
            record = self._record(folder)
            if not all(self._record(self.folder / name) for name in record["stands_on"]):
                return None
            return Image(
                record["kind"],
                record["key"],
                folder,
                record["inputs"],
                tuple(record["stands_on"]),
                record["title"],
                record["built"],
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _record(self, folder: Path) -> dict[str, Any]:
        """What is written in an image; raises OSError when it may not have reached the disk."""
        record: dict[str, Any] = json.loads((folder / "image.json").read_text())
        if record["boot"] != boot_id() and not (folder / SEALED).exists():
            self._seal_after_reboot(folder)
        return record

    def _seal_after_reboot(self, folder: Path) -> None:
        """Seal an image whose sealing was cut off: what reads as its digests say has reached the disk.

        Raises FileNotFoundError when it has no digests or reads otherwise.
        """
        if folder in self._lost or not (folder / MANIFEST).exists() or damage(folder):
            self._lost.add(folder)  # to read it all takes time
            raise FileNotFoundError(folder / SEALED)
        (folder / SEALED).touch()

    def _folder(self, kind: str, key: str) -> Path:
        return self.folder / f"{kind}-{key[:24]}"

    def _lock(self, folder: Path) -> Path:
        return self.folder / f".{folder.name}.lock"
