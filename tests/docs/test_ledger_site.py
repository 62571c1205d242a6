"""The ledger's pages as a site: Sphinx builds them without a warning, and Chromium shows them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import pytest

from tests._support import ledger as made_up
from tests._support import site

pytestmark = pytest.mark.slow

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--allow-file-access-from-files", "--virtual-time-budget=20000"),
    "--host-resolver-rules=MAP * ~NOTFOUND",  # no network
)
PAGES = ("results", "ledger/01_hard", "ledger/02_many", "ledger/24_not_run", "ledger/disputes")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    pytest.importorskip("sphinx", reason="sphinx is absent: pip install --group docs")
    folder = tmp_path_factory.mktemp("site")
    return site.build(folder, made_up.build(folder))


def test_the_pages_are_built_and_link_to_each_other(built):
    for name in (*PAGES, "ledger/first_edition"):
        text = (built / f"{name}.html").read_text()
        body = text[text.index("<article") :]
        for link in re.findall(r'href="([^"]*)"', body):
            if not link.startswith(("https:", "#")):
                path, _, anchor = link.partition("#")
                target = (built / f"{name}.html").parent / path
                assert target.exists(), link
                assert not anchor or f'id="{anchor}"' in target.read_text(), link
    assert "ledger.js" in (built / "results.html").read_text()
    assert "ledger.js" not in (built / "ledger/01_hard.html").read_text()
    # Sphinx escapes a title and has a claim in the page's table of contents.
    text = (built / "ledger/01_hard.html").read_text()
    assert "1. Hard &lt; names &amp; $x$" in text
    assert re.search(r'href="#claim-1b"[^>]*>\s*1b\. The loss falls faster', text)


def test_the_search_finds_what_the_ledger_says(built):
    index = (built / "searchindex.js").read_text()
    assert "falls" in index or "fall" in index
    assert "ledger/01_hard" in index


def dump(address, tmp_path):
    """Return a page's elements after its scripts have run."""
    if CHROMIUM is None:
        pytest.skip("chromium is absent: apt-get install chromium")
    profile = tmp_path / "profile"
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "--dump-dom", address]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def shown(text):
    return re.findall(r'<tr class="claim" id="row-([^"]+)"(?![^>]*\bhidden)', text)


def test_a_filter_in_the_address_is_applied(built, tmp_path):
    page = (built / "results.html").as_uri()
    everything = dump(page, tmp_path)
    assert len(shown(everything)) == 11 and ">11 of 11 claims<" in everything
    found = shown(dump(f"{page}?verdict=reversed&topic=gamma", tmp_path))
    assert found == ["2d"]
    assert shown(dump(f"{page}?method=%CE%B2+%26+%3Cnorm%3E", tmp_path)) == ["1a"]


# Opens a page in a frame, as wide as a phone or a screen, in both themes, and writes what it sees.
HARNESS = """<!doctype html><meta charset="utf-8"><pre id="out"></pre>
<iframe id="f" src="SRC" style="width: WIDTHpx; height: 900px; border: 0"></iframe>
<script>
const wait = (ms) => new Promise((done) => setTimeout(done, ms));
const luminance = (c) => {
  const part = (v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  return 0.2126 * part(c[0]) + 0.7152 * part(c[1]) + 0.0722 * part(c[2]);
};
const numbers = (text) => text.match(/[\\d.]+/g).map(Number);
const contrast = (a, b) => {
  const [x, y] = [luminance(a), luminance(b)].sort((p, q) => q - p);
  return (x + 0.05) / (y + 0.05);
};
const colour = (element, name) => numbers(f.contentWindow.getComputedStyle(element)[name]);
f.addEventListener("load", async () => {
  const seen = {};
  const root = f.contentDocument.documentElement, body = f.contentDocument.body;
  for (const theme of ["light", "dark"]) {
    root.dataset.theme = theme;
    await wait(600);
    const ground = colour(body, "backgroundColor");
    const least = (query, name) => Math.min(99, ...[...body.querySelectorAll(query)]
      .map((element) => contrast(colour(element, name), ground)));
    seen[theme] = {
      ground,
      text: least("article p, article td, article dd, article dt, article .unit", "color"),
      drawn: least("svg.forest text, svg.figure text", "fill"),
      marks: least("svg .mark, svg .bar", "stroke"),
      lines: least("svg.figure [style*='--plot-']", "stroke"),
    };
  }
  seen.width = root.scrollWidth;
  // Pictures and tables are no wider than the page either, whose overflow may be hidden.
  const wide = "article :is(table, dl).ledger, article :is(svg.figure, svg.forest)";
  seen.right = Math.max(0, ...[...body.querySelectorAll(wide)]
    .map((element) => element.getBoundingClientRect().right));
  const loaders = "script[src], link[rel=stylesheet], link[rel=preload], img[src], iframe[src]";
  seen.loaded = [...f.contentDocument.querySelectorAll(loaders)].map((e) => e.src || e.href);
  const form = f.contentDocument.getElementById("ledger-filters");
  if (form) {
    form.elements.source.value = "Luo 2017";
    form.elements.source.dispatchEvent(new Event("change", { bubbles: true }));
    seen.filtered = [...body.querySelectorAll("tr.claim")].filter((row) => row.offsetParent)
      .map((row) => row.id);
    form.reset();
    await wait(50);
    seen.reset = [...body.querySelectorAll("tr.claim")].filter((row) => row.offsetParent).length;
  }
  out.textContent = JSON.stringify(seen);
});
</script>"""


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("name", PAGES)
def test_a_page_fits_and_can_be_read(built, tmp_path, name, width):
    source = HARNESS.replace("SRC", f"{name}.html").replace("WIDTH", str(width))
    harness = built / f"harness_{name.replace('/', '_')}_{width}.html"
    harness.write_text(source)
    text = dump(harness.as_uri(), tmp_path)
    seen = json.loads(re.search(r'<pre id="out">([^<]+)</pre>', text)[1].replace("&amp;", "&"))
    assert seen["width"] <= width and 0 < seen["right"] <= width
    for theme in ("light", "dark"):
        looks = seen[theme]
        # WCAG's limits: 4.5 for text, 3 for marks; Okabe and Ito's faintest colours have 2.1.
        assert looks["text"] >= 4.5 and looks["drawn"] >= 4.5, (theme, looks)
        assert looks["marks"] >= 3 and looks["lines"] >= 2, (theme, looks)
    assert sum(seen["light"]["ground"][:3]) > 700 > 150 > sum(seen["dark"]["ground"][:3])
    assert seen["loaded"] and all(url.startswith("file:") for url in seen["loaded"])
    if name == "results":
        assert seen["filtered"] == ["row-1a", "row-1b", "row-1c"] and seen["reset"] == 11
