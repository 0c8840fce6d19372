"""What the image of a layer is made of. Two labs whose recipes are equal can share it.

A recipe is independent of the lab: names and passwords are placeholders in it. It holds a digest of every
file and step of the layer, so that a change in one service's template is told from all others, and leaves the
layers below it as they are.
"""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from stacklab.blueprint import Blueprint
from stacklab.home import data_dir
from stacklab.images.base import base_inputs
from stacklab.images.disk import disk_inputs
from stacklab.images.store import Image, Store
from stacklab.lab.secrets import placeholder_secrets
from stacklab.render import HostFacts, Renderer, demands

LAYER = "layer"
# What brings a layer up, beside what is rendered for it.
LIFECYCLE = ("playbooks", "templates/nodes", "templates/playbooks", "templates/images")


def recipe(blueprint: Blueprint, layer: int, host: HostFacts, images: Mapping[str, Path]) -> dict[str, Any]:
    """The inputs of the image of one layer, as plain JSON values. images: as for the Renderer."""
    secrets = placeholder_secrets(Path("/nonexistent"), blueprint.services)
    rendered = Renderer("lab", blueprint, secrets, host, images=images).layer(layer)
    services = blueprint.up_to(layer)
    return {
        "layer": layer,
        "base": base_inputs(blueprint.release),
        "services": [service.name for service in services],
        "nodes": [
            {"name": node.name, "address": node.address, "roles": list(node.roles)}
            for node in blueprint.nodes
        ],
        **demands(blueprint, layer),
        "files": {
            node: {path: file.digest for path, file in files.items()}
            for node, files in rendered.files.items()
        },
        "lifecycle": _lifecycle(),
        **({"disk": disk_inputs()} if blueprint.settings.node_kind == "vm" else {}),
        **({} if blueprint.versions is None else {"versions": blueprint.versions.packages}),
    }


def title_of(blueprint: Blueprint, layer: int) -> str:
    """What a person knows the image of a layer by; another one for each choice of services and nodes."""
    settings = blueprint.settings
    added = [name for name, number in settings.with_services.items() if number <= layer]
    words = [f"layer {layer} of {settings.profile}"]
    words += [f"with {', '.join(added)}"] if added else []
    words += [f"without {', '.join(settings.without_services)}"] if settings.without_services else []
    words += [f"on {len(settings.nodes)} nodes"] if len(settings.nodes) > 1 else []
    words += ["in virtual machines"] if settings.node_kind == "vm" else []
    return " ".join(words)


def first_packages(blueprint: Blueprint) -> list[str]:
    """The packages of the image that new nodes start from: those of layer 1, on whichever node."""
    first = blueprint.up_to(1)
    return sorted({name for node in blueprint.nodes for name in blueprint.packages(first, node)})


def descend(
    store: Store, blueprint: Blueprint, host: HostFacts, images: Mapping[str, Path]
) -> Iterator[tuple[int, dict[str, Any], Image | None]]:
    """The layers from the target down to the highest one that an image is there for.

    The number of each, its recipe, and, with the last, the image.
    """
    for layer in range(blueprint.target, 0, -1):
        wanted = recipe(blueprint, layer, host, images)
        image = store.find(LAYER, wanted)
        yield layer, wanted, image
        if image:
            return


def deepest(
    store: Store, blueprint: Blueprint, host: HostFacts, images: Mapping[str, Path]
) -> tuple[int, Image] | None:
    """The highest layer up to the target that an image is there for, with the image.

    None where there is none.
    """
    descent = descend(store, blueprint, host, images)
    return next(((layer, image) for layer, _, image in descent if image), None)


def changes(old: Mapping[str, Any], new: Mapping[str, Any], where: str = "") -> Iterator[str]:
    """What differs between two recipes, in words: why an image that is there does not match."""
    for key in sorted({*old, *new}):
        place = f"{where} {key}".strip()
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            yield from changes(before, after, place)
        elif before != after:
            word = "is new" if before is None else "is gone" if after is None else "changed"
            yield f"{place} {word}"


def _lifecycle() -> str:
    digest = hashlib.sha256()
    for folder in LIFECYCLE:
        for file in sorted((data_dir() / folder).rglob("*")):
            if file.is_file() and "__pycache__" not in file.parts:
                digest.update(f"{file.relative_to(data_dir())}\0".encode() + file.read_bytes())
    return digest.hexdigest()
