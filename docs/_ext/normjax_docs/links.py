"""Links: public names in the text, types in signatures, and the links of included files."""

from __future__ import annotations

import builtins
import os
import pathlib
import re
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.transforms import SphinxTransform
from sphinx.util.nodes import make_refnode

from normjax_docs.names import MODULES, public

# Function names that are also names of arguments and methods, or ordinary words. They become links
# only if they are called or have a prefix, as in `nj.merge`.
WORDS = {"merge", "moments", "identity", "fold", "normalize", "stack", "shared"}
PREFIX = r"nj|(?:normjax\.)?(?:recurrent|linen|nnx|analysis)|normjax"
CODE = re.compile(rf"(?:({PREFIX})\.)?([A-Za-z_]\w*)(\(.*\))?", re.S)


class Links(SphinxTransform):
    """Make `batch_norm`, `nj.batch_norm(eps=1e-3)` and the like links to their entries."""

    default_priority = 400

    def apply(self) -> None:
        """Replace each literal that has a target."""
        for node in list(self.document.findall(nodes.literal)):
            target = self.target(node)
            if target is None:
                continue
            ref = addnodes.pending_xref("", node.deepcopy(), refdomain="py", reftype="obj")
            ref["reftarget"], ref["refexplicit"], ref["refwarn"] = target, True, True
            ref["refdoc"] = self.env.docname
            node.replace_self(ref)

    def target(self, node: nodes.Node) -> str | None:
        """Full name of the object that a literal names, if it is unambiguous."""
        if _within(node, (nodes.title, nodes.reference, addnodes.pending_xref)):
            return None
        match = CODE.fullmatch(node.astext())
        if match is None:
            return None
        prefix, name, call = match.groups()
        if prefix is None and call is None and name in WORDS:
            return None
        found = [m for m in MODULES if name in public(m)]
        if prefix is not None:
            home = "normjax" if prefix in ("nj", "normjax") else f"normjax.{prefix.split('.')[-1]}"
            # A name with `nj.` must exist: otherwise the link is broken, and the build fails.
            return f"{home}.{name}" if home in found or prefix == "nj" else None
        here = f"normjax.{self.env.docname.removeprefix('api/')}"
        if here in found:
            return f"{here}.{name}"
        if len(found) == 1 or found[:1] == ["normjax"]:
            return f"{found[0]}.{name}"
        return None


INCLUDE = re.compile(r"^```\{include\} (\S+)\n```$", re.M)
RELATIVE = re.compile(r"(!?\[[^\]]*\])\((?!https?:|#)([^)#\s]+)(#[^)\s]*)?\)")


def include(app: Any, docname: str, source: list[str]) -> None:
    """Replace each include of a file of the repository by its text, with links that work here.

    A file's links are relative to its folder. Pages of this site stay pages, pictures are copied,
    and everything else links to the repository.
    """
    docs = pathlib.Path(app.srcdir)
    site = app.config.html_theme_options["repository_url"].rstrip("/")

    def text(match: re.Match) -> str:
        path = (docs / match[1]).resolve()
        app.env.note_dependency(str(path))

        def link(found: re.Match) -> str:
            target = (path.parent / found[2]).resolve()
            inside = target.relative_to(docs.parent).as_posix()
            if not target.exists():
                raise FileNotFoundError(f"{path} links to {inside}, which does not exist")
            if target.is_relative_to(docs) or found[1].startswith("!"):
                return f"{found[1]}({os.path.relpath(target, docs)}{found[3] or ''})"
            kind = "tree" if target.is_dir() else "blob"
            return f"{found[1]}({site}/{kind}/main/{inside}{found[3] or ''})"

        return RELATIVE.sub(link, path.read_text())

    source[0] = INCLUDE.sub(text, source[0])


def resolve(app: Any, env: Any, node: addnodes.pending_xref, content: Any) -> nodes.Node | None:
    """Resolve our types by their last name, and show other projects' types without a link.

    A name that the text links to but that does not exist stays unresolved: the build fails.
    """
    if node.get("refdomain") != "py":
        return None
    name = node["reftarget"].rsplit(".", 1)[-1]
    objects = env.get_domain("py").objects
    in_signature = _within(node, (addnodes.desc_signature,))
    if in_signature or node["reftarget"].startswith("normjax."):
        for full in (f"{module}.{name}" for module in MODULES):
            if full in objects and (in_signature or ".base." in node["reftarget"]):
                entry = objects[full]
                return make_refnode(
                    app.builder, node["refdoc"], entry.docname, entry.node_id, [content]
                )
    return content if in_signature or hasattr(builtins, name) else None


def _within(node: nodes.Node, kinds: tuple[type, ...]) -> bool:
    parent = node.parent
    while parent is not None:
        if isinstance(parent, kinds):
            return True
        parent = parent.parent
    return False
