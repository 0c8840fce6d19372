"""What a lab is to be: the user's request resolved against the catalog, before anything is touched."""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path

from stacklab.errors import ModelError, Problem, StepFailed, UsageError
from stacklab.host.kinds import KINDS, best
from stacklab.lab.lab import Lab
from stacklab.lab.settings import HOST, LabSettings, nodes_of
from stacklab.model.catalog import Catalog, is_source
from stacklab.model.release import Release
from stacklab.model.service import Part, Service
from stacklab.model.topology import MOST_NODES, Topology
from stacklab.provide.elsewhere import parse
from stacklab.provide.provider import Node
from stacklab.versions import FILE, Versions, read_versions, refuse_unlocked, versions_kept

DEFAULT_PROFILE = "openstack"
DEFAULT_TOPOLOGY = "all-in-one"
COUNTED_TOPOLOGY = "controller-computes"
BUILT_KINDS = ("auto", *KINDS)


@dataclass(frozen=True)
class UpRequest:
    """What the user asks of `up` or `plan`. None and () mean: as the lab is, or the default for a new one."""

    lab: str = "default"
    layer: int | None = None
    profile: str | None = None
    release: str | None = None
    topology: str | None = None
    computes: int | None = None
    """How many compute nodes, in a topology that leaves it open."""
    node_kind: str | None = None
    connect: str | None = None
    """The URI of another machine's libvirt, which is to run the nodes."""
    with_services: tuple[str, ...] = ()
    without_services: tuple[str, ...] = ()
    offline: bool = False
    path: tuple[Path, ...] = ()
    locked: Path | None = None
    """A file with the exact versions of all packages."""


@dataclass(frozen=True)
class Blueprint:
    """A lab, resolved: what its settings will be, and which services make up each of its layers.

    cuts: the services of layer 1, 2, ... up to the layer asked for; each in an order that its requirements
    allow. versions: those of all packages; None for what the mirror has.
    """

    settings: LabSettings
    target: int
    release: Release
    cuts: tuple[tuple[Service, ...], ...]
    versions: Versions | None = None

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The lab's nodes."""
        return self.settings.nodes

    @cached_property
    def services(self) -> tuple[Service, ...]:
        """All services, bottom up."""
        return tuple(service for cut in self.cuts for service in cut)

    def up_to(self, layer: int) -> tuple[Service, ...]:
        """The services of the layers 1 to `layer`."""
        return tuple(service for cut in self.cuts[:layer] for service in cut)

    def packages(self, services: Iterable[Service], node: Node) -> tuple[str, ...]:
        """The packages that `services` need on a node, sorted, each once."""
        return tuple(
            sorted(
                {
                    package
                    for service in services
                    for part in parts_on(service, node).values()
                    for package in part.packages
                }
            )
        )

    def wheels(self, services: Iterable[Service], node: Node) -> tuple[str, ...]:
        """The Python packages, NAME==VERSION, that `services` need on a node beside Debian's, sorted."""
        parts = (part for service in services for part in parts_on(service, node).values())
        return tuple(sorted({wheel for part in parts for wheel in part.wheels}))


_NO_PACKAGE = re.compile(
    r"Unable to locate package (\S+)|Package '(\S+)' has no installation candidate"
    r"|Couldn't find any package by \w+ '(\S+)'"
)


@contextmanager
def packages_traced(blueprint: Blueprint) -> Iterator[None]:
    """Turn apt's word on packages that the mirror does not have into an error at the services' lines.

    Raises ModelError for these; any other error passes through.
    """
    try:
        yield
    except StepFailed as error:
        missing = {next(filter(None, match)) for match in _NO_PACKAGE.findall(error.detail)}
        problems = [
            service.problem(
                f"the mirror has no package '{name}' in {blueprint.release.suite}",
                "parts",
                role,
                "packages",
                index,
            )
            for service in blueprint.services
            for role, part in service.parts.items()
            for index, name in enumerate(part.packages)
            if name in missing
        ]
        if not problems:
            raise
        raise ModelError(problems, hint=error.hint) from error


def parts_on(service: Service, node: Node) -> dict[str, Part]:
    """The parts of a service that run on a node, by role."""
    return {role: part for role, part in service.parts.items() if role in node.roles}


