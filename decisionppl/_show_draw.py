"""The graph of a model: a layered layout, drawn with matplotlib or written for Graphviz."""

import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

_ROW = 1.05  # inches between layers
_GAP = 0.3  # inches between boxes
_LETTER = 0.078  # inches that a letter takes
_SWEEPS = 8
_STOP = "\0"  # begins the name of a stop, and of no site

# box of matplotlib, shape of Graphviz, fill, broken outline: as in influence diagrams, and told
# apart without colour by shape and lightness
_LOOKS = {
    "action": ("square", "box", "#E6A000", False),
    "reward": ("hexagon", "hexagon", "#7CC7A5", False),
    "cost": ("hexagon", "hexagon", "#D9601A", True),
    "outcome": ("ellipse", "ellipse", "#CCCCCC", False),
    "observed": ("ellipse", "ellipse", "#CCCCCC", False),
    "state": ("round4", "octagon", "#8FCDF0", False),
    "context": ("round", "box", "#EFE7FA", False),
    "argument": ("round", "box", "#F4F4F4", True),
    "latent": ("ellipse", "ellipse", "#FFFFFF", False),
    "computed": ("ellipse", "ellipse", "#FFFFFF", True),
    "factor": ("ellipse", "ellipse", "#FFFFFF", True),
    "param": ("ellipse", "ellipse", "#FFFFFF", True),
}


class Edge(NamedTuple):
    """From one node to another; kinds are "parent", "given" and "before"."""

    source: str
    target: str
    kind: str


def graph_of(view: Any) -> tuple[dict[str, Any], list[Edge]]:
    """Nodes by a key of their own, since an argument may have the name of a site, and edges."""
    nodes = {f"argument {n.name}": n for n in view.arguments}
    nodes |= {n.name: n for n in view.sites}
    edges = []
    for node in view.sites:
        edges += [Edge(p, node.name, "parent") for p in node.parents]
        edges += [Edge(f"argument {a}", node.name, "parent") for a in node.arguments]
        edges += [Edge(b, node.name, "before") for b in node.before]
        for seen in node.given:
            name, before, _ = seen.partition(" (step before)")
            source = name if before or f"argument {name}" not in nodes else f"argument {name}"
            edges.append(Edge(source, node.name, "before" if before else "given"))
    return nodes, edges


def layers_of(names: list[str], edges: list[Edge]) -> tuple[list[list[str]], list[list[str]]]:
    """Names by layer: each below all that it depends on, in an order with few crossings.

    Args:
        names: in program order, in which no site depends on a later one.
        edges: those from the step before do not count.

    Returns:
        Layers, with a stop in every layer that an arrow passes; and the way of each arrow, from
        its source by its stops to its target.
    """
    down = [(e.source, e.target) for e in edges if e.kind != "before"]
    depth = {n: 0 for n in names}
    for n in names:
        depth[n] = max((depth[s] + 1 for s, t in down if t == n), default=0)
    for n in reversed(names):  # no higher than needed: arrows stay short
        below = [depth[t] for s, t in down if s == n]
        depth[n] = max(depth[n], min(below) - 1) if below else depth[n]
    rows = [[n for n in names if depth[n] == d] for d in range(max(depth.values(), default=-1) + 1)]
    ways = []
    for i, (source, target) in enumerate(down):
        stops = [f"{_STOP}{i} {d}" for d in range(depth[source] + 1, depth[target])]
        for d, stop in enumerate(stops, depth[source] + 1):
            rows[d].append(stop)
        ways.append([source, *stops, target])
    near: dict[str, list[str]] = {n: [] for row in rows for n in row}
    for way in ways:
        for s, t in itertools.pairwise(way):
            near[s].append(t)
            near[t].append(s)
    for sweep in range(_SWEEPS):
        place = {n: (i + 0.5) / len(row) for row in rows for i, n in enumerate(row)}
        for row in rows if sweep % 2 else rows[::-1]:
            centre = {n: np.mean([place[m] for m in near[n]] or [place[n]]) for n in row}
            row.sort(key=centre.__getitem__)
            place |= {n: (i + 0.5) / len(row) for i, n in enumerate(row)}
    return rows, ways


