"""Brings the ledger's pages into Sphinx: a file for each group, and a directive for each page."""

from __future__ import annotations

import pathlib
from collections.abc import Iterable
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective

from experiments.ledger import disputes
from normjax_ledger import pages, source


def results(app: Any) -> pathlib.Path:
    """Return the folder of results that a build shows."""
    return (pathlib.Path(app.srcdir) / app.config.ledger_results).resolve()


def write_pages(app: Any) -> None:
    """Write a source file for each group, and remove those of groups that are gone."""
    folder = pathlib.Path(app.srcdir) / "ledger"
    folder.mkdir(exist_ok=True)
    wanted = {
        f"{group['slug']}.md": f"```{{ledger-group}} {group['number']}\n```\n"
        for group in source.load(results(app))["groups"]
    }
    for old in folder.glob("[0-9][0-9]_*.md"):
        if old.name not in wanted:
            old.unlink()
    for name, text in wanted.items():
        path = folder / name
        if not path.exists() or path.read_text() != text:
            path.write_text(text)


def add_script(app: Any, page: str, template: str, context: Any, doctree: Any) -> None:
    """Add the script of the filters to the page that has them, and to no other."""
    if doctree is not None and any(
        "ledger-filters" in n.astext() for n in doctree.findall(nodes.raw)
    ):
        app.add_js_file("ledger.js", loading_method="defer")


class _Page(SphinxDirective):
    """What the directives share: the ledger, links from this page, and sections of raw HTML."""

    @property
    def results(self) -> pathlib.Path:
        folder = results(self.env.app)
        if (folder / "ledger.json").exists():
            self.env.note_dependency(str(folder / "ledger.json"))
        return folder

    @property
    def links(self) -> pages.Links:
        site = self.config.html_theme_options.get("repository_url", "")
        builder, here = self.env.app.builder, self.env.docname
        return pages.Links(
            page=lambda name: builder.get_relative_uri(here, name),
            file=lambda path: f"{site}/blob/main/{path}",
            commit=lambda commit: f"{site}/commit/{commit}",
        )

    def sections(self, made: Iterable[pages.Section]) -> list[nodes.Node]:
        """Return sections as Sphinx knows them, so that its table of contents has them."""
        found: list[nodes.Node] = []
        for one in made:
            raw = nodes.raw("", one.html, format="html")
            if one.title:
                found.append(_section(one.title, one.id, [raw]))
            else:
                found.append(raw)
        return found


def _section(title: str, name: str, children: list[nodes.Node]) -> nodes.section:
    return nodes.section("", nodes.title(title, title), *children, ids=[name], names=[])


class Overview(_Page):
    """`{ledger-overview}`: the table of all claims, and the tree of the groups' pages."""

    def run(self) -> list[nodes.Node]:
        """Return the table and the tree."""
        ledger = source.load(self.results)
        names = [f"/{source.page(group)}" for group in ledger["groups"]]
        tree = nodes.Element()
        if names:
            lines = ["```{toctree}", ":hidden:", ":maxdepth: 1", "", *names, "```"]
            text = StringList(lines, source=self.env.docname)
            self.state.nested_parse(text, self.content_offset, tree)
        return [nodes.raw("", pages.overview(ledger, self.links), format="html"), *tree.children]


class Group(_Page):
    """`{ledger-group} 24`: the whole page of a group, its title too."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return the page's one section."""
        groups = source.load(self.results)["groups"]
        group = next(g for g in groups if g["number"] == int(self.arguments[0]))
        for scale in group["scales"]:
            if scale["record"]:
                self.env.note_dependency(str(self.results.parent / scale["record"]))
        made = pages.group_sections(group, self.results, self.links)
        title = f"{group['number']}. {group['title']}"
        return [_section(title, f"group-{group['number']}", self.sections(made))]


class Disputes(_Page):
    """`{ledger-disputes}`: who says what about a question, and what was found."""

    def run(self) -> list[nodes.Node]:
        """Return the map and a section for each question."""
        ledger = source.load(self.results)
        return self.sections(pages.dispute_sections(ledger, disputes.DISPUTES, self.links))


class SelfTest(_Page):
    """`{ledger-self-test}`: the figures of the A/A test; nothing before it was run."""

    def run(self) -> list[nodes.Node]:
        """Return the table, and the directive's own text, where there is one."""
        made = pages.self_test(self.results)
        return [nodes.raw("", made, format="html")] if made else []
