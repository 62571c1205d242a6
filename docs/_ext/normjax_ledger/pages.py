"""Writes the ledger's pages as HTML: all text of the ledger is escaped here, and nowhere else."""

from __future__ import annotations

import html
import json
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from normjax_ledger import figures, forest, source
from normjax_ledger.source import Entry, anchor, chance, interval, number, unit, words

CURVES = ("train.loss", "valid.loss")
RULES = {
    "more": "claims an effect in this direction, of at least delta",
    "same": "claims no effect of the size of delta, either way",
    "not_worse": "claims no loss of the size of delta",
}
FILTERS = ("verdict", "topic", "method", "source")


class Section(NamedTuple):
    """A section of a page."""

    title: str
    id: str
    html: str


class Links(NamedTuple):
    """How a page links to others.

    Attributes:
        page: from the name of a page of the site to its address.
        file: from a path in the repository to its address.
        commit: from a commit to its address.
    """

    page: Callable[[str], str]
    file: Callable[[str], str]
    commit: Callable[[str], str]


def e(value: Any) -> str:
    """Escape for HTML; a line never breaks within a backtick's code."""
    return html.escape(str(value), quote=True)


def prose(text: str) -> str:
    """Escape a text, with code in backticks and arXiv numbers as links."""
    parts = re.split(r"`([^`]+)`", text)
    out = [f"<code>{e(part)}</code>" if i % 2 else _arxiv(e(part)) for i, part in enumerate(parts)]
    return "".join(out)


def _arxiv(text: str) -> str:
    return re.sub(
        r"arXiv:(\d{4}\.\d{4,5})",
        r'<a class="external" href="https://arxiv.org/abs/\1">arXiv:\1</a>',
        text,
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "") -> str:
    """Write a table of HTML cells; each cell carries its column's name, for narrow pages."""
    top = "".join(f"<th>{e(h)}</th>" for h in head)
    body = "".join(
        "<tr>"
        + "".join(f'<td data-name="{e(h)}">{c}</td>' for h, c in zip(head, row, strict=True))
        + "</tr>"
        for row in rows
    )
    return (
        f'<table class="ledger {kind}"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>'
    )


def verdict(name: str) -> str:
    """Write a verdict with its mark."""
    return f'<span class="verdict {forest.kind(name)}">{forest.badge(name)}{e(name)}</span>'


def phrase(claim: Entry) -> str:
    """Write a claim's phrase, with a mark before each of its verdicts."""
    parts = []
    for part in claim["phrase"].split("; "):
        name = next((v for v in source.verdicts(claim) if part.startswith(v)), None)
        text = f"{forest.badge(name)}{e(part)}" if name else e(part)
        parts.append(f'<span class="verdict {forest.kind(name) if name else ""}">{text}</span>')
    return "; ".join(parts)


# -------------------------------------------------------------------------------------- overview


def overview(ledger: Entry, links: Links) -> str:
    """Write the filters, and a line for each claim with its effects on a common axis."""
    groups = ledger["groups"]
    if not groups:
        return (
            '<p class="empty">There is no ledger yet: '
            "<code>python -m experiments.report --results</code> makes it.</p>"
        )
    claims = [claim for group in groups for claim in group["claims"]]
    found = [v for claim in claims for v in {entry["verdict"] for entry in claim["at"]}]
    counts = " ".join(
        f"<li>{forest.badge(v)} {e(v)}: {found.count(v)}</li>" for v in ledger["verdicts"]
    )
    bodies = "".join(_group_rows(group, links) for group in groups)
    return (
        f"<p>{len(claims)} claims in {len(groups)} groups. A claim counts once for each verdict "
        f'that it has at some size.</p><ul class="counts">{counts}</ul>'
        + _filters(ledger)
        + '<table class="ledger overview"><thead><tr><th>claim</th><th>statement</th>'
        f"<th>verdict</th><th>{forest.axis()}</th></tr></thead>{bodies}"
        f"<tfoot><tr><td></td><td></td><td></td><td>{forest.axis(below=True)}</td></tr></tfoot>"
        "</table>"
    )


def _filters(ledger: Entry) -> str:
    options: dict[str, dict[str, None]] = {name: {} for name in FILTERS}
    options["verdict"] = dict.fromkeys(ledger["verdicts"])
    for group in ledger["groups"]:
        for claim in group["claims"]:
            for name, values in _tags(group, claim).items():
                if name != "verdict":
                    options[name] |= dict.fromkeys(values)
    fields = "".join(
        f'<label>{name} <select name="{name}"><option value="">all</option>'
        + "".join(f"<option>{e(v)}</option>" for v in _sorted(name, values))
        + "</select></label>"
        for name, values in options.items()
    )
    # The script shows it: without one, it could do nothing.
    return (
        f'<form id="ledger-filters" class="filters" hidden>{fields}'
        '<button type="reset">show all</button><output aria-live="polite"></output></form>'
    )


