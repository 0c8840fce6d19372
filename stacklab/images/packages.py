"""The packages of a layer, installed in a chroot of an image.

Natively, offline from the cache, nothing started.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stacklab import lock
from stacklab.children import BOUND_TREE
from stacklab.files import remove_tree, write_atomically
from stacklab.home import data_dir
from stacklab.images.command import run_logged
from stacklab.images.store import Image, Store

REVISION = 1  # raise it when what is done below, or in templates/images/install-packages, changes


@dataclass(frozen=True)
class Downloads:
    """What is kept of the mirror: packages and apt's lists. online: whether more may be fetched."""

    folder: Path
    online: bool = True

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Wait for others that install from here, for apt does not wait for its lock on downloads."""
        with lock.hold(self.folder / ".lock", "the package cache", wait=True):
            yield

    @property
    def archives(self) -> Path:
        """Downloaded packages."""
        return self.folder / "archives"

    @property
    def base(self) -> Path:
        """Downloaded packages of base images."""
        return self.folder / "base"

    @property
    def lists(self) -> Path:
        """Apt's lists of what the mirror has."""
        return self.folder / "lists"


def packages_inputs(base: Image, packages: Sequence[str]) -> dict[str, Any]:
    """All that the image of `packages` on `base` is made of; some of them the base may have already."""
    wanted = set(packages).difference(base.inputs["packages"])
    return {"revision": REVISION, "base": base.key, "packages": sorted(wanted)}


def ensure_packages(
    store: Store, base: Image, packages: Sequence[str], downloads: Downloads, log: Path
) -> Image:
    """The image of `packages` on `base`, built when the store has none (about a minute for layer 1).

    Raises StepFailed with the end of what apt said.
    """

    def build(folder: Path) -> None:
        parts = {name: folder / name for name in ("tree", "work", "root")}
        for part in parts.values():
            part.mkdir()
        # `volatile`: dpkg's many fsyncs cost nothing; a build that is cut off is thrown away anyway.
        options = f"volatile,lowerdir={base.tree},upperdir={parts['tree']},workdir={parts['work']}"
        mount = f'mount -t overlay -o "{options}" overlay "{parts["root"]}" && exec "$@"'
        install = install_command(parts["root"], packages, downloads)
        with downloads.locked():
            run_logged([*BOUND_TREE, "sh", "-c", mount, "sh", *install], log, "installing the packages")
        for name in ("work", "root"):
            remove_tree(parts[name])

    return store.ensure("packages", packages_inputs(base, packages), build, parent=base)


def install_command(root: Path, packages: Sequence[str], downloads: Downloads) -> list[str]:
    """The command that installs `packages` below `root`; to be run in a private mount namespace."""
    downloads.archives.mkdir(parents=True, exist_ok=True)
    downloads.lists.mkdir(parents=True, exist_ok=True)
    # The machine's resolv.conf may be a link into /run, which a lab's namespace has of its own.
    resolver = downloads.folder / "resolv.conf"
    write_atomically(resolver, Path("/etc/resolv.conf").read_bytes())
    script = data_dir() / "templates" / "images" / "install-packages"
    folders = [root, downloads.archives, downloads.lists, resolver]
    return ["sh", str(script), *map(str, folders), "yes" if downloads.online else "no", *sorted(packages)]
