"""The ledger's pages from made-up numbers: all claims, hard names, pictures, no record at all."""

from __future__ import annotations

import html.parser
import json
import re
import sys
import types

import pytest

from experiments.ledger import disputes, registry
from tests._support import ledger as made_up
from tests._support import site

VOID = {"br", "hr", "img", "input", "meta", "link"}


@pytest.fixture(scope="module")
def ext():
    """The site's own extension, whose pages need no Sphinx."""
    pytest.importorskip("matplotlib", reason="matplotlib is absent: pip install --group docs")
    sys.path.insert(0, str(site.DOCS / "_ext"))
    from normjax_ledger import figures, forest, pages, source

    yield types.SimpleNamespace(figures=figures, forest=forest, pages=pages, source=source)
    sys.path.remove(str(site.DOCS / "_ext"))
    for name in [n for n in sys.modules if n.split(".")[0] == "normjax_ledger"]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return made_up.build(tmp_path_factory.mktemp("made_up"))


@pytest.fixture(scope="module")
def ledger(results):
    return json.loads((results / "ledger.json").read_text())


@pytest.fixture(scope="module")
def links(ext):
    return ext.pages.Links(
        page=lambda name: f"{name}.html",
        file=lambda path: f"https://site/{path}",
        commit=lambda commit: f"https://site/commit/{commit}",
    )


@pytest.fixture(scope="module")
def page(ext, results, ledger, links):
    """The first group's page as HTML."""
    return joined(ext.pages.group_sections(ledger["groups"][0], results, links))


def joined(sections):
    return "".join(f'<section id="{s.id}">{s.html}</section>' for s in sections)


