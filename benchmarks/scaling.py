"""What a step of training costs against the steps, the batch, the units and the devices.

    python -m benchmarks.scaling [--only=T] [--rounds=9] [--plot=FILE.png] [--json=FILE]

One size is varied at a time around T 196, B 100, D 1, H 100 on one device. `N` is the number of
devices that the batch of 100 is split over, statistics over the whole of it. Simulated devices of
one CPU (several for each of its cores) say what splitting costs, not what it wins.
"""

from __future__ import annotations

import pathlib
from typing import Any

import jax
import numpy as np
from absl import flags
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from benchmarks import _measure

_PLOT = flags.DEFINE_string("plot", None, "Also draw the medians here.", allow_override=True)

USUAL = {"T": 196, "B": 100, "H": 100, "N": 1}
VARIED = {
    "T": (49, 98, 196, 392, 784),
    "B": (25, 50, 100, 200, 400),
    "H": (25, 50, 100, 200, 400),
    "N": (1, 2, 4),
}
QUICK = {"T": (3, 6), "B": (4,), "H": (4,), "N": (1, 2)}
NAMES = {"T": "steps", "B": "sequences a batch", "H": "units", "N": "devices"}
LIBRARIES = ("normjax lstm", "normjax bn_lstm", "normjax ln_lstm", "flax lstm")


def split(library: str, devices: int, **size: int) -> _measure.Contender:
    """A step of training with its batch split over devices; the rest of it everywhere."""
    jax.config.update("jax_num_cpu_devices", devices)  # of no effect on other devices
    from benchmarks import train_step  # asks for the backend, and so makes its devices

    mesh = Mesh(np.array(jax.devices()[:devices]), ("batch",))

    def place(args: tuple[Any, ...]) -> tuple[Any, ...]:
        everywhere = NamedSharding(mesh, PartitionSpec())
        rows = NamedSharding(mesh, PartitionSpec("batch"))
        return tuple(
            jax.device_put(arg, rows if i in train_step.BATCH else everywhere)
            for i, arg in enumerate(args)
        )

    return train_step.contender(library, place=place, **size)


def makers(size: dict[str, int]) -> list[_measure.Maker]:
    """Every library's way to build a case."""
    of = {"steps": size["T"], "batch": size["B"], "features": 1, "hidden": size["H"]}
    if size["N"] == 1:
        module, function = "benchmarks.train_step", "contender"
    else:
        module, function, of["devices"] = "benchmarks.scaling", "split", size["N"]
    return [(lib, module, function, {"library": lib, **of}) for lib in LIBRARIES]


def measure(asked: Any) -> list[dict[str, Any]]:
    """Every case that is asked for, one varied size after the other."""
    records = []
    for letter, values in (QUICK if asked.quick else VARIED).items():
        for value in values:
            name = f"{letter}{value}"
            usual = {"T": 3, "B": 4, "H": 4, "N": 1} if asked.quick else USUAL
            if _measure.wanted(name, asked.only):
                found = makers({**usual, letter: value})
                records += _measure.gather(name, found, asked.libraries, asked.rounds)
    if _PLOT.value:
        draw(records, pathlib.Path(_PLOT.value))
    return records


def draw(records: list[dict[str, Any]], path: pathlib.Path) -> None:
    """Medians against each size, log-log, with a straight line through the first point."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import NullLocator

    from normjax.analysis.plots import COLOURS

    letters = [k for k in NAMES if any(r["case"].startswith(k) for r in records)]
    figure, axes = plt.subplots(
        1,
        len(letters),
        figsize=(3.2 * len(letters), 3.4),
        layout="constrained",
        sharey=True,
        squeeze=False,
    )
    for letter, ax in zip(letters, axes[0], strict=True):
        own = [r for r in records if r["case"].startswith(letter)]
        for i, library in enumerate(dict.fromkeys(r["library"] for r in own)):
            at = [(int(r["case"][1:]), r["median_ms"]) for r in own if r["library"] == library]
            x, y = np.array(at).T
            ax.plot(x, y, marker="os^D"[i % 4], color=COLOURS[i], label=library)
            if i == 0 and letter != "N":
                ax.plot(x, y[0] * x / x[0], color="0.6", ls=":", label="linear")
        ax.set(xscale="log", yscale="log", xlabel=NAMES[letter])
        ax.set_xticks(x, [f"{v:.0f}" for v in x])
        ax.xaxis.set_minor_locator(NullLocator())
        ax.grid(alpha=0.3)
    axes[0][0].set_ylabel("training step, median (ms)")
    axes[0][0].legend(frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    _measure.launch("benchmarks.scaling", measure)
