"""What this site makes from the code: the API entries, the tables of methods, links, coverage.

A page names objects; all that is said about them is read from docstrings, from signatures and by
running the norms, so that it cannot fall behind. The build warns, and so fails, where a public
name is on no page or has no docstring.
"""

from __future__ import annotations

from typing import Any


def setup(app: Any) -> dict[str, Any]:
    """Register with Sphinx, which only these modules need: the tests read the tables without it."""
    from normjax_docs import directives, docstrings, links, names

    app.add_directive("api", directives.Api)
    app.add_directive("methods", directives.Methods)
    app.add_directive("hard-inputs", directives.HardInputs)
    app.add_directive("toctree-present", directives.Present)
    app.add_transform(links.Links)
    # Before napoleon, which reads the sections.
    app.connect("autodoc-process-docstring", docstrings.markdown, priority=400)
    app.connect("autodoc-process-signature", docstrings.signature)
    app.connect("missing-reference", links.resolve)
    app.connect("env-check-consistency", names.check)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
