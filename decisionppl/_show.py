"""The structure of a model for a reader: sites, roles, laws, shapes, what depends on what."""

import base64
import dataclasses
import html
import io
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from decisionppl._show_law import law_in_words, support_in_words
from decisionppl._show_trace import Ref, relations

HEADER = ("site", "role", "law", "support", "shape", "depends on")
_BEFORE = " (step before)"
FORMAT = 1  # of `to_dict`


@dataclasses.dataclass(frozen=True)
class Node:
    """A site or an argument of a model.

    Attributes:
        name: of the site.
        role: action, outcome, reward, cost, state or context; without one latent, observed,
            factor, computed or param; of an argument of the model "argument".
        law: of a random site, with parameters where they depend on nothing; else "".
        support: what values it can take.
        shape: of the value, inside a loop of one step; None where it is no array.
        value: "array", "function" or "other".
        inside: plates and loops that it is in, with their sizes.
        parents: names of the sites that its law or formula depends on directly.
        arguments: names of the model's arguments that it depends on directly.
        before: sites of the same loop that it depends on at the step before.
        given: for an action: what a policy may see, names of sites and arguments.
    """

    name: str
    role: str
    law: str
    support: str
    shape: tuple[int, ...] | None
    value: str
    inside: tuple[str, ...] = ()
    parents: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    before: tuple[str, ...] = ()
    given: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, repr=False)
class ModelView:
    """What `show` found: print it, leave it at the end of a notebook cell, `.plot()` it.

    Attributes:
        name: of the model.
        arguments: `Node`s of the model's arguments.
        sites: `Node`s of its sites, in program order.
    """

    name: str
    arguments: tuple[Node, ...]
    sites: tuple[Node, ...]

    def __getitem__(self, name: str) -> Node:
        for node in self.sites:
            if node.name == name:
                return node
        raise KeyError(f"no site {name!r}; the model has {[n.name for n in self.sites]}.")

    def rows(self) -> list[tuple[str, ...]]:
        """The cells of the table, in the order of `HEADER`."""
        return [_cells(n) for n in (*self.arguments, *self.sites)]

    def __str__(self) -> str:
        from rich.console import Console

        console = Console(width=110, no_color=True, force_terminal=False)
        with console.capture() as captured:
            console.print(self)
        return "\n".join(line.rstrip() for line in captured.get().splitlines()).rstrip()

    def __repr__(self) -> str:
        return str(self)

    def __rich__(self) -> Any:
        from rich import box
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for title in HEADER:
            table.add_column(title, overflow="fold")
        for row in self.rows():
            table.add_row(*map(Text, row))
        return Group(Text(self.name), table)

    def _repr_html_(self) -> str:
        title = html.escape(self.name)
        words = f"Graph of {title}: boxes are decisions, hexagons rewards and costs"
        return (
            f"<p><b>{title}</b></p>{self.html_table()}"
            f'<img alt="{words}" style="max-width: 100%" src="{self._image()}">'
        )

    def html_table(self) -> str:
        """The table alone."""
        return html_table(HEADER, self.rows())

    def _image(self) -> str:
        buffer = io.BytesIO()
        self._drawn().savefig(buffer, format="png", dpi=110)
        return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()

    def _drawn(self) -> Any:
        from decisionppl._show_draw import new_figure

        return new_figure(self)

    def plot(self, ax: Any = None, *, title: str = "") -> Any:
        """Draw the graph with matplotlib.

        Boxes are decisions, hexagons rewards and costs, ellipses random sites; what is seen is
        grey, what is computed has a broken outline. Solid arrows are dependencies, broken ones
        what a policy sees, dotted ones come from the step before.

        Args:
            ax: matplotlib axes to draw into; None makes a figure of a fitting size.
            title: of the axes.

        Returns:
            The matplotlib axes.
        """
        from decisionppl._show_draw import draw

        return draw(self, ax, title)

    def dot(self) -> str:
        """The graph in the language of Graphviz."""
        from decisionppl._show_draw import dot

        return dot(self)

    def graph(self) -> Any:
        """The graph as `graphviz.Source`: shown in a notebook, written by `.render(...)`.

        `numpyro.render_model` draws no functions and no loops, so the graph is written here.

        Raises:
            ImportError: the Python package graphviz is absent.
            RuntimeError: its program `dot` is.
        """
        import shutil

        try:
            import graphviz  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise ImportError(
                "graph() needs graphviz: pip install 'decisionppl[plot]' and the program dot "
                "(apt install graphviz). plot() draws the same graph without it, dot() writes it."
            ) from None
        if shutil.which("dot") is None:
            raise RuntimeError(
                "graph() needs the program dot of Graphviz (apt install graphviz, brew install "
                "graphviz). plot() draws the same graph without it, dot() writes it."
            )
        return graphviz.Source(self.dot())

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as saved experiments keep it."""
        return {"format": FORMAT, **json.loads(json.dumps(dataclasses.asdict(self)))}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "ModelView":
        """The inverse of `to_dict`.

        Raises:
            ValueError: of a later format, or with sites that depend on what is not described.
        """
        if data.get("format") != FORMAT:
            raise ValueError(
                f"the model is described in format {data.get('format')!r}, this version reads "
                f"{FORMAT}. Upgrade decisionppl."
            )

        def node(entry: Mapping[str, Any]) -> Node:
            parts: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v
                                     for k, v in entry.items()}  # fmt: skip
            return Node(**parts)

        arguments, sites = (tuple(map(node, data[n])) for n in ("arguments", "sites"))
        known = {n.name for n in sites}, {n.name for n in arguments}
        for site in sites:
            parts = [(p, p in known[0]) for p in (*site.parents, *site.before)]
            parts += [(a, a in known[1]) for a in site.arguments]
            parts += [(g, g.removesuffix(_BEFORE) in known[0] | known[1]) for g in site.given]
            for name, there in parts:
                if not there:
                    raise ValueError(
                        f"site {site.name!r}: it depends on {name!r}, which is not described."
                    )
        return cls(str(data["name"]), arguments, sites)


def html_table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table, everything in it escaped."""
    head = "".join(f'<th scope="col">{html.escape(t)}</th>' for t in header)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in row) + "</tr>" for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cells(node: Node) -> tuple[str, ...]:
    shape = {"function": "a function", "other": ""}.get(node.value, _shape(node.shape))
    for place in node.inside:
        shape += f", {place}"
    parts = [*node.parents, *(f"argument {a}" for a in node.arguments)]
    parts += [f"{b}{_BEFORE}" for b in node.before]
    words = ", ".join(parts)
    if node.given:
        words += ("; " if words else "") + f"sees {', '.join(node.given)}"
    return node.name, node.role, node.law, node.support, shape, words