def positions(
    rows: list[list[str]], ways: list[list[str]], width: Mapping[str, float]
) -> dict[str, tuple[float, float]]:
    """Places in inches, the first layer on top: each near what it is joined to, none overlapping.

    Args:
        rows, ways: of `layers_of`.
        width: of each box.
    """
    wide = {n: width.get(n, 0.0) for row in rows for n in row}
    at: dict[str, float] = {}
    for row in rows:
        left = -(sum(wide[n] for n in row) + _GAP * (len(row) - 1)) / 2
        for n in row:
            at[n] = left + wide[n] / 2
            left += wide[n] + _GAP
    near: dict[str, list[str]] = {n: [] for n in at}
    for way in ways:
        for s, t in itertools.pairwise(way):
            near[s].append(t)
            near[t].append(s)
    for _ in range(4 * _SWEEPS):
        for row in rows:
            wish = [np.mean([at[m] for m in near[n]] or [at[n]]) for n in row]
            at |= dict(zip(row, _spread(wish, [wide[n] for n in row]), strict=True))
    middle = (min(at.values(), default=0) + max(at.values(), default=0)) / 2
    return {n: (at[n] - middle, -_ROW * i) for i, row in enumerate(rows) for n in row}


def _spread(wish: list, widths: list[float]) -> list[float]:
    """Places in the given order, apart by their widths, nearest to those wished for.

    Least squares under an order is isotonic regression: pool what overlaps.
    """
    offset = np.concatenate([[0], np.cumsum([(a + b) / 2 + _GAP for a, b in
                                             itertools.pairwise(widths)])])  # fmt: skip
    pools: list[list[float]] = []  # mean, count
    for w, o in zip(wish, offset, strict=True):
        pools.append([w - o, 1])
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            mean, count = pools.pop()
            before, number = pools[-1]
            total = count + number
            pools[-1] = [(mean * count + before * number) / total, total]
    flat = [mean for mean, count in pools for _ in range(int(count))]
    return [f + o for f, o in zip(flat, offset, strict=True)]


def _words(node: Any) -> str:
    below = node.law or ("function" if node.value == "function" else "")
    second = node.role if not below else f"{node.role}: {below}"
    return f"{node.name}\n{second}"


class _Layout(NamedTuple):
    nodes: dict[str, Any]
    edges: list[Edge]
    places: dict[str, tuple[float, float]]
    ways: list[list[str]]
    width: dict[str, float]
    size: tuple[float, float]  # of the figure, inches


def _layout(view: Any) -> _Layout:
    nodes, edges = graph_of(view)
    width = {n: _LETTER * max(map(len, _words(v).split("\n"))) + 0.45 for n, v in nodes.items()}
    rows, ways = layers_of(list(nodes), edges)
    places = positions(rows, ways, width)
    side = max((abs(x) + width.get(n, 0.0) / 2 for n, (x, _) in places.items()), default=1.0)
    size = max(2 * side + 0.8, 3.0), max(_ROW * len(rows) + 0.1, 1.2)
    return _Layout(nodes, edges, places, ways, width, size)


