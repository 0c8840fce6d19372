"""The climb: from nothing, or from wherever a lab stands, up to a layer.

Read `up` from top to bottom: it is the path that everything in stacklab is part of. Each step looks whether
it is done already, so that the same call resumes after Ctrl-C, a crash or a reboot, and only looks at a
healthy lab.
"""

import contextlib
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from stacklab import wheels
from stacklab.blueprint import Blueprint, UpRequest, packages_traced, resolve_climb
from stacklab.check import check_layer, is_healthy
from stacklab.check.placement import RUNS, placement
from stacklab.check.units import parse
from stacklab.errors import StepFailed
from stacklab.freeze import freeze
from stacklab.home import Home
from stacklab.host import kvm
from stacklab.host.apt import host_mirror
from stacklab.host.archive import Archive
from stacklab.host.checks import host_facts, preflight
from stacklab.images.base import base_inputs, ensure_base
from stacklab.images.guest import Guest, build_guest, guest_inputs
from stacklab.images.packages import (
    UNFINISHED,
    Downloads,
    Installation,
    ensure_packages,
    packages_inputs,
)
from stacklab.images.store import Image
from stacklab.images.usage import store_of
from stacklab.journal import Listener
from stacklab.lab.access import ensure_keys, identity_files, ssh_options, wait_for_ssh
from stacklab.lab.lab import Lab
from stacklab.lab.secrets import ensure_secrets
from stacklab.lab.settings import HOST
from stacklab.model.release import Release
from stacklab.plan import layers_to_apply
from stacklab.provide.provider import Node, NodeState
from stacklab.recipe import LAYER, deepest, first_packages, recipe, title_of
from stacklab.render import STEPS_FILE, HostFacts, Rendered, Renderer
from stacklab.restore import await_cloud, finish_renewal, finish_thaw, images_at_hand, restore
from stacklab.run import run_playbook
from stacklab.steps import units_of_steps
from stacklab.versions import keep_versions, refuse_gone

if TYPE_CHECKING:
    from stacklab.remote.preflight import Accept

RESTART_SECONDS = 60.0


@dataclass(frozen=True)
class Summary:
    """What `up` did.

    layer: where the lab stands. changed: whether anything had to be done. seconds: how long it took.
    """

    layer: int
    changed: bool
    seconds: float


def up(home: Home, request: UpRequest, listener: Listener, accept: "Accept | None" = None) -> Summary:
    """Bring a lab up to the layer asked for, and tell `listener` each event on the way.

    accept: is asked about the keys of hosts that nobody knows; without it, they are refused.
    Raises UsageError and HostUnfit before anything is built, StepFailed when a step fails (what passed before
    it is kept), CheckFailed when the cloud is there and does not do what it should.
    """
    began = time.monotonic()
    lab = Lab(home, request.lab)
    with lab.locked():
        blueprint = resolve_climb(lab, request)
        if blueprint.settings.node_kind == HOST:
            from stacklab.remote.climb import up_on_hosts

            return up_on_hosts(lab, blueprint, listener, accept, online=not request.offline)
        if lab.exists:
            lab.refuse_another_cache()
            if not lab.settings.layer and not lab.settings.thawing:  # nothing in its nodes could be lost yet
                lab.remove_lost_nodes()
            if not lab.settings.thawing:  # else its nodes are about to be put on another image
                lab.refuse_lost_images()
        else:
            lab.refuse_long_path(blueprint.settings.node_kind)
        running = running_services(lab, blueprint) if lab.exists else frozenset[str]()
        host = preflight(home, blueprint, running, online=not request.offline)
        _refuse_gone_versions(home, blueprint, online=not request.offline)
        keep_versions(lab, blueprint.versions)
        lab.save(blueprint.settings)
        lab.journal.subscribe(listener)
        climb = _climb_of(blueprint.settings.node_kind)(lab, blueprint, host, online=not request.offline)
        return climb.to_the_top(began)


def running_services(lab: Lab, blueprint: Blueprint) -> frozenset[str]:
    """The services that run on the lab's nodes, also those of a climb that was cut off before its checks."""
    if lab.namespace.pid() is None:
        return frozenset()
    coming = tuple(each for each in blueprint.services if each.name not in lab.settings.services)
    if not coming:
        return frozenset(lab.settings.services)
    found = placement(lab, replace(blueprint, cuts=(coming,)))
    states = {
        service: [state for units in by_node.values() for state in units.values()]
        for service, by_node in found.items()
    }
    brought_up = {service for service, each in states.items() if each and set(each) == {RUNS}}
    return frozenset(brought_up | set(lab.settings.services))


