"""What is shipped, what an import costs, and which way dependencies point."""

import ast
import importlib
import importlib.metadata
import importlib.util
import inspect
import json
import os
import pkgutil
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import decisionppl

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = Path(decisionppl.__file__).resolve().parent
MAPPED = ("models", "inference")  # decisionppl.NAME, with its code in the top-level folder NAME

in_checkout = pytest.mark.skipif(
    not (ROOT / "pyproject.toml").exists(), reason="the tests run without their checkout"
)


def _folder(name: str) -> Path:
    """Source folder of a mapped subpackage: through the symlink, from the wheel, or neither."""
    spec = importlib.util.find_spec(f"decisionppl.{name}")
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]).resolve()


def _run(code: str, cwd: Path, path: Path | None = None) -> subprocess.CompletedProcess:
    drop = ("PYTHONPATH", "PYTHONSAFEPATH", "JAX_ENABLE_X64")
    env = {n: v for n, v in os.environ.items() if n not in drop}
    if path is not None:
        env["PYTHONPATH"] = str(path)
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)


def _pyproject() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def _source_folders() -> dict[str, Path]:
    """Package name -> folder, for all folders that hold Python files."""
    roots = {"decisionppl": ROOT / "decisionppl"}
    roots.update({f"decisionppl.{n}": ROOT / n for n in MAPPED})
    found = {}
    for name, top in roots.items():
        for folder, subfolders, files in os.walk(top, followlinks=False):
            subfolders[:] = [s for s in subfolders if s != "__pycache__"]
            if any(f.endswith(".py") for f in files):
                parts = Path(folder).relative_to(top).parts
                found[".".join((name, *parts))] = Path(folder)
    return found


# What is shipped.


@in_checkout
def test_listed_packages_equal_the_folders():
    listed = _pyproject()["tool"]["setuptools"]["packages"]
    assert sorted(listed) == sorted(_source_folders())


@in_checkout
def test_every_package_folder_has_an_init_file():
    assert [n for n, f in _source_folders().items() if not (f / "__init__.py").exists()] == []


@in_checkout
def test_other_files_in_the_packages_are_listed_as_package_data():
    data = _pyproject()["tool"]["setuptools"]["package-data"]
    for name, folder in _source_folders().items():
        shipped = {p for glob in data.get(name, ()) for p in folder.glob(glob)}
        files = {p for p in folder.iterdir() if p.is_file() and p.suffix not in (".py", ".pyc")}
        assert files == shipped, name


