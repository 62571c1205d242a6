"""Draws the figures of a group's page as SVG for light and dark pages."""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, NullFormatter

from normjax.analysis import plots
from normjax_ledger.source import Entry, best_rates, unit, words

INK = "#767676"  # of normjax.analysis.plots; replaced by the colour of the page's text
MARKERS = ("o", "s", "^", "D", "v", "P")
STYLES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)), (0, (3, 1)))
SIZE = (4.6, 3.5)  # inches; two stand beside each other on a wide page
SMALL = (2.9, 2.3)  # of an arm's own picture, where there are more arms than colours
LIMIT = len(plots.COLOURS)


def to_svg(figure: Any, name: str, says: str) -> str:
    """Return a figure as inline SVG: text is text, ids are its own, ink is the page's colour.

    Args:
        figure: of matplotlib; it is closed.
        name: unique on the page, of letters, digits and hyphens.
        says: what it shows, for those who do not see it.
    """
    for text in figure.findobj(Text):
        text.set_parse_math(False)  # a $ in a name is a $
    out = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(out, format="svg", transparent=True, metadata=_NO_METADATA)
    plt.close(figure)
    text = out.getvalue()
    text = text[text.index("<svg") :]
    # Matplotlib's own style sheet would style the whole page.
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text, flags=re.S)
    text = re.sub(r'\b(id="|xlink:href="#|url\(#)', rf"\g<1>{name}-", text)
    text = re.sub(r"font: ([^;\"]*?px) [^;\"]*", r"font-size: \1", text)
    text = re.sub(r"font-family: [^;\"]*;?", "", text)
    text = text.replace(INK, "currentColor")
    for i, colour in enumerate(plots.COLOURS):  # dark pages have lighter ones: ledger.css
        text = text.replace(colour.lower(), f"var(--plot-{i})")
    width = re.search(r'width="([\d.]+)pt"', text)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    label = html.escape(says, quote=True)
    head = (
        f'class="figure" style="max-width: {width[1] if width else 330}pt" '
        f'role="img" aria-label="{label}"'
    )
    text = re.sub(r'width="[\d.]+pt"', lambda _: head, text, count=1)
    return re.sub(r"\s*\n\s*", "\n", text).strip()


_NO_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))


def _plain(ax: Any, axis: str, at: Sequence[float]) -> None:
    """Put ticks at some values of an axis and write them out."""
    own = getattr(ax, f"{axis}axis")
    own.set_ticks(list(at), [f"{v:g}" for v in at])
    own.set_minor_formatter(NullFormatter())
    own.set_tick_params(which="minor", length=0)


def _spread(values: Sequence[float]) -> bool:
    """Whether values want a logarithmic axis."""
    return min(values) > 0 and max(values) / min(values) >= 4


def effect(group: Entry, claim: Entry) -> str:
    """Draw a claim's effect against the scale, with delta and the published effect."""
    ax = plots.new_axes(figsize=SIZE)
    at = [scale["at"] for scale in group["scales"]]
    if _spread(at):
        ax.set_xscale("log")
        margin = (max(at) / min(at)) ** 0.12
        ax.set_xlim(min(at) / margin, max(at) * margin)
    else:
        margin = 0.12 * (max(at) - min(at)) or 1.0
        ax.set_xlim(min(at) - margin, max(at) + margin)
    _plain(ax, "x", at)
    ax.axhspan(-claim["delta"], claim["delta"], color=INK, alpha=0.18, lw=0, label="± delta")
    ax.axhline(0, color=INK, lw=1)
    published = [entry["published"] for entry in claim["at"]]
    look = {"color": plots.COLOURS[1], "lw": 1.8, "linestyle": "--", "label": "as published"}
    if len(set(published)) > 1:  # of each size its own, or none
        ax.plot(at, [math.nan if p is None else p for p in published], marker="s", **look)
    elif claim["published"] is not None:
        ax.axhline(claim["published"], **look)
    run = [e for e in claim["at"] if e["estimate"] is not None]
    if run:
        middle = [e["estimate"] for e in run]
        ends = [[e[k] if e[k] is not None else e["estimate"] for e in run] for k in ("low", "high")]
        bars = [np.subtract(middle, ends[0]), np.subtract(ends[1], middle)]
        ax.errorbar(
            [e["at"] for e in run],
            middle,
            yerr=np.abs(bars),
            color=plots.COLOURS[0],
            marker="o",
            markersize=7,
            lw=1.6,
            elinewidth=2.2,
            capsize=5,
            label="here, 95 % interval",
        )
    for i, entry in enumerate(claim["at"]):
        if entry["estimate"] is None:
            box = {"transform": ax.get_xaxis_transform(), "ha": "center", "fontsize": 10}
            height = 0.02 + 0.08 * (i % 2)  # sizes may be closer than the words are wide
            ax.text(entry["at"], height, entry["verdict"], color=INK, **box)
    ax.margins(y=0.15)
    ax.set_xlabel(group["axis"])
    _name_y(ax, f"effect: {words(claim['metric'])}")
    _legend(ax)
    size = unit(claim)
    says = f"Effect of claim {claim['id']} against {group['axis']}; {size.name} {size.size:g}"
    return to_svg(ax.figure, f"effect-{claim['id']}", says)


