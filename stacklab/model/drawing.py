"""The graph of services as an SVG picture: made by no other program, legible on light and on dark pages.

Each layer of the cloud is a panel of columns, and the services of a column require nothing of one another.
An arrow that passes a column runs through a slot in it; arrows to one service share their slots, and so flow
together. Services and slots are drawn towards their neighbours until lines are short. All lengths are pixels.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from xml.sax.saxutils import escape

from stacklab.model.graph import Graph
from stacklab.model.picture import Arrow, Need, Panel, arrows, panels

_BOX, _SLOT, _ROW_GAP = 32, 4, 16
_COLUMN_GAP, _PADDING, _PANEL_GAP = 60, 22, 24
_MARGIN, _HEADING, _LEGEND = 16, 48, 44
_CHARACTER, _HEADING_CHARACTER, _BESIDE_TEXT = 7.4, 8.8, 26
# Arrows end above or below the middle of a box, so that both kinds are seen.
_PORTS: dict[Need, int] = {"requires": -4, "uses": 6}
_SWEEPS = 40
_PLANNED_IN_A_COLUMN = 6

_STYLE = """
svg { --page: #fff; --panel: #f2f4f8; --box: #fff; --edge: #6a7584; --ink: #1c2330; --line: #44546a;
  --soft: #6f7a89; font: 13px system-ui, "Segoe UI", sans-serif }
@media (prefers-color-scheme: dark) {
  svg { --page: #11151b; --panel: #1b212a; --box: #28313d; --edge: #8692a2; --ink: #e8edf3; --line: #a9b7c8;
    --soft: #8a97a8 }
}
.page { fill: var(--page) } .panel { fill: var(--panel) }
text { fill: var(--ink) } .heading { font-size: 14px; font-weight: 600 }
.box { fill: var(--box); stroke: var(--edge) }
.planned .box { fill: none; stroke-dasharray: 4 3 } .planned text { fill: var(--soft) }
.requires, .uses { fill: none; stroke: var(--line); stroke-width: 1.3 }
.uses { stroke: var(--soft); stroke-dasharray: 5 4 }
.tip-requires { fill: var(--line) } .tip-uses { fill: var(--soft) }
"""


@dataclass(eq=False)
class _Item:
    """What has a place in a column: a service, or a slot that arrows pass through."""

    column: int
    height: int
    top: float = 0

    @property
    def middle(self) -> float:
        return self.top + self.height / 2


@dataclass
class _Column:
    """The services of a column, and where it lies."""

    panel: int
    names: Sequence[str]
    planned: bool
    left: float = 0

    @property
    def width(self) -> float:
        return max(map(len, self.names)) * _CHARACTER + _BESIDE_TEXT

    @property
    def right(self) -> float:
        return self.left + self.width


@dataclass(frozen=True)
class _Segment:
    """A piece of an arrow, between two items."""

    start: _Item
    end: _Item
    need: Need


class _Layout:
    """Where everything stands, from y = 0 downwards."""

    def __init__(self, columns: list[_Column], needs: Iterator[Arrow]) -> None:
        self.columns = columns
        self.services: dict[str, _Item] = {}
        self.slots: dict[tuple[str, Need, int], _Item] = {}
        for index, column in enumerate(columns):
            for row, name in enumerate(column.names):
                self.services[name] = _Item(index, _BOX, row * (_BOX + _ROW_GAP))
        self.segments = list(dict.fromkeys(segment for arrow in needs for segment in self._route(arrow)))
        self._settle()

    @property
    def items(self) -> list[_Item]:
        return [*self.services.values(), *self.slots.values()]

    @property
    def height(self) -> float:
        return max((item.top + item.height for item in self.items), default=0)

    def _route(self, arrow: Arrow) -> Iterator[_Segment]:
        """The pieces of an arrow, through a slot in each column between its ends."""
        start, end = self.services[arrow.source], self.services[arrow.target]
        step = 1 if end.column > start.column else -1
        for column in range(start.column + step, end.column, step):
            slot = self.slots.setdefault((arrow.target, arrow.need, column), _Item(column, _SLOT, end.top))
            yield _Segment(start, slot, arrow.need)
            start = slot
        yield _Segment(start, end, arrow.need)

    def _settle(self) -> None:
        """Move each item towards the middle of its neighbours, column by column, until lines are short."""
        neighbours = defaultdict[_Item, list[_Item]](list)
        for segment in self.segments:
            neighbours[segment.start].append(segment.end)
            neighbours[segment.end].append(segment.start)
        members = [
            [item for item in self.items if item.column == index] for index in range(len(self.columns))
        ]
        for sweep in range(_SWEEPS):
            for column in members if sweep % 2 else reversed(members):
                drawn = {
                    item: fmean(each.middle for each in near) for item in column if (near := neighbours[item])
                }
                if drawn:  # what nothing draws goes where the others go
                    wish = {item: drawn.get(item, fmean(drawn.values())) for item in column}
                    _stack(sorted(column, key=lambda item: (wish[item], item.top)), wish)
        alone = [column for column in members if not any(neighbours[item] for item in column)]
        joined = [item for column in members if column not in alone for item in column]
        for group in filter(None, [joined, *alone]):  # they all hang from the top
            highest = min(item.top for item in group)
            for item in group:
                item.top -= highest


def _stack(items: Sequence[_Item], wish: dict[_Item, float]) -> None:
    """Place the items below one another in this order, as near as can be to where each wants its middle."""
    free = float("-inf")
    for item in items:
        item.top = max(wish[item] - item.height / 2, free)
        free = item.top + item.height + _ROW_GAP
    shift = fmean(wish[item] - item.middle for item in items)
    for item in items:
        item.top += shift


def svg(graph: Graph) -> str:
    """The picture of the layers as a complete SVG file; a service that stands in none is not in it."""
    shown = panels(graph)[: len(graph.layers)]
    inside = {name for panel in shown for name in (*panel.services, *panel.planned)}
    drawn = (arrow for arrow in arrows(graph) if {arrow.source, arrow.target} <= inside)
    layout = _Layout(list(_columns(graph, shown)), drawn)
    height = _MARGIN + _HEADING + layout.height + _PADDING
    headings, width = _panels(shown, layout.columns, height - _MARGIN)
    title = f"The services of the profile {graph.profile.name}"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height + _LEGEND:.0f}"'
            f' width="{width:.0f}" height="{height + _LEGEND:.0f}" role="img">',
            f"<title>{escape(title)}</title>",
            f"<style>{_STYLE}</style>",
            "<defs>" + "".join(_tip(need) for need in _PORTS) + "</defs>",
            '<rect class="page" width="100%" height="100%"/>',
            *headings,
            f'<g transform="translate(0 {_MARGIN + _HEADING})">',
            *_lines(layout),
            *_boxes(graph, layout),
            "</g>",
            *_legend(height + _LEGEND / 2),
            "</svg>\n",
        ]
    )


def _panels(shown: Sequence[Panel], columns: Sequence[_Column], height: float) -> tuple[list[str], float]:
    """Give each column its place; the panels behind them, and the width of the picture."""
    drawn: list[str] = []
    left = float(_MARGIN)
    for number, panel in enumerate(shown):
        begin = left
        right = begin + 2 * _PADDING + len(panel.title) * _HEADING_CHARACTER
        left += _PADDING
        for column in columns:
            if column.panel == number:
                column.left = left
                right = max(right, column.right + _PADDING)
                left = column.right + _COLUMN_GAP
        drawn.append(
            f'<rect class="panel" x="{begin:.0f}" y="{_MARGIN}" width="{right - begin:.0f}"'
            f' height="{height:.0f}" rx="10"/>'
            + _text(begin + _PADDING, _MARGIN + 24, panel.title, ' class="heading"')
        )
        left = right + _PANEL_GAP
    return drawn, left - _PANEL_GAP + _MARGIN


def _lines(layout: _Layout) -> Iterator[str]:
    services = set(layout.services.values())
    for segment in layout.segments:
        start, end = layout.columns[segment.start.column], layout.columns[segment.end.column]
        shift = _PORTS[segment.need]
        from_y = segment.start.middle + (shift if segment.start in services else 0)
        to_y = segment.end.middle + (shift if segment.end in services else 0)
        if segment.start.column >= segment.end.column:
            from_x, to_x = start.left, end.right
        else:
            from_x, to_x = start.right, end.left
        if segment.start.column == segment.end.column:  # a bow at the right side
            from_x, bend = start.right, start.right + _COLUMN_GAP / 2
        else:
            bend = (from_x + to_x) / 2
        path = (
            f"M{from_x:.0f} {from_y:.0f}C{bend:.0f} {from_y:.0f} {bend:.0f} {to_y:.0f} {to_x:.0f} {to_y:.0f}"
        )
        tip = f' marker-end="url(#tip-{segment.need})"' if segment.end in services else ""
        yield f'<path class="{segment.need}" d="{path}"{tip}/>'
    for (_, need, index), slot in layout.slots.items():
        column = layout.columns[index]
        yield f'<path class="{need}" d="M{column.left:.0f} {slot.middle:.0f}H{column.right:.0f}"/>'


def _boxes(graph: Graph, layout: _Layout) -> Iterator[str]:
    for name, item in layout.services.items():
        column = layout.columns[item.column]
        kind, title = (
            ("planned", "planned, not built yet")
            if column.planned
            else ("service", graph.services[name].title)
        )
        yield (
            f'<g class="{kind}"><title>{escape(name)}: {escape(title)}</title>'
            f'<rect class="box" x="{column.left:.0f}" y="{item.top:.0f}" width="{column.width:.0f}"'
            f' height="{item.height}" rx="6"/>'
            + _text((column.left + column.right) / 2, item.middle, name, ' text-anchor="middle"')
            + "</g>"
        )


def _legend(y: float) -> Iterator[str]:
    left = _MARGIN + _PADDING
    for need in _PORTS:
        yield f'<path class="{need}" d="M{left} {y:.0f}h40" marker-end="url(#tip-{need})"/>'
        yield _text(left + 50, y, need)
        left += 140
    yield (
        f'<g class="planned"><rect class="box" x="{left}" y="{y - 9:.0f}" width="40" height="18" rx="5"/>'
        f"{_text(left + 50, y, 'planned')}</g>"
    )


def _text(x: float, middle: float, words: str, attributes: str = "") -> str:
    return f'<text x="{x:.0f}" y="{middle + 4.5:.0f}"{attributes}>{escape(words)}</text>'


def _tip(need: Need) -> str:
    """The tip of an arrow."""
    return (
        f'<marker id="tip-{need}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7"'
        f' orient="auto"><path class="tip-{need}" d="M0 0L8 4L0 8z"/></marker>'
    )


def _columns(graph: Graph, shown: Sequence[Panel]) -> Iterator[_Column]:
    """The columns of each panel: its services by what they require of one another, then those planned."""
    for number, panel in enumerate(shown):
        for generation in graph.generations(graph.services[name] for name in panel.services):
            yield _Column(number, [service.name for service in generation], planned=False)
        for first in range(0, len(panel.planned), _PLANNED_IN_A_COLUMN):
            yield _Column(number, panel.planned[first : first + _PLANNED_IN_A_COLUMN], planned=True)