def resolve_climb(lab: Lab, request: UpRequest) -> Blueprint:
    """Resolve a request of `up` or `plan`, which without a layer go on to the one that was asked for last."""
    if request.layer is None and lab.exists:
        request = replace(request, layer=lab.settings.target or None)
    return resolve(lab, request)


def as_it_stands(lab: Lab) -> Blueprint:
    """A lab as it stands, with the services that are up: not with those that `up` is still to bring up, after
    a failure, or since the lab was put back on an image from before they were asked for. Where no layer is up
    yet it is all that the first is to have.

    Raises as `resolve` does.
    """
    whole = resolve(lab, UpRequest(lab=lab.name))
    up = lab.settings.services or [service.name for service in whole.services]
    return replace(whole, cuts=tuple(tuple(each for each in cut if each.name in up) for cut in whole.cuts))


def resolve(lab: Lab, request: UpRequest) -> Blueprint:
    """Resolve a request for a lab, new or standing; without a layer, for that on which it stands.

    Raises UsageError for a name that is not there, for a choice that a standing lab cannot change any more,
    or for a layer that is not built yet; ModelError for what is wrong in the files.
    """
    standing = lab.settings if lab.exists else None
    target = max(request.layer or 1, standing.layer if standing else 0)
    versions = versions_kept(lab)
    if request.locked is not None:
        request, versions = _locked(lab, request, request.locked, standing is not None)
    path = request.path or tuple(folder for folder in _remembered(standing) if is_source(folder))
    catalog = Catalog.load(path)
    if standing is not None:
        _refuse_lost_services(lab, standing, request, catalog)
    if standing is None:
        profile = catalog.profile(request.profile or DEFAULT_PROFILE)
        topology = _topology(catalog, request)
        kind = _node_kind(_kind_asked(request), topology, lab.home.cache)
        settings = LabSettings(
            profile=profile.name,
            release=catalog.release(request.release or profile.release).name,
            topology=topology.name,
            computes=request.computes or topology.computes,
            node_kind=kind,
            connect=request.connect or "",
            target=target,
            with_services=dict.fromkeys(request.with_services, target),
            without_services=request.without_services,
            path=tuple(str(folder.absolute()) for folder in path),
            nodes=nodes_of(topology, kind, request.computes),
            provider=topology.provider,
        )
    else:
        _refuse_changes(lab, standing, request, catalog)
        settings = standing.model_copy(
            update={
                "target": target,
                "with_services": _added(standing, request, target),
                "without_services": _left_out(standing, request, catalog),
                "path": tuple(str(folder.absolute()) for folder in path),
            }
        )
    graph = catalog.graph(settings.profile)
    cuts = graph.cuts(target, settings.with_services, settings.without_services)
    blueprint = Blueprint(settings, target, catalog.release(settings.release), cuts, versions)
    problems = [
        *_shared_ports(blueprint),
        *_missing_roles(blueprint, catalog, lab, request.topology),
        *_missing_kernels(blueprint),
    ]
    if problems:
        raise ModelError(problems)
    if versions is not None:
        wanted = (blueprint.packages(blueprint.services, node) for node in blueprint.nodes)
        refuse_unlocked(versions, request.locked or lab.folder / FILE, chain.from_iterable(wanted))
    return blueprint


def _locked(lab: Lab, request: UpRequest, file: Path, stands: bool) -> tuple[UpRequest, Versions]:
    """The request, for what the versions in `file` were locked of, and these.

    Raises UsageError when a lab that stands was built by others, or when something else is asked for.
    """
    versions = read_versions(file)
    if stands and versions != versions_kept(lab):
        raise UsageError(
            f"lab '{lab.name}' is not built by the versions in {file}",
            hint=f"stacklab destroy --lab {lab.name}, or take another name with --lab",
        )
    for what, asked, locked in (
        ("profile", request.profile, versions.profile),
        ("release", request.release, versions.release),
    ):
        if asked not in (None, locked):
            raise UsageError(f"{file} is of the {what} '{locked}', not '{asked}'")
    return replace(request, profile=versions.profile, release=versions.release), versions


