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
from stacklab.errors import StepFailed
from stacklab.files import remove_tree, write_atomically
from stacklab.home import data_dir
from stacklab.images.command import run_logged
from stacklab.images.store import Image, Store, key_of
from stacklab.versions import Versions, installed

REVISION = 2  # raise it when what is done below, or in templates/images/install-packages, changes
# There in a system while packages are installed into it, and after that was cut off.
UNFINISHED = "/var/lib/stacklab/enabled-before"


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


@dataclass(frozen=True)
class Installation:
    """Packages to install into a system that is there. log: takes what apt prints.

    versions: those that every package in the system is to have in the end. label: what they are for.
    """

    packages: Sequence[str]
    downloads: Downloads
    log: Path
    versions: Versions | None = None
    label: str = ""

    def run(self, root: Path, prefix: Sequence[str] = ()) -> None:
        """Install natively into the tree `root`, and start nothing.

        prefix: what puts a command where it sees the tree. Raises StepFailed with the end of what apt said.
        """
        install = install_command(root, self.packages, self.downloads, self.versions)
        with self.downloads.locked():
            run_logged([*prefix, *BOUND_TREE, *install], self.log, "installing the packages")


def packages_inputs(base: Image, packages: Sequence[str], versions: Versions | None = None) -> dict[str, Any]:
    """All that the image of `packages` on `base` is made of; some of them the base may have already."""
    wanted = set(packages).difference(base.inputs["packages"])
    locked = {} if versions is None else {"versions": versions.packages}
    return {"revision": REVISION, "base": base.key, "packages": sorted(wanted), **locked}


def ensure_packages(
    store: Store,
    base: Image,
    packages: Sequence[str],
    downloads: Downloads,
    log: Path,
    versions: Versions | None = None,
) -> Image:
    """The image of `packages` on `base`, built when the store has none (about a minute for layer 1).

    versions: those that every package in it must have, the base's too. Raises StepFailed with the end of what
    apt said, or with the packages that have other versions.
    """

    def build(folder: Path) -> None:
        parts = {name: folder / name for name in ("tree", "work", "root")}
        for part in parts.values():
            part.mkdir()
        # `volatile`: dpkg's many fsyncs cost nothing; a build that is cut off is thrown away anyway.
        lower = ":".join(str(each.tree) for each in store.chain(base))
        options = f"volatile,lowerdir={lower},upperdir={parts['tree']},workdir={parts['work']}"
        mount = f'mount -t overlay -o "{options}" overlay "{parts["root"]}" && exec "$@"'
        install = install_command(parts["root"], packages, downloads, versions)
        with downloads.locked():
            run_logged([*BOUND_TREE, "sh", "-c", mount, "sh", *install], log, "installing the packages")
        for name in ("work", "root"):
            remove_tree(parts[name])
        if versions is not None:
            status = (parts["tree"] / "var" / "lib" / "dpkg" / "status").read_text()
            if differing := versions.differing(installed(status)):
                raise StepFailed(
                    "apt did not install the locked versions", detail="\n".join(differing), hint=f"less {log}"
                )

    return store.ensure("packages", packages_inputs(base, packages, versions), build, parent=base)


def install_command(
    root: Path, packages: Sequence[str], downloads: Downloads, versions: Versions | None = None
) -> list[str]:
    """The command that installs `packages` below `root`; to be run in a private mount namespace.

    versions: those that every package below `root` is to have in the end.
    """
    downloads.archives.mkdir(parents=True, exist_ok=True)
    downloads.lists.mkdir(parents=True, exist_ok=True)
    # The machine's resolv.conf may be a link into /run, which a lab's namespace has of its own.
    resolver = downloads.folder / "resolv.conf"
    write_atomically(resolver, Path("/etc/resolv.conf").read_bytes())
    script = data_dir() / "templates" / "images" / "install-packages"
    folders = [root, downloads.archives, downloads.lists, resolver]
    online = "yes" if downloads.online else "no"
    command = ["sh", str(script), *map(str, folders), online, *sorted(packages)]
    if versions is None:
        return command
    pins = downloads.folder / f"pins-{key_of(versions.packages)[:12]}"
    write_atomically(pins, versions.pins())
    return ["env", f"PINS={pins}", *command]
