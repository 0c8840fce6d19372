"""Who uses an image, and what can go: an image stays while a lab or another image stands on it."""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from stacklab.errors import StepFailed, UsageError
from stacklab.files import remove_tree
from stacklab.home import Home
from stacklab.images.store import Image, Store
from stacklab.lab.lab import Lab


def store_of(home: Home) -> Store:
    """The images of this machine."""

    def needed_by(name: str) -> Sequence[str]:
        return users(home, store).get(name, [])

    store = Store(home.cache / "images", home.state, needed_by)
    return store


def users(home: Home, store: Store) -> Mapping[str, list[str]]:
    """By the name of an image, what stands on it, in words: labs, of other state folders, too, and images.

    Raises LabDamaged when that cannot be told of a lab.
    """
    found: dict[str, list[str]] = {image.name: [] for image in store.all()}
    for image in store.all():
        for below in image.stands_on:
            found.setdefault(below, []).append(f"image {image.name}")
    for state in sorted({home.state, *store.states()}):
        where = "" if state == home.state else f" in {state}"
        for lab in Lab.all(Home(state, home.cache)):
            with contextlib.suppress(FileNotFoundError):  # it was destroyed just now
                for name in sorted(images_of(lab, store)):
                    found.setdefault(name, []).append(f"lab {lab.name}{where}")
    return found


def images_of(lab: Lab, store: Store) -> set[str]:
    """The names of the images that a lab stands on, or is being put on."""
    trees: set[Path] = set()
    for node in lab.settings.nodes:
        with contextlib.suppress(FileNotFoundError):  # it has no disk; libvirt may just be ending
            trees.update(lab.provider.image(node))
    names = {store.name_of(tree) for tree in trees if tree.is_relative_to(store.folder)}
    if lab.settings.thawing:
        names.add(lab.settings.thawing)
        with contextlib.suppress(UsageError):
            names.update(store.get(lab.settings.thawing).stands_on)
    return names


def remove_unused(home: Home, store: Store, image: Image) -> None:
    """Remove an image.

    Raises UsageError, with who needs it, when something stands on it, or when somebody else has removed it,
    StepFailed while labs cannot be seen.
    """
    with store.cleared():
        _refuse_unseen(home, store)
        image = store.get(image.name)
        needed = users(home, store)[image.name]
        if needed:
            raise UsageError(f"{image.name} is needed", detail="\n".join(needed))
        store.remove(image)


def prune(home: Home, store: Store, *, everything: bool = False, forget: Sequence[Path] = ()) -> list[str]:
    """Remove what nothing needs, and return the names.

    What a lab or another image stands on stays, checkpoints with a name, and the newest image of each title,
    from which the next lab may start; `everything` takes these last ones, too. What interrupted builds left
    goes. forget: state folders whose labs are gone for good. Raises LabBusy while somebody builds an image or
    puts a lab on one, StepFailed while labs cannot be seen.
    """
    gone = []
    with store.cleared():
        for state in forget:
            if state not in _unseen(home, store):
                raise UsageError(f"no labs in {state} are missed", hint="stacklab images prune")
            store.forget(state)
        _refuse_unseen(home, store)
        needed = users(home, store)
        for folder in list(store.leftovers()):
            if not needed.get(folder.name):
                remove_tree(folder)
                gone.append(folder.name)
        newest = set() if everything else _newest(store)
        while True:
            needed = users(home, store)
            unused = [
                image
                for image in store.all()
                if not needed[image.name] and not image.inputs.get("name") and image.name not in newest
            ]
            if not unused:
                return gone
            for image in unused:
                store.remove(image)
                gone.append(image.name)


def _unseen(home: Home, store: Store) -> list[Path]:
    """The state folders that are not there, though their labs were not destroyed."""
    return [state for state in store.states() if not Home(state, home.cache).labs.is_dir()]


def _refuse_unseen(home: Home, store: Store) -> None:
    """Raises StepFailed when labs cannot be seen: they may stand on any image."""
    unseen = _unseen(home, store)
    if unseen:
        options = " ".join(f"--forget {state}" for state in unseen)
        raise StepFailed(
            f"the labs in {', '.join(map(str, unseen))} stand on images, and cannot be seen",
            detail="\n".join(f"there is no {Home(state, home.cache).labs}" for state in unseen),
            hint=f"mount the disk; or, if they are gone for good, stacklab images prune {options}",
        )


def _newest(store: Store) -> set[str]:
    """The newest image of each title that a new lab could start from; of a clone's, none."""
    images = [image for image in reversed(store.all()) if image.kind != "checkpoint"]
    return set({(image.kind, image.title): image.name for image in images}.values())
