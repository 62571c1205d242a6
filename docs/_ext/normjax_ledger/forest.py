"""Draws effects on a common axis, a small picture for each claim, so that a filter can hide it."""

from __future__ import annotations

import html

from normjax_ledger.source import Entry, interval, number, unit

LOW, HIGH = -2.0, 3.0  # ends of the axis, in units of the claim
LEFT, WIDTH, LANE = 46, 300, 18  # pixels: room for the size's label, picture, height of a size
TICKS = (-2, -1, 0, 1, 2, 3)


def place(value: float) -> float:
    """Return the pixel of a value on the axis."""
    return LEFT + (WIDTH - LEFT - 8) * (value - LOW) / (HIGH - LOW)


def axis(below: bool = False) -> str:
    """Draw the axis with its name, above or below the rows."""
    tick, text = (4, 17) if below else (30, 24)
    marks = "".join(
        f'<text x="{place(t):.1f}" y="{text}" text-anchor="middle">{number(t, False)}</text>'
        f'<path d="M{place(t):.1f} {tick}v-4"/>'
        for t in TICKS
    )
    name = 30 if below else 10
    middle = (place(LOW) + place(HIGH)) / 2
    return (
        f'<svg class="forest axis" viewBox="0 0 {WIDTH} 34" aria-hidden="true">{marks}'
        f'<text x="{middle:.0f}" y="{name}" text-anchor="middle">effect, in units of the claim'
        "</text></svg>"
    )


def row(claim: Entry, labels: bool = True) -> str:
    """Draw a claim's effects, one below the other, small size to large; what was not run is empty.

    Args:
        claim: of the ledger.
        labels: whether to write the size to the left of each effect.
    """
    size = unit(claim).size
    height = LANE * len(claim["at"])
    lines = [
        f'<path class="zero" d="M{place(0):.1f} 0V{height}"/>'
        f'<path class="one" d="M{place(1):.1f} 0V{height}"/>'
    ]
    said = []
    for i, entry in enumerate(claim["at"]):
        y = LANE * (i + 0.5)
        if labels:
            lines.append(
                f'<text x="{LEFT - 12}" y="{y + 4:g}" text-anchor="end">{entry["at"]:g}</text>'
            )
        said.append(f"{entry['at']:g}: {entry['verdict']} {interval(entry)}")
        if entry.get("estimate") is not None:
            values = (entry[k] / size if entry[k] is not None else None for k in _ENDS)
            lines.append(_effect(entry["verdict"], y, *values))
    label = html.escape("; ".join(said), quote=True)
    return (
        f'<svg class="forest" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{label}">'
        f"<title>{label}</title>{''.join(lines)}</svg>"
    )


_ENDS = ("estimate", "low", "high")


def kind(verdict: str) -> str:
    """Return the CSS class of a verdict."""
    return "v-" + verdict.replace(" ", "-")


def _effect(verdict: str, y: float, estimate: float, low: float | None, high: float | None) -> str:
    """Draw an interval, with an arrow where it leaves the axis, and a mark at the estimate."""
    low = LOW if low is None else low
    high = HIGH if high is None else high
    parts = []
    if low < HIGH and high > LOW:
        ends = place(max(low, LOW)), place(min(high, HIGH))
        parts.append(f'<path class="bar" d="M{ends[0]:.1f} {y:g}H{ends[1]:.1f}"/>')
    for beyond, at, way in ((low < LOW, place(LOW), -1), (high > HIGH, place(HIGH), 1)):
        if beyond:
            tip = at + 7 * way
            parts.append(
                f'<path class="tip" d="M{at:.1f} {y - 4:g}L{tip:.1f} {y:g}L{at:.1f} {y + 4:g}Z"/>'
            )
    if LOW <= estimate <= HIGH:
        parts.append(mark(verdict, place(estimate), y))
    return f'<g class="{kind(verdict)}">{"".join(parts)}</g>'


def mark(verdict: str, x: float, y: float) -> str:
    """Draw the mark of a verdict: its shape says as much as its colour."""
    shapes = {
        "supported": "M-5 0a5 5 0 1 0 10 0a5 5 0 1 0 -10 0Z",
        "reversed": "M-4.5 -4.5H4.5V4.5H-4.5Z",
        "negligible": "M0 -6L6 0L0 6L-6 0Z",
        "inconclusive": "M-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0 -9 0Z",
        "not testable here": "M-4 -4L4 4M-4 4L4 -4",
        "not run": "M-4 0H4",
    }
    return f'<path class="mark" transform="translate({x:.1f} {y:g})" d="{shapes[verdict]}"/>'


def badge(verdict: str) -> str:
    """Draw a verdict's mark alone, as tall as a letter."""
    return (
        f'<svg class="badge {kind(verdict)}" viewBox="-7 -7 14 14" aria-hidden="true">'
        f"{mark(verdict, 0, 0)}</svg>"
    )
