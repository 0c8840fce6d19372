"""The graph of services for eyes and programs: Mermaid, Graphviz and JSON. Its SVG is drawn in drawing.py.

An arrow leads from a service to what it needs: a solid one to what it requires, a dashed one to what it uses.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from stacklab.model.graph import Graph

Need = Literal["requires", "uses"]


@dataclass(frozen=True)
class Panel:
    """A layer as it is drawn: its heading, the services in it in order, and those planned."""

    title: str
    services: tuple[str, ...]
    planned: tuple[str, ...]


@dataclass(frozen=True)
class Arrow:
    """One service needs another."""

    source: str
    target: str
    need: Need


def panels(graph: Graph) -> tuple[Panel, ...]:
    """One panel per layer, and one for the services that the profile has no place for, if there are any."""
    result = [
        Panel(
            f"{cut.number} {cut.title}",
            tuple(each.name for each in graph.services_of(cut.number)),
            cut.planned,
        )
        for cut in graph.layers
    ]
    placed = {*graph.standing, *(name for cut in graph.layers for name in cut.planned)}
    outside = tuple(name for name in graph.services if name not in placed)
    return (*result, Panel("in no layer", outside, ())) if outside else tuple(result)


def arrows(graph: Graph) -> Iterator[Arrow]:
    """What the services require and use of one another, and use of those planned."""
    drawn = {*graph.services, *(name for cut in graph.layers for name in cut.planned)}
    for service in graph.services.values():
        for name in service.requires:
            yield Arrow(service.name, name, "requires")
        for name in service.uses:
            if name in drawn:
                yield Arrow(service.name, name, "uses")


def mermaid(graph: Graph) -> str:
    """A flowchart as GitHub and GitLab draw it in Markdown."""
    lines = ["flowchart LR"]
    for number, panel in enumerate(panels(graph), start=1):
        lines.append(f'  subgraph layer{number}["{_quotable(panel.title)}"]')
        lines += [f'    {_identifier(name)}["{name}"]' for name in panel.services]
        lines += [f'    {_identifier(name)}["{name}"]:::planned' for name in panel.planned]
        lines.append("  end")
    for arrow in arrows(graph):
        line = "-->" if arrow.need == "requires" else "-.->"
        lines.append(f"  {_identifier(arrow.source)} {line} {_identifier(arrow.target)}")
    lines.append("  classDef planned stroke-dasharray: 4 3,opacity: 0.6")
    return "\n".join(lines) + "\n"


def dot(graph: Graph) -> str:
    """A digraph for Graphviz."""
    lines = [f'digraph "{graph.profile.name}" {{', "  rankdir=RL", "  node [shape=box, style=rounded]"]
    for number, panel in enumerate(panels(graph), start=1):
        lines.append(f"  subgraph cluster_{number} {{")
        lines.append(f'    label="{_quotable(panel.title)}"')
        lines += [f'    "{name}"' for name in panel.services]
        lines += [f'    "{name}" [style="rounded,dashed"]' for name in panel.planned]
        lines.append("  }")
    for arrow in arrows(graph):
        style = "" if arrow.need == "requires" else " [style=dashed]"
        lines.append(f'  "{arrow.source}" -> "{arrow.target}"{style}')
    return "\n".join([*lines, "}"]) + "\n"


def document(graph: Graph) -> dict[str, Any]:
    """The graph as plain data: the profile, its layers, and each service with its layer (null for none)."""
    return {
        "profile": graph.profile.name,
        "title": graph.profile.title,
        "release": graph.profile.release,
        "layers": [
            {
                "number": cut.number,
                "title": cut.title,
                "services": [service.name for service in graph.services_of(cut.number)],
                "planned": list(cut.planned),
            }
            for cut in graph.layers
        ],
        "services": [
            {
                "name": service.name,
                "title": service.title,
                "layer": graph.layer_of(service.name),
                "requires": list(service.requires),
                "uses": list(service.uses),
                "provides": list(service.provides),
                "emits": list(service.emits),
                "folder": str(service.folder),
            }
            for service in graph.services.values()
        ],
    }


def _identifier(name: str) -> str:
    return name.replace("-", "_")


def _quotable(words: str) -> str:
    return words.replace('"', "'")