def _name_y(ax: Any, text: str, limit: int = 44) -> None:
    """Write what the vertical axis is above it, where it is easier to read."""
    cut = text.rfind(" ", 0, limit)
    if len(text) > limit and cut > 0:
        text = f"{text[:cut]}\n{text[cut + 1 :]}"
    ax.set_title(text, loc="left", color=INK, fontsize=12)


def _legend(ax: Any) -> None:
    """Put the legend inside the figure, above the axes."""
    handles, labels = ax.get_legend_handles_labels()
    if not handles:
        return
    columns = 3 if max(map(len, labels)) < 11 else 2 if max(map(len, labels)) < 22 else 1
    ax.figure.legend(
        handles,
        labels,
        loc="outside upper left",
        ncols=columns,
        frameon=False,
        labelcolor=INK,
        fontsize=11,
        columnspacing=1.2,
        handlelength=2.2,
        borderpad=0.1,
    )


def rates(group: Entry, scale: Entry, found: Entry, metric: str) -> str | None:
    """Draw a metric against the learning rate, mean and standard deviation over the replicates.

    None where one rate alone was tried, or no arm has the metric. Filled marks are the rates at
    which the arms are compared.
    """
    arms = {
        arm: (numbers["rates"], numbers["metrics"][metric])
        for arm, numbers in found["arms"].items()
        if metric in numbers["metrics"] and len(numbers["rates"]) > 1
    }
    if not arms:
        return None
    chosen = best_rates(group, scale, found)

    def draw(ax: Any, arm: str, look: dict[str, Any], shift: float) -> None:
        tried, rows = arms[arm]
        finite = [[v for v in row if v is not None] for row in rows]
        mean = np.array(_means(rows))
        error = np.array([np.std(row, ddof=1) if len(row) > 1 else 0.0 for row in finite])
        x = np.array(tried) * 1.04**shift
        open_marks = {"markerfacecolor": "none", "markersize": 6, "elinewidth": 1.2, "capsize": 3}
        ax.errorbar(x, mean, yerr=error, **open_marks, **look)
        if arm in chosen and "marker" in look:
            i = chosen[arm]
            ax.plot(x[i], mean[i], look["marker"], color=look["color"], markersize=8, zorder=4)

    def dress(ax: Any) -> None:
        ax.set_xscale("log")
        _plain(ax, "x", sorted({rate for tried, _ in arms.values() for rate in tried}))

    says = f"{words(metric)} by learning rate at {scale['name']}, one line an arm"
    name = f"rates-{scale['name']}-{re.sub('[^a-z0-9]+', '-', metric.lower())}"

    def between(ax: Any) -> None:
        _range(ax, [(tried, _means(rows)) for tried, rows in arms.values()])

    return _each_arm(list(arms), draw, dress, between, "learning rate", words(metric), name, says)


def _means(rows: Iterable[Sequence[float | None]]) -> list[float]:
    finite = [[v for v in row if v is not None] for row in rows]
    return [float(np.mean(row)) if row else math.nan for row in finite]


