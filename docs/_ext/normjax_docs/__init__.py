"""Generates parts of this site from the code: API entries, tables of methods, links, coverage.

A page lists names; their descriptions are read from docstrings and signatures, or found by running
the norms, so they cannot become outdated. The build warns, and therefore fails, if a public name
is on no page or has no docstring.
"""

from __future__ import annotations

from typing import Any


def setup(app: Any) -> dict[str, Any]:
    """Register with Sphinx; the tests read the tables without it, so it is imported here."""
    from normjax_docs import directives, docstrings, links, names

    app.add_directive("api", directives.Api)
    app.add_directive("methods", directives.Methods)
    app.add_directive("hard-inputs", directives.HardInputs)
    app.add_transform(links.Links)
    # Before napoleon, which reads the sections.
    app.connect("autodoc-process-docstring", docstrings.markdown, priority=400)
    app.connect("autodoc-process-signature", docstrings.signature)
    app.connect("source-read", links.include)
    app.connect("missing-reference", links.resolve)
    app.connect("env-check-consistency", names.check)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
