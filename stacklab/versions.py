"""The exact versions of packages: written down from a lab that runs, and asked for when another is built.

    version: 1
    release: epoxy
    profile: openstack
    packages: {adduser: "3.152", ...}       of all nodes, those of the base system, too

A lab that is built from such a file keeps it beside its settings, so that every layer is built by it.
"""

from collections.abc import Iterable
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict

from stacklab.errors import HostUnfit, ModelError, Problem, StepFailed, UsageError
from stacklab.files import write_atomically
from stacklab.host.archive import Archive
from stacklab.lab.lab import Lab
from stacklab.model.documents import Document
from stacklab.model.schema import Name, Version, Word

FILE = "versions.yaml"


class Versions(BaseModel):
    """The version of each package of a lab's nodes, by its name, and what they were the packages of."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Version = 1
    release: Name
    profile: Name
    packages: dict[Word, Word]

    def yaml(self) -> str:
        """The text of the file."""
        return yaml.safe_dump(self.model_dump(), sort_keys=False, width=110)

    def pins(self) -> str:
        """What makes apt take these versions and no others, whatever is installed (apt_preferences(5))."""
        return "".join(
            f"Package: {name}\nPin: version {version}\nPin-Priority: 1001\n\n"
            for name, version in sorted(self.packages.items())
        )

    def differing(self, installed: dict[str, str]) -> list[str]:
        """The packages among those installed that have another version, or none, here; in words."""
        return [
            f"{name} is {version}, locked is {self.packages.get(name, 'none')}"
            for name, version in sorted(installed.items())
            if self.packages.get(name) != version
        ]


def read_versions(file: Path) -> Versions:
    """The versions in a file. Raises ModelError with all that is wrong in it."""
    document = Document.read(file)
    if isinstance(document, Problem):
        raise ModelError([document])
    versions, problems = document.parse(Versions)
    if versions is None or problems:
        raise ModelError(problems)
    return versions


def versions_kept(lab: Lab) -> Versions | None:
    """The versions that the lab is built by; None for one that takes what the mirror has."""
    file = lab.folder / FILE
    return read_versions(file) if file.exists() else None


def keep_versions(lab: Lab, versions: Versions | None) -> None:
    """Keep the versions that a lab is built by."""
    if versions is not None and versions != versions_kept(lab):
        write_atomically(lab.folder / FILE, versions.yaml())


def versions_of(lab: Lab) -> Versions:
    """The versions of all packages on the nodes of a lab, which must run.

    Raises StepFailed when a node cannot be asked, or two of them have different versions of a package.
    """
    packages: dict[str, str] = {}
    differing: list[str] = []
    for node in lab.settings.nodes:
        shown = lab.run_on(node.name, ["cat", "/var/lib/dpkg/status"])
        if shown.returncode != 0:
            raise StepFailed(f"node '{node.name}' cannot be asked for its packages", detail=shown.stderr)
        for name, version in installed(shown.stdout).items():
            if packages.setdefault(name, version) != version:
                differing.append(f"{name}: {packages[name]}, and {version} on node '{node.name}'")
    if differing:
        raise StepFailed("the nodes have different versions of packages", detail="\n".join(differing))
    return Versions(release=lab.settings.release, profile=lab.settings.profile, packages=packages)


def installed(status: str) -> dict[str, str]:
    """From the text of dpkg's status file: the versions of the packages that are installed, by name."""
    found = {}
    for stanza in status.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in stanza.splitlines() if ": " in line and line[0] != " ")
        if fields.get("Status", "").endswith(" installed"):
            found[fields["Package"]] = fields["Version"]
    return dict(sorted(found.items()))


def refuse_unlocked(versions: Versions, file: Path, packages: Iterable[str]) -> None:
    """Raises UsageError when a package that a lab needs has no version in the file."""
    missing = sorted(set(packages).difference(versions.packages))
    if missing:
        raise UsageError(
            f"{file} locks no version of {', '.join(missing)}",
            hint="stacklab lock FILE, of a lab with these services",
        )


def refuse_gone(versions: Versions, archive: Archive) -> None:
    """Raises HostUnfit, with each of them, when the mirror has not all of these versions any more."""
    there = archive.all_versions(list(versions.packages))
    gone = [
        f"{name} {version}" + (f" (there is: {', '.join(there[name])})" if there.get(name) else "")
        for name, version in versions.packages.items()
        if version not in there.get(name, ())
    ]
    if gone:
        raise HostUnfit(
            f"{len(gone)} of the locked packages are gone from the mirror",
            detail="\n".join(gone),
            hint="name a mirror that keeps them in this machine's apt configuration, or lock anew",
        )
