"""Generates the pages of the ledger of claims from `results/ledger.json` and the records.

`source` reads them, `forest` and `figures` draw, `pages` writes HTML, `directives` brings it into
Sphinx: `{ledger-overview}`, `{ledger-group}`, `{ledger-disputes}`, `{ledger-self-test}`. Pages of
groups are written into `docs/ledger/` before each build; git ignores them.
"""

from __future__ import annotations

from typing import Any


def setup(app: Any) -> dict[str, Any]:
    """Register with Sphinx; tests use the other modules without it, so it is imported here."""
    from normjax_ledger import directives

    app.add_config_value("ledger_results", "../results", "env", str)
    app.add_directive("ledger-overview", directives.Overview)
    app.add_directive("ledger-group", directives.Group)
    app.add_directive("ledger-disputes", directives.Disputes)
    app.add_directive("ledger-self-test", directives.SelfTest)
    app.connect("builder-inited", directives.write_pages)
    app.add_css_file("ledger.css")
    app.connect("html-page-context", directives.add_script)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
