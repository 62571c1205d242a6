"""Two small models, and rows of unequal length and size, for the tests of many devices."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

import normjax as nj
from experiments.tasks import Scores, Task, cross_entropy
from normjax import recurrent

ROWS, CLASSES = 40, 3


@dataclasses.dataclass(frozen=True)
class Sequences(Task):
    """A BN-LSTM that stops at each row's length."""

    layer: object = recurrent.bn_lstm(4, 6, kernel_init="orthogonal_joint")

    def init(self, key):
        params, state = self.layer.init(key, 2)
        head = 0.5 * jax.random.normal(jax.random.fold_in(key, 1), (4, CLASSES))
        return {"layer": params, "head": head}, state

    def scores(self, params, norm, batch, call):
        examples, weight, _ = batch
        lengths = examples["lengths"]
        if weight is not None:
            lengths = jnp.where(weight > 0, lengths, 0)
        dtype = params["head"].dtype
        (_, carry), norm = self.layer.apply(
            params["layer"],
            norm,
            examples["x"].astype(dtype),
            stats=call.stats,
            lengths=lengths,
            axis_name=call.axis_name,
        )
        return _score(carry.h @ params["head"], examples, weight), norm


@dataclasses.dataclass(frozen=True)
class Images(Task):
    """Two convolutions, each with a batch norm over the pixels that an image has."""

    norm: object = nj.batch_norm(decay=0.9)

    def init(self, key):
        k1, k2, k3 = jax.random.split(key, 3)
        n1, s1 = self.norm.init((1, 5, 5, 4))
        n2, s2 = self.norm.init((1, 5, 5, 4))
        params = {
            "conv1": 0.3 * jax.random.normal(k1, (3, 3, 1, 4)),
            "norm1": n1,
            "conv2": 0.3 * jax.random.normal(k2, (3, 3, 4, 4)),
            "norm2": n2,
            "head": 0.5 * jax.random.normal(k3, (4, CLASSES)),
        }
        return params, {"norm1": s1, "norm2": s2}

    def scores(self, params, norm, batch, call):
        examples, weight, _ = batch
        dtype = params["head"].dtype
        mask = examples["mask"][..., None]
        if weight is not None:
            mask &= (weight > 0)[:, None, None, None]
        x, new = examples["image"].astype(dtype), {}
        for i in ("1", "2"):
            x = jnp.where(mask, x, 0)
            x = jax.lax.conv_general_dilated(
                x, params[f"conv{i}"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            x, new[f"norm{i}"] = self.norm.apply(
                params[f"norm{i}"],
                norm[f"norm{i}"],
                x,
                stats=call.stats,
                mask=mask,
                axis_name=call.axis_name,
            )
            x = jax.nn.relu(x)
        pixels = jnp.maximum(mask.sum((1, 2)), 1).astype(dtype)
        pooled = jnp.where(mask, x, 0).sum((1, 2)) / pixels
        return _score(pooled @ params["head"], examples, weight), new


def _score(logits, examples, weight) -> Scores:
    weight = None if weight is None else weight.astype(logits.dtype)
    scores = cross_entropy(logits, examples["labels"], weight)
    return Scores(*(s.astype(logits.dtype) for s in scores[:3]))


MODELS = {"bn_lstm": Sequences(), "cnn": Images()}


def rows() -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    sides = draw.integers(2, 6, (ROWS, 2))
    inside = np.arange(5)
    mask = (inside[:, None] < sides[:, None, None, 0]) & (inside < sides[:, None, None, 1])
    labels = draw.integers(0, CLASSES, ROWS).astype(np.int32)
    return {
        "x": draw.normal(size=(ROWS, 6, 2)) + labels[:, None, None],
        "lengths": draw.integers(1, 7, ROWS).astype(np.int32),
        "image": draw.normal(size=(ROWS, 5, 5, 1)) * (1 + labels[:, None, None, None]),
        "mask": mask,
        "labels": labels,
    }
