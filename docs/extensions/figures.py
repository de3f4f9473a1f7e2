"""Plots of notebooks are described by the heading that they stand under."""

from docutils import nodes


def describe(app, doctree, docname):
    """Give images without a description one."""
    for image in doctree.findall(nodes.image):
        if image.get("alt", image["uri"]) == image["uri"] or "alt" not in image:
            section = image.parent
            while section is not None and not isinstance(section, nodes.section):
                section = section.parent
            title = next(iter(section.findall(nodes.title)), None) if section else None
            image["alt"] = f"Plot: {title.astext() if title else docname}"


def setup(app):
    """Register it."""
    app.connect("doctree-resolved", describe)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
