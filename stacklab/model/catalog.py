"""The catalog: every service, profile, release and topology that can be found, built in or from outside.

A source is a folder with services/NAME/service.yaml, NAME.yaml (layer profiles), releases/NAME.yaml and
topologies/NAME.yaml, of which any may be missing. One code reads them all: stacklab's own profiles/, the
folders of $STACKLAB_PATH, those of `--path`, and the folders of the modules that installed Python packages
name in the entry points of the group `stacklab.profiles`.
"""

import importlib.util
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Generic, TypeVar

from stacklab.errors import ModelError, Problem, UsageError
from stacklab.home import data_dir
from stacklab.model.documents import did_you_mean, read_all, unknown
from stacklab.model.examine import examine
from stacklab.model.graph import Graph, below_required, cycles
from stacklab.model.profile import Profile
from stacklab.model.release import Release
from stacklab.model.schema import Root
from stacklab.model.service import Service
from stacklab.model.topology import Topology

ENTRY_POINTS = "stacklab.profiles"
SOURCE = ("services", "*.yaml", "releases", "topologies")

R = TypeVar("R", bound=Root)


@dataclass(frozen=True)
class Catalog:
    """What there is to build, by name."""

    services: Mapping[str, Service]
    profiles: Mapping[str, Profile]
    releases: Mapping[str, Release]
    topologies: Mapping[str, Topology]

    @classmethod
    def load(cls, path: Iterable[Path] = ()) -> "Catalog":
        """Everything from stacklab itself, $STACKLAB_PATH, the folders `path` and the installed packages.

        Raises UsageError for a source that is not there, ModelError with all that is wrong in the files.
        """
        return cls.read(sources(path))

    @classmethod
    def read(cls, folders: Iterable[Path]) -> "Catalog":
        """Everything in these folders. Raises ModelError with all that is wrong in the files."""
        folders = list(folders)
        services = _Shelf(Service, _service_files(folders))
        profiles = _Shelf(Profile, _yaml_files(folders, "."))
        releases = _Shelf(Release, _yaml_files(folders, "releases"))
        topologies = _Shelf(Topology, _yaml_files(folders, "topologies"))
        shelves: list[_Shelf[Any]] = [services, profiles, releases, topologies]
        problems = [problem for shelf in shelves for problem in shelf.problems]
        problems += _unknown_services(services, profiles)
        problems += _unknown_releases(profiles, releases)
        problems += cycles(services.items)
        problems += examine(services.items, services.names)
        for profile in profiles.items.values():
            problems += below_required(services.items, profile)
        if problems:
            raise ModelError(problems)
        return cls(services.items, profiles.items, releases.items, topologies.items)

    def service(self, name: str) -> Service:
        """The service of that name. Raises UsageError, with the nearest name, where there is none."""
        return _pick("service", self.services, name)

    def profile(self, name: str) -> Profile:
        """The layer profile of that name. Raises UsageError, with the nearest name, where there is none."""
        return _pick("profile", self.profiles, name)

    def release(self, name: str) -> Release:
        """The release of that name. Raises UsageError, with the nearest name, where there is none."""
        return _pick("release", self.releases, name)

    def topology(self, name: str) -> Topology:
        """The topology of that name, or in a file of its own, whose path has a slash or ends with .yaml.

        Raises UsageError, with the nearest name, where there is none; ModelError with all that is wrong.
        """
        if "/" not in name and not name.endswith(".yaml"):
            return _pick("topology", self.topologies, name)
        parsed, problems = read_all([Path(name)], Topology)
        if problems:
            raise ModelError(problems)
        return parsed[0]

    def graph(self, profile: str) -> Graph:
        """All services as a graph, cut by the profile of that name. Raises UsageError for an unknown name."""
        return Graph(self.services, self.profile(profile))


def sources(path: Iterable[Path] = ()) -> tuple[Path, ...]:
    """The folders that a catalog is read from: built in, $STACKLAB_PATH, `path`, installed packages.

    Raises UsageError for a folder or a package's module that is not there.
    """
    from_environment = os.environ.get("STACKLAB_PATH", "").split(os.pathsep)
    named = [(Path(entry), "$STACKLAB_PATH") for entry in from_environment if entry]
    named += [(folder, "--path") for folder in path]
    for folder, origin in named:
        _refuse_other_folders(folder, origin)
    packages = [_folder_of(entry) for entry in sorted(entry_points(group=ENTRY_POINTS))]
    folders = [data_dir() / "profiles", *(folder for folder, _ in named), *packages]
    return tuple(dict.fromkeys(folder.resolve() for folder in folders))