@in_checkout
@pytest.mark.parametrize("name", MAPPED)
def test_subpackages_are_relative_symlinks(name):
    link = ROOT / "decisionppl" / name
    if not link.is_symlink() and sys.platform == "win32":
        pytest.skip("a clone without symlinks")
    assert os.readlink(link) == f"../{name}"
    if (ROOT / ".git").exists():
        shown = subprocess.run(
            ["git", "ls-files", "--stage", "--", f"decisionppl/{name}"],
            cwd=ROOT, capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        # nothing is shown before the first `git add`
        assert shown == "" or shown.startswith("120000 "), f"git holds no symlink: {shown}"


@in_checkout
@pytest.mark.parametrize("name", MAPPED)
def test_bare_import_says_what_to_write(name):
    result = _run(f"import {name}", ROOT)
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: ")
    assert f"from decisionppl import {name}" in last


@pytest.mark.parametrize("name", MAPPED)
def test_installed_package_has_no_generic_names(name, tmp_path):
    code = f"import importlib.util as u; s = u.find_spec({name!r}); print(s and s.origin)"
    result = _run(code, tmp_path)
    assert result.returncode == 0, result.stderr
    origin = result.stdout.strip()  # another distribution may have that name
    assert origin == "None" or not Path(origin).resolve().is_relative_to(_folder(name))
    # what setuptools leaves in a checkout is a distribution too, but has no RECORD
    installed = importlib.metadata.distributions(name="decisionppl")
    lines = "\n".join(d.read_text("RECORD") or "" for d in installed).splitlines()
    assert [line for line in lines if line.startswith(f"{name}/")] == []


def test_typing_marker_is_shipped():
    assert (PACKAGE / "py.typed").is_file()


def test_version_is_the_declared_one():
    if (ROOT / "pyproject.toml").exists():
        declared = _pyproject()["project"]["version"]
    else:
        declared = importlib.metadata.version("decisionppl")
    assert decisionppl.__version__ == declared


@in_checkout
def test_sources_name_no_machine_path():
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    # an absolute path, not the tail of a longer one or of an address
    machine = re.compile(r"(?<![\w.~}-])/(?:home|root|tmp|Users)/")
    hits = []
    for name in filter(None, names.split("\0")):
        path = ROOT / name
        if path.is_symlink() or not path.is_file():
            continue
        text = path.read_bytes().decode("utf-8", errors="replace")
        hits += [
            f"{name}:{number}: {line.strip()[:200]}"
            for number, line in enumerate(text.splitlines(), 1)
            if machine.search(line)
        ]
    assert hits == []


# What an import costs.

_IMPORT = """
import json, sys
import numpyro
before = set(sys.modules)
import decisionppl
import jax
report = {
    "modules": sorted(set(sys.modules) - before),
    "arrays": len(jax.live_arrays()),
    "x64": bool(jax.config.jax_enable_x64),
}
import decisionppl.cli, decisionppl.experiment, decisionppl.inference, decisionppl.models
import decisionppl.lookahead, decisionppl.plots, decisionppl.testing
report["arrays_of_all"] = len(jax.live_arrays())
report["x64_of_all"] = bool(jax.config.jax_enable_x64)
print(json.dumps(report))
"""


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    result = _run(_IMPORT, tmp_path_factory.mktemp("elsewhere"), PACKAGE.parent)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def test_import_stays_light(imported):
    heavy = {
        "decisionppl.models", "decisionppl.inference", "decisionppl.cli", "decisionppl.experiment",
        "decisionppl.lookahead", "decisionppl.plots", "decisionppl.testing", "decisionppl._show",
        "decisionppl._report", "arviz", "h5netcdf", "matplotlib", "optax", "pandas", "rich",
        "sklearn", "typer", "xarray",
    }  # fmt: skip
    loaded = {".".join(m.split(".")[:n]) for m in imported["modules"] for n in (1, 2)}
    assert "decisionppl" in loaded
    assert sorted(heavy & loaded) == []


def test_import_allocates_nothing(imported):
    assert imported["arrays"] == 0
    assert imported["arrays_of_all"] == 0


def test_import_leaves_x64_off(imported):
    assert not imported["x64"]
    assert not imported["x64_of_all"]


# Which way dependencies point.


def _imports(tree: ast.AST, inside_functions: bool) -> Iterator[str]:
    """Dotted names that a module imports."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            yield base
            yield from (f"{base}.{a.name}" for a in node.names)
        elif inside_functions or not isinstance(
            node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
        ):
            yield from _imports(node, inside_functions)


def _offences(files: list[Path], forbidden: tuple[str, ...], inside_functions: bool) -> list[str]:
    assert files
    found = []
    for file in files:
        tree = ast.parse(file.read_text(encoding="utf-8"), str(file))
        for name in _imports(tree, inside_functions):
            if any(name == f or name.startswith(f"{f}.") for f in forbidden):
                found.append(f"{file.name} imports {name}")
    return found


def test_engines_never_import_the_gallery():
    files = sorted(_folder("inference").rglob("*.py"))
    assert _offences(files, ("decisionppl.models", "models"), inside_functions=True) == []


def test_language_and_rules_import_neither_engines_nor_gallery():
    files = [f for f in sorted(PACKAGE.glob("*.py")) if f.name not in ("cli.py", "_tour.py")]
    forbidden = tuple(p + n for p in ("decisionppl.", "") for n in MAPPED)
    assert _offences(files, forbidden, inside_functions=False) == []


def test_imports_are_absolute():
    folders = {PACKAGE, *(_folder(n) for n in MAPPED)}
    files = sorted({f for folder in folders for f in folder.rglob("*.py")})
    relative = [
        f"{file.name} imports {name}"
        for file in files
        for name in _imports(ast.parse(file.read_text(encoding="utf-8")), True)
        if name.startswith(".")
    ]
    assert relative == []


# What is public is documented.


def _documented(name: str, value: object) -> bool:
    text = (getattr(value, "__doc__", None) or "").strip()
    # a NamedTuple without a docstring gets its signature as one
    return bool(text) and not text.startswith(f"{name}(")


def test_public_names_resolve_and_have_docstrings():
    assert len(set(decisionppl.__all__)) == len(decisionppl.__all__)
    bare = [n for n in decisionppl.__all__ if not _documented(n, getattr(decisionppl, n))]
    assert bare == []


def _public_modules() -> list[str]:
    packages = [PACKAGE, *(_folder(n) for n in MAPPED)]
    names = {"decisionppl", *(f"decisionppl.{n}" for n in MAPPED)}
    for prefix, folder in zip(("", *(f"{n}." for n in MAPPED)), packages, strict=True):
        for module in pkgutil.walk_packages([str(folder)], f"decisionppl.{prefix}"):
            names.add(module.name)
    return sorted(n for n in names if not any(p.startswith("_") for p in n.split(".")))


def test_public_modules_and_their_functions_have_docstrings():
    bare = []
    for module_name in _public_modules():
        module = importlib.import_module(module_name)
        own = [n for n, v in vars(module).items() if getattr(v, "__module__", "") == module_name]
        names = {n for n in own if not n.startswith("_")} | {*getattr(module, "__all__", ())}
        if not _documented(module_name, module):
            bare.append(module_name)
        for name in sorted(names):
            value = getattr(module, name)
            if (inspect.isroutine(value) or inspect.isclass(value)) and not _documented(
                name, value
            ):
                bare.append(f"{module_name}.{name}")
    assert bare == []


def test_networks_say_what_they_need_and_nothing_else_needs_it(tmp_path):
    code = (
        "import sys; sys.modules['flax'] = None\n"
        "from decisionppl import inference, models\n"
        "inference.autoregressive(models.sequences.polya_urn().sequence, 3)\n"
        "models.neural\n"
    )
    done = _run(code, tmp_path)
    assert done.returncode == 1
    assert "ImportError: decisionppl.models.neural needs flax: pip install 'decisionppl[nn]'" in (
        done.stderr
    )
