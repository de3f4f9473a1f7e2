"""`{reference} MODULE`: the public names of a module, from their docstrings.

Each name is documented once. `:only:` takes some of the names, `:but:` leaves some out, and
`:no-module:` leaves out the module's own docstring.
"""

import importlib
import inspect
import types
from collections.abc import Mapping

from docutils.parsers.rst import directives
from sphinx.util.docutils import SphinxDirective


def public(module):
    """Names that a module offers: its `__all__`, or what it defines itself."""
    listed = getattr(module, "__all__", None)
    if listed is None:
        listed = [
            name for name, value in vars(module).items()
            if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
        ]  # fmt: skip
    return [n for n in listed if not isinstance(getattr(module, n), types.ModuleType)]


def _names(text):
    return text.split() if text else []


class Reference(SphinxDirective):
    """The directive."""

    required_arguments = 1
    option_spec = {  # noqa: RUF012
        "only": directives.unchanged, "but": directives.unchanged, "no-module": directives.flag,
    }  # fmt: skip

    def run(self):
        """Nodes of the docstrings."""
        name = self.arguments[0]
        module = importlib.import_module(name)
        chosen = _names(self.options.get("only")) or public(module)
        left_out = _names(self.options.get("but"))
        lines = []
        if "no-module" not in self.options and "only" not in self.options:
            lines += [f".. automodule:: {name}", "   :no-members:", ""]
        for each in chosen:
            if each not in left_out:
                lines += _entry(f"{name}.{each}", getattr(module, each))
        text = "\n".join(["```{eval-rst}", *lines, "```"])
        return self.parse_text_to_nodes(text)


def _entry(path, value):
    if inspect.isclass(value):
        # fields of a NamedTuple are in its docstring
        plain = issubclass(value, tuple)
        methods = [
            n for n, v in vars(value).items()
            if not n.startswith("_")
            and (inspect.isfunction(v) or isinstance(v, property | classmethod | staticmethod))
        ]  # fmt: skip
        members = f"   :members: {', '.join(methods)}" if methods else "   :no-members:"
        kind = ["   :no-show-inheritance:"] if plain else []
        return [f".. autoclass:: {path}", members, *kind, ""]
    if callable(value):
        return [f".. autofunction:: {path}", ""]
    # a table: its own docstring would be that of its type
    module, name = path.rsplit(".", 1)
    return [f".. py:data:: {name}", f"   :module: {module}", "", f"   {_says(value)}", ""]


def _says(value):
    if isinstance(value, Mapping):
        return "A mapping with keys " + ", ".join(f"``{k!r}``" for k in value) + "."
    if isinstance(value, tuple | list | set | frozenset):
        return "A collection of " + ", ".join(f"``{x!r}``" for x in value) + "."
    return f"``{value!r}``"


def setup(app):
    """Register the directive."""
    app.add_directive("reference", Reference)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
