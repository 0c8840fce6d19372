"""The climb of labs of virtual machines: they need a disk and a kernel, where containers need trees.

Emulated, all takes ten times as long and more, so a new lab is not built there: its layers are built on
containers, at the machine's own speed, and each is put on disks, a *seed*. The nodes boot from that, and then
comes what any `up` does: what is as it should be is left alone, the rest is done, and the checks tell.
"""

from collections.abc import Mapping
from datetime import datetime
from functools import cached_property

from stacklab.blueprint import on_containers, packages_traced
from stacklab.climb import Climb, archive_of
from stacklab.errors import StacklabError
from stacklab.event import Event
from stacklab.host import kvm
from stacklab.host.archive import Archive
from stacklab.host.checks import host_facts
from stacklab.images.disk import ensure_disk, ensure_seed
from stacklab.images.guest import Guest
from stacklab.images.packages import Installation
from stacklab.images.store import Image
from stacklab.lab.settings import comes_from_containers
from stacklab.provide.vm import VmProvider
from stacklab.recipe import LAYER, deepest, recipe
from stacklab.render import Rendered
from stacklab.restore import images_at_hand, put, restore
from stacklab.versions import keep_versions


class VirtualClimb(Climb):
    """One run of `up` on one lab of virtual machines."""

    made_first = (*Climb.made_first, "disk image")
    _native: Mapping[int, Image]

    @cached_property
    def _is_seeded(self) -> bool:
        """Whether the lab was new when this was asked for first, and is emulated, on this machine."""
        if self.lab.settings.layer or not self._is_new():
            return False
        if not self.lab.is_elsewhere and kvm.known(self.lab.home.cache) is None:
            self._prove_kvm(self._guest())
        return comes_from_containers(self.lab.settings, self.lab.home.cache)

    def _planned(self) -> list[str]:
        if not self._is_seeded:
            return super()._planned()
        parts = ("disks of layer {}", "node", "layer {}", "layer {} checks")
        layers = range(1, self.blueprint.target + 1)
        return ["build on containers", *(part.format(layer) for layer in layers for part in parts)]

    def _thaw(self) -> bool:
        """Put a new lab on the deepest image that matches.

        Where seeds come above it, all of them are built first, and it need not boot.
        """
        if not self._is_seeded:
            return super()._thaw()
        self._prove_kvm(self._guest())
        found = deepest(self.store, self.blueprint, self.host, images_at_hand(self.store, self.blueprint))
        is_whole = found is not None and found[0] == self.blueprint.target
        if not is_whole:
            self._native = self._native_layers() or self._build_on_containers()
        if found:
            bring_back = restore if is_whole else put
            bring_back(self.lab, self.store, found[1])
        return found is not None

    def _make(self) -> datetime | None:
        """Have the nodes there and running; those of a lab that is seeded come with its first seed."""
        return None if self._is_seeded else super()._make()

    def _prove_kvm(self, guest: Guest) -> None:
        if not self.lab.is_elsewhere:
            super()._prove_kvm(guest)
            return
        if self.lab.settings.connect_kvm is None:
            from stacklab.provide.vm_elsewhere import VmElsewhereProvider

            assert isinstance(self.lab.provider, VmElsewhereProvider)
            works, nested = self.lab.provider.prove_kvm(guest.kernel)
            update = {"connect_kvm": works, "connect_nested": nested}
            self.lab.save(self.lab.settings.model_copy(update=update))
        self.host = host_facts(self.lab.home, self.lab.settings)

    def _start_image(self) -> Image:
        """The disk that new nodes start from, with the packages of the first layer, and the kernel."""
        packages = super()._start_image()
        with self.lab.journal.step("disk image"):
            return ensure_disk(self.store, packages, self._archive, self.downloads, self.log)

    def apply(self, rendered: Rendered) -> None:
        """Bring one layer up on the nodes; on those of a seeded lab most of it is there when they boot."""
        if self._is_seeded and rendered.layer > self.lab.settings.layer:
            rendered = self._seed(rendered.layer)
        super().apply(rendered)

    def _seed(self, layer: int) -> Rendered:
        """Put the lab, which has nothing to lose yet, on a layer as containers have built it, and boot it.

        What virtual machines have otherwise than containers is put on the disks before, as far as it is
        packages and files: each service starts once. Returns the layer, with the passwords of the seed.
        """
        with self.lab.journal.step(f"disks of layer {layer}"):
            seed = ensure_seed(self.store, self._native[layer], self._archive, self.downloads, self.log)
        put(self.lab, self.store, seed)
        rendered = self.render(layer)
        folder = self.lab.rendered(layer)
        rendered.write(folder)
        builder = on_containers(self.blueprint, layer)
        assert isinstance(self.lab.provider, VmProvider)
        for node in self.blueprint.nodes:
            wanted = set(self.blueprint.packages(self.blueprint.up_to(layer), node))
            missing = sorted(wanted.difference(builder.packages(builder.services, node)))
            installation = Installation(missing, self.downloads, self.log, self.blueprint.versions)
            with self.lab.journal.step("files", node.name), packages_traced(self.blueprint):
                self.lab.provider.settle(node, folder / "trees" / f"{node.name}.tar.gz.b64", installation)
        self.lab.start()
        return rendered

    def _native_layers(self) -> Mapping[int, Image]:
        """By layer, the images of this lab on containers; none where not all of them are there."""
        found: dict[int, Image] = {}
        for layer in range(1, self.blueprint.target + 1):
            blueprint = on_containers(self.blueprint, layer)
            host = host_facts(self.lab.home, blueprint.settings)
            wanted = recipe(blueprint, layer, host, images_at_hand(self.store, blueprint))
            image = self.store.find(LAYER, wanted)
            if image is None:
                return {}
            found[layer] = image
        return found

    def _build_on_containers(self) -> Mapping[int, Image]:
        """Bring this lab up on containers, in a lab of its own that goes; by layer, the images of it."""
        blueprint = on_containers(self.blueprint, self.blueprint.target)
        builder = self.lab.builder
        with self.lab.journal.step("build on containers"):
            try:
                builder.destroy()  # what is left of one that was killed
                keep_versions(builder, blueprint.versions)
                builder.save(blueprint.settings)
                builder.journal.subscribe(self._tell_of)
                host = host_facts(self.lab.home, blueprint.settings)
                Climb(builder, blueprint, host, online=self.downloads.online).run()
                names = builder.settings.layer_images
            except StacklabError as error:
                error.message = f"on containers, where an emulated lab is built first: {error.message}"
                look = "the same with --node-kind lxc and another --lab leaves it there to be looked at"
                error.hint = f"{error.hint}; {look}" if error.hint else look
                raise
            finally:
                builder.destroy()
        return {layer: self.store.get(name) for layer, name in names.items()}

    def _tell_of(self, event: Event) -> None:
        """Show the steps of the lab that builds for this one as parts of a step of this one."""
        about, _, what = event.type.removeprefix("stacklab.").partition(".")
        if about == "step" and what in ("started", "passed"):
            took = {"seconds": event.data["seconds"]} if what == "passed" else {}
            self.lab.journal.record(f"stacklab.task.{what}", event.subject, task=event.data["name"], **took)

    def _archive(self) -> Archive:
        return archive_of(self.blueprint.release, self.downloads)
