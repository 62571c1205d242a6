"""A site of the ledger's pages alone, in the theme of the documentation, in seconds."""

from __future__ import annotations

import pathlib
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]
DOCS = ROOT / "docs"
CONF = f"""
import sys
sys.path[:0] = [{str(DOCS / "_ext")!r}, {str(ROOT)!r}]
project = "made-up numbers"
extensions = ["myst_nb", "normjax_ledger"]
source_suffix = {{".md": "myst-nb"}}
myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
html_theme = "sphinx_book_theme"
html_static_path = ["_static"]
html_theme_options = {{"repository_url": "https://github.com/normjax/normjax"}}
html_show_sourcelink = False
exclude_patterns = ["results"]
"""
# Pages that the ledger's link to.
OTHERS = {
    "index.md": "# Start\n\n```{toctree}\nresults\ncomputed\nexperiments\ncontributing\n```\n",
    "computed.md": "# Computed\n",
    "experiments.md": "# Experiments\n\n## Claims\n\nSee [the ledger](results.md).\n",
    "contributing.md": "# Contributing\n",
}


def build(folder: pathlib.Path, results: pathlib.Path) -> pathlib.Path:
    """Build the site of a folder of results below `folder`, and return the folder of its pages."""
    pages = folder / "docs"
    shutil.copytree(DOCS / "_static", pages / "_static")
    (pages / "ledger").mkdir()
    for name in ("results.md", "ledger/disputes.md", "ledger/first_edition.md"):
        shutil.copyfile(DOCS / name, pages / name)
    for name, text in OTHERS.items():
        (pages / name).write_text(text)
    (pages / "conf.py").write_text(CONF)
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    command += ["-D", f"ledger_results={results}", str(pages), str(folder / "html")]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert ran.returncode == 0, ran.stderr
    return folder / "html"
