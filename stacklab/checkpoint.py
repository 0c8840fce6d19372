"""Checkpoints: points in time of a lab that the user names, with all data.

And clones, which start from one.
"""

import time
from collections.abc import Sequence

from stacklab.blueprint import UpRequest, resolve
from stacklab.errors import UsageError
from stacklab.freeze import SECRETS, freeze
from stacklab.images.store import Image, Store
from stacklab.journal import Listener
from stacklab.lab.lab import NAME, NAME_WORDS, Lab
from stacklab.lab.secrets import renew_secrets
from stacklab.restore import applied_keys, finish_thaw, made_of, restore, store_of
from stacklab.versions import keep_versions, versions_kept

CHECKPOINT = "checkpoint"


def save(lab: Lab, name: str, listener: Listener, *, memory: bool = False) -> Image:
    """Keep the lab as it is now; it runs on. memory: with what its nodes have in memory.

    Raises UsageError for a name that is taken or cannot be one.
    """
    if not NAME.fullmatch(name):
        raise UsageError(f"'{name}' cannot be the name of a checkpoint: {NAME_WORDS}")
    store = store_of(lab.home)
    with lab.locked(), store.kept():
        lab.journal.subscribe(listener)
        finish_thaw(lab, store)
        if any(image.inputs["name"] == name for image in checkpoints(lab, store)):
            raise UsageError(
                f"lab '{lab.name}' has a checkpoint '{name}' already",
                hint=f"stacklab checkpoint rm {name} --lab {lab.name}",
            )
        return _freeze(lab, store, name, memory=memory)


def restore_checkpoint(lab: Lab, name: str, listener: Listener) -> None:
    """Put the lab back on a checkpoint: what came after it is gone."""
    store = store_of(lab.home)
    with lab.locked(), store.kept():
        lab.journal.subscribe(listener)
        restore(lab, store, find(lab, store, name))


def remove(lab: Lab, name: str) -> None:
    """Forget a checkpoint. Raises UsageError while a lab stands on it."""
    from stacklab.images.usage import remove_unused

    store = store_of(lab.home)
    with lab.locked():
        remove_unused(lab.home, store, find(lab, store, name))


def checkpoints(lab: Lab, store: Store) -> list[Image]:
    """The checkpoints of a lab, the newest first.

    The store may have those of labs of the same name in other state folders. One from before that was
    written down may be of any.
    """
    state = str(lab.home.state)
    return [
        image
        for image in store.all(CHECKPOINT)
        if image.inputs["lab"] == lab.name
        and image.inputs.get("state", state) == state
        and image.inputs["name"]
    ]


def find(lab: Lab, store: Store, name: str) -> Image:
    """A checkpoint by its name. Raises UsageError where there is none."""
    known = {image.inputs["name"]: image for image in checkpoints(lab, store)}
    if name not in known:
        there = ", ".join(known) or "none"
        raise UsageError(f"lab '{lab.name}' has no checkpoint '{name}'; there is: {there}")
    return known[name]


def clone(
    source: Lab,
    names: Sequence[str],
    listener: Listener,
    *,
    new_secrets: bool = False,
    memory: bool = False,
) -> list[Lab]:
    """Make labs that are copies of one, side by side with it; each shares all that it does not change.

    new_secrets: give each passwords of its own, which brings all its services up anew. memory: they go on
    where the source is, instead of booting.
    Raises UsageError before anything is made when a name is taken.
    """
    store = store_of(source.home)
    labs = [Lab(source.home, name) for name in names]
    for lab in labs:
        _refuse_taken(lab)
    with store.kept():
        with source.locked():
            source.journal.subscribe(listener)
            finish_thaw(source, store)
            image = _freeze(source, store, "", memory=memory)
            settings = source.settings
        for lab in labs:
            with lab.locked():
                _refuse_taken(lab)  # it may have been made meanwhile
                keep_versions(lab, versions_kept(source))
                lab.save(settings.model_copy(update={"thawing": image.name}))
                lab.journal.subscribe(listener)
                restore(lab, store, image)
                if new_secrets:
                    renew_secrets(lab.folder / SECRETS, resolve(lab, UpRequest(lab=lab.name)).services)
            if new_secrets:
                _bring_up(lab, listener)
    return labs


def _refuse_taken(lab: Lab) -> None:
    if lab.exists and not lab.settings.thawing:
        raise UsageError(f"there is a lab '{lab.name}' already", hint=f"stacklab destroy --lab {lab.name}")


def _made_of(lab: Lab, store: Store) -> str:
    """What the lab was built by; another word when that is not what it would be built by today."""
    if not lab.settings.layer:
        return ""
    applied = all(lab.journal.passed(key) for key in applied_keys(lab, store).values())
    return made_of(lab, store) if applied else "older"


def _bring_up(lab: Lab, listener: Listener) -> None:
    from stacklab.climb import up

    up(lab.home, UpRequest(lab=lab.name, layer=lab.settings.layer or None, offline=True), listener)


def _freeze(lab: Lab, store: Store, name: str, *, memory: bool = False) -> Image:
    inputs = {
        "lab": lab.name,
        "state": str(lab.home.state),
        "name": name,
        "time": time.time(),
        "made_of": _made_of(lab, store),
    }
    title = f"{lab.name}: {name}" if name else f"{lab.name}, cloned"
    return freeze(lab, store, CHECKPOINT, inputs, title=title, memory=memory)
