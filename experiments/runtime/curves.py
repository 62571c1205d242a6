"""Draws the curves of some runs and lays out their table, read from their workdirs."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from experiments.config.defaults import SIDE, timesteps
from experiments.runtime.metrics import read_rows, steps_to
from experiments.runtime.workdir import folders_with, read_json
from experiments.usage import UsageError
from normjax.analysis.plots import COLOURS

# Line styles differ as well as colours, for print in grey; a baseline is always the first.
STYLES = ("-", "-", "--", "-.", ":", "--")  # of the six colours
LINES = ("-", "--", "-.", ":")
LEGEND_CHARACTERS, LONGEST_LABEL = 120, 80  # on a line of the legend; of a run's name in it
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
    for folder in (epath.Path(f).expanduser() for f in folders):
        here = list(folders_with("metrics.jsonl", folder))
        if not here:
            raise UsageError(f"there is no run in {folder} (no metrics.jsonl in it or below).")
        paths += [p for p in here if p not in paths]
    runs = []
    for path in paths:
        config = read_json(path / "config.json", "config")["config"]
        done = path / "final.json"
        final = read_json(done, "steps") if done.exists() else {}
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


def by_seed(runs: Sequence[Run]) -> list[list[Run]]:
    """Group runs that differ in their seed alone and were logged at the same steps."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        same = {k: v for k, v in run.config.items() if k not in ("seed", "data_dir", "resume")}
        steps = [run.curve(split, "loss")[0] for split in ("train", "valid")]
        groups.setdefault(json.dumps([same, steps], sort_keys=True), []).append(run)
    result = []
    for group in groups.values():
        distinct = len({run.config["seed"] for run in group}) == len(group)
        result += [group] if distinct else [[run] for run in group]
    return result


def label_of(group: Sequence[Run], metric: str) -> str:
    """Label a curve; a `$` is no formula, and a leading `_` would hide it from the legend."""
    several = len(group) > 1
    label = f"{group[0].config['name']}, {len(group)} seeds" if several else group[0].label
    if len(label) > LONGEST_LABEL:
        label = f"{label[: LONGEST_LABEL - 1]}…"
    if all(run.final for run in group):
        score = float(np.mean([run.final["test"]["population"][metric] for run in group]))
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
        groups = by_seed(runs)
        labels = [label_of(group, metric) for group in groups]
        columns = max(1, min(3, len(groups), LEGEND_CHARACTERS // (max(map(len, labels)) + 6)))
        legend_rows = -(-len(groups) // columns)
        above = 0.6 + 0.28 * legend_rows  # inches of title and legend
        height = 7.0 + above
        figure, axes = plt.subplots(2, 2, figsize=(12, height), sharex="col", sharey="row")
        for i, group in enumerate(groups):
            style = _look(i)
            _plot_group(axes, group, metric, labels[i], style)
        _dress_axes(axes, metric)
        if metric == "accuracy":
            for target in {run.config["target_accuracy"] for run in runs}:
                _mark_target(axes[1], target)
        heading = title([run.config for run in runs]).replace("$", r"\$")
        figure.suptitle(heading, x=0.01, ha="left", fontsize=15)
        figure.legend(
            *axes[0, 0].get_legend_handles_labels(),
            loc="upper left",
            bbox_to_anchor=(0.005, 1 - 0.45 / height),
            ncols=columns,
            fontsize=13,
        )
        figure.tight_layout(rect=(0, 0, 1, 1 - above / height))
        with path.open("wb") as file:
            figure.savefig(file, dpi=130)
        plt.close(figure)


def _look(i: int) -> dict[str, str]:
    """Return colour and line style of a curve; no pair comes twice among 24."""
    colour = i % len(COLOURS)
    line = LINES[(LINES.index(STYLES[colour]) + i // len(COLOURS)) % len(LINES)]
    return {"color": COLOURS[colour], "linestyle": line}


def _plot_group(
    axes: Any, group: Sequence[Run], metric: str, label: str, style: Mapping[str, Any]
) -> None:
    """Draw the training loss above and the validation metric below.

    Of several seeds the mean, in a band of one standard deviation.
    """
    for row, (split, value) in enumerate((("train", "loss"), ("valid", metric))):
        curves = [run.curve(split, value) for run in group]
        steps = curves[0][0]
        seconds, values = (np.array([curve[k] for curve in curves]) for k in (1, 2))
        marker = "o" if len(steps) < 3 else ""  # one point draws no line
        mean, std = values.mean(0), values.std(0, ddof=1) if len(group) > 1 else None
        for column, x in enumerate((steps, seconds.mean(0))):
            named = {"label": label} if column == 0 else {}
            axes[row, column].plot(x, mean, lw=2.2, marker=marker, **named, **style)
            if std is not None:
                low = np.maximum(mean - std, values.min(0))  # a logarithm needs it above 0
                axes[row, column].fill_between(x, low, mean + std, color=style["color"], alpha=0.2)


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
    whole = [epath.Path(f).expanduser().resolve() for f in folders]
    where = epath.Path(out or os.path.commonpath(whole)).expanduser()
    where.mkdir(parents=True, exist_ok=True)
    draw(runs, where / "curves.png")
    shown = text(table(runs))
    (where / "table.md").write_text(f"{shown}\n\n{NOTE}\n")
    return f"{shown}\n\n{NOTE}\nCurves: {where / 'curves.png'}"
