"""Sphinx configuration; `make docs` builds into `docs/_build/html` and fails on any warning."""

from __future__ import annotations

import os
import pathlib
import shutil
import sys

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parent
sys.path[:0] = [str(HERE / "_ext"), str(ROOT)]
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import normjax  # noqa: E402

project = "normjax"
author = "the normjax authors"
project_copyright = "the normjax authors"
version = release = normjax.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx-mathjax-offline",  # formulas need no network
    "sphinx_copybutton",
    "sphinx_design",
    "normjax_docs",
    "normjax_ledger",
]
exclude_patterns = ["_build"]
nitpicky = True

# Pages are Markdown; notebooks are shown with their committed outputs.
source_suffix = {".md": "myst-nb", ".ipynb": "myst-nb"}
myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
nb_execution_mode = "off"
suppress_warnings = ["mystnb.unknown_mime_type"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autosummary_generate = False
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_attr_annotations = False
napoleon_custom_sections = [
    "Returns",
    "Example",
    "Reference",
    ("Attributes", "params_style"),
    ("Class attributes", "params_style"),
]
maximum_signature_line_length = 88
python_display_short_literal_types = True
add_module_names = False
toc_object_entries_show_parents = "hide"

html_theme = "sphinx_book_theme"
html_title = "normjax"
html_static_path = ["_static"]
html_css_files = ["normjax.css"]
html_theme_options = {
    "repository_url": "https://github.com/normjax/normjax",
    "use_repository_button": True,
    "use_download_button": False,
    "show_toc_level": 2,
    "home_page_in_toc": False,
    # The theme's bar above the page would repeat the search field of the sidebar.
    "navbar_start": [],
    "navbar_center": [],
    "navbar_end": [],
    "navbar_persistent": [],
}
html_show_sourcelink = False
copybutton_exclude = ".linenos, .gp, .go"


def _bring(app):
    """Copy the notebooks, which are in another folder of the repository; git ignores the copies."""
    notebooks = HERE / "notebooks"
    there = {path.name: path for path in (ROOT / "notebooks").glob("*.ipynb")}
    for old in notebooks.glob("*.ipynb"):
        if old.name not in there:
            old.unlink()
    for name, path in there.items():
        copy = notebooks / name
        if not copy.exists() or copy.read_bytes() != path.read_bytes():
            shutil.copyfile(path, copy)


def setup(app):
    """Copy the notebooks before each build."""
    app.connect("builder-inited", _bring)
