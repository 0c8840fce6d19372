"""The services of a profile as a page: what each needs, offers, and leaves out in a lab."""

from collections.abc import Iterator

from stacklab.model.graph import Graph
from stacklab.model.service import Service

HEAD = """\
# Services

Written by `stacklab services --reference` from the service folders, in the layers of the profile
`{profile}`. What the words mean: [service.yaml](service.md). Memory is that of a lab without instances.
"""


def markdown(graph: Graph) -> str:
    """The page. Services that the profile has no place for stand at its end."""
    parts = [HEAD.format(profile=graph.profile.name)]
    for cut in graph.layers:
        parts.append(f"## Layer {cut.number}: {cut.title}\n")
        parts += [_section(service) for service in graph.services_of(cut.number)]
        if cut.planned:
            parts.append(f"Planned, not built yet: {', '.join(cut.planned)}.\n")
    outside = [service for name, service in graph.services.items() if name not in graph.standing]
    if outside:
        parts += ["## In no layer, added by `--with`\n", *map(_section, outside)]
    return "\n".join(parts)


def _section(service: Service) -> str:
    lines = [f"### {service.name}: {service.title.lower()}", "", service.summary, "", "| | |", "|---|---|"]
    lines += [f"| {what} | {told} |" for what, told in _facts(service) if told]
    if service.limits:
        lines += ["", "In a lab:", "", *(f"- {limit}" for limit in service.limits)]
    return "\n".join([*lines, ""])


def _facts(service: Service) -> Iterator[tuple[str, str]]:
    yield "requires", ", ".join(service.requires)
    yield "uses, where present", ", ".join(service.uses)
    yield "offers", ", ".join(service.provides)
    apis = (f"{api.type} at `:{api.port}{api.path}`" for api in service.identity.services)
    yield "APIs", ", ".join(apis)
    ports = ((role, " ".join(map(str, part.ports))) for role, part in service.parts.items())
    yield "TCP ports", ", ".join(f"{numbers} ({role})" for role, numbers in ports if numbers)
    units = ((role, " ".join(part.units)) for role, part in service.parts.items())
    yield "units", ", ".join(f"{names} ({role})" for role, names in units if names)
    yield "databases", ", ".join(service.database.names if service.database else ())
    yield "notifications", ", ".join(service.emits)
    needs = ((service.needs.memory, "memory"), (service.needs.disk, "disk"))
    words = [f"{size} MiB of {what}" for size, what in needs if size]
    yield "needs", ", ".join([*words, *(["a kernel of the node's own"] if service.needs.kernel else [])])
    yield "checks", "; ".join(check.name for check in service.checks)
