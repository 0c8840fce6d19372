"""Small catalogs for tests, written to a folder."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from stacklab.model.catalog import Catalog

RELEASE = """\
version: 1
name: epoxy
title: Epoxy
distribution: debian
suite: trixie
components: [main]
pockets: [trixie]
"""
TOPOLOGY = """\
version: 1
name: all-in-one
title: One node
nodes:
  - {name: controller, roles: [controller, compute], memory: 8 GiB, cpus: 2, disk: 40 GiB}
"""


def write(file: Path, text: str) -> Path:
    """Write a text, and the folders on the way to it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    return file


def write_service(folder: Path, name: str, requires: Sequence[str] = (), uses: Sequence[str] = ()) -> Path:
    """Write the smallest service; its `requires` stand in line 4, from column 12."""
    text = f"version: 1\nname: {name}\ntitle: The {name}\nrequires: [{', '.join(requires)}]\n"
    return write(folder / "services" / name / "service.yaml", text + f"uses: [{', '.join(uses)}]\n")


def write_profile(folder: Path, *layers: str, name: str = "cloud") -> Path:
    """Write a profile: a text per layer names its services, planned ones in brackets, as "nova [swift]"."""
    text = f"version: 1\nname: {name}\ntitle: Test\nrelease: epoxy\nlayers:\n"
    for number, words in enumerate(layers, start=1):
        services = ", ".join(word for word in words.split() if not word.startswith("["))
        planned = ", ".join(word.strip("[]") for word in words.split() if word.startswith("["))
        text += f"  - number: {number}\n    title: Layer {number}\n"
        text += f"    services: [{services}]\n    planned: [{planned}]\n"
    return write(folder / f"{name}.yaml", text)


def write_catalog(folder: Path, requires: Mapping[str, str], *layers: str) -> Path:
    """Write a release, a topology, a profile `cloud` and services: name to the names that it requires."""
    write(folder / "releases" / "epoxy.yaml", RELEASE)
    write(folder / "topologies" / "all-in-one.yaml", TOPOLOGY)
    for name, required in requires.items():
        write_service(folder, name, required.split())
    write_profile(folder, *layers)
    return folder


def catalog(folder: Path, requires: Mapping[str, str], *layers: str) -> Catalog:
    """The catalog that `write_catalog` writes."""
    return Catalog.read([write_catalog(folder, requires, *layers)])
