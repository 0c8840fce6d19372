"""The scenario `volumes`: data written to a volume in one instance are read in another, and what else volumes
are there for.
"""

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from stacklab.check.cloud import Cloud
from stacklab.check.result import Checking, Unmet
from stacklab.check.trial import IMAGE, Trial, TrialStep, play
from stacklab.model.service import Service

SIZE, GROWN = 1, 2  # GiB
SECTOR = 512
VOLUME_SECONDS = 120.0
BACKUP_SECONDS = 300.0  # a volume is read and compressed as a whole
DEVICE_SECONDS = 30.0

Words = list[str]
"""What has been written to a volume, one word a sector."""


def check_volumes(cloud: Cloud, service: Service, name: str) -> Checking:
    """Volumes of the first type that the service brings, between two instances.

    The second instance has its root on a volume that was made of an image. Without Nova there is nobody to
    write to a volume: they are made, grow and go.
    """
    there = {each.name for each in cloud.services}
    first = _WithVolumes(cloud)
    first.kind = next((kind.name for kind in service.resources.volume_types), None)
    if "nova" not in there:
        yield from play(first, _without_instances(first, there), service, name)
        return
    second = _FromVolume(cloud, name=first.name, key=first.key, connection=first.api)
    second.kind, second.volumes = first.kind, first.volumes
    written: Words = []
    steps: list[TrialStep] = [
        ("a compute node has room", first.find_room),
        ("a key pair is accepted", first.import_key),
        ("a volume is made", partial(first.make, "data")),
        ("a volume is made of an image", second.make_root),
        ("an instance becomes active", first.boot),
        ("another one becomes active, with its root on the volume", second.boot),
        *((f"{what} gets its address", each.find_address) for what, each in _both(first, second)),
        *(
            (f"the console of {what} says that it is up", each.read_console)
            for what, each in _both(first, second)
        ),
        ("the volume is attached", partial(first.attach, "data")),
        ("it is written to", partial(first.write, "data", written)),
        ("a snapshot of it is taken", partial(first.take_snapshot, "data", written)),
        ("it is written to again", partial(first.write, "data", written)),
        ("it is detached", partial(first.detach, "data")),
        *_backed_up(first, there),  # before it grows, as all of it is read
        ("the other instance gets it", partial(second.attach, "data")),
        ("what was written is there", partial(second.expect, "data", written)),
        ("it grows while it is attached", partial(second.grow, "data", written)),
        ("a volume of the snapshot is made", partial(first.make_of_snapshot, "then")),
        ("the other instance gets that, too", partial(second.attach, "then")),
        ("what was there then is there", partial(second.expect_snapshot, "then", first)),
        *_from_backup(second, written, there),
        *_encrypted(first, second, there if service.name == "cinder" else set()),
    ]
    yield from play(first, steps, service, name)


def _without_instances(trial: "_WithVolumes", there: set[str]) -> list[TrialStep]:
    return [
        ("nothing of an earlier run is left", trial.clear),
        ("a volume is made", partial(trial.make, "data")),
        ("a snapshot of it is taken", partial(trial.take_snapshot, "data", [])),
        ("a volume of the snapshot is made", partial(trial.make_of_snapshot, "then")),
        *_backed_up(trial, there),  # before it grows, as all of it is read
        ("the volume grows", partial(trial.extend, "data")),
    ]


def _both(first: Trial, second: Trial) -> list[tuple[str, Trial]]:
    return [("the first", first), ("the other", second)]


def _backed_up(trial: "_WithVolumes", there: set[str]) -> list[TrialStep]:
    if "cinder-backup" not in there:
        return []
    return [
        ("a backup of it is made", partial(trial.back_up, "data")),
        ("a volume comes back from the backup", partial(trial.restore, "back")),
    ]


def _from_backup(trial: "_WithVolumes", written: Words, there: set[str]) -> list[TrialStep]:
    if "cinder-backup" not in there:
        return []
    return [
        ("the other instance gets what came back", partial(trial.attach, "back")),
        ("what was written is in it", partial(trial.expect, "back", written)),
    ]


