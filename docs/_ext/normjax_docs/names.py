"""Lists the public names, and checks that each has an entry on the site."""

from __future__ import annotations

import importlib
import logging
from importlib.util import find_spec
from typing import Any

MODULES = (
    "normjax",
    "normjax.recurrent",
    "normjax.linen",
    "normjax.nnx",
    "normjax.analysis",
    *(["normjax.analysis.plots"] if find_spec("normjax.analysis.plots") else []),
)
for _module in MODULES:
    importlib.import_module(_module)


def public(module: str) -> list[str]:
    """Public names of a module; each needs an entry."""
    return [n for n in importlib.import_module(module).__all__ if not n.startswith("__")]


def missing(documented: set[str]) -> list[str]:
    """Public names that are not documented."""
    return [f"{m}.{n}" for m in MODULES for n in public(m) if f"{m}.{n}" not in documented]


def check(app: Any, env: Any) -> None:
    """Warn about public names without an entry."""
    log = logging.getLogger("sphinx.normjax_docs")
    for name in missing(set(env.get_domain("py").objects)):
        log.warning("%s is public but on no page: add it to one of docs/api/", name)