def _sorted(name: str, values: Iterable[str]) -> list[str]:
    return list(values) if name == "verdict" else sorted(values, key=str.casefold)


def _tags(group: Entry, claim: Entry) -> dict[str, list[str]]:
    return {
        "verdict": source.verdicts(claim),
        "topic": [group["topic"]],
        "method": claim["methods"],
        "source": source.papers(claim["source"]),
    }


def _group_rows(group: Entry, links: Links) -> str:
    page = links.page(source.page(group))
    title = f'<a href="{e(page)}">{group["number"]}. {e(group["title"])}</a>'
    rows = [
        f'<tr class="group"><th colspan="3" scope="rowgroup">{title}</th>'
        f'<td class="axis-name">{e(group["axis"])}</td></tr>'
    ]
    for claim in group["claims"]:
        size = unit(claim)
        tags = "".join(
            f' data-{name}="{e(json.dumps(values))}"'
            for name, values in _tags(group, claim).items()
        )
        rows.append(
            f'<tr class="claim" id="row-{e(claim["id"])}"{tags}>'
            f"<td>{_link(group, claim, links)}</td>"
            f'<td>{e(claim["title"])}<span class="unit">{_unit(size)}</span></td>'
            f"<td>{phrase(claim)}</td><td>{forest.row(claim)}</td></tr>"
        )
    return f"<tbody>{''.join(rows)}</tbody>"


def _unit(size: source.Unit) -> str:
    if size.name == "published":
        return f"1 = the published effect, {number(size.size, False)}"
    return f"1 = delta, {number(size.size, False)}"


def self_test(results: pathlib.Path) -> str:
    """Write the figures of the A/A test, if it was run; else nothing."""
    found = source.self_test(results)
    if found is None:
        return ""
    rows = []
    for case in found["cases"]:
        shares = case["shares"]
        what = f"claim {case['claim']}, {case['scale']}: <code>{e(case['arm'])}</code>"
        false = shares["supported"] + shares["reversed"]
        rows.append(
            [what, e(words(case["metric"])), f"{case['replicates']}", f"{case['times']:,}"]
            + [f"{100 * share:.1f} %" for share in (false, shares["excludes 0"])]
        )
    head = ("runs of", "judged by", "replicates", "pairs", "false verdicts", "0 outside")
    return (
        "<p>The protocol was tested on itself: from many runs of one arm two equal arms were "
        "drawn, tuned and judged like any two. They differ by chance alone, so each verdict "
        "“supported” or “reversed” is false; at most 5 % may be.</p>"
        + table(head, rows)
        + f"<p><code>{e(found['command'])}</code>, {e(found['date'])}.</p>"
    )


# ------------------------------------------------------------------------------------- a group


def group_sections(group: Entry, results: pathlib.Path, links: Links) -> list[Section]:
    """Write the page of a group: its claims, runs, rates, curves and notes."""
    found = {scale["name"]: source.record(results, scale) for scale in group["scales"]}
    sections = [Section("", "", _about(group, links))]
    for claim in group["claims"]:
        title = f"{claim['id']}. {claim['title']}"
        sections.append(Section(title, anchor(claim["id"]), _claim(group, claim)))
    sections.append(Section("Sizes and runs", "runs", _runs(group, found, links)))
    metrics = list(dict.fromkeys(claim["metric"] for claim in group["claims"]))
    for title, name, text, draw, what in (
        ("Learning rates", "rates", _RATES, figures.rates, metrics),
        ("Training", "training", _TRAINING, figures.training, CURVES),
    ):
        drawn = _figures(group, found, draw, what)
        if drawn:
            sections.append(Section(title, name, f"<p>{text}</p>{drawn}"))
    if group["notes"]:
        sections.append(Section("Notes", "notes", _notes(group["notes"])))
    return sections


_RATES = (
    "Every arm was trained at every rate. Marks are means over the replicates, bars standard "
    "deviations; a filled mark is the rate that most halves of the replicates pick by the metric "
    "of the group's first claim about that arm. The intervals of the effects contain this choice."
)
_TRAINING = "Means over the replicates, each arm at its filled rate above; diverged runs left out."


def _figures(group: Entry, found: Entry, draw: Any, what: Iterable[str]) -> str:
    parts = []
    for scale in group["scales"]:
        record = found[scale["name"]]
        if record is None:
            continue
        drawn = [svg for name in what if (svg := draw(group, scale, record, name))]
        if drawn:
            parts.append(f"{_heading(group, scale)}{_side_by_side(drawn)}")
    return "".join(parts)


def _side_by_side(drawn: Iterable[str]) -> str:
    return f'<div class="figures">{"".join(f"<figure>{svg}</figure>" for svg in drawn)}</div>'