class Reader(html.parser.HTMLParser):
    """Checks that tags are balanced, and collects ids, text and attributes."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.texts, self.tags = [], [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


def check(text):
    """Check what every page needs, and return what was read."""
    read = Reader(text)
    assert len(read.ids) == len(set(read.ids))
    for target in re.findall(r'(?:xlink:href="#|url\(#)([^")]+)', text):
        assert target in read.ids
    for tag, attributes in read.tags:
        assert tag not in ("script", "link", "style", "iframe", "img", "b")
        for name, value in attributes.items():
            outside = re.search(r"(?:https?:)?//", value or "")
            assert not outside or name.startswith("xmlns") or (tag, name) == ("a", "href")
            assert not name.startswith("on")
    return read


def test_the_made_up_ledger_has_every_verdict(ledger):
    found = {e["verdict"] for g in ledger["groups"] for c in g["claims"] for e in c["at"]}
    assert found == set(ledger["verdicts"])


def test_the_overview_has_every_claim(ext, ledger, links):
    text = ext.pages.overview(ledger, links)
    read = check(text)
    for group in ledger["groups"]:
        assert group["title"] in read.text
        for claim in group["claims"]:
            assert f"row-{claim['id']}" in read.ids
            assert claim["title"] in read.text
            assert f'href="ledger/{group["slug"]}.html#claim-{claim["id"]}"' in text
    rows = [dict(a) for t, a in read.tags if t == "tr" and a.get("class") == "claim"]
    tags = {name: json.loads(rows[0][f"data-{name}"]) for name in ext.pages.FILTERS}
    assert tags == {
        "verdict": ["supported", "not testable here", "not run"],
        "topic": ["letters | & <more>"],
        "method": ["layer norm", "β & <norm>"],
        "source": ["Ba 2016", "Luo 2017"],
    }
    # Whole without JavaScript: the filters are hidden, the rows are not.
    assert "hidden" in next(a for t, a in read.tags if t == "form")
    assert not any("hidden" in row for row in rows)
    for name in ("verdict", "topic", "method", "source"):
        assert any(t == "select" and a["name"] == name for t, a in read.tags)


def test_a_groups_page_says_all_that_the_ledger_knows(page, ledger):
    read = check(page)
    group = ledger["groups"][0]
    wanted = [group["config"], *group["arms"], "A note with <b>tags</b> and", "0.001, 0.003, 0.01"]
    for scale in group["scales"]:
        wanted += [scale["command"], *([scale["record"]] if scale["record"] else [])]
    for claim in group["claims"]:
        assert f"claim-{claim['id']}" in read.ids
        wanted += [claim["rule"], claim["phrase"].split(";")[0]]
        for name in ("statement", "why", "expect", "change"):
            wanted += claim[name].replace("`", "\0").split("\0")  # code has an element of its own
    for text in wanted:
        assert " ".join(text.split()) in read.text, text
    assert "depth <pays>: passed at 49" in read.text
    assert "failed at 196" in read.text
    assert "62 minutes of training and evaluation, on cpu, 2 CPU cores" in read.text
    assert "registered by commit 0123456789" in read.text
    assert 'href="https://site/results/claims/01/short.json"' in page
    assert "alert(1)" in read.text  # said, not run: check() found no script


def test_its_pictures_say_what_they_show(page):
    read = Reader(page)
    pictures = [a for t, a in read.tags if t == "svg" and a.get("class") == "figure"]
    # A claim's effect; at two sizes, two metrics by rate and two curves.
    assert len(pictures) == 3 + 2 * 2 + 2 * 2
    assert all(a["role"] == "img" and a["aria-label"] for a in pictures)
    for words in ("learning rate", "update", "length in steps", "± delta", "as published"):
        assert words in read.text
    assert "_bn & $c$" in read.text  # in a legend, which has names with _ and $ too
    assert "currentColor" in page and "#767676" not in page
    assert re.search(r"not\s+run", read.text)


@pytest.mark.parametrize(("arms", "colours", "axes"), [(3, 3, 1), (8, 1, 8)])
def test_no_colour_stands_for_two_arms(ext, ledger, results, arms, colours, axes):
    group = ledger["groups"][0 if arms == 3 else 1]
    scale = group["scales"][0]
    record = ext.source.record(results, scale)
    text = ext.figures.training(group, scale, record, "valid.loss")
    read = check(text)
    pictures = re.findall(r"<svg.*?</svg>", text, re.S)
    assert len(pictures) == axes
    for picture in pictures:
        assert len(set(re.findall(r"var\(--plot-\d\)", picture))) == colours
    assert all(arm in read.text for arm in group["arms"])


def test_one_rate_alone_has_no_curve_over_rates(ext, ledger, results):
    group = ledger["groups"][0]
    record = ext.source.record(results, group["scales"][0])
    for numbers in record["arms"].values():
        numbers["rates"] = numbers["rates"][:1]
    assert ext.figures.rates(group, group["scales"][0], record, "area.train") is None


def test_an_arm_is_drawn_at_the_rate_that_was_picked(ext, ledger, results):
    group = ledger["groups"][0]
    scale = group["scales"][0]
    record = ext.source.record(results, scale)
    assert set(ext.source.best_rates(group, scale, record).values()) == {1}
    # An arm of no claim: the rate with the lowest loss at the end, here the first.
    silent = {**group, "claims": []}
    assert set(ext.source.best_rates(silent, scale, record).values()) == {0}


def test_without_a_record_every_claim_is_there(ext, links, tmp_path):
    results = made_up.build(tmp_path, run=False)
    ledger = ext.source.load(results)
    read = check(ext.pages.overview(ledger, links))
    assert read.text.count("not run") >= sum(len(g["claims"]) for g in ledger["groups"])
    for group in ledger["groups"]:
        text = joined(ext.pages.group_sections(group, results, links))
        assert "not run" in check(text).text and '<svg class="figure' not in text
        assert all(claim["expect"].split("`")[0] in Reader(text).text for claim in group["claims"])
    check(joined(ext.pages.dispute_sections(ledger, disputes.DISPUTES, links)))


def test_without_a_ledger_the_page_says_how_to_make_one(ext, links, tmp_path):
    ledger = ext.source.load(tmp_path)
    assert "experiments.report --results" in check(ext.pages.overview(ledger, links)).text
    assert ext.pages.self_test(tmp_path) == ""
    text = joined(ext.pages.dispute_sections(ledger, disputes.DISPUTES, links))
    assert "does not hold them yet" in check(text).text


def test_the_self_test_is_shown_where_it_was_run(ext, tmp_path):
    shares = {"supported": 0.02, "reversed": 0.011, "negligible": 0.6, "inconclusive": 0.369}
    case = {"claim": 1, "scale": "mnist", "arm": "<lstm>", "metric": "train.loss"}
    case |= {"replicates": 16, "times": 1000, "shares": {**shares, "excludes 0": 0.05}}
    found = {"cases": [case], "command": "pytest", "date": "2026-01-02"}
    (tmp_path / "aa.json").write_text(json.dumps(found))
    read = check(ext.pages.self_test(tmp_path))
    assert "claim 1, mnist: <lstm> training loss 16 1,000 3.1 % 5.0 %" in read.text


def test_effects_are_in_units_of_the_published_one_or_of_delta(ext):
    claim = {"kind": "more", "published": 0.04, "delta": 0.02}
    assert ext.source.unit(claim) == (0.04, "published")
    for change in ({"published": None}, {"published": 0.0}, {"kind": "same"}):
        assert ext.source.unit({**claim, **change}) == (0.02, "delta")


@pytest.mark.parametrize(
    ("low", "estimate", "high", "marks", "tips"),
    [(0.0, 1.0, 2.0, 1, 0), (2.0, 2.9, 3.8, 1, 1), (5.0, 6.0, 7.0, 0, 1), (-9.0, 0.0, 9.0, 1, 2)],
)
def test_what_leaves_the_axis_has_an_arrow(ext, low, estimate, high, marks, tips):
    entry = {"at": 1, "verdict": "supported", "estimate": estimate, "low": low, "high": high}
    text = ext.forest.row({"kind": "more", "published": 1.0, "delta": 0.5, "at": [entry]})
    read = check(text)
    assert text.count('class="mark"') == marks and text.count('class="tip"') == tips
    assert f"{ext.source.interval(entry)}" in read.text
    if marks:
        assert f"translate({ext.forest.place(estimate):.1f} 9)" in text


@pytest.mark.parametrize(
    ("text", "short"),
    [
        ("Cooijmans et al., ICLR 2017, arXiv:1603.09025, table 1", ["Cooijmans 2017"]),
        ("Salimans, Kingma 2016; Luo et al. 2017", ["Salimans 2016", "Luo 2017"]),
        ("Ioffe, Szegedy 2015, section 2; Santurkar et al. 2018", ["Ioffe 2015", "Santurkar 2018"]),
        ("Ba, Kiros, Hinton, 2016, and Cooijmans et al., 2017", ["Ba 2016", "Cooijmans 2017"]),
        ("Wu, He 2018, arXiv:1803.08494", ["Wu 2018"]),
        ("senliuy, keras_layerNorm_mlp_lstm", ["senliuy"]),
    ],
)
def test_a_source_is_shortened_to_author_and_year(ext, text, short):
    assert ext.source.papers(text) == short


# ------------------------------------------------------------------------------------ disputes


def test_every_question_has_more_than_one_answer():
    for dispute in disputes.DISPUTES:
        assert len({stance.stance for stance in dispute.stances}) > 1, dispute.question
        assert dispute.question.endswith("?")
        assert all(re.search(r"arXiv:\d{4}\.\d{5}", s.where) for s in dispute.stances)
    names = [dispute.name for dispute in disputes.DISPUTES]
    assert len(names) == len(set(names))


def test_the_claims_that_ask_a_question_exist():
    for dispute in disputes.DISPUTES:
        for name in dispute.claims:
            group = registry.module(int(re.match(r"\d+", name)[0])).GROUP
            assert name in [group.id(claim) for claim in group.claims], dispute.question


def test_the_map_shows_who_says_what_and_what_was_found(ext, ledger, links):
    question = disputes.Dispute(
        "q",
        "Is <this> so?",
        (
            disputes.Stance("A 2016", "+", "it is", "page 1"),
            disputes.Stance("B & C", "−", "it is <not>", "page 2"),
        ),
        ("1a", "24", "99z"),
        "Because of `x`.",
    )
    text = joined(ext.pages.dispute_sections(ledger, (question,), links))
    read = check(text)
    for words in ("Is <this> so?", "+ yes it is (page 1)", "− no it is <not> (page 2)"):
        assert words in read.text
    assert "1a Layer norm < $1$ is better & <faster> supported at 49" in read.text
    assert "not run : 24" in read.text and "99z" not in read.text
    assert 'href="ledger/01_hard.html#claim-1a"' in text