def _shared_ports(blueprint: Blueprint) -> Iterator[Problem]:
    """Ports that two services want on one node: the second would not start, and the first answer for it."""
    for node in blueprint.nodes:
        owners: dict[int, str] = {}
        for service in blueprint.services:
            for role, part in parts_on(service, node).items():
                for index, port in enumerate(part.ports):
                    owner = owners.setdefault(port, service.name)
                    if owner != service.name:
                        message = f"port {port} is taken by the service '{owner}' on node '{node.name}'"
                        yield service.problem(message, "parts", role, "ports", index)


def _added(standing: LabSettings, request: UpRequest, target: int) -> dict[str, int]:
    """What was added to the lab, and is now: each stays in its layer, whose image stays valid by that.

    What is asked for is in reach: a lab that stepped down may have had it in a layer above. What is asked for
    and left out at once stays in both, for the graph to refuse it.
    """
    asked = {name: min(standing.with_services.get(name, target), target) for name in request.with_services}
    known = {**standing.with_services, **asked}
    gone = set(request.without_services).difference(request.with_services)
    return {name: layer for name, layer in known.items() if name not in gone}


def _left_out(standing: LabSettings, request: UpRequest, catalog: Catalog) -> tuple[str, ...]:
    """What is to be in no layer of the lab; nothing needs to be said of what has gone from the catalog."""
    names = (*standing.without_services, *request.without_services)
    gone = set(standing.with_services).difference(catalog.services)
    back = set(request.with_services).difference(request.without_services)
    return tuple(dict.fromkeys(name for name in names if name not in back | gone))


def _remembered(standing: LabSettings | None) -> tuple[Path, ...]:
    """The folders that a lab takes services from."""
    return tuple(map(Path, standing.path)) if standing else ()


def _refuse_lost_services(lab: Lab, standing: LabSettings, request: UpRequest, catalog: Catalog) -> None:
    """Raises UsageError when what a lab was built with is not there any more."""
    services = set(standing.with_services).difference(catalog.services, request.without_services)
    lost = [f"the service '{name}'" for name in sorted(services)]
    if standing.profile not in catalog.profiles:
        lost.append(f"the profile '{standing.profile}'")
    if not lost:
        return
    again = f"stacklab up --lab {lab.name}"
    ways = ["put it back where it was", f"say where it is: {again} --path FOLDER"]
    if len(lost) == len(services):
        ways.append(f"go on without it: {again} --without {','.join(sorted(services))}")
    looked = [
        f"{folder} is not there, or holds no services any more"
        for folder in _remembered(standing)
        if not is_source(folder)
    ]
    raise UsageError(
        f"lab '{lab.name}' was built with {', '.join(lost)}, which cannot be found any more",
        detail="\n".join(looked),
        hint="; or ".join(ways),
    )


def _missing_roles(blueprint: Blueprint, catalog: Catalog, lab: Lab, asked: str | None) -> Iterator[Problem]:
    """Roles that no node has, and without which parts of services would run nowhere.

    asked: the topology as it was asked for; that of a lab that stands may be in a file which is gone.
    """
    name = asked or blueprint.settings.topology
    topology = catalog.topology(name) if asked or name in catalog.topologies else None
    there = {role for node in blueprint.nodes for role in node.roles}
    wanted: dict[str, list[str]] = {}
    for service in blueprint.services:
        for needed in service.parts:
            wanted.setdefault(needed, []).append(service.name)
    for role in sorted(wanted.keys() - there):
        message = f"no node has the role '{role}', which is where parts of {', '.join(wanted[role])} run"
        yield (
            topology.problem(message, "nodes")
            if topology
            else Problem(lab.folder / "lab.yaml", 0, 0, message)
        )


def _missing_kernels(blueprint: Blueprint) -> Iterator[Problem]:
    """Services whose nodes need a kernel of their own, where nodes are containers."""
    if blueprint.settings.node_kind == "lxc":
        for service in blueprint.services:
            if service.needs.kernel:
                yield service.problem(
                    f"'{service.name}' needs nodes with a kernel of their own: --node-kind vm, or hosts",
                    "needs",
                    "kernel",
                )


