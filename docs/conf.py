"""Sphinx configuration: pages in Markdown, tutorials run as notebooks, reference from docstrings.

sphinx-build -W --keep-going -j 2 docs SITE      (pip install 'decisionppl[docs]')

Tutorials run in full; with TUTORIAL_SMOKE=1 in smoke size. Nothing is fetched, neither while the
site is built nor when it is read: formulas become MathML, which browsers draw themselves.
"""

import os
import sys
from pathlib import Path

import decisionppl

sys.path.insert(0, str(Path(__file__).parent / "extensions"))

# inherited by the notebooks' processes: figures are shown in the page, and OpenBLAS threads do
# not spin against each other
os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

project = "decisionppl"
release = version = decisionppl.__version__
author = "the decisionppl authors"
project_copyright = author

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "figures",
    "mathml",
    "reference",
    "results",
]
exclude_patterns = ["conf.py", "screenshots.py", "extensions/*"]
source_suffix = {".md": "myst-nb", ".rst": "restructuredtext"}
nitpicky = False
show_warning_types = True

myst_enable_extensions = ["dollarmath", "deflist", "colon_fence"]
myst_heading_anchors = 3

nb_custom_formats = {".py": ["jupytext.reads", {"fmt": "py:percent"}]}
nb_execution_mode = "cache" if os.environ.get("DOCS_CACHE") else "force"
nb_execution_in_temp = True
nb_execution_timeout = 600
nb_execution_raise_on_error = True
nb_merge_streams = True
nb_output_stderr = "remove"  # progress bars
nb_mime_priority_overrides = [("html", "image/png", 5)]

autodoc_typehints = "none"  # docstrings say types, with shapes and units
autodoc_member_order = "bysource"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_param = True
default_role = "code"
add_module_names = False
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = "decisionppl"
html_favicon = "static/favicon.svg"
html_static_path = ["static"]
html_css_files = ["decisionppl.css"]
html_math_renderer = "mathml"
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {"navigation_with_keys": True}
