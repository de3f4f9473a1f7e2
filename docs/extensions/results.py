"""`{results} NAME`: the rows of `benchmarks/results/NAME.json`, with machine, versions and date.

`:part:` takes the rows of one part, `:targets:` those that have a target.
"""

import json
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.util.docutils import SphinxDirective

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"


def _number(value):
    return "" if value is None else f"{value:.4g}"


class Results(SphinxDirective):
    """The directive."""

    required_arguments = 1
    option_spec = {"part": directives.unchanged, "targets": directives.flag}  # noqa: RUF012

    def run(self):
        """A line of provenance and a table."""
        path = RESULTS / f"{self.arguments[0]}.json"
        self.env.note_dependency(str(path))
        found = json.loads(path.read_text())
        rows = found["rows"]
        if "part" in self.options:
            rows = [r for r in rows if r.get("part") == self.options["part"]]
        if "targets" in self.options:
            rows = [r for r in rows if r["target"] is not None]
        if not rows:
            raise self.error(f"{path.name} has no such rows")
        machine, versions = found["machine"], found["versions"]
        text = (
            f"benchmarks/{self.arguments[0]}.py, seed {found['seed']}, {found['date']}; "
            f"{machine['processor']}, {machine['cores']} cores, {', '.join(machine['devices'])}; "
            + ", ".join(f"{k} {v}" for k, v in versions.items())
        )
        return [nodes.paragraph(text, text), _table(rows)]


def _table(rows):
    heads = ("what", "measured", "unit", "target", "", "beside it")
    table = nodes.table(classes=["results"])
    group = nodes.tgroup(cols=len(heads))
    group += [nodes.colspec(colwidth=w) for w in (60, 10, 12, 8, 6, 20)]
    table += group
    head, body = nodes.thead(), nodes.tbody()
    group += [head, body]
    head += _row(heads)
    for r in rows:
        verdict = {True: "met", False: "missed", None: ""}[r["passed"]]
        peer = "" if r["peer"] is None else f"{r['peer']}: {_number(r['peer_value'])}"
        body += _row(
            (r["name"], _number(r["value"]), r["unit"], _number(r["target"]), verdict, peer)
        )
    return table


def _row(cells):
    row = nodes.row()
    for cell in cells:
        entry = nodes.entry()
        entry += nodes.paragraph(cell, cell)
        row += entry
    return row


def setup(app):
    """Register the directive."""
    app.add_directive("results", Results)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
