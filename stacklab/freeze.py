"""Freezing and thawing: the state of a whole lab becomes an image, and a lab starts from one.

To freeze, every process of the lab is held at the same moment, while what its nodes have written is copied:
what a power cut at that moment would have left, and every service comes up from that. To thaw, each node gets
an empty disk on top of the image. A thaw that is cut off is done again by whatever is done next with the lab.
"""

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from stacklab.errors import StepFailed, UsageError
from stacklab.files import remove_tree
from stacklab.images.digest import damage
from stacklab.images.disk import SEED
from stacklab.images.store import Image, Store
from stacklab.journal import STEP_PASSED
from stacklab.lab.access import ensure_keys, identity_files, set_clock
from stacklab.lab.lab import Lab
from stacklab.lab.settings import LabSettings
from stacklab.provide.provider import NodeState

# What of a lab's settings a checkpoint brings back, and an image of a layer, which may come from elsewhere.
STATE = ("layer", "services")
CHOICES = ("target", "with_services", "without_services", "path")
# What a lab is made with, beside its nodes, and keeps.
MADE = ("profile", "release", "node_kind")
SECRETS = "secrets.yaml"
SETTINGS = "lab.yaml"
SSH = "ssh"


def freeze(
    lab: Lab,
    store: Store,
    kind: str,
    inputs: Mapping[str, Any],
    title: str = "",
    *,
    memory: bool = False,
    durable: bool = False,
) -> Image:
    """The image of the lab as it is now, which is paused while it is copied (a second or so).

    memory: keep the memory of its nodes, too, which takes some seconds more. durable: return when a power cut
    cannot take it away any more; the lab runs on meanwhile.

    Raises StepFailed when the copy fails, a full disk for one; no image is left then, and the lab is
    unharmed. Raises UsageError where there are no nodes, as `up` was cut off before it made them, LabDamaged
    when what they stand on is not whole any more.
    """
    lab.refuse_lost_images()
    nodes = lab.settings.nodes
    if not lab.has_hosts and any(lab.provider.state(node) is NodeState.ABSENT for node in nodes):
        raise UsageError(f"lab '{lab.name}' has no nodes yet", hint=f"stacklab up --lab {lab.name}")

    def build(folder: Path) -> None:
        (folder / "lab").mkdir()
        (folder / "nodes").mkdir()
        for node in nodes:
            lab.provider.flush(node)
        with _asleep(lab) if memory else lab.provider.held(nodes):
            for node in nodes:
                lab.provider.freeze(node, folder / "nodes" / node.name)
            for name in (SECRETS, SETTINGS):
                shutil.copy2(lab.folder / name, folder / "lab" / name)
        if lab.is_elsewhere:  # where nodes that are held miss what time it is
            for node in nodes:
                if lab.provider.state(node) is NodeState.RUNNING:
                    set_clock(lab, node)
        if memory:
            shutil.copytree(lab.folder / SSH, folder / "lab" / SSH)

    stands_on = dict.fromkeys(store.name_of(tree) for node in nodes for tree in lab.provider.image(node))
    with lab.journal.step("freeze", lab.name, image=kind):
        return store.add(kind, inputs, build, stands_on=list(stands_on), title=title, durable=durable)


@contextlib.contextmanager
def _asleep(lab: Lab) -> Iterator[None]:
    """Meanwhile the nodes are off and their memory is on the disk; they go on from there afterwards.

    They do so, too, when the memory of one cannot be written.
    """
    nodes = lab.settings.nodes
    were_on = all(lab.provider.state(node) is NodeState.RUNNING for node in nodes)
    try:
        lab.provider.hibernate(nodes)
        yield
    finally:
        if were_on:
            lab.start()


def thaw(lab: Lab, store: Store, image: Image) -> None:
    """Put a lab, new or standing, on an image: what its nodes had is gone. It is off afterwards.

    Its settings say `thawing` until the caller has done what belongs to it.

    Raises StepFailed when the image is not what it was when it was frozen, UsageError when it is of a lab
    that was made otherwise; then the lab is left as it was.
    """
    with lab.journal.step("thaw", lab.name, image=image.name):
        broken = damage(image.folder)
        if broken:
            raise StepFailed(
                f"the image {image.name} is damaged: {len(broken)} of its files are not what they were",
                detail="\n".join(broken[:20]),
                hint=f"stacklab images rm {image.name}",
            )
        chain = store.chain(image)
        back = {} if image.kind == SEED else _brought_back(lab, image)  # on a seed, the layer is to come up
        settings = lab.settings.model_copy(update={"thawing": image.name, "unfrozen": 0, **back})
        lab.save(settings)
        lab.namespace.stop()
        lab.journal.forget("layer-")
        shutil.copy2(image.folder / "lab" / SECRETS, lab.folder / SECRETS)
        if (image.folder / "lab" / SSH).is_dir():  # nodes that go on from their memory keep their keys
            remove_tree(lab.folder / SSH)
            shutil.copytree(image.folder / "lab" / SSH, lab.folder / SSH)
        ensure_keys(lab, settings.nodes)
        lab.namespace.start()
        for node in settings.nodes:
            lab.provider.destroy(node)
            lab.provider.create(node, [each.tree_of(node.name) for each in chain], identity_files(lab, node))


def _brought_back(lab: Lab, image: Image) -> dict[str, Any]:
    """What of a lab's settings an image of a layer, or a checkpoint, brings back. Raises UsageError."""
    frozen = LabSettings.model_validate(yaml.safe_load((image.folder / "lab" / SETTINGS).read_text()))
    if image.kind == "layer":  # it was made as this lab was, or is its own
        state = {name: getattr(frozen, name) for name in STATE}
        return {**state, "layer_images": frozen.layer_images | {frozen.layer: image.name}}
    _refuse_others(lab, frozen, image)
    return {name: getattr(frozen, name) for name in (*STATE, *CHOICES, "layer_images")}


def _refuse_others(lab: Lab, frozen: LabSettings, image: Image) -> None:
    """Raises UsageError when a lab of the same name was made otherwise than the one that was frozen."""

    def made(settings: LabSettings) -> dict[str, object]:
        nodes = ", ".join(f"{node.name} ({' '.join(node.roles)})" for node in settings.nodes)
        return {name: getattr(settings, name) for name in MADE} | {"nodes": nodes}

    now, then = made(lab.settings), made(frozen)
    wrong = [
        f"{what}: {then[what]} in the image, {now[what]} in the lab"
        for what in now
        if now[what] != then[what]
    ]
    if wrong:
        raise UsageError(
            f"{image.title} cannot be put on lab '{lab.name}', which was made otherwise",
            detail="\n".join(wrong),
            hint=f"stacklab destroy --lab {lab.name}, and make it as it was",
        )


def record_layers(lab: Lab, keys: Mapping[str, str]) -> None:
    """Record that layers are up and checked, because the image that the lab was put on holds them.

    keys: by the name of the layer's step, the key that `up` asks the journal for.
    """
    for name, key in keys.items():
        lab.journal.record(STEP_PASSED, lab.name, name=name, key=key, seconds=0.0)
