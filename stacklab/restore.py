"""Putting a lab back: on after it was off, down to a layer, or onto any image.

Each ends when its cloud answers.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from stacklab.blueprint import Blueprint, UpRequest, as_it_stands, resolve
from stacklab.check import look_after_start
from stacklab.check.cloud import Cloud, pause_after
from stacklab.check.health import concerned_service
from stacklab.errors import StepFailed, UsageError
from stacklab.files import remove_tree
from stacklab.freeze import SECRETS, record_layers, thaw
from stacklab.host.checks import host_facts, refuse_without_memory
from stacklab.images.guest import Guest, guest_inputs
from stacklab.images.store import Image, Store, key_of
from stacklab.images.usage import store_of
from stacklab.journal import Listener
from stacklab.lab.access import ssh_options
from stacklab.lab.lab import Lab
from stacklab.lab.secrets import ensure_secrets, renew_secrets
from stacklab.recipe import LAYER, changes, recipe
from stacklab.render import Rendered, Renderer

ANSWER_SECONDS = 300.0
STANDSTILL_SECONDS = 60.0
POLL_SECONDS = 0.2


def images_at_hand(store: Store, blueprint: Blueprint) -> dict[str, Path]:
    """The image files that stacklab has for services to upload, by name: the guest, once it is built."""
    guest = store.find("guest", guest_inputs(blueprint.release.pockets))
    return Guest.at(guest.folder).images if guest else {}


def start(lab: Lab, listener: Listener) -> None:
    """Start a lab that is off, and return when its cloud answers; what runs already is left alone.

    Raises StepFailed, with what is still missing, when the cloud does not answer within 300 s; where all
    nodes ran already, when the same has been missing for 60 s, as nothing is on its way then.
    """
    lab.refuse_another_cache()
    store = store_of(lab.home)
    with lab.locked(), store.kept():
        if lab.settings.renewing:
            raise UsageError(
                f"lab '{lab.name}' is a copy that was cut off before it had passwords of its own",
                hint=f"stacklab up --lab {lab.name}   (gives it some)",
            )
        lab.journal.subscribe(listener)
        finish_thaw(lab, store)
        if lab.namespace.pid() is None:
            refuse_without_memory(lab)
        start_and_await(lab)


def down(lab: Lab, layer: int, listener: Listener) -> None:
    """Put a lab back on a layer that was frozen when it came up, whatever has happened above it.

    On hosts, of which nothing is frozen, what came above it is undone.

    Raises UsageError when the lab does not stand on or above that layer, or has no image of it any more.
    """
    lab.refuse_another_cache()
    store = store_of(lab.home)
    with lab.locked(), store.kept():
        lab.journal.subscribe(listener)
        finish_thaw(lab, store)
        if not 1 <= layer <= lab.settings.layer:
            raise UsageError(
                f"lab '{lab.name}' stands on layer {lab.settings.layer} and cannot step down to {layer}",
                hint=f"stacklab up --layer {max(layer, 1)} --lab {lab.name}",
            )
        whole = resolve(lab, UpRequest(lab=lab.name))
        if lab.has_hosts:
            from stacklab.remote.down import down_on_hosts

            down_on_hosts(lab, whole, layer)
            return
        blueprint = replace(whole, target=layer, cuts=whole.cuts[:layer])
        image = _image_of(lab, store, blueprint)
        lab.save(lab.settings.model_copy(update={"target": layer}))
        restore(lab, store, image)


def restore(lab: Lab, store: Store, image: Image) -> None:
    """Put a lab on an image, and return when its cloud answers."""
    put(lab, store, image)
    start_and_await(lab)


def finish_thaw(lab: Lab, store: Store) -> None:
    """Do a thaw again that was cut off; nothing happens where there was none.

    Raises StepFailed when its image has gone.
    """
    if not lab.settings.thawing:
        return
    try:
        image = store.get(lab.settings.thawing)
    except UsageError as error:
        raise StepFailed(
            f"lab '{lab.name}' was being put on the image {lab.settings.thawing}, which has gone, "
            "or had not reached the disk when the machine went off",
            hint=f"stacklab images import FILE, or stacklab destroy --lab {lab.name}",
        ) from error
    put(lab, store, image)


def finish_renewal(lab: Lab) -> None:
    """Give a copy that is to have passwords of its own these; nothing happens to another lab.

    Its services have the old ones until `up` has brought them up anew.
    """
    if lab.settings.renewing:
        renew_secrets(lab.folder / SECRETS, resolve(lab, UpRequest(lab=lab.name)).services)
        lab.save(lab.settings.model_copy(update={"renewing": False}))


def put(lab: Lab, store: Store, image: Image) -> None:
    """Put a lab on an image; it is off afterwards."""
    thaw(lab, store, image)
    for folder in (lab.folder / "rendered").glob("layer-*"):
        if int(folder.name.removeprefix("layer-")) > lab.settings.layer:
            remove_tree(folder)
    # An image may be older than the templates; what they have changed since is for `up` to do.
    if lab.settings.layer and _is_as_of_today(lab, store, image):
        rendered = _rendered(lab, store)
        rendered.write(lab.rendered(rendered.layer))
        record_layers(lab, _keys(rendered))
    lab.save(lab.settings.model_copy(update={"thawing": ""}))


def _is_as_of_today(lab: Lab, store: Store, image: Image) -> bool:
    try:
        return (image.inputs.get("made_of") or image.key) == made_of(lab, store)
    except UsageError:  # a folder of services that it was made of has moved: what is done next tells
        return False


def made_of(lab: Lab, store: Store) -> str:
    """The key of the recipe by which the lab's layer would be built today."""
    blueprint = resolve(lab, UpRequest(lab=lab.name))
    return key_of(
        recipe(
            blueprint,
            blueprint.target,
            host_facts(lab.home, lab.settings),
            images_at_hand(store, blueprint),
        )
    )


