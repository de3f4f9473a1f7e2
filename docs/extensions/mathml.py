"""Formulas as MathML: drawn by the browser, without scripts, fonts or anything fetched."""

import re

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.util import logging

LOGGER = logging.getLogger(__name__)


def _convert(node, display):
    # a formula that holds a line break or an alignment is one table of lines
    text = node.astext().strip()
    if display == "block" and re.search(r"\\\\|&", text) and r"\begin" not in text:
        text = rf"\begin{{aligned}}{text}\end{{aligned}}"
    try:
        return convert(text, display=display)
    except Exception as error:
        LOGGER.warning("formula %r: %r", text, error, location=node, type="mathml")
        return f"<code>{text}</code>"


def inline(self, node):
    """HTML of a formula in the text."""
    self.body.append(_convert(node, "inline"))
    raise nodes.SkipNode


def block(self, node):
    """HTML of a formula on a line of its own."""
    self.body.append(f'<div class="math-block">{_convert(node, "block")}</div>')
    raise nodes.SkipNode


def setup(app):
    """Register the renderer `mathml`."""
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
