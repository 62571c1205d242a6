"""A step of training of whole models, in which only the norm layers differ.

    python -m benchmarks.models [--only=transformer] [--rounds=15] [--quick] [--json=FILE]

A ResNet-18 for images of 32×32 and a transformer of six layers, written in Flax Linen. Each is
built with Flax's norms, with the drop-in ones of `normjax.linen`, and without norms, which says
what share of the step they are. All three are in one process, as a user has them who changes an
import, on the same arrays and from the same parameters; parameters, statistics and the
optimizer's state are donated and carried from call to call.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import normjax.linen
from benchmarks import _measure
from benchmarks.norms import draw

CLASSES, TOKENS = 10, 1000
OURS, FLAX, NONE = "normjax.linen", "flax.linen", "without norms"
# Never slower. Where norms are over a tenth of the step, this much faster.
AIM, LARGE_SHARE, LARGE_AIM = 1.0, 0.1, 1.1

MakeNorm = Callable[[], Callable[[jax.Array], jax.Array]]


class NoNorm(nn.Module):
    """In the place of a norm: returns its input."""

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return `x`."""
        return x


class Block(nn.Module):
    """Residual block of two convolutions."""

    norm: MakeNorm
    features: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map images `[batch, height, width, channels]`."""
        conv = functools.partial(nn.Conv, self.features, use_bias=False)
        stride = (self.stride, self.stride)
        y = nn.relu(self.norm()(conv((3, 3), stride)(x)))
        y = self.norm()(conv((3, 3))(y))
        if x.shape != y.shape:
            x = self.norm()(conv((1, 1), stride)(x))
        return nn.relu(x + y)


class ResNet(nn.Module):
    """ResNet of two blocks a stage; of four stages it is ResNet-18 for small images."""

    norm: MakeNorm
    stages: tuple[int, ...]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return logits of images `[batch, height, width, 3]`."""
        x = nn.relu(self.norm()(nn.Conv(self.stages[0], (3, 3), use_bias=False)(x)))
        for stage, features in enumerate(self.stages):
            x = Block(self.norm, features, 2 if stage else 1)(x)
            x = Block(self.norm, features, 1)(x)
        return nn.Dense(CLASSES)(jnp.mean(x, (1, 2)))


