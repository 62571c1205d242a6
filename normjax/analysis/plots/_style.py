"""Sets the style of all plots: colours, sizes, axes that are readable on light and on dark."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from normjax._internal import _checks

# Okabe and Ito's palette without yellow, too faint on white, and black, invisible on dark pages.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
STYLES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)), (0, (3, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P")
# A contrast of 4.5 to white and of 4.6 to black.
INK = "#767676"
SIZE = 13


class Look(NamedTuple):
    """Style of one series.

    Attributes:
        place: number of the series on its Axes, from 0.
        color: colour of lines and markers.
        linestyle: Matplotlib line style.
        marker: Matplotlib marker.
        gid: id of the drawn artists, by which later series are counted.
    """

    place: int
    color: str
    linestyle: Any
    marker: str
    gid: str

    @property
    def line(self) -> dict[str, Any]:
        """Return the keywords of a line."""
        return {"color": self.color, "linestyle": self.linestyle, "lw": 2.2, "gid": self.gid}


def pyplot() -> Any:
    """Import matplotlib, only when something is drawn."""
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(
            "plots need matplotlib: pip install 'normjax[plots]' (or matplotlib itself)"
        ) from error
    return plt


def new_axes(rows: int = 1, columns: int = 1, **keywords: Any) -> Any:
    """Create a figure with a transparent background and its axes, in the style of these plots.

    Args:
        rows: number of rows of axes.
        columns: number of columns.
        keywords: other arguments of `matplotlib.pyplot.subplots`, such as `sharey=True`.

    Returns:
        One Axes, or an array of them, as `matplotlib.pyplot.subplots` returns.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: `rows` or `columns` is not a positive integer.

    Example:
        >>> from normjax.analysis import plots
        >>> plots.new_axes(1, 2, sharey=True).shape
        (2,)
    """
    _checks.positive_int("rows", rows)
    _checks.positive_int("columns", columns)
    size = keywords.pop("figsize", (6.6 * columns if columns > 1 else 7.2, 4.3 * rows))
    figure, axes = pyplot().subplots(
        rows, columns, figsize=size, layout=keywords.pop("layout", "constrained"), **keywords
    )
    figure.patch.set_alpha(0)
    for ax in np.ravel(axes):
        dress(ax)
    return axes


def start(result: Any, kind: type, ax: Any) -> tuple[Any, Look]:
    """Check the type of a result; return the Axes and the style of its next series."""
    if not isinstance(result, kind):
        raise TypeError(
            f"this draws a {kind.__name__} and got {type(result).__name__}: pass what the function "
            "of the same name without plot_ returned"
        )
    ax = new_axes() if ax is None else ax
    dress(ax)
    # Artists of earlier series on the same Axes are recognized by their ids.
    gids = {str(child.get_gid()) for child in ax.get_children()}
    i = sum(gid.startswith("normjax-") for gid in gids)
    style = i % len(COLOURS)
    return ax, Look(i, COLOURS[style], STYLES[style], MARKERS[style], f"normjax-{i}")


def dress(ax: Any) -> None:
    """Set colours and sizes of axes without changing their content."""
    ax.patch.set_alpha(0)
    ax.tick_params(colors=INK, labelsize=SIZE - 1, which="both")
    for side, spine in ax.spines.items():
        spine.set_color(INK)
        spine.set_visible(side in ("left", "bottom"))
    for text in (ax.xaxis.label, ax.yaxis.label):
        text.set_color(INK)
        text.set_fontsize(SIZE)
    for loc in ("left", "center", "right"):
        ax.set_title(ax.get_title(loc=loc), loc=loc, color=INK, fontsize=SIZE)
    ax.grid(True, color=INK, alpha=0.2, lw=0.8)
    ax.set_axisbelow(True)


def legend(ax: Any, *, above: bool = False) -> None:
    """Show a legend if anything has a label; with `above`, outside the axes at the top."""
    where: dict[str, Any] = {}
    if above:
        where = {"loc": "lower left", "bbox_to_anchor": (0, 1), "ncols": 3, "borderaxespad": 0.2}
    if ax.get_legend_handles_labels()[1]:
        ax.legend(frameon=False, labelcolor=INK, fontsize=SIZE - 1, **where)


def counted(ax: Any, name: str) -> None:
    """Label an x axis that counts steps or layers, and put its ticks at whole numbers."""
    from matplotlib.ticker import MaxNLocator

    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel(name)


def joined(label: str | None, name: str) -> str:
    """Return `label: name`, or the name alone."""
    return name if label is None else f"{label}: {name}"


def rule(ax: Any, y: float | None = None, *, x: float | None = None) -> None:
    """Draw a thin reference line at `y` or at `x`."""
    look: dict[str, Any] = {"color": INK, "lw": 1.2, "linestyle": (0, (2, 3)), "zorder": 1}
    if y is not None:
        ax.axhline(y, **look)
    if x is not None:
        ax.axvline(x, **look)


def positive(values: Any) -> np.ndarray:
    """Replace values that are not positive by NaN, so that a logarithmic line has a gap."""
    values = np.asarray(values, np.float64)
    return np.where(values > 0, values, np.nan)
