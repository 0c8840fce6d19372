"""Checkpoints: points in time of a lab that the user names, with all data.

And clones, which start from one.
"""

import contextlib
import time
from collections.abc import Sequence

from stacklab.blueprint import UpRequest
from stacklab.errors import LabBusy, UsageError
from stacklab.freeze import freeze
from stacklab.host.checks import refuse_without_memory
from stacklab.images.store import Image, Store
from stacklab.images.usage import store_of
from stacklab.journal import Listener
from stacklab.lab.lab import NAME, NAME_WORDS, Lab
from stacklab.restore import (
    applied_keys,
    finish_renewal,
    finish_thaw,
    made_of,
    put,
    restore,
    start_and_await,
)
from stacklab.versions import keep_versions, versions_kept

CHECKPOINT = "checkpoint"


def save(lab: Lab, name: str, listener: Listener, *, memory: bool = False) -> Image:
    """Keep the lab as it is now; it runs on. memory: with what its nodes have in memory.

    Raises UsageError for a name that is taken or cannot be one.
    """
    if not NAME.fullmatch(name):
        raise UsageError(f"'{name}' cannot be the name of a checkpoint: {NAME_WORDS}")
    lab.refuse_another_cache()
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
    lab.refuse_another_cache()
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
    where the source is, instead of booting. What was cut off goes on, with copies of the same moment.
    Raises UsageError before anything is made when a name is taken, or too long for the state folder,
    HostUnfit when there is no memory for all.
    """
    source.refuse_another_cache()
    store = store_of(source.home)
    labs = [Lab(source.home, name) for name in names]
    asked = {"lab": source.name, "new_secrets": new_secrets}
    begun = next((lab.settings.cloning for lab in labs if lab.exists), "")
    if begun and not asked.items() <= store.get(begun).inputs.items():
        begun = ""
    for lab in labs:
        _refuse_taken(lab, begun)
        lab.refuse_long_path(source.settings.node_kind)
    refuse_without_memory(source, sum(lab.namespace.pid() is None for lab in labs))
    with store.kept():
        with source.locked():
            source.journal.subscribe(listener)
            finish_thaw(source, store)
            about = {"memory": memory, "new_secrets": new_secrets}
            image = store.get(begun) if begun else _freeze(source, store, "", **about)
            made_as = {"thawing": image.name, "cloning": image.name, "renewing": new_secrets}
            settings = source.settings.model_copy(update=made_as)
        for lab in labs:
            with lab.locked():
                _refuse_taken(lab, begun)  # it may have been made meanwhile
                lab.journal.subscribe(listener)
                if not lab.exists or lab.settings.thawing:
                    keep_versions(lab, versions_kept(source))
                    lab.save(settings)
                    put(lab, store, image)
                if lab.settings.renewing or not new_secrets:  # its services have the passwords that it has
                    start_and_await(lab)
                finish_renewal(lab)
            if new_secrets:
                _bring_up(lab, listener)
        for lab in labs:
            with contextlib.suppress(LabBusy), lab.locked():
                if lab.exists:  # it is somebody's by now
                    lab.save(lab.settings.model_copy(update={"cloning": ""}))
    return labs


def _refuse_taken(lab: Lab, begun: str) -> None:
    """Raises UsageError where there is a lab, unless a clone that was cut off has made it of the image."""
    if lab.exists and not (begun and lab.settings.cloning == begun):
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


def _freeze(lab: Lab, store: Store, name: str, *, memory: bool = False, **about: bool) -> Image:
    inputs = {
        "lab": lab.name,
        "state": str(lab.home.state),
        "name": name,
        "time": time.time(),
        "made_of": _made_of(lab, store),
        **about,
    }
    title = f"{lab.name}: {name}" if name else f"{lab.name}, cloned"
    # What the user keeps is not lost to a power cut; what is cloned is on its way to labs of its own.
    return freeze(lab, store, CHECKPOINT, inputs, title=title, memory=memory, durable=bool(name))