class Transformer(nn.Module):
    """Language model with norms before attention, before the dense layers and at the end."""

    norm: MakeNorm
    layers: int
    width: int
    heads: int = 4

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Return logits `[batch, time, TOKENS]` of the next of `tokens` `[batch, time]`."""
        places = self.param("places", nn.initializers.normal(0.02), (tokens.shape[1], self.width))
        x = nn.Embed(TOKENS, self.width)(tokens) + places
        past = nn.make_causal_mask(tokens)
        for _ in range(self.layers):
            x += nn.MultiHeadDotProductAttention(self.heads)(self.norm()(x), mask=past)
            y = nn.gelu(nn.Dense(4 * self.width)(self.norm()(x)))
            x += nn.Dense(self.width)(y)
        return nn.Dense(TOKENS)(self.norm()(x))


class Case(NamedTuple):
    """A model and its norm.

    Attributes:
        model: from a norm and sizes.
        norm: name of the norm in both libraries.
        how: arguments of the norm.
        sizes: arguments of the model.
        small: the same with `--quick`.
        batch: shape of the input.
        small_batch: the same with `--quick`.
    """

    model: Callable[..., nn.Module]
    norm: str
    how: dict[str, Any]
    sizes: dict[str, Any]
    small: dict[str, Any]
    batch: tuple[int, ...]
    small_batch: tuple[int, ...]


_RESNET = (
    {"stages": (64, 128, 256, 512)},
    {"stages": (4, 8)},
    (64, 32, 32, 3),
    (4, 8, 8, 3),
)
_TRANSFORMER = ({"layers": 6, "width": 256}, {"layers": 1, "width": 8}, (16, 128), (2, 4))
CASES = {
    "resnet-18 batch norm": Case(ResNet, "BatchNorm", {"use_running_average": False}, *_RESNET),
    "transformer layer norm": Case(Transformer, "LayerNorm", {}, *_TRANSFORMER),
    "transformer RMS norm": Case(Transformer, "RMSNorm", {}, *_TRANSFORMER),
}
LIBRARIES: dict[str, Any] = {OURS: normjax.linen, FLAX: nn, NONE: None}


def inputs(case: Case, quick: bool) -> tuple[jax.Array, jax.Array]:
    """Draw a batch: images and their classes, or tokens and those that follow them."""
    shape = case.small_batch if quick else case.batch
    random = np.random.RandomState(1)
    if case.model is ResNet:
        return jnp.asarray(draw(shape, 0)), jnp.asarray(random.randint(0, CLASSES, shape[0]))
    text = jnp.asarray(random.randint(0, TOKENS, (shape[0], shape[1] + 1)))
    return text[:, :-1], text[:, 1:]


def training(
    case: Case, library: str, quick: bool
) -> tuple[Callable[..., Any], tuple[Any, Any, Any], tuple[jax.Array, jax.Array]]:
    """Return a step of training, what it carries (params, statistics, optimizer), and a batch."""
    offered = LIBRARIES[library]
    norm = functools.partial(getattr(offered, case.norm), **case.how) if offered else NoNorm
    model = case.model(norm, **(case.small if quick else case.sizes))
    x, labels = inputs(case, quick)
    fresh = dict(jax.jit(model.init)(jax.random.key(0), x))
    params = fresh.pop("params")
    optimizer = optax.adam(1e-3)

    def loss_of(params: Any, state: Any, x: jax.Array, labels: jax.Array) -> Any:
        logits, state = model.apply({"params": params, **state}, x, mutable=["batch_stats"])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return jnp.mean(losses), state

    def step(params: Any, state: Any, moments: Any, x: jax.Array, labels: jax.Array) -> Any:
        grad = jax.value_and_grad(loss_of, has_aux=True)
        (loss, state), slope = grad(params, state, x, labels)
        change, moments = optimizer.update(slope, moments, params)
        return optax.apply_updates(params, change), state, moments, loss

    return step, (params, fresh, optimizer.init(params)), (x, labels)


def contender(case: Case, library: str, quick: bool) -> _measure.Contender:
    """One library's norms in the model of a case."""
    step, carried, batch = training(case, library, quick)
    return _measure.of_jax(library, step, (*carried, *batch), carried=len(carried))


def measure(asked: Any) -> list[dict[str, Any]]:
    """Every case that is asked for."""
    records = []
    for name, case in CASES.items():
        if _measure.wanted(name, asked.only):
            built = [contender(case, library, asked.quick) for library in LIBRARIES]
            records += _measure.summary(name, built, asked.rounds)
    return records


def compared(records: list[dict[str, Any]]) -> str:
    """Table of one line a case: medians, the share of Flax's norms, and the ratio aimed at.

    The ratio is the median of the rounds' ratios, in which load that meets both drops out.
    """
    lines = [
        "| training step | Flax, ms | normjax, ms | no norms, ms | norms' share | aim "
        "| Flax / normjax |",
        "| :--- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    found = {(r["case"], r["library"]): r for r in records}
    for case in dict.fromkeys(r["case"] for r in records):
        ours, flax, none = (found[case, library] for library in (OURS, FLAX, NONE))
        ratio, rest = (
            statistics.median(a / b for a, b in zip(x["wall_ms"], y["wall_ms"], strict=True))
            for x, y in ((flax, ours), (none, flax))
        )
        aim = LARGE_AIM if 1 - rest > LARGE_SHARE else AIM
        shown = f"**{ratio:.2f}**" if ratio >= aim else f"{ratio:.2f}"
        lines.append(
            f"| {case} | {flax['median_ms']:.1f} | {ours['median_ms']:.1f} "
            f"| {none['median_ms']:.1f} | {1 - rest:.0%} | {aim:.1f} | {shown} |"
        )
    return "\n".join(lines)


def show(records: list[dict[str, Any]]) -> str:
    """Both tables."""
    return f"{compared(records)}\n\n{_measure.markdown(records)}"


if __name__ == "__main__":
    _measure.launch("benchmarks.models", measure, show=show)