def on_containers(blueprint: Blueprint, layer: int) -> Blueprint:
    """The same lab up to a layer with containers for nodes, before anything of it is there.

    Without the services that need a kernel, and those that require such a one.
    """
    left_out: set[str] = set()
    for service in blueprint.up_to(layer):
        if service.needs.kernel or left_out.intersection(service.requires):
            left_out.add(service.name)
    was = blueprint.settings
    settings = LabSettings(
        profile=was.profile,
        release=was.release,
        topology=was.topology,
        computes=was.computes,
        node_kind="lxc",
        target=layer,
        with_services={
            name: number
            for name, number in was.with_services.items()
            if number <= layer and name not in left_out
        },
        without_services=(*was.without_services, *sorted(left_out.difference(was.with_services))),
        path=was.path,
        nodes=tuple(replace(node, kind="lxc") for node in was.nodes),
    )
    cuts = tuple(
        tuple(service for service in cut if service.name not in left_out) for cut in blueprint.cuts[:layer]
    )
    return replace(blueprint, settings=settings, target=layer, cuts=cuts)


def _topology(catalog: Catalog, request: UpRequest) -> Topology:
    """The topology of a new lab. Raises UsageError for a number of computes where it leaves none open."""
    default = DEFAULT_TOPOLOGY if request.computes is None else COUNTED_TOPOLOGY
    topology = catalog.topology(request.topology or default)
    if request.computes is not None:
        if topology.computes is None:
            raise UsageError(
                f"the topology '{topology.name}' says which nodes there are; --computes has nothing to count",
                hint=f"--topology {COUNTED_TOPOLOGY}, or a node with `count:` in {topology.file}",
            )
        if topology.size(request.computes) > MOST_NODES:
            raise UsageError(f"a lab can have {MOST_NODES} nodes")
    return topology


def _kind_asked(request: UpRequest) -> str | None:
    """The kind of nodes that a request asks for: on another machine's libvirt, virtual machines.

    Raises UsageError for another one there, and for a URI that is not understood.
    """
    if request.connect is None:
        return request.node_kind
    parse(request.connect)
    if request.node_kind not in (None, "auto", "vm"):
        raise UsageError(f"--connect is for nodes of kind vm, not '{request.node_kind}'")
    return "vm"


def _node_kind(asked: str | None, topology: Topology, cache: Path) -> str:
    """The kind of the nodes: the topology's, where it names one. `auto` takes the best that works here.

    Raises UsageError for a kind that does not exist, and where the topology speaks against it.
    """
    known = (*BUILT_KINDS, HOST)
    if asked not in (None, *known):
        raise UsageError(f"there is no node kind '{asked}'; there is: {', '.join(known)}")
    if topology.kind:
        if asked not in (None, "auto", topology.kind):
            what = "hosts" if topology.kind == HOST else f"nodes of kind '{topology.kind}'"
            raise UsageError(f"the topology '{topology.name}' lists {what}, which cannot be '{asked}'")
        return topology.kind
    if asked == HOST:
        raise UsageError(
            f"the topology '{topology.name}' lists no hosts",
            hint="name a file that does: docs/how-to/bare-metal.md shows one",
        )
    return best(cache) if asked in (None, "auto") else str(asked)


def _refuse_changes(lab: Lab, standing: LabSettings, request: UpRequest, catalog: Catalog) -> None:
    topology = catalog.topology(request.topology).name if request.topology else None
    kind = None if request.node_kind == "auto" else request.node_kind
    asked = {
        "profile": request.profile,
        "release": request.release,
        "topology": topology,
        "node_kind": kind,
    }
    hint = f"stacklab destroy --lab {lab.name}, or take another name with --lab"
    for what, wanted in asked.items():
        if wanted is not None and wanted != getattr(standing, what):
            raise UsageError(
                f"lab '{lab.name}' is built from the {what.replace('_', ' ')} '{getattr(standing, what)}', "
                f"which cannot become '{wanted}'",
                hint=hint,
            )
    if request.connect not in (None, standing.connect):
        where = standing.connect or "this machine"
        raise UsageError(f"lab '{lab.name}' runs on {where}, and cannot move to {request.connect}", hint=hint)
    if request.computes not in (None, standing.computes):
        there = sum("compute" in node.roles for node in standing.nodes)
        words = "one compute node" if there == 1 else f"{there} compute nodes"
        raise UsageError(f"lab '{lab.name}' has {words}, which cannot become {request.computes}", hint=hint)
