"""What `up` would do: images, steps, files and their differences. Nothing is touched."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stacklab.blueprint import Blueprint, UpRequest, resolve_climb
from stacklab.home import Home
from stacklab.host.checks import host_facts
from stacklab.images.base import base_inputs
from stacklab.images.guest import Guest, guest_inputs
from stacklab.images.packages import packages_inputs
from stacklab.images.store import Store, key_of
from stacklab.lab.lab import Lab
from stacklab.lab.secrets import placeholder_secrets
from stacklab.lab.settings import HOST, comes_from_containers
from stacklab.provide.provider import NodeState
from stacklab.recipe import LAYER, changes, descend, first_packages
from stacklab.render import HostFacts, Rendered, Renderer, differences
from stacklab.steps import Step


@dataclass(frozen=True)
class PlannedImage:
    """An image that the lab needs; cached: it is there already."""

    kind: str
    key: str
    cached: bool


@dataclass(frozen=True)
class PlannedStart:
    """What a new lab starts from.

    image: the name of an image that matches, of the layer `layer`; empty and 0 where none does. closest: of
    those of a higher layer that do not match, the name of the one with fewest differences, and the reasons.
    """

    image: str = ""
    layer: int = 0
    closest: str = ""
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class PlannedFile:
    """A file that would be written or removed.

    difference: a unified diff, empty when the content is secret.
    """

    node: str
    path: str
    action: str
    difference: str


@dataclass(frozen=True)
class PlannedLayer:
    """One layer: its services; the steps that would run, by node; the files that would change."""

    number: int
    services: tuple[str, ...]
    steps: tuple[tuple[str, str], ...]
    files: tuple[PlannedFile, ...]


@dataclass(frozen=True)
class Plan:
    """All that `up` would do.

    nodes: the nodes that would be made. start: what they start from, when all of them are new. seeded:
    whether containers build the layers above that first, as nodes are emulated (docs/decisions/0024).
    """

    lab: str
    layer: int
    images: tuple[PlannedImage, ...]
    nodes: tuple[str, ...]
    layers: tuple[PlannedLayer, ...]
    start: PlannedStart | None = None
    seeded: bool = False


def make_plan(home: Home, request: UpRequest) -> Plan:
    """Plan a request. Raises UsageError and ModelError as `up` does."""
    lab = Lab(home, request.lab)
    blueprint = resolve_climb(lab, request)
    absent = tuple(
        node.name
        for node in blueprint.nodes
        if not lab.exists or lab.provider.state(node) is NodeState.ABSENT
    )
    store = Store(home.cache / "images")
    images = []
    are_made = blueprint.settings.node_kind != HOST  # what is there already needs no image
    if absent and are_made:
        inputs = base_inputs(blueprint.release)
        packages = first_packages(blueprint)
        images.append(_planned_image(store, "base", inputs))
        base = store.find("base", inputs)
        if base:
            images.append(
                _planned_image(store, "packages", packages_inputs(base, packages, blueprint.versions))
            )
    secrets = placeholder_secrets(lab.folder / "secrets.yaml", blueprint.services)
    guest = store.find("guest", guest_inputs(blueprint.release.pockets))
    images_at_hand = Guest.at(guest.folder).images if guest else {}
    host = host_facts(home, blueprint.settings)
    renderer = Renderer(lab.name, blueprint, secrets, host, images=images_at_hand)
    is_new = len(absent) == len(blueprint.nodes)
    start = _start(store, blueprint, host, images_at_hand) if is_new and are_made else None
    rendered = [renderer.layer(number) for number in range(1, blueprint.target + 1)]
    above = rendered[start.layer if start else 0 :]
    wanted = layers_to_apply(lab, above) if lab.exists else above
    layers = tuple(_planned_layer(lab, blueprint, each) for each in wanted)
    seeded = (
        start is not None
        and start.layer < blueprint.target
        and comes_from_containers(blueprint.settings, home.cache)
    )
    return Plan(lab.name, blueprint.target, tuple(images), absent, layers, start, seeded)


def layers_to_apply(lab: Lab, layers: Sequence[Rendered]) -> list[Rendered]:
    """Those of the layers, lowest first, that the lab does not stand on as they are rendered now.

    A layer holds those below it: to apply one of these again would take away what stands above it. One whose
    freeze is owed is gone through once more.
    """
    above = lab.settings.unfrozen or lab.settings.layer + 1
    lowest = min([above, *(highest.layer for highest in layers[-1:])])
    return [layer for layer in layers if layer.layer >= lowest and not lab.journal.passed(layer.applied_key)]


def _start(
    store: Store, blueprint: Blueprint, host: HostFacts, images_at_hand: Mapping[str, Path]
) -> PlannedStart:
    """The deepest image that matches, and why none of a higher layer does."""
    closest, reasons = "", tuple[str, ...]()
    for layer, wanted, image in descend(store, blueprint, host, images_at_hand):
        if image:
            return PlannedStart(image.name, layer, closest, reasons)
        if not closest:
            closest, reasons = _closest(store, layer, wanted)
    return PlannedStart(closest=closest, reasons=reasons)


def _closest(store: Store, layer: int, wanted: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
    """The image of a layer with fewest differences from a recipe, and these; empty where there is none."""
    others = [image for image in store.all(LAYER) if image.inputs["layer"] == layer]
    differences_of = {image.name: tuple(changes(image.inputs, wanted)) for image in others}
    return min(differences_of.items(), key=lambda item: len(item[1]), default=("", ()))


def _planned_layer(lab: Lab, blueprint: Blueprint, rendered: Rendered) -> PlannedLayer:
    services = tuple(service.name for service in blueprint.cuts[rendered.layer - 1])
    before = lab.rendered(rendered.layer)
    return PlannedLayer(rendered.layer, services, _steps(rendered), tuple(_files(before, rendered)))


def _planned_image(store: Store, kind: str, inputs: dict[str, object]) -> PlannedImage:
    return PlannedImage(kind, key_of(inputs), store.find(kind, inputs) is not None)


def _steps(rendered: Rendered) -> tuple[tuple[str, str], ...]:
    on_nodes: list[tuple[str, Step]] = [
        (node, step)
        for by_node in (rendered.steps, rendered.final)
        for node, steps in by_node.items()
        for step in steps
    ]
    return tuple((node, step.id) for node, step in on_nodes)


def _files(before: Path, rendered: Rendered) -> list[PlannedFile]:
    planned = []
    for node, path, old, new in differences(before, rendered):
        file = rendered.files[node].get(path)
        action = (
            "remove"
            if file is None
            else ("change" if (before / "files" / node / path.lstrip("/")).exists() else "add")
        )
        shown = "" if file is None or file.secret else _diff(path, old, new)
        planned.append(PlannedFile(node, path, action, shown))
    return planned


def _diff(path: str, old: bytes, new: bytes) -> str:
    lines = difflib.unified_diff(
        old.decode(errors="replace").splitlines(),
        new.decode(errors="replace").splitlines(),
        path,
        path,
        lineterm="",
    )
    return "\n".join(lines)