def _heading(group: Entry, scale: Entry) -> str:
    return f'<h3 class="ledger">{e(scale["name"])} ({e(group["axis"])}: {scale["at"]:g})</h3>'


def _about(group: Entry, links: Links) -> str:
    fields = {
        "Topic": e(group["topic"]),
        "Source": prose(group["source"]),
        "Arms": ", ".join(f"<code>{e(arm)}</code>" for arm in group["arms"]),
        "Numbers": "" if group["trains"] else "computed by the code of the group itself",
        "Declared in": f'<a href="{e(links.file(group["config"]))}">{e(group["config"])}</a>',
    }
    return definitions(fields)


def definitions(fields: dict[str, str]) -> str:
    """Write a list of names and their HTML, without empty ones."""
    rows = "".join(f"<dt>{e(k)}</dt><dd>{v}</dd>" for k, v in fields.items() if v)
    return f'<dl class="ledger">{rows}</dl>'


def _claim(group: Entry, claim: Entry) -> str:
    size = unit(claim)
    published = "" if claim["published"] is None else f" (effect: {number(claim['published'])})"
    fields = {
        "Verdict": phrase(claim),
        "Source": prose(claim["source"]),
        "It reports": prose(claim["expect"]) + published,
        "Rule": f"<code>{e(claim['rule'])}</code>; {RULES[claim['kind']]}",
        "Metric": e(words(claim["metric"])),
        "Delta": f"{number(claim['delta'], False)}: {prose(claim['why'])}",
        "Controls": _controls(claim),
        "Methods": e(", ".join(claim["methods"])),
        "What would change our mind": prose(claim["change"]),
    }
    run = [entry for entry in claim["at"] if entry["verdict"] != "not run"]
    drawn = ""
    if run:
        drawn = _side_by_side([figures.effect(group, claim)]) + _effects(group, claim, size)
    statement = prose(claim["statement"].rstrip("."))
    return f'<p class="statement">{statement}.</p>{definitions(fields)}{drawn}'


def _controls(claim: Entry) -> str:
    if not claim["controls"]:
        return "none"
    items = []
    for i, label in enumerate(claim["controls"]):
        seen = []
        for entry in claim["at"]:
            checks = entry.get("controls", ())
            if i < len(checks):
                state = "passed" if checks[i]["passed"] else "<strong>failed</strong>"
                seen.append(f"{state} at {entry['at']:g} ({interval(checks[i])})")
        items.append(f"<li>{prose(label)}: {'; '.join(seen) or 'not run'}</li>")
    return f"<ul>{''.join(items)}</ul>"


_of = {"published": "the published", "delta": "delta"}


def _effects(group: Entry, claim: Entry, size: source.Unit) -> str:
    head = (
        "size",
        "verdict",
        "effect [95 %]",
        f"in units of {_of[size.name]}",
        "p",
        "q",
        "replicates",
    )
    rows = []
    for scale, entry in zip(group["scales"], claim["at"], strict=True):
        if entry["verdict"] == "not run":
            continue
        most = max(scale["budget"], entry["replicates"])
        ratio = None if entry["estimate"] is None else entry["estimate"] / size.size
        rows.append(
            (
                f"{entry['at']:g}",
                verdict(entry["verdict"]),
                interval(entry),
                number(ratio),
                chance(entry["p"]),
                chance(entry["q"]),
                f"{entry['replicates']} of at most {most}{_remarks(entry)}",
            )
        )
    return table(head, rows, "numbers")


def _remarks(entry: Entry) -> str:
    parts = []
    if entry["rates"]:
        parts.append(
            "rates " + ", ".join(f"{arm} {rate:g}" for arm, rate in entry["rates"].items())
        )
    if entry["at_edge"]:
        parts.append(f"at the edge of the grid: {', '.join(entry['at_edge'])}")
    lost = ", ".join(f"{arm} {n}" for arm, n in entry["diverged"].items() if n)
    if lost:
        parts.append(f"diverged: {lost}")
    return f'<span class="unit">{e("; ".join(parts))}</span>' if parts else ""


def _runs(group: Entry, found: Entry, links: Links) -> str:
    parts = []
    for scale in group["scales"]:
        cost = f"at most {scale['budget']} replicates"
        if scale["minutes"]:
            cost += (
                f", about {scale['minutes']:g} minutes each on two CPU cores (all arms and rates)"
            )
        fields = {
            "Setup": prose(scale["text"].rstrip(".") + ". " + _OF_SOURCE * scale["of_source"]),
            "Learning rates": _rates(scale["rates"]),
            "Budget": cost + (", on a GPU" if scale["device"] == "gpu" else ""),
            "Command": f"<code>{e(scale['command'])}</code>",
            "Record": _record(scale, links) if scale["record"] else "not run",
        }
        if scale["record"]:
            fields["Cost"] = (
                f"{scale['replicates']} replicates, {_time(scale['seconds'])} of training and "
                f"evaluation, on {_hardware(scale['hardware'])}"
            )
            if "measured_on" in scale:
                fields["Cost"] += f"; measured after training on {e(scale['measured_on'])}"
        parts.append(_heading(group, scale) + definitions(fields))
    return "".join(parts)


