"""Objects named on the command line: `module:name` or `file.py:name`."""

import ast
import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

import jax.numpy as jnp


def load(target: str) -> Any:
    """The object that `module:name` or `path/to/file.py:name` names.

    Args:
        target: the name may have dots; modules are looked for in the current folder too.

    Raises:
        ValueError: a malformed target, or a module or name that does not exist, or code that
            fails while it is imported.

    Example:
        >>> load("decisionppl.models.bandits:gaussian").__name__
        'gaussian'
    """
    where, separator, name = target.rpartition(":")
    if not separator or not where or not name:
        raise ValueError(f"{target!r}: expected module:name or file.py:name.")
    try:
        found: Any = _from_file(Path(where)) if where.endswith(".py") else _from_module(where)
    except FileNotFoundError:
        raise ValueError(f"{target!r}: there is no file {where}.") from None
    except Exception as error:
        raise ValueError(
            f"{target!r}: importing failed: {type(error).__name__}: {error}"
        ) from error
    for part in name.split("."):
        if not hasattr(found, part):
            public = [n for n in vars(found) if not n.startswith("_")]
            raise ValueError(f"{target!r}: {where} has no {part!r}; it has {', '.join(public)}.")
        found = getattr(found, part)
    return found


def _from_module(name: str) -> Any:
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    return importlib.import_module(name)


def _from_file(path: Path) -> Any:
    if not path.exists():
        raise FileNotFoundError(path)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # files may import their neighbours, and dataclasses look their module up
    sys.path.insert(0, str(path.resolve().parent))
    sys.modules.setdefault(path.stem, module)
    spec.loader.exec_module(module)
    return module


def arguments(text: str) -> Any:
    """A model's arguments: a Python literal such as "(1.0, [0.5, 2.0])", or a target.

    Returns:
        What the target names, or a tuple of the values, where lists are arrays.

    Raises:
        ValueError: neither a literal nor a target.

    Example:
        >>> [x.tolist() for x in arguments("(1.0, [0.5, 2.0])")]
        [1.0, [0.5, 2.0]]
    """
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        if ":" in text:
            return load(text)
        raise ValueError(
            f"--args {text!r}: expected a Python literal such as '(1.0, [0.5, 2.0])', or "
            "module:name of a tuple or of a function (key, t) -> arguments."
        ) from None
    return tuple(jnp.asarray(x) for x in (value if isinstance(value, tuple) else (value,)))
