"""The disks of labs on another machine: a folder of its libvirt, which is there as long as a lab has disks.

IMAGE.qcow2, IMAGE.vmlinuz     what nodes start from, whole, once for all labs
IMAGE.qcow2.ready              it is there
DOMAIN.initrd                  made first and removed last: what of a node keeps the pool
DOMAIN.*.qcow2                 a node's own disk, on that of its image
DOMAIN.console                 what its console said
"""

import contextlib
import uuid
from collections.abc import Iterator
from pathlib import Path

import libvirt

from stacklab.errors import StepFailed
from stacklab.provide.domains import absent

NAME = "stacklab"
FOLDER = f"/var/lib/libvirt/images/{NAME}"
POOL = f"""\
<pool type='dir'>
  <name>{NAME}</name>
  <uuid>{uuid.uuid5(uuid.NAMESPACE_DNS, NAME)}</uuid>
  <target><path>{FOLDER}</path><permissions><mode>0711</mode></permissions></target>
</pool>
"""
READY = "ready"
INITRD = ".initrd"
NO_VOLUME = libvirt.VIR_ERR_NO_STORAGE_VOL


class Pool:
    """The disks on the machine that a connection leads to. Errors are libvirt's."""

    def __init__(self, connection: libvirt.virConnect) -> None:
        self.connection = connection
        self._pool = connection.storagePoolDefineXML(POOL)  # one that is there already stays as it is
        if self._pool.isActive():
            self._pool.refresh()
        else:
            self._pool.create(libvirt.VIR_STORAGE_POOL_CREATE_WITH_BUILD)

    @staticmethod
    def path(name: str) -> str:
        """Where a disk is on that machine."""
        return f"{FOLDER}/{name}"

    def has_whole(self, name: str) -> bool:
        """Whether there is what was sent under that name, to its end."""
        return f"{name}.{READY}" in self._pool.listVolumes()

    def free(self) -> int:
        """The room that is left, in bytes."""
        return int(self._pool.info()[3])

    def mark_whole(self, name: str) -> None:
        """Write down that all of it has been sent."""
        self._make(f"{name}.{READY}", 1, "raw")

    def upload(self, name: str, source: Path) -> None:
        """Put a file there, in place of one that has its name. Raises StepFailed when there is no room."""
        if self.free() < source.stat().st_size:
            raise StepFailed(
                f"there is no room for {source.stat().st_size >> 20} MiB in {FOLDER} on the other machine",
                hint="make some there, or destroy a lab that runs there",
            )
        volume = self._make(name, source.stat().st_size, "raw")
        stream = self.connection.newStream()
        with source.open("rb") as file, _aborted_on_error(stream):
            volume.upload(stream, 0, source.stat().st_size)
            stream.sendAll(lambda _stream, size, _opaque: file.read(size), None)
            stream.finish()
        self._pool.refresh()

    def download(self, name: str, target: Path) -> None:
        """Fetch a file from there; what is not written in it is not written here."""
        volume = self._pool.storageVolLookupByName(name)
        stream = self.connection.newStream()
        with target.open("wb") as file, _aborted_on_error(stream):
            volume.download(stream, 0, 0, libvirt.VIR_STORAGE_VOL_DOWNLOAD_SPARSE_STREAM)
            stream.sparseRecvAll(
                lambda _stream, data, _opaque: file.write(data),
                lambda _stream, size, _opaque: file.truncate(file.seek(size, 1)),
                None,
            )
            stream.finish()

    def stand_on(self, name: str, below: str, size: int) -> None:
        """Make an empty disk of `size` bytes on top of another one."""
        path = self.path(below)
        self._make(
            name, size, "qcow2", f"<backingStore><path>{path}</path><format type='qcow2'/></backingStore>"
        )

    def remove(self, name: str) -> None:
        """Remove a disk, where it is there."""
        with absent(NO_VOLUME):
            self._pool.storageVolLookupByName(name).delete()

    def remove_all(self, prefix: str) -> None:
        """Remove all that is of a node; `prefix`: what its names begin with."""
        for name in sorted(self._pool.listVolumes(), key=lambda name: name.endswith(INITRD)):
            if name.startswith(prefix):
                self.remove(name)

    def tidy(self) -> None:
        """Remove everything, where no disk of a node is left: images, the folder, and the pool."""
        self._pool.refresh()
        names = self._pool.listVolumes()
        if any(name.endswith(INITRD) for name in names):
            return
        for name in names:
            self.remove(name)
        with contextlib.suppress(libvirt.libvirtError):  # somebody has just put something there
            self._pool.destroy()
            self._pool.delete()
            self._pool.undefine()

    def _make(self, name: str, size: int, kind: str, more: str = "") -> libvirt.virStorageVol:
        self.remove(name)
        return self._pool.createXML(
            f"<volume><name>{name}</name><capacity>{size}</capacity><allocation>0</allocation>"
            f"<target><format type='{kind}'/></target>{more}</volume>"
        )


@contextlib.contextmanager
def _aborted_on_error(stream: libvirt.virStream) -> Iterator[None]:
    try:
        yield
    except BaseException:
        with contextlib.suppress(libvirt.libvirtError):
            stream.abort()
        raise