def is_source(folder: Path) -> bool:
    """Whether a folder is one that a catalog can be read from."""
    return any(any(folder.glob(pattern)) for pattern in SOURCE) and not (folder / "service.yaml").exists()


def _refuse_other_folders(folder: Path, origin: str) -> None:
    """Raises UsageError, with the folder that was meant, for one that is no source."""
    if not folder.is_dir():
        raise UsageError(f"{origin} names the folder {folder}, which is not there")
    whole = folder.absolute()
    if (folder / "service.yaml").exists():
        what, meant = "is the folder of one service", whole.parents[1]
    elif folder.name == "services" and any(folder.glob("*/service.yaml")):
        what, meant = "holds services itself", whole.parent
    elif is_source(folder):
        return
    else:
        below = sorted(folder.glob("*/services/*/service.yaml"))
        what, meant = "holds no services/NAME/service.yaml and no profile", None
        if below:
            meant = below[0].absolute().parents[2]
    hint = (
        f"name the folder above services/: {meant}"
        if meant
        else "docs/how-to/add-a-service.md shows what it has to hold"
    )
    raise UsageError(f"{origin} names {folder}, which {what}", hint=hint)


def _folder_of(entry: EntryPoint) -> Path:
    """The folder of the module that an entry point names, found without running the package's code."""
    try:
        spec = importlib.util.find_spec(entry.module)
    except ModuleNotFoundError:
        spec = None
    if spec is not None and spec.submodule_search_locations:
        return Path(spec.submodule_search_locations[0])
    if spec is not None and spec.origin is not None:
        return Path(spec.origin).parent
    package = entry.dist.name if entry.dist is not None else "a package"
    raise UsageError(f"{package} offers profiles in the module {entry.module}, which cannot be found")


def _service_files(folders: Iterable[Path]) -> list[Path]:
    """The service.yaml of each folder below services/, there or not; __pycache__ and the like aside."""
    return [
        entry / "service.yaml"
        for folder in folders
        for entry in sorted(folder.glob("services/*/"))
        if not entry.name.startswith(("_", "."))
    ]


def _yaml_files(folders: Iterable[Path], below: str) -> list[Path]:
    return [file for folder in folders for file in sorted((folder / below).glob("*.yaml"))]


def _name_from(file: Path) -> str:
    return file.parent.name if file.name == "service.yaml" else file.stem


class _Shelf(Generic[R]):
    """The documents of one kind: the whole ones by name, the names of all, and the problems of the others."""

    def __init__(self, model: type[R], files: Sequence[Path]) -> None:
        parsed, self.problems = read_all(files, model)
        self.names = {_name_from(file) for file in files}
        self.items: dict[str, R] = {}
        for item in parsed:
            earlier = self.items.setdefault(item.name, item)
            if item.name != (expected := _name_from(item.file)):
                self.problems.append(item.problem(f"the name must be '{expected}', as the path says", "name"))
            if earlier is not item:
                self.problems.append(
                    item.problem(f"'{item.name}' is already defined in {earlier.file}", "name")
                )


def _unknown_services(services: _Shelf[Service], profiles: _Shelf[Profile]) -> Iterator[Problem]:
    planned = {name for profile in profiles.items.values() for cut in profile.layers for name in cut.planned}
    for service in services.items.values():
        for index, name in enumerate(service.requires):
            if name not in services.names:
                why = (
                    ", which is planned, not built yet"
                    if name in planned
                    else did_you_mean(name, services.names)
                )
                yield service.problem(f"unknown service '{name}'{why}", "requires", index)
    for profile in profiles.items.values():
        for name, where in profile.entries():
            if where[2] == "services" and name not in services.names:
                yield profile.problem(f"unknown service '{name}'{did_you_mean(name, services.names)}", *where)


def _unknown_releases(profiles: _Shelf[Profile], releases: _Shelf[Release]) -> Iterator[Problem]:
    for profile in profiles.items.values():
        if profile.release not in releases.names:
            more = did_you_mean(profile.release, releases.names)
            yield profile.problem(f"unknown release '{profile.release}'{more}", "release")


def _pick(kind: str, items: Mapping[str, R], name: str) -> R:
    if name not in items:
        raise unknown(kind, name, items)
    return items[name]