def _climb_of(kind: str) -> "type[Climb]":
    """What brings up a lab whose nodes are of a kind that is made here."""
    if kind != "vm":
        return Climb
    from stacklab.virtual import VirtualClimb

    return VirtualClimb


def _refuse_gone_versions(home: Home, blueprint: Blueprint, *, online: bool) -> None:
    """Raises HostUnfit when the versions that a lab is to have are in no image and gone from the mirror."""
    if blueprint.versions is None:
        return
    store, release = store_of(home), blueprint.release
    base = store.find("base", base_inputs(release))
    wanted = first_packages(blueprint)
    if base and store.find("packages", packages_inputs(base, wanted, blueprint.versions)):
        return
    archive = archive_of(release, Downloads(home.cache / "packages", online))
    refuse_gone(blueprint.versions, archive)


def archive_of(release: Release, downloads: Downloads) -> Archive:
    """The packages of a release, with lists that are as new as can be."""
    archive = Archive(
        host_mirror(), release.pockets, downloads.folder / "guest", components=release.components
    )
    if downloads.online:
        archive.update()
    return archive


class Climb:
    """One run of `up` on one lab.

    made_first: the steps that make what new nodes start from.
    """

    made_first: tuple[str, ...] = ("base image", "packages")

    def __init__(self, lab: Lab, blueprint: Blueprint, host: HostFacts, *, online: bool) -> None:
        self.lab = lab
        self.blueprint = blueprint
        self.host = host
        self.store = store_of(lab.home)
        self.downloads = Downloads(lab.home.cache / "packages", online)
        self.log = lab.folder / "images.log"

    @property
    def secrets(self) -> dict[str, dict[str, str]]:
        """The lab's passwords, as they are by now: they come with the image that a lab is put on."""
        return ensure_secrets(self.lab.folder / "secrets.yaml", self.blueprint.services)

    def to_the_top(self, began: float) -> Summary:
        """Do what is left to do, and record how long all took since `began`, by the monotonic clock."""
        with self.store.kept():
            changed = self.run()
        summary = Summary(self.blueprint.target, changed, round(time.monotonic() - began, 3))
        self.lab.journal.record("stacklab.lab.ready", self.lab.name, **asdict(summary))
        return summary

    def run(self) -> bool:
        """Do what is left to do; returns whether anything was."""
        finish_thaw(self.lab, self.store)
        finish_renewal(self.lab)
        unfrozen = self.lab.settings.unfrozen
        if unfrozen:  # only what passes its checks is frozen, so they are made again
            self.lab.journal.forget(f"layer-{unfrozen}/")
        elif self._stands():
            return False
        if self._runs():  # what is broken then is mended by doing it again
            self.lab.journal.forget(f"layer-{self.blueprint.target}/")
        self._refuse_broken_templates()
        self.lab.journal.record("stacklab.lab.planned", self.lab.name, steps=self._planned())
        thawed = self._thaw()
        started = None if thawed else self._make()
        guest = self._guest()
        layers = [self.render(layer, guest) for layer in range(1, self.blueprint.target + 1)]
        wanted = layers_to_apply(self.lab, layers)
        if started and not wanted:
            await_cloud(self.lab, started)
        for layer in wanted:
            self.apply(layer)
        return True

    def _refuse_broken_templates(self) -> None:
        """Raises ModelError for what cannot be rendered, before minutes go into nodes."""
        Renderer(self.lab.name, self.blueprint, self.secrets, self.host).layer(self.blueprint.target)

    def _thaw(self) -> bool:
        """Put a new lab on the deepest image that matches; returns whether there was one."""
        images = images_at_hand(self.store, self.blueprint)
        if not images or not self._is_new():
            return False
        self._prove_kvm(self._guest())
        found = deepest(self.store, self.blueprint, self.host, images)
        if not found:
            return False
        restore(self.lab, self.store, found[1])
        return True

    def _make(self) -> datetime | None:
        """Have the nodes there and running; new ones start with the packages of the first layer.

        Returns when nodes were started, if any had to be.
        """
        with ThreadPoolExecutor(1) as pool:
            coming = pool.submit(self._guest)  # dpkg leaves a core free
            absent = any(self.lab.provider.state(node) is NodeState.ABSENT for node in self.blueprint.nodes)
            image = self._start_image() if absent else None
            self._prove_kvm(coming.result())
            if image:
                self._make_nodes(image)
            moment = datetime.now(UTC)
            started = self.lab.start()
        return moment if started else None

    def _runs(self) -> bool:
        return self.lab.namespace.pid() is not None and all(
            self.lab.provider.state(node) is NodeState.RUNNING for node in self.blueprint.nodes
        )

    def _is_new(self) -> bool:
        return all(self.lab.provider.state(node) is NodeState.ABSENT for node in self.blueprint.nodes)

    def _prove_kvm(self, guest: Guest) -> None:
        kvm.prove(self.lab.home.cache, guest.kernel)
        self.host = host_facts(self.lab.home, self.lab.settings)

    def _stands(self) -> bool:
        """Whether the lab is up on its layer, as it would be rendered now, and healthy.

        Nothing is changed.
        """
        if self.blueprint.settings.layer < self.blueprint.target or self.lab.namespace.pid() is None:
            return False
        rendered = self.render(self.blueprint.target, self._guest())
        return self.lab.journal.passed(rendered.applied_key) and is_healthy(self.lab, self.blueprint)

    def _planned(self) -> list[str]:
        makes = any(self.lab.provider.state(node) is NodeState.ABSENT for node in self.blueprint.nodes)
        return [
            *(self.made_first if makes else []),
            *([] if self.lab.namespace.pid() else ["node"]),
            *(
                f"layer {cut}{word}"
                for cut in range(1, self.blueprint.target + 1)
                for word in ("", " checks")
            ),
        ]

    def _start_image(self) -> Image:
        """The image that new nodes start from: the base, and on it the packages of the first layer."""
        journal = self.lab.journal
        with journal.step("base image"):
            base = ensure_base(
                self.store, self.blueprint.release, host_mirror(), self.downloads.base, self.log
            )
        packages = first_packages(self.blueprint)
        with journal.step("packages"), packages_traced(self.blueprint):
            return ensure_packages(
                self.store, base, packages, self.downloads, self.log, self.blueprint.versions
            )

    def _guest(self) -> Guest:
        """The guest, built when the cache has none."""
        release = self.blueprint.release

        def build(folder: Path) -> None:
            with self.lab.journal.step("guest image"), tempfile.TemporaryDirectory(dir=folder) as work:
                build_guest(folder, archive_of(release, self.downloads), Path(work))

        return Guest.at(self.store.ensure("guest", guest_inputs(release.pockets), build).folder)

    def _make_nodes(self, image: Image) -> None:
        ensure_keys(self.lab, self.blueprint.nodes)
        trees = [layer.tree for layer in self.store.chain(image)]
        self.lab.namespace.start()
        for node in self.blueprint.nodes:
            if self.lab.provider.state(node) is NodeState.ABSENT:
                self.lab.provider.create(node, trees, identity_files(self.lab, node))
                self.lab.journal.record("stacklab.node.created", node.name)

    def render(self, layer: int, guest: Guest | None = None) -> Rendered:
        """Render a layer. guest: where it is known already."""
        renderer = Renderer(
            self.lab.name,
            self.blueprint,
            self.secrets,
            self.host,
            ssh_options(self.lab),
            (guest or self._guest()).images,
        )
        return renderer.layer(layer)

    def apply(self, rendered: Rendered) -> None:
        """Bring one layer up on the nodes, check it, and record that the lab stands on it."""
        journal, layer = self.lab.journal, rendered.layer
        folder = self.lab.rendered(layer)
        self._stop_gone_units(rendered)
        rendered.write(folder)
        self._add_missing_packages(layer)
        self._add_missing_wheels(layer)
        with journal.step(f"layer {layer}"):
            run_playbook(self.lab, folder)
        # A compute service that was started anew takes the instances that it finds half made for failed ones.
        # What is wrong with a cloud that does not answer, the checks tell.
        with contextlib.suppress(StepFailed):
            await_cloud(self.lab, datetime.now(UTC), seconds=RESTART_SECONDS)
        late = self.lab.settings.unfrozen == layer
        with journal.step(f"layer {layer} checks", key=rendered.applied_key):
            check_layer(self.lab, self.blueprint, layer)
            self._stand_on(layer)
        if self.lab.settings.unfrozen == layer:
            self._freeze(layer, late=late)
            self.lab.save(self.lab.settings.model_copy(update={"unfrozen": 0}))

    def _stand_on(self, layer: int) -> None:
        """Write down that the lab stands on a layer, and that it is to be frozen when it is there first."""
        settings = self.lab.settings
        is_first = settings.layer < layer  # later there is the user's own data in it
        update = {
            "layer": max(layer, settings.layer),
            "services": tuple(service.name for service in self.blueprint.up_to(layer)),
            "unfrozen": layer if is_first else settings.unfrozen,
        }
        self.lab.save(settings.model_copy(update=update))

    def _freeze(self, layer: int, *, late: bool) -> None:
        """Keep the layer as an image, unless there is one made of the same.

        late: not when it came up, so there may be the user's own data in it; the title says so.
        """
        wanted = recipe(self.blueprint, layer, self.host, images_at_hand(self.store, self.blueprint))
        image = self.store.find(LAYER, wanted)
        if image is None:
            title = title_of(self.blueprint, layer) + (", frozen later" if late else "")
            image = freeze(self.lab, self.store, LAYER, wanted, title=title)
        settings = self.lab.settings
        images = settings.layer_images | {layer: image.name}
        self.lab.save(settings.model_copy(update={"layer_images": images}))

    def _stop_gone_units(self, rendered: Rendered) -> None:
        """Stop the units of services that the lab had, or a climb of it that was cut off, and has no more."""
        for node in self.blueprint.nodes:
            # The node's own word: it may have been put on an image that is older than what was rendered last.
            had = units_of_steps(self.lab.run_on(node.name, ["cat", STEPS_FILE]).stdout)
            gone = sorted(had - {unit for step in rendered.steps[node.name] for unit in step.units})
            if gone:
                with self.lab.journal.step("stop what is gone", node.name, units=gone):
                    self._disable(node, gone)

    def _disable(self, node: Node, units: Sequence[str]) -> None:
        """Stop and disable units, but for those that are not there: of one, systemctl would refuse all."""
        names = [unit if "." in unit else f"{unit}.service" for unit in units]
        shown = self.lab.run_on(
            node.name, ["systemctl", "show", "--property=Id,LoadState", "--", *names], check=True
        )
        there = [state["Id"] for state in parse(shown.stdout) if state["LoadState"] != "not-found"]
        if there:
            self.lab.run_on(node.name, ["systemctl", "disable", "--now", "--", *there], check=True)

    def _add_missing_packages(self, layer: int) -> None:
        """Install into running nodes what was not asked for when they were made."""
        for node in self.blueprint.nodes:
            self._install_on(node, layer)

    def _install_on(self, node: Node, layer: int) -> None:
        wanted = self.blueprint.packages(self.blueprint.up_to(layer), node)
        ask = f'test ! -e {UNFINISHED} || echo unfinished; exec dpkg-query "$@"'
        show = ["--show", "--showformat=${db:Status-Status} ${Package}\n"]
        check = self.lab.run_on(node.name, ["sh", "-c", ask, "sh", *show, *wanted])
        if check.returncode not in (0, 1):  # 1: it does not know some of them
            raise StepFailed(f"node '{node.name}' cannot be asked for its packages", detail=check.stderr)
        said = check.stdout.splitlines()
        present = {line.split()[1] for line in said if line.startswith("installed ")}
        missing = [name for name in wanted if name not in present or "unfinished" in said]
        if missing:
            self._install(node, missing, layer)

    def _install(self, node: Node, packages: Sequence[str], layer: int) -> None:
        """Install packages into a node, which runs afterwards, wherever it was."""
        with self.lab.journal.step("more packages", node.name), packages_traced(self.blueprint):
            self.lab.provider.install(
                node,
                Installation(
                    packages, self.downloads, self.log, self.blueprint.versions, label=f"layer-{layer}"
                ),
            )
            wait_for_ssh(self.lab, node)
            # What systemd does at boot with what packages have put there.
            self.lab.run_on(node.name, ["systemd-tmpfiles", "--create", "--exclude-prefix=/dev"])

    def _add_missing_wheels(self, layer: int) -> None:
        for node in self.blueprint.nodes:
            for wheel in self.blueprint.wheels(self.blueprint.up_to(layer), node):
                if not wheels.is_on(self.lab, node, wheel):
                    with self.lab.journal.step("more packages", f"{node.name}/{wheel}"):
                        wheels.put_on(self.lab, node, wheel, self.downloads)