def start_and_await(lab: Lab) -> None:
    """Start what does not run, and wait until the cloud answers, if the lab has one yet."""
    moment = datetime.now(UTC)
    if lab.start():
        await_cloud(lab, moment)
    else:
        await_cloud(lab, datetime.fromtimestamp(0, UTC), standstill=STANDSTILL_SECONDS)


def await_cloud(
    lab: Lab, started: datetime, seconds: float = ANSWER_SECONDS, standstill: float = math.inf
) -> None:
    """Wait until the services that are up in a lab answer, which was started at the moment `started`.

    Raises StepFailed, with what is still missing, after `seconds`, or when it has been the same for
    `standstill` seconds; both are more where nodes are emulated.
    """
    if not lab.settings.layer:
        return
    blueprint = as_it_stands(lab)
    cloud = Cloud.of(lab, blueprint, blueprint.target)
    with lab.journal.step("the cloud answers", lab.name):
        began = changed = time.monotonic()
        before: list[str] = []
        while True:
            asked = time.monotonic()
            missing = look_after_start(cloud, started)
            if not missing:
                return
            now = time.monotonic()
            if missing != before:
                before, changed = missing, now
            if now - began > seconds * lab.patience or now - changed > standstill * lab.patience:
                raise StepFailed(
                    f"the cloud does not answer after {now - began:.0f} s",
                    detail="\n".join(missing),
                    hint=_where_to_look(lab, blueprint, missing),
                )
            time.sleep(pause_after(asked, POLL_SECONDS))


def _where_to_look(lab: Lab, blueprint: Blueprint, missing: Sequence[str]) -> str:
    """The command that shows more of the first service that is named in what is missing, and the next one."""
    concerned = concerned_service(blueprint.services, missing)
    verb = f"logs {concerned}" if concerned else "status"
    return f"stacklab {verb} --lab {lab.name}; stacklab up --lab {lab.name} starts again what has failed"


def applied_keys(lab: Lab, store: Store) -> Mapping[str, str]:
    """By the name of its step, the key by which `up` knows that the layer it stands on is as it should be."""
    return _keys(_rendered(lab, store))


def _keys(rendered: Rendered) -> Mapping[str, str]:
    return {f"layer {rendered.layer} checks": rendered.applied_key}


def _rendered(lab: Lab, store: Store) -> Rendered:
    """The layer that the lab stands on, as it would be rendered today."""
    blueprint = resolve(lab, UpRequest(lab=lab.name))
    secrets = ensure_secrets(lab.folder / "secrets.yaml", blueprint.services)
    renderer = Renderer(
        lab.name,
        blueprint,
        secrets,
        host_facts(lab.home, lab.settings),
        ssh_options(lab),
        images_at_hand(store, blueprint),
    )
    return renderer.layer(blueprint.target)


def _image_of(lab: Lab, store: Store, blueprint: Blueprint) -> Image:
    wanted = recipe(
        blueprint,
        blueprint.target,
        host_facts(lab.home, lab.settings),
        images_at_hand(store, blueprint),
    )
    image = store.find(LAYER, wanted)
    came_up_as = lab.settings.layer_images.get(blueprint.target, "")
    if image is None and store.holds(came_up_as):  # templates or the choice of services have changed since
        image = store.get(came_up_as)
    if image is None:
        others = [other for other in store.all(LAYER) if other.inputs["layer"] == blueprint.target]
        why = "\n".join(changes(others[0].inputs, wanted)) if others else "no image of this layer is there"
        raise UsageError(
            f"there is no image of layer {blueprint.target} as this lab has it",
            detail=why,
            hint=f"stacklab destroy --lab {lab.name}, then up --layer {blueprint.target}",
        )
    return image
