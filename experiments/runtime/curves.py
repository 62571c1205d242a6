"""Draws the curves of some runs and lays out their table, read from their workdirs."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath

from experiments.config.defaults import SIDE, timesteps
from experiments.runtime.metrics import read_rows, steps_to
from experiments.runtime.workdir import folders_with
from experiments.usage import UsageError
from normjax.analysis.plots import COLOURS

# Line styles differ as well as colours, for print in grey; a baseline is always the first.
STYLES = ("-", "-", "--", "-.", ":", "--", "-.")
RC = {
    "font.size": 13,
    "axes.titlesize": 14,
    "axes.labelsize": 13,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E4E4E4",
    "axes.axisbelow": True,
    "legend.frameon": False,
}


class Run(NamedTuple):
    """A run as its workdir describes it; `final` is empty until it has finished."""

    label: str
    folder: epath.Path
    config: dict[str, Any]
    rows: list[dict[str, Any]]
    final: dict[str, Any]

    def curve(self, split: str, value: str) -> tuple[list[int], list[float], list[float]]:
        """Steps, seconds and values of one metric."""
        rows = [r for r in self.rows if r["split"] == split]
        return (
            [r["step"] for r in rows],
            [r["seconds"] for r in rows],
            [r[value] for r in rows],
        )


def find(folders: Sequence[str | os.PathLike]) -> list[Run]:
    """Read the runs in and below some folders, each with a label of its own."""
    paths: list[epath.Path] = []
    for folder in map(epath.Path, folders):
        here = list(folders_with("metrics.jsonl", folder))
        if not here:
            raise UsageError(f"there is no run in {folder} (no metrics.jsonl in it or below).")
        paths += [p for p in here if p not in paths]
    runs = []
    for path in paths:
        config = json.loads((path / "config.json").read_text())["config"]
        done = path / "final.json"
        final = json.loads(done.read_text()) if done.exists() else {}
        runs.append(Run(config["name"], path, config, read_rows(path / "metrics.jsonl"), final))
    names = [r.label for r in runs]
    labelled = [
        r if names.count(r.label) == 1 else r._replace(label=f"{r.label} ({r.folder.name})")
        for r in runs
    ]
    # Baselines (no norm that has or uses statistics) first, so that they are drawn first.
    return sorted(labelled, key=lambda r: (_normalized(r.config["model"]), r.label))


def _normalized(model: Mapping[str, Any]) -> bool:
    norms = [value for key, value in model.items() if key.startswith("norm")]
    return any(n and n["name"] not in ("identity", "none") for n in norms)


# ---------------------------------------------------------------------------------------- table


def table(runs: Sequence[Run]) -> list[list[str]]:
    """Return a header and one row per run; accuracies in percent."""
    targets = {run.config["target_accuracy"] for run in runs}
    target = f"{100 * targets.pop():g} %" if len(targets) == 1 else "target"
    header = ["run", "steps", "valid batch", "valid pop.", "test batch", "test pop."]
    rows = [[*header, f"steps to {target}", "seconds"]]
    for run in runs:
        last = run.rows[-1] if run.rows else {"step": 0, "seconds": 0.0}
        steps = f"{last['step']:,}" + ("" if run.final else " (unfinished)")
        scores = [
            f"{100 * run.final[split][kind]['accuracy']:.2f} %" if run.final else "-"
            for split in ("valid", "test")
            for kind in ("batch", "population")
        ]
        reached = steps_to(run.rows, run.config["target_accuracy"])
        seconds = run.final.get("seconds", last["seconds"])
        rows.append(
            [run.label, steps, *scores, f"{reached:,}" if reached else "-", f"{seconds:.0f}"]
        )
    return rows


def text(rows: Sequence[Sequence[str]]) -> str:
    """Lay a table out for a terminal, as valid Markdown."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]

    def line(row: Sequence[str]) -> str:
        first, *rest = (
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        return "| " + " | ".join([first, *rest]) + " |"

    rule = [":" + "-" * (widths[0] - 1), *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join([line(rows[0]), "| " + " | ".join(rule) + " |", *map(line, rows[1:])])


NOTE = (
    "Accuracy of the parameters with the best validation accuracy (batch statistics). "
    "batch: normalized by the statistics of the evaluated batch; pop.: by population statistics, "
    "estimated over the training set. Seconds are wall time, compilation included."
)


# --------------------------------------------------------------------------------------- curves


def title(configs: Sequence[Mapping[str, Any]]) -> str:
    """Name the data sets of some runs, and one step or example of each."""
    return "; ".join(sorted({_data_line(config) for config in configs}))


def _data_line(config: Mapping[str, Any]) -> str:
    name, options = config["dataset"], config["data"]
    if name in SIDE:
        side = options["side"] or SIDE[name]
        if options["layout"] == "images":
            return f"{name}: images of {side} x {side}"
        unit = "pixel" if options["layout"] == "pixels" else f"row of {side} pixels"
        return f"{name}: {timesteps(config)} steps, one {unit} per step"
    if name == "text":
        unit = {"chars": "character", "words": "word"}[options["unit"]]
        return f"text {options['text']}: {timesteps(config)} steps, one {unit} per step"
    unit = "word" if name == "imdb_reviews" else "frame of sound"
    return f"{name}: at most {timesteps(config)} steps, one {unit} per step"


def label_of(run: Run, metric: str) -> str:
    """Label a run's curve; a `$` is no formula, and a leading `_` would hide it from the legend."""
    label = run.label
    if run.final:
        score = run.final["test"]["population"][metric]
        label += f" (test {_percent(score) if metric == 'accuracy' else f'loss {score:.4g}'})"
    label = label.replace("$", r"\$")
    return f" {label}" if label.startswith("_") else label


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def draw(runs: Sequence[Run], path: epath.Path) -> None:
    """Plot training loss and validation score, against steps and against seconds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    # A task without right and wrong answers has no accuracy to show.
    metric = "loss" if all(r.config["task"] == "generate" for r in runs) else "accuracy"
    with plt.rc_context(RC):  # type: ignore[arg-type]
        figure, axes = plt.subplots(2, 2, figsize=(12, 7.6), sharex="col", sharey="row")
        for i, run in enumerate(runs):
            style = {"color": COLOURS[i % len(COLOURS)], "linestyle": STYLES[i % len(STYLES)]}
            _plot_run(axes, run, metric, style)
        _dress_axes(axes, metric)
        if metric == "accuracy":
            for target in {run.config["target_accuracy"] for run in runs}:
                _mark_target(axes[1], target)
        heading = title([run.config for run in runs]).replace("$", r"\$")
        figure.suptitle(heading, x=0.01, ha="left", fontsize=15)
        figure.legend(
            *axes[0, 0].get_legend_handles_labels(),
            loc="upper right",
            ncols=min(len(runs), 3),
            fontsize=13,
        )
        rows_of_legend = -(-len(runs) // 3)
        figure.tight_layout(rect=(0, 0, 1, 0.98 - 0.035 * (rows_of_legend - 1)))
        with path.open("wb") as file:
            figure.savefig(file, dpi=130)
        plt.close(figure)


def _plot_run(axes: Any, run: Run, metric: str, style: Mapping[str, Any]) -> None:
    """Draw one run: the training loss above, the validation metric below."""
    label = label_of(run, metric)
    for row, (split, value) in enumerate((("train", "loss"), ("valid", metric))):
        steps, seconds, values = run.curve(split, value)
        marker = "o" if len(steps) < 3 else ""  # one point draws no line
        axes[row, 0].plot(steps, values, label=label, lw=2.2, marker=marker, **style)
        axes[row, 1].plot(seconds, values, lw=2.2, marker=marker, **style)


def _dress_axes(axes: Any, metric: str) -> None:
    """Name the axes and set their scales: losses are logarithmic, accuracies from 0 to 1."""
    from matplotlib.ticker import PercentFormatter

    unit = " (nats)" if metric == "accuracy" else ""
    axes[0, 0].set_ylabel(f"training loss{unit}")
    axes[1, 0].set_ylabel(f"validation {metric}")
    axes[1, 0].set_xlabel("training steps")
    axes[1, 1].set_xlabel("wall time (seconds, with compilation)")
    _logarithmic(axes[0, 0])
    for axis in axes[1]:
        axis.set_xlim(left=0)
    if metric == "loss":
        _logarithmic(axes[1, 0])
        return
    axes[1, 0].yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
    axes[1, 0].set_ylim(0, 1.02)


def _logarithmic(axis: Any) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _mark_target(axes: Any, target: float) -> None:
    """Draw the target accuracy across a row of axes and name it at the left."""
    for axis in axes:
        axis.axhline(target, color="#777777", linewidth=1, linestyle=(0, (2, 3)))
    axes[0].annotate(
        f"{100 * target:g} %",
        (0.008, target),
        xycoords=("axes fraction", "data"),
        ha="left",
        va="bottom",
        fontsize=11,
        color="#555555",
    )


def report(folders: Sequence[str | os.PathLike], out: str | os.PathLike = "") -> str:
    """Draw the runs in some folders, write their table and return it."""
    runs = find(folders)
    if not out and any("://" in os.fspath(f) for f in folders):
        raise UsageError("write --out=DIR, where curves.png and table.md of a bucket's runs go.")
    where = epath.Path(out or os.path.commonpath([epath.Path(f).resolve() for f in folders]))
    where.mkdir(parents=True, exist_ok=True)
    draw(runs, where / "curves.png")
    shown = text(table(runs))
    (where / "table.md").write_text(f"{shown}\n\n{NOTE}\n")
    return f"{shown}\n\n{NOTE}\nCurves: {where / 'curves.png'}"