def _shape(shape: tuple[int, ...] | None) -> str:
    return "" if shape is None else "scalar" if shape == () else str(list(shape))


def show(model: Callable, *args: Any) -> ModelView:
    """The sites of a model, their roles, laws, supports, shapes and dependencies.

    The dependencies are read from the program. None is missed; one may be named that cancels,
    such as that of `x` in `y + 0 * x`. Inside NumPyro's `scan` they are those of one step.

    Args:
        model: a model of one round, of one Markov step or of a sequence.
        *args: its arguments; examples of the right shapes will do.

    Returns:
        `ModelView`: `print` shows a table, a notebook the table and the graph, `.plot(ax)` draws
        the graph, `.graph()` gives it to Graphviz.

    Raises:
        TypeError: not a model, or arguments that do not fit it.
        ValueError: a site declared twice.

    Example:
        >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist
        >>> import decisionppl as dp
        >>> def bandit(x):
        ...     w = numpyro.sample("w", dist.Normal(0, 1).expand([3, 2]).to_event(2))
        ...     arm = dp.action("arm", 3, given=x)
        ...     dp.reward("click", dist.BernoulliLogits(w[arm] @ x))
        >>> print(dp.show(bandit, jnp.ones(2)))
        bandit
        <BLANKLINE>
         site    role       law                    support           shape    depends on
         ───────────────────────────────────────────────────────────────────────────────────────
         x       argument                                            [2]
         w       latent     Normal(0, 1)           real              [3, 2]
         arm     action     Categorical(3 equal)   integers 0 to 2   scalar   sees x
         click   reward     Bernoulli              0 or 1            scalar   w, arm, argument x
    """
    if not callable(model):
        raise TypeError(
            f"model: expected a function with NumPyro sites, got {type(model).__name__}."
        )
    found = relations(model, args)
    sites = []
    for name, seen in found.sites.items():
        refs, laws = found.parents[name], found.laws.get(name, ())
        sites.append(Node(
            name, seen.role, law_in_words(seen.law, laws, not refs), support_in_words(laws),
            None if seen.function else seen.shape,
            "function" if seen.function else "array",
            tuple(f"{n} of {size}" for n, size in (*seen.loops, *seen.plates)),
            _named(refs, "site"), _named(refs, "argument"), _named(refs, "before"),
            tuple(_seen(r) for r in found.given.get(name, ())),
        ))  # fmt: skip
    arguments = tuple(
        Node(
            n,
            "argument",
            "" if shape is not None else type(a).__name__,
            "",
            shape,
            "other" if shape is None else "array",
        )
        for (n, shape), a in zip(found.arguments.items(), args, strict=False)
    )
    label = getattr(model, "__name__", type(model).__name__)
    return ModelView(label, arguments, tuple(sites))


def _named(refs: Iterable[Ref], kind: str) -> tuple[str, ...]:
    return tuple(r.name for r in refs if r.kind == kind)


def _seen(ref: Ref) -> str:
    return f"{ref.name}{_BEFORE}" if ref.kind == "before" else ref.name