def _encrypted(first: "_WithVolumes", second: "_WithVolumes", there: set[str]) -> list[TrialStep]:
    if "encrypted-volumes" not in there:
        return []
    written: Words = []
    return [
        ("an encrypted volume is made", partial(first.make, "sealed", "encrypted")),
        ("the encrypted volume is attached", partial(first.attach, "sealed")),
        ("it is encrypted for the instance", partial(first.write, "sealed", written)),
        ("the encrypted volume is detached", partial(first.detach, "sealed")),
        ("the other instance gets the encrypted volume", partial(second.attach, "sealed")),
        ("it reads it in the clear", partial(second.expect, "sealed", written)),
    ]


@dataclass
class _WithVolumes(Trial):
    """An instance and volumes: their ids by what they are called here. snapshot, backup: ids.

    kind: the type of the volumes, the cloud's default if none.
    """

    kind: str | None = None
    volumes: dict[str, str] = field(default_factory=dict)
    snapshot: str = ""
    backup: str = ""
    at_snapshot: Words = field(default_factory=list)

    def make(self, which: str, kind: str | None = None, **source: str) -> None:
        """A volume becomes available. kind: its type, where it is another one. source: what it is of."""
        volume = self.api.block_storage.create_volume(
            name=self.name, size=SIZE, volume_type=kind or self.kind, **source
        )
        self.volumes[which] = volume.id
        self._await_volume(which, "available")

    def attach(self, which: str) -> None:
        """The instance sees the volume as a disk."""
        self.api.compute.create_volume_attachment(self.server, volume_id=self.volumes[which])
        self._await_volume(which, "in-use")
        with self.console_in_failure():
            self._disk(which)

    def write(self, which: str, written: Words) -> None:
        """A word more is on the disk."""
        word = secrets.token_hex(16)
        with self.console_in_failure():
            disk = self._disk(which)
            # The rest of the sector too, which is noise in an encrypted volume.
            place = f"of={disk} bs={SECTOR} seek={len(written)} conv=notrunc,sync,fsync"
            said = self.run_inside(f"printf %s {word} | dd {place} 2>&1; echo 3 >/proc/sys/vm/drop_caches")
            written.append(word)
            if self._read(which, len(written)) != written:
                raise Unmet("what was written is not there when it is read", detail=said)

    def expect(self, which: str, written: Words) -> None:
        """The words are on the disk."""
        with self.console_in_failure():
            found = self._read(which, len(written))
            if found != written:
                raise Unmet(f"on the disk is {found}, not {written}")

    def take_snapshot(self, which: str, written: Words) -> None:
        """A snapshot of a volume in use becomes available."""
        storage = self.api.block_storage
        made = storage.create_snapshot(volume_id=self.volumes[which], name=self.name, force=True)
        self.snapshot = made.id
        self._await("the snapshot", lambda: storage.get_snapshot(made.id), "available")
        self.at_snapshot = list(written)

    def make_of_snapshot(self, which: str) -> None:
        """A volume of the snapshot becomes available."""
        self.make(which, snapshot_id=self.snapshot)

    def expect_snapshot(self, which: str, other: "_WithVolumes") -> None:
        """The disk holds what the other instance had written before the snapshot, and nothing else."""
        count = len(other.at_snapshot)
        with self.console_in_failure():
            found = self._read(which, count + 1)
            if found != [*other.at_snapshot, ""]:
                raise Unmet(f"on the disk is {found}, not {other.at_snapshot} and nothing else")

    def extend(self, which: str) -> None:
        """The volume, which nobody uses, is larger."""
        self.api.block_storage.extend_volume(self.volumes[which], GROWN)
        self._await_volume(which, "available")
        if (size := self.api.block_storage.get_volume(self.volumes[which]).size) != GROWN:
            raise Unmet(f"the volume has {size} GiB, not {GROWN}")

    def grow(self, which: str, written: Words) -> None:
        """The instance sees the volume's new size, and its data."""
        self.api.block_storage.extend_volume(self.volumes[which], GROWN)
        sectors = GROWN * 2**30 // SECTOR
        said = ""

        def look() -> bool | None:
            nonlocal said
            said = self.run_inside(f"cat /sys/block/{self._disk(which).removeprefix('/dev/')}/size").strip()
            return said == str(sectors) or None

        with self.console_in_failure():
            self.cloud.wait_for(look, DEVICE_SECONDS, lambda: f"the disk has {said} sectors, not {sectors},")
        self._await_volume(which, "in-use")
        self.expect(which, written)

    def detach(self, which: str) -> None:
        """The volume is available again, and the instance has that disk no more."""
        self.api.compute.delete_volume_attachment(self.server, self.volumes[which])
        self._await_volume(which, "available")
        with self.console_in_failure():
            if found := self.run_inside(_find(self.volumes[which])).strip():
                raise Unmet(f"the instance still has the disk {found}")

    def back_up(self, which: str) -> None:
        """A backup becomes available."""
        storage = self.api.block_storage
        made = storage.create_backup(volume_id=self.volumes[which], name=self.name)
        self.backup = made.id
        self._await("the backup", lambda: storage.get_backup(made.id), "available", BACKUP_SECONDS)

    def restore(self, which: str) -> None:
        """A new volume with the content of the backup becomes available."""
        storage = self.api.block_storage
        made = storage.restore_backup(self.backup, name=self.name)
        self.volumes[which] = made.volume_id
        self._await("the backup", lambda: storage.get_backup(self.backup), "available", BACKUP_SECONDS)
        self._await_volume(which, "available")

    def _read(self, which: str, count: int) -> Words:
        """The first words of the disk; an empty one where nothing was written."""
        read = f"dd if={self._disk(which)} bs={SECTOR} count={count} 2>/dev/null | tr '\\0' '\\n'"
        text = self.run_inside(read)
        sectors = [text[at : at + SECTOR] for at in range(0, count * SECTOR, SECTOR)]
        return [sector.strip() for sector in sectors]

    def _disk(self, which: str) -> str:
        """Where the volume is in the instance, once it is there."""
        volume = self.volumes[which]

        def look() -> str | None:
            return self.run_inside(_find(volume)).strip() or None

        return self.cloud.wait_for(look, DEVICE_SECONDS, lambda: f"the instance has no disk {volume}")

    def _await_volume(self, which: str, status: str) -> None:
        volume = self.volumes[which]
        self._await(f"the volume '{which}'", lambda: self.api.block_storage.get_volume(volume), status)

    def _await(self, what: str, get: Callable[[], Any], status: str, seconds: float = VOLUME_SECONDS) -> None:
        """Wait until a thing of Cinder's has that status. Raises Unmet when it ends in an error."""
        found = ""

        def look() -> bool | None:
            nonlocal found
            found = get().status
            if found.startswith("error"):
                raise Unmet(f"{what} ended in '{found}', not '{status}'", detail=self._messages())
            return found == status or None

        self.cloud.wait_for(look, seconds, lambda: f"{what} is '{found}', not '{status}',")

    def _messages(self) -> str:
        """What Cinder tells users of failures."""
        told = self.api.block_storage.get("/messages", microversion="3.3").json().get("messages", ())
        return "\n".join(f"{each['event_id']}: {each['user_message']}" for each in told)


class _FromVolume(_WithVolumes):
    def make_root(self) -> None:
        """A volume with the guest in it becomes available."""
        image = self.api.image.find_image(IMAGE, ignore_missing=False)
        self.make("root", image_id=image.id)

    def root(self) -> dict[str, Any]:
        """It boots from the volume."""
        disk = {"boot_index": 0, "uuid": self.volumes["root"]}
        return {"block_device_mapping": [{**disk, "source_type": "volume", "destination_type": "volume"}]}


def _find(volume: str) -> str:
    """A command that prints the device of a volume: Nova gives a disk the volume's id for its number."""
    return f"cd /sys/block; for at in vd*; do grep -q ^{volume[:20]} $at/serial && echo /dev/$at; done"
