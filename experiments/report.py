"""Curves and a table of runs.

    python -m experiments.report DIR... [--out=DIR]
    python -m experiments.report --results

The second writes RESULTS.md, the ledger of claims, and its pictures, from results/claims/.
Each DIR is a workdir, or a folder with workdirs somewhere below. Writes curves.png and table.md
into --out (default: the folder given, or the one that all of them share) and prints the table.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import matplotlib
from absl import app, flags, logging
from etils import epath

from experiments import usage
from experiments.config import command_line, models
from experiments.runtime.metrics import read_rows, steps_to
from experiments.usage import UsageError

_RESULTS = flags.DEFINE_bool(
    "results", False, "Write RESULTS.md and its pictures.", allow_override=True
)
_OUT = flags.DEFINE_string("out", "", "Folder for curves.png and table.md.", allow_override=True)

# Okabe and Ito's palette, told apart with any colour vision; yellow, too faint on white, is out.
# A baseline is always the first colour, and line styles differ too, for print in grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
STYLES = ("-", "-", "--", "-.", ":", "--", "-.")


class Run(NamedTuple):
    """What a workdir says about its run; `final` is empty while it is not finished."""

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


def below(folder: epath.Path, name: str) -> Iterator[epath.Path]:
    """The folders in and below one that hold a file; below such a folder nothing is looked for."""
    if (folder / name).exists():
        yield folder
    elif folder.is_dir():  # epath has no ** for buckets
        for path in sorted(folder.iterdir()):
            yield from below(path, name)


def find(folders: Sequence[str | os.PathLike]) -> list[Run]:
    """The runs in and below some folders, each with a label that no other has."""
    paths: list[epath.Path] = []
    for folder in map(epath.Path, folders):
        here = list(below(folder, "metrics.jsonl"))
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
    # Baselines (no norm that keeps or takes statistics) first, so that they are drawn first.
    return sorted(labelled, key=lambda r: (_normalized(r.config), r.label))


def _normalized(config: dict[str, Any]) -> bool:
    norms = [config["model"].get(place) for place in models.PLACES]
    return any(n and n["name"] not in ("identity", "none") for n in norms)


# ---------------------------------------------------------------------------------------- table


def table(runs: Sequence[Run]) -> list[list[str]]:
    """Header and one row a run; accuracies in percent."""
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
    """The table for a terminal and for Markdown alike."""
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


def draw(runs: Sequence[Run], path: epath.Path) -> None:
    """Training loss and validation accuracy, against steps and against seconds."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator, PercentFormatter

    style: Any = {
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
    with plt.rc_context(style):
        figure, axes = plt.subplots(2, 2, figsize=(12, 7.6), sharex="col", sharey="row")
        for i, run in enumerate(runs):
            look: Any = {
                "color": COLOURS[i % len(COLOURS)],
                "linestyle": STYLES[i % len(STYLES)],
                "linewidth": 2.2,
            }
            label = run.label
            if run.final:
                label += f" (test {100 * run.final['test']['population']['accuracy']:.1f} %)"
            for row, (split, value) in enumerate((("train", "loss"), ("valid", "accuracy"))):
                steps, seconds, values = run.curve(split, value)
                look["marker"] = "o" if len(steps) < 3 else ""  # one point draws no line
                axes[row, 0].plot(steps, values, label=label, **look)
                axes[row, 1].plot(seconds, values, **look)
        axes[0, 0].set_ylabel("training loss (nats)")
        axes[1, 0].set_ylabel("validation accuracy")
        axes[1, 0].set_xlabel("training steps")
        axes[1, 1].set_xlabel("wall time (seconds, with compilation)")
        axes[0, 0].set_yscale("log")
        axes[0, 0].yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes[0, 0].yaxis.set_minor_locator(NullLocator())
        axes[0, 0].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        for axis in axes[1]:
            axis.set_xlim(left=0)
        axes[1, 0].yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
        axes[1, 0].set_ylim(0, 1.02)
        for target in {run.config["target_accuracy"] for run in runs}:
            for axis in axes[1]:
                axis.axhline(target, color="#777777", linewidth=1, linestyle=(0, (2, 3)))
            axes[1, 0].annotate(
                f"{100 * target:g} %",
                (0.008, target),
                xycoords=("axes fraction", "data"),
                ha="left",
                va="bottom",
                fontsize=11,
                color="#555555",
            )
        datasets = ", ".join(sorted({run.config["dataset"] for run in runs}))
        figure.suptitle(f"{datasets}: one pixel a step", x=0.01, ha="left", fontsize=15)
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


def report(folders: Sequence[str | os.PathLike], out: str | os.PathLike = "") -> str:
    """Draw, write and return the table."""
    runs = find(folders)
    if not out and any("://" in os.fspath(f) for f in folders):
        raise UsageError("write --out=DIR, where curves.png and table.md of a bucket's runs go.")
    where = epath.Path(out or os.path.commonpath([epath.Path(f).resolve() for f in folders]))
    where.mkdir(parents=True, exist_ok=True)
    draw(runs, where / "curves.png")
    shown = text(table(runs))
    (where / "table.md").write_text(f"{shown}\n\n{NOTE}\n")
    return f"{shown}\n\n{NOTE}\nCurves: {where / 'curves.png'}"


def main(argv: Sequence[str]) -> None:
    """Entry point of ``python -m experiments.report``."""
    logging.set_verbosity(logging.WARNING)
    with usage.usage():
        if _RESULTS.value:
            from experiments.ledger import table

            print(table.publish())
            return
        if len(argv) < 2:
            raise UsageError("write: python -m experiments.report DIR... [--out=DIR]")
        print(report(argv[1:], _OUT.value))


if __name__ == "__main__":
    app.run(main, flags_parser=command_line.parse_flags)