def new_figure(view: Any) -> Any:
    """A figure of a fitting size that no window or notebook shows, to be saved."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=_layout(view).size)
    draw(view, figure.add_axes((0, 0, 1, 1)), "")
    return figure


def draw(view: Any, ax: Any = None, title: str = "") -> Any:
    """See `ModelView.plot`."""
    from decisionppl._plots_style import axes_of

    found = _layout(view)
    wide, tall = found.size
    ax = axes_of(ax, wide, tall)
    boxes = {}
    for name, node in found.nodes.items():
        shape, _, fill, broken = _LOOKS.get(node.role, _LOOKS["computed"])
        style = _hexagon if shape == "hexagon" else f"{shape},pad=0.35"
        text = ax.text(
            *found.places[name], _words(node), ha="center", va="center", fontsize="small", zorder=3,
            parse_math=False,
            bbox={"boxstyle": style, "facecolor": fill, "edgecolor": "black",
                  "linestyle": "--" if broken else "-"},
        )  # fmt: skip
        boxes[name] = text.get_bbox_patch()
    ways = iter(found.ways)
    for edge in found.edges:
        if edge.kind == "before":
            _back(ax, edge, found, boxes)
            continue
        way = np.array([found.places[n] for n in next(ways)])
        dashes = "-" if edge.kind == "parent" else "--"
        if len(way) > 2:  # a curve by the stops, which begins under its box
            ax.plot(*_curve(way).T, linestyle=dashes, color="0.15", linewidth=1.1, zorder=1)
        first = boxes[edge.source] if len(way) == 2 else None
        _arrow(ax, way[-2], way[-1], dashes, "0.15", first, boxes[edge.target], "arc3,rad=0")
    ax.set(xlim=(-wide / 2, wide / 2), ylim=(_ROW / 2 + 0.05 - tall, _ROW / 2 + 0.05), title=title)
    ax.axis("off")
    return ax


def _arrow(
    ax: Any, start: Any, end: Any, dashes: str, colour: str, first: Any, last: Any, bend: str
) -> None:
    ax.annotate(
        "", end, start, zorder=4,  # after the boxes, which it ends at
        arrowprops={
            "arrowstyle": "-|>", "linestyle": dashes, "color": colour, "linewidth": 1.1,
            "patchA": first, "patchB": last, "shrinkA": 0, "shrinkB": 1, "mutation_scale": 12,
            "connectionstyle": bend,
        },
    )  # fmt: skip


def _back(ax: Any, edge: Edge, found: _Layout, boxes: Mapping) -> None:
    """An arrow from the step before, round the side."""
    (x0, y0), (x1, y1) = found.places[edge.source], found.places[edge.target]
    if edge.source != edge.target:
        _arrow(ax, (x0, y0), (x1, y1), ":", "0.3", boxes[edge.source], boxes[edge.target],
               "arc3,rad=0.5")  # fmt: skip
        return
    # a ring behind the box, whose end is an arrow into it
    centre, angle = x0 + found.width[edge.source] / 2 - 0.1, np.linspace(-2.6, 1.2, 30)
    ring = np.stack([centre + 0.3 * np.cos(angle), y0 + 0.22 * np.sin(angle)])
    ax.plot(*ring, ":", color="0.3", linewidth=1.1, zorder=1)
    _arrow(ax, ring[:, -1], (x0, y0), ":", "0.3", None, boxes[edge.target], "arc3,rad=0.2")


def _curve(points: np.ndarray, pieces: int = 12) -> np.ndarray:
    """A smooth line through all points but the last, which gives its direction there."""
    ends = np.vstack([points[:1], points, points[-1:]])
    t = np.linspace(0, 1, pieces)[:, None]
    line = [points[:1]]
    for a, b, c, d in zip(ends, ends[1:], ends[2:-1], ends[3:], strict=False):
        if c is ends[-2] or np.array_equal(c, points[-1]):
            break
        line.append(0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2
                           + (3 * b - a - 3 * c + d) * t**3))  # fmt: skip
    return np.vstack(line)


def _hexagon(x0: float, y0: float, width: float, height: float, mutation_size: float) -> Any:
    """A box style: a hexagon around the text."""
    from matplotlib.path import Path

    pad = 0.35 * mutation_size
    left, right, low, high = x0 - pad, x0 + width + pad, y0 - pad, y0 + height + pad
    middle, tip = (low + high) / 2, (high - low) / 3
    corners = [(left, low), (right, low), (right + tip, middle), (right, high), (left, high),
               (left - tip, middle), (left, low)]  # fmt: skip
    return Path(corners, closed=True)


def dot(view: Any) -> str:
    """The graph in the language of Graphviz, one cluster for each plate or loop."""
    nodes, edges = graph_of(view)
    keys = {name: f"n{i}" for i, name in enumerate(nodes)}
    lines = ["digraph model {", "  rankdir=TB;", '  node [style=filled, fontname="sans-serif"];']
    clusters: dict[str, list[str]] = {}
    for name, node in nodes.items():
        _, shape, fill, broken = _LOOKS.get(node.role, _LOOKS["computed"])
        style = "filled,dashed" if broken else "filled"
        line = (
            f"{keys[name]} [label={_quoted(_words(node))}, shape={shape}, style={_quoted(style)}, "
            f"fillcolor={_quoted(fill)}];"
        )
        clusters.setdefault(node.inside[-1] if node.inside else "", []).append(line)
    lines += [f"  {line}" for line in clusters.pop("", [])]
    for i, (label, members) in enumerate(clusters.items()):
        lines.append(f"  subgraph cluster_{i} {{ label={_quoted(label)};")
        lines += [f"    {line}" for line in members] + ["  }"]
    styles = {"parent": "", "given": " [style=dashed]",
              "before": ' [style=dotted, constraint=false, label="step before"]'}  # fmt: skip
    lines += [f"  {keys[e.source]} -> {keys[e.target]}{styles[e.kind]};" for e in edges]
    return "\n".join([*lines, "}"]) + "\n"


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