def training(group: Entry, scale: Entry, found: Entry, curve: str) -> str | None:
    """Draw a curve such as `valid.loss` of each arm at its rate; None where no arm has it."""
    split = curve.split(".")[0]
    chosen = best_rates(group, scale, found)
    lines = {}
    for arm, numbers in found["arms"].items():
        curves = numbers["curves"]
        if arm in chosen and len(curves.get(curve, ())) > chosen[arm]:
            lines[arm] = curves[f"{split}.step"][chosen[arm]], curves[curve][chosen[arm]]
    if not lines:
        return None
    values = [v for _, ys in lines.values() for v in ys]
    logarithmic = min(values) > 0 and max(values) / min(values) > 30

    def draw(ax: Any, arm: str, look: dict[str, Any], shift: float) -> None:
        x, y = lines[arm]
        ax.plot(x, y, lw=2, markevery=max(1, len(x) // 6), markersize=6, **look)

    def dress(ax: Any) -> None:
        if logarithmic:
            ax.set_yscale("log")
            ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
            ax.yaxis.set_minor_formatter(NullFormatter())

    says = f"{words(curve)} by update at {scale['name']}, one line an arm"
    name = f"training-{scale['name']}-{curve.replace('.', '-')}"

    def between(ax: Any) -> None:
        _range(ax, lines.values())

    return _each_arm(list(lines), draw, dress, between, "update", words(curve), name, says)


def _each_arm(
    arms: list[str], draw: Any, dress: Any, between: Any, x: str, y: str, name: str, says: str
) -> str:
    """Draw all arms in one picture; more than there are colours each in one of its own.

    Args:
        arms: their names.
        draw: draws an arm on axes, in a look, shifted by some marks.
        dress: prepares axes.
        between: fills the range of all arms, behind an arm that is alone.
        x: name of the horizontal axis.
        y: name of the vertical axis.
        name: of the picture, unique on the page.
        says: what it shows.
    """
    if len(arms) <= LIMIT:
        ax = plots.new_axes(figsize=SIZE)
        dress(ax)
        looks = zip(arms, plots.COLOURS, MARKERS, STYLES, strict=False)
        for i, (arm, colour, marker, style) in enumerate(looks):
            look = {"color": colour, "marker": marker, "linestyle": style, "label": _label(arm)}
            draw(ax, arm, look, i - (len(arms) - 1) / 2)
        ax.set_xlabel(x)
        _name_y(ax, y)
        _legend(ax)
        return to_svg(ax.figure, name, says)
    everything = plots.new_axes(figsize=SMALL)
    dress(everything)
    for arm in arms:
        draw(everything, arm, {"color": INK}, 0.0)
    limits = everything.get_xlim(), everything.get_ylim()
    plt.close(everything.figure)
    parts = []
    for i, arm in enumerate(arms):
        ax = plots.new_axes(figsize=SMALL)
        dress(ax)
        between(ax)
        look = {"color": plots.COLOURS[0], "marker": "o", "linestyle": "-", "zorder": 3}
        draw(ax, arm, look, 0.0)
        ax.set(xlim=limits[0], ylim=limits[1])
        ax.set_title(arm, color=INK, fontsize=12, loc="left")
        ax.set_xlabel(x, fontsize=11)
        ax.tick_params(labelsize=10)
        parts.append(to_svg(ax.figure, f"{name}-{i}", f"{arm}: {says}"))
    grey = "grey: from the lowest to the highest of all arms"
    return f'<figcaption>{y} ({grey})</figcaption><div class="multiples">{"".join(parts)}</div>'


def _range(ax: Any, lines: Iterable[tuple[Sequence[float], Sequence[float]]]) -> None:
    """Fill the range of all lines, where they have the same places."""
    places: dict[float, list[float]] = {}
    for xs, ys in lines:
        for at, value in zip(xs, ys, strict=True):
            places.setdefault(at, []).append(value)
    at = sorted(places)
    low, high = ([limit(places[p]) for p in at] for limit in (np.nanmin, np.nanmax))
    ax.fill_between(at, low, high, color=INK, alpha=0.18, lw=0)


def _label(arm: str) -> str:
    # A legend leaves out names that start with an underscore.
    return " " + arm if arm.startswith("_") else arm
