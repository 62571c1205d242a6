"""Measure gradients through 784 steps of MNIST at initialization: why gamma starts small.

    python -m experiments.gradient_flow --out=results/gradient_flow

A tanh RNN of 100 units with one batch norm on the sum of its terms, recurrent weights the
identity, input weights a row of norm 1, statistics per step, h0 noise 0.1, one batch of 100
digits read pixel by pixel, cross-entropy on the last step: figure 1 of Cooijmans et al.,
"Recurrent Batch Normalization", ICLR 2017, and the script behind it. Seconds on a CPU.
"""

from __future__ import annotations

import pathlib
import time
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging

import normjax
from experiments.data import datasets
from experiments.runtime.workdir import hardware, versions, write_json
from experiments.tasks import cross_entropy
from experiments.usage import UsageError, usage
from normjax import analysis, recurrent

GAMMAS = tuple(round(0.1 * k, 1) for k in range(1, 11))


class Flow(NamedTuple):
    """Gradient norms: `norms[gamma]` is `[time]`."""

    norms: dict[float, np.ndarray]
    loss: dict[float, float]


def measure(
    pixels: np.ndarray,
    labels: np.ndarray,
    *,
    gammas: Sequence[float] = GAMMAS,
    hidden: int = 100,
    noise: float = 0.1,
    seed: int = 0,
) -> Flow:
    """Measure the norm of dLoss/dh_t over time; all gammas share weights, noise and batch."""
    x = jnp.asarray(pixels, float)[:, :, None]  # float32, or float64 where that is enabled
    key, key_head, key_noise = jax.random.split(jax.random.key(seed), 3)
    head = jax.nn.initializers.orthogonal()(key_head, (hidden, 10), x.dtype)

    def loss(_: jax.Array, h: jax.Array) -> jax.Array:
        scores = cross_entropy(h @ head, jnp.asarray(labels))
        return scores.loss / scores.count

    norms, losses = {}, {}
    for gamma in gammas:
        norm = normjax.batch_norm(scale_init=gamma)
        layer = recurrent.rnn(
            hidden,
            norm_sum=recurrent.per_step(norm, x.shape[1]),
            kernel_init="orthogonal",
            recurrent_init="identity",
            h0_noise=noise,
        )
        params, state = layer.init(key, 1)
        flow = analysis.gradient_through_time(layer, params, state, x, loss, key=key_noise)
        norms[gamma], losses[gamma] = np.asarray(flow.norm), float(flow.loss)
    return Flow(norms, losses)


def draw(flow: Flow, path: pathlib.Path) -> None:
    """Plot the norms on a logarithmic axis, one line per gamma."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7.5, 4.2), layout="constrained")
    colors = plt.get_cmap("viridis_r")(np.linspace(0.12, 1, len(flow.norms)))
    for (gamma, norm), color in zip(flow.norms.items(), colors, strict=True):
        positive = np.where(norm > 0, norm, np.nan)  # zero has no logarithm: the line ends
        axes.semilogy(
            np.arange(1, len(norm) + 1), positive, color=color, label=f"{gamma:.1f}", lw=1.6
        )
    axes.set(
        xlabel="time step t",
        ylabel=r"$\|\partial L / \partial h_t\|_2$, mean over the batch",
        xlim=(0, len(norm) + 1),
    )
    axes.set_title(
        "Gradient of the last step's loss through time: batch-normalized tanh RNN at\n"
        "initialization, sequential MNIST. Lines end where float32 underflows to 0.",
        loc="left",
        fontsize=10,
    )
    axes.grid(alpha=0.25)
    axes.legend(title="gamma", loc="lower left", bbox_to_anchor=(1, 0), frameon=False)
    figure.savefig(path, dpi=160)
    plt.close(figure)


def main(argv: Sequence[str]) -> None:
    """Run ``python -m experiments.gradient_flow``."""
    del argv
    logging.set_verbosity(logging.WARNING)
    out = pathlib.Path(flags.FLAGS.out)
    with usage():
        if flags.FLAGS.batch < 2:
            raise UsageError("--batch must be at least 2: one example has no variance.")
        dataset = datasets.load("mnist", data_dir=flags.FLAGS.data_dir)
    began = time.perf_counter()
    batch = slice(0, flags.FLAGS.batch)
    pixels = np.asarray(dataset.train.pixels[batch], np.float32) / dataset.white
    flow = measure(pixels, np.asarray(dataset.train.labels[batch]), seed=flags.FLAGS.seed)
    out.mkdir(parents=True, exist_ok=True)
    draw(flow, out / "gradient_flow.png")
    at = [0, 99, 199, 299, 399, 499, 599, 699, len(next(iter(flow.norms.values()))) - 1]
    record = {
        "command": f"python -m experiments.gradient_flow --batch={flags.FLAGS.batch} "
        f"--seed={flags.FLAGS.seed}",
        "norm_at_step": {f"{g:g}": {t + 1: float(n[t]) for t in at} for g, n in flow.norms.items()},
        "first_step_above_0": {f"{g:g}": int(np.argmax(n > 0)) + 1 for g, n in flow.norms.items()},
        "seconds": round(time.perf_counter() - began, 1),
        "versions": versions(),
        "hardware": hardware(),
    }
    write_json(out / "gradient_flow.json", record)
    print("gamma   t=1        t=400      t=784      first t above 0")
    for gamma, norm in flow.norms.items():
        first = int(np.argmax(norm > 0)) + 1
        print(f"{gamma:<6}  {norm[0]:.2e}   {norm[399]:.2e}   {norm[-1]:.2e}   {first}")
    print(f"figure: {out / 'gradient_flow.png'}")


if __name__ == "__main__":
    flags.DEFINE_string("out", "runs/gradient_flow", "Folder for the figure and its numbers.")
    flags.DEFINE_string("data_dir", "", "A TFDS folder; empty: see experiments.data.locate.")
    flags.DEFINE_integer("batch", 100, "Examples in the batch.")
    flags.DEFINE_integer("seed", 0, "Seed of weights and noise.")
    app.run(main)
