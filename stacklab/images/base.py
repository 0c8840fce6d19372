"""The base image.

A minimal Debian with systemd, sshd and Python, made by mmdebstrap from the host's own mirror.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stacklab.children import BOUND_TREE
from stacklab.files import write_atomically
from stacklab.host.apt import Mirror
from stacklab.images.command import run_logged
from stacklab.images.store import Image, Store
from stacklab.model.release import Release

PACKAGES = (
    "ca-certificates",
    "dbus",
    "iproute2",
    "openssh-server",
    "python3",
    "systemd",
    "systemd-sysv",
)
# Documentation and translations: a third of the files, read by nobody in a lab.
DPKG_OPTIONS = (
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/locale/*",
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
    "force-unsafe-io",
)
# Logs outlive a power cut, in files that do not take 8 MiB at once in each copy of a lab.
JOURNALD = "[Journal]\nStorage=persistent\nSystemMaxFileSize=2M\nSystemMaxUse=64M\n"
REVISION = 3  # raise it when what is done below changes


def base_inputs(release: Release) -> dict[str, Any]:
    """All that the base image of a release is made of."""
    return {
        "revision": REVISION,
        "suite": release.suite,
        "pockets": list(release.pockets),
        "components": list(release.components),
        "packages": list(PACKAGES),
        "dpkg": list(DPKG_OPTIONS),
    }


def ensure_base(store: Store, release: Release, mirror: Mirror, archives: Path, log: Path) -> Image:
    """The base image of `release`, built when the store has none (about 15 s).

    archives: the folder that keeps the packages of base images, which mmdebstrap copies in and out whole.
    log: takes what the tools print. Raises StepFailed with the end of the log.
    """

    def build(folder: Path) -> None:
        command = _mmdebstrap(folder / "tree", release, mirror, archives)
        run_logged([*BOUND_TREE, *command], log, f"mmdebstrap of {release.suite}")
        (folder / "tree" / "etc" / "machine-id").write_text("")
        write_atomically(folder / "tree" / "etc" / "systemd" / "journald.conf.d" / "stacklab.conf", JOURNALD)
        (folder / "tree" / "etc" / "resolv.conf").write_text("")  # mmdebstrap copies this machine's
        for key in (folder / "tree" / "etc" / "ssh").glob("ssh_host_*"):
            key.unlink()

    archives.mkdir(parents=True, exist_ok=True)
    return store.ensure("base", base_inputs(release), build)


def _mmdebstrap(tree: Path, release: Release, mirror: Mirror, archives: Path) -> Sequence[str]:
    keyring = [f"--keyring={mirror.keyring}"] if mirror.keyring else []
    return [
        "mmdebstrap",
        "--mode=root",
        "--variant=minbase",
        "--format=directory",
        f"--include={','.join(PACKAGES)}",
        *keyring,
        *(f"--aptopt={option}" for option in mirror.apt_options),
        *(f"--dpkgopt={option}" for option in DPKG_OPTIONS),
        # Downloaded packages go into the cache and come from it; the image carries none.
        "--skip=essential/unlink",
        '--setup-hook=mkdir -p "$1/var/cache/apt/archives"',
        f"--setup-hook=sync-in {archives} /var/cache/apt/archives",
        f"--customize-hook=sync-out /var/cache/apt/archives {archives}",
        '--customize-hook=rm -f "$1"/var/cache/apt/archives/*.deb',
        release.suite,
        str(tree),
        *mirror.sources(release.pockets, release.components),
    ]
