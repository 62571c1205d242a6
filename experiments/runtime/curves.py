"""Draws the curves of some runs and lays out their table, read from their workdirs."""

from __future__ import annotations

import json
import os
import types
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from experiments.config.defaults import DATASETS, SIDE, timesteps
from experiments.runtime import measures
from experiments.runtime.measures import Measure
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
    """A run as its workdir describes it; `final` is empty until it has finished.

    `data` is what its config.json says of its data set: kind, shape, classes.
    """

    label: str
    folder: epath.Path
    config: dict[str, Any]
    rows: list[dict[str, Any]]
    final: dict[str, Any]
    data: Mapping[str, Any] = types.MappingProxyType({})

    def curve(self, split: str, value: str) -> tuple[list[int], list[float], list[float]]:
        """Steps, seconds and values of one metric."""
        return self.measured(split, measures.LOSS._replace(key=value))

    def measured(self, split: str, measure: Measure) -> tuple[list[int], list[float], list[float]]:
        """Steps, seconds and values of one measure."""
        rows = [r for r in self.rows if r["split"] == split]
        return (
            [r["step"] for r in rows],
            [r["seconds"] for r in rows],
            [measure.value(r) for r in rows],
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
        described = read_json(path / "config.json", "config")
        config, data = described["config"], described.get("data") or {}
        done = path / "final.json"
        final = read_json(done, "steps") if done.exists() else {}
        rows = read_rows(path / "metrics.jsonl")
        runs.append(Run(config["name"], path, config, rows, final, data))
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
    """Return a header and one row per run, with scores in the words of the runs' task."""
    judged = [measures.main(run.config) for run in runs]
    several = len(set(judged)) > 1
    accuracies = measures.ACCURACY in judged
    top5 = any(measures.TOP_FIVE in s for r in runs if r.final for s in r.final["test"].values())
    word = "" if several or judged[0] is measures.ACCURACY else f"{judged[0].name} "
    header = [f"{split} {word}{kind}" for split in ("valid", "test") for kind in ("batch", "pop.")]
    header = ["run", "steps", *header, *["test top-5"] * top5]
    if accuracies:
        targets = {run.config["target_accuracy"] for run in runs}
        target = f"{100 * targets.pop():g} %" if len(targets) == 1 else "target"
        header.append(f"steps to {target}")
    rows = [[*header, "seconds"]]
    for run, measure in zip(runs, judged, strict=True):
        last = run.rows[-1] if run.rows else {"step": 0, "seconds": 0.0}
        steps = f"{last['step']:,}" + ("" if run.final else " (unfinished)")
        unit = f" {measure.name}" if several and measure is not measures.ACCURACY else ""
        scores = [
            f"{measure.text(run.final[split][kind])}{unit}" if run.final else "-"
            for split in ("valid", "test")
            for kind in ("batch", "population")
        ]
        if top5:
            known = run.final["test"]["population"] if run.final else {}
            scores.append(measures.TOP5.text(known))
        if accuracies:
            reached = steps_to(run.rows, run.config["target_accuracy"])
            counts = measure is measures.ACCURACY and reached
            scores.append(f"{reached:,}" if counts else "-")
        seconds = run.final.get("seconds", last["seconds"])
        rows.append([run.label, steps, *scores, f"{seconds:.0f}"])
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


def note(runs: Sequence[Run]) -> str:
    """Say what the numbers of a table are."""
    names = " or ".join(dict.fromkeys(measures.main(run.config).name for run in runs))
    select = " or ".join(sorted({run.config["select"] for run in runs}))
    return (
        f"{names[0].upper()}{names[1:]} of the parameters with the best validation {select} (batch "
        "statistics). batch: normalized by the statistics of the evaluated batch; pop.: by "
        "population statistics, estimated over the training set. Seconds are wall time, "
        "compilation included."
    )


# --------------------------------------------------------------------------------------- curves


def title(
    configs: Sequence[Mapping[str, Any]], data: Sequence[Mapping[str, Any]] | None = None
) -> str:
    """Name the data sets of some runs, and one step or example of each."""
    known = data or [{}] * len(configs)
    return "; ".join(sorted(set(map(_data_line, configs, known))))


def _data_line(config: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    name, options = config["dataset"], config["data"]
    if name not in DATASETS or name == "npz" or options.get("source"):
        return f"{name}: {_own_line(config, data)}" if data else name
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


def _own_line(config: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    """Describe an example of a data set that is known from config.json alone."""
    shape, layout = data["shape"], config["data"]["layout"]
    if data["kind"] == "images":
        height, width, channels = shape
        colour = "" if channels == 1 else f" x {channels}"
        if layout == "images":
            return f"images of {height} x {width}{colour}, {data['classes']} classes"
        steps = height if layout == "rows" else height * width
        unit = f"row of {width} pixels" if layout == "rows" else "pixel"
        return f"{steps} steps, one {unit} per step"
    if data["kind"] == "sequences":
        return f"at most {shape[0]} steps of {shape[1]} numbers, {data['classes']} classes"
    return f"{shape[0]} tokens, one per step"


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


def label_of(group: Sequence[Run], measure: Measure) -> str:
    """Label a curve; a `$` is no formula, and a leading `_` would hide it from the legend."""
    several = len(group) > 1
    label = f"{group[0].config['name']}, {len(group)} seeds" if several else group[0].label
    if len(label) > LONGEST_LABEL:
        label = f"{label[: LONGEST_LABEL - 1]}…"
    if all(run.final for run in group):
        each = [measure.value(run.final["test"]["population"]) for run in group]
        score, accuracy = float(np.mean(each)), measure is measures.ACCURACY
        label += f" (test {_percent(score) if accuracy else f'{measure.name} {score:.4g}'})"
    label = label.replace("$", r"\$")
    return f" {label}" if label.startswith("_") else label


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def draw(runs: Sequence[Run], path: epath.Path) -> None:
    """Plot training loss and validation score, against steps and against seconds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    judged = {measures.main(run.config) for run in runs}
    measure = judged.pop() if len(judged) == 1 else measures.LOSS  # which every task has
    of_loss = measures.training(runs[0].config) if measure is not measures.LOSS else measure
    with plt.rc_context(RC):  # type: ignore[arg-type]
        groups = by_seed(runs)
        labels = [label_of(group, measure) for group in groups]
        columns = max(1, min(3, len(groups), LEGEND_CHARACTERS // (max(map(len, labels)) + 6)))
        legend_rows = -(-len(groups) // columns)
        above = 0.6 + 0.28 * legend_rows  # inches of title and legend
        height = 7.0 + above
        figure, axes = plt.subplots(2, 2, figsize=(12, height), sharex="col", sharey="row")
        for i, group in enumerate(groups):
            style = _look(i)
            _plot_group(axes, group, (of_loss, measure), labels[i], style)
        _dress_axes(axes, of_loss, measure)
        if measure is measures.ACCURACY:
            for target in {run.config["target_accuracy"] for run in runs}:
                _mark_target(axes[1], target)
        heading = title([run.config for run in runs], [run.data for run in runs])
        heading = heading.replace("$", r"\$")
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
    axes: Any,
    group: Sequence[Run],
    shown: tuple[Measure, Measure],
    label: str,
    style: Mapping[str, Any],
) -> None:
    """Draw the training loss above and the validation score below.

    Of several seeds the mean, in a band of one standard deviation.
    """
    for row, (split, measure) in enumerate(zip(("train", "valid"), shown, strict=True)):
        curves = [run.measured(split, measure) for run in group]
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


def _dress_axes(axes: Any, of_loss: Measure, measure: Measure) -> None:
    """Name the axes and set their scales: losses are logarithmic, accuracies from 0 to 1."""
    from matplotlib.ticker import PercentFormatter

    axes[0, 0].set_ylabel(f"training {of_loss.label}")
    axes[1, 0].set_ylabel(f"validation {measure.label}")
    axes[1, 0].set_xlabel("training steps")
    axes[1, 1].set_xlabel("wall time (seconds, with compilation)")
    _logarithmic(axes[0, 0])
    for axis in axes[1]:
        axis.set_xlim(left=0)
    if measure.key == "loss":
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
    told = note(runs)
    (where / "table.md").write_text(f"{shown}\n\n{told}\n")
    return f"{shown}\n\n{told}\nCurves: {where / 'curves.png'}"