def _rates(rates: Sequence[float]) -> str:
    return f"{', '.join(f'{rate:g}' for rate in rates)}, for every arm" if rates else "not tuned"


_OF_SOURCE = "Data and network have the size of the source's."


def _record(scale: Entry, links: Links) -> str:
    commit = scale["commit"]
    older = scale.get("older_runs", 0)
    note = f"; {older} of {scale['runs']} runs do not say that they began later" if older else ""
    return (
        f'<a href="{e(links.file(scale["record"]))}">{e(scale["record"])}</a>, {e(scale["date"])}; '
        f'registered by commit <a href="{e(links.commit(commit))}">{e(commit[:10])}</a>{note}'
    )


def _time(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 6000 else f"{seconds / 3600:.1f} hours"


def _hardware(machine: Entry) -> str:
    devices = machine["devices"]
    text = f"{devices} × {machine['device']}" if devices > 1 else str(machine["device"])
    return e(f"{text}, {machine['cpus']} CPU cores")


def _notes(text: str) -> str:
    """Write a docstring's paragraphs; those that are indented keep their lines."""
    parts = []
    for block in re.split(r"\n\s*\n", text.strip("\n")):
        if block.startswith(" "):
            parts.append(f"<pre>{e(block)}</pre>")
        else:
            parts.append(f"<p>{prose(' '.join(block.split()))}</p>")
    return "".join(parts)


# ------------------------------------------------------------------------------------ disputes

SIGNS = {"+": ("yes", "v-supported"), "−": ("no", "v-reversed"), "0": ("no difference", "")}


def dispute_sections(ledger: Entry, disputes: Sequence[Any], links: Links) -> list[Section]:
    """Write the map of who says what, and a section for each question with what was found."""
    claims = {
        claim["id"]: (group, claim) for group in ledger["groups"] for claim in group["claims"]
    }
    sections = [Section("", "", _map(disputes, claims, links))]
    for dispute in disputes:
        rows = [
            (e(s.source), _sign(s.stance), prose(f"{s.says} ({s.where})")) for s in dispute.stances
        ]
        text = table(("source", "answer", "what it says"), rows)
        text += f"<p>{prose(dispute.why)}</p>" if dispute.why else ""
        answers = [_answer(claims[name], links) for name in dispute.claims if name in claims]
        if answers:
            found = table(("claim", "statement", "found here"), answers)
        else:
            names = ", ".join(dispute.claims)
            found = f"<p>Claims {e(names)} ask this; the ledger does not hold them yet.</p>"
        sections.append(Section(dispute.question, dispute.name, text + found))
    return sections


def _sign(stance: str) -> str:
    says, kind = SIGNS[stance]
    return f'<span class="stance {kind}"><span class="sign">{stance}</span> {says}</span>'


def _map(disputes: Sequence[Any], claims: Mapping[str, Any], links: Links) -> str:
    rows = []
    for dispute in disputes:
        cells = [
            ", ".join(dict.fromkeys(e(s.source) for s in dispute.stances if s.stance == stance))
            for stance in SIGNS
        ]
        found = _by_verdict([claims[name] for name in dispute.claims if name in claims], links)
        rows.append([f'<a href="#{dispute.name}">{e(dispute.question)}</a>', *cells, found])
    answers = [says for says, _ in SIGNS.values()]
    return table(("question", *answers, "here, at the largest size"), rows, "map")


def _by_verdict(found: Sequence[tuple[Entry, Entry]], links: Links) -> str:
    """Write claims by their verdict at the largest size that was run."""
    lines: dict[str, list[str]] = {}
    for group, claim in found:
        run = [entry["verdict"] for entry in claim["at"] if entry["verdict"] != "not run"]
        lines.setdefault(run[-1] if run else "not run", []).append(_link(group, claim, links))
    return "".join(f"<div>{verdict(v)}: {', '.join(names)}</div>" for v, names in lines.items())


def _link(group: Entry, claim: Entry, links: Links) -> str:
    page = f"{links.page(source.page(group))}#{anchor(claim['id'])}"
    return f'<a href="{e(page)}">{e(claim["id"])}</a>'


def _answer(found: tuple[Entry, Entry], links: Links) -> tuple[str, str, str]:
    group, claim = found
    return _link(group, claim, links), e(claim["title"]), phrase(claim)
