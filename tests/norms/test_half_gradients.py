"""Gradients in half precision: exact ones, in float64 NumPy, rounded once."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import normjax as nj
from normjax import linen, recurrent
from normjax import nnx as nn
from tests._support.few import few

RNG = np.random.default_rng(0)
HALF = {"bf16": jnp.bfloat16, "f16": jnp.float16}


def slope(x, dy, axes, eps, centred=True):
    """The gradient of x of a norm over `axes`, by the textbook's formula in float64."""
    x, dy = np.asarray(x, np.float64), np.asarray(dy, np.float64)
    d = x - x.mean(axes, keepdims=True) if centred else x
    inverse = 1 / np.sqrt((d**2).mean(axes, keepdims=True) + eps)
    y = d * inverse
    dx = dy - y * (dy * y).mean(axes, keepdims=True)
    return inverse * (dx - dy.mean(axes, keepdims=True) if centred else dx)


def rounded_once(got, want, dtype):
    """Assert that `got` is within one and a half roundings of the exact gradient."""
    assert got.dtype == dtype
    rounding = 1.5 * float(jnp.finfo(dtype).eps) / 2
    atol = 1e-4 * abs(want).max()
    np.testing.assert_allclose(np.asarray(got, np.float64), want, rtol=rounding, atol=atol)


def pull(apply, x, dy):
    y, back = jax.vjp(apply, x)
    return back(dy.astype(y.dtype))[0]


def of(norm):
    """The function of x of a norm at its start."""

    def apply(x):
        params, state = norm.init(x.shape, key=jax.random.key(0))
        return norm.apply(params, state, x, stats="batch")[0]

    return apply


def of_linen(module):
    return lambda x: module.init_with_output(jax.random.key(0), x)[0]


def of_lift(norm):
    def apply(x):
        params, state = norm.init((1, x.shape[-1]))
        return norm.apply(params, state, x, stats="batch")[0]

    return apply


def of_weight(method):
    return lambda w: method.apply(nj.DirectionAndGain(w, None), (), stats="batch")[0]


# The function of x, the shape of x, the axes averaged, eps, whether it centres.
PLACES = {
    "layer": (of(nj.layer_norm()), (6, 32), -1, 1e-5, True),
    "batch": (of(nj.batch_norm()), (32, 6), 0, 1e-5, True),
    "rms": (of(nj.rms_norm()), (6, 32), -1, 1e-5, False),
    "instance": (of(nj.instance_norm()), (3, 4, 4, 6), (1, 2), 1e-5, True),
    "layer_kernel": (of(nj.layer_norm(impl="kernel")), (8, 32), -1, 1e-5, True),
    "batch_kernel": (of(nj.batch_norm(impl="kernel")), (32, 8), 0, 1e-5, True),
    "instance_kernel": (of(nj.instance_norm(impl="kernel")), (3, 4, 4, 8), (1, 2), 1e-5, True),
    # Above the size from which a CPU has formulas of its own.
    "layer_large": (of(nj.layer_norm()), (256, 512), -1, 1e-5, True),
    "batch_large": (of(nj.batch_norm()), (512, 256), 0, 1e-5, True),
    "linen_layer": (of_linen(linen.LayerNorm()), (6, 32), -1, 1e-6, True),
    "linen_batch": (of_linen(linen.BatchNorm(use_running_average=False)), (32, 6), 0, 1e-5, True),
    "linen_instance": (of_linen(linen.InstanceNorm()), (3, 4, 4, 6), (1, 2), 1e-6, True),
    "linen_rms": (of_linen(linen.RMSNorm()), (6, 32), -1, 1e-6, False),
    "nnx_layer": (lambda x: nn.LayerNorm(32, rngs=nnx.Rngs(0))(x), (6, 32), -1, 1e-6, True),
    "nnx_batch": (lambda x: nn.BatchNorm(6, rngs=nnx.Rngs(0))(x), (32, 6), 0, 1e-5, True),
    "per_step": (of_lift(recurrent.per_step(nj.batch_norm(), 3)), (3, 32, 4), 1, 1e-5, True),
    "shared": (of_lift(recurrent.shared(nj.batch_norm())), (3, 32, 4), 1, 1e-5, True),
    "sequence": (
        of_lift(recurrent.sequence_wise(nj.batch_norm())),
        (3, 16, 4),
        (0, 1),
        1e-5,
        True,
    ),
    "weights": (of_weight(nj.weight_standardization()), (32, 6), 0, 1e-10, True),
}


@pytest.mark.parametrize("dtype", few(HALF, "bf16"))
@pytest.mark.parametrize("place", few([*PLACES], "layer", "batch", "per_step"))
def test_a_gradient_is_rounded_once(place, dtype):
    """Where dy is nearly the same for all values, two rounded parts would leave 12 % of error."""
    apply, shape, axes, eps, centred = PLACES[place]
    x = jnp.asarray(RNG.normal(size=shape), dtype)
    for level in (10, 100):
        dy = jnp.asarray(level + RNG.normal(size=shape), dtype)
        rounded_once(pull(apply, x, dy), slope(x, dy, axes, eps, centred), dtype)


@pytest.mark.parametrize("dtype", HALF.values(), ids=HALF)
def test_a_term_measured_before_the_loop_and_normalized_in_it(dtype):
    """Its gradient comes back along two ways, which are added before they are rounded."""
    lift = recurrent.per_step(nj.batch_norm(), 3)
    layer = recurrent.rnn(4, norm_x=lift)
    params, state = layer.init(jax.random.key(0), 4)
    x = jnp.asarray(RNG.normal(size=(3, 32, 4)), dtype)
    terms = {}

    class Terms:
        """The input terms of a layer, as the loop gets them."""

        inputs = layer.inputs
        hidden = layer.hidden
        input_places = layer.input_places
        input_schedule = "before_loop"

    from normjax.recurrent import _input_terms

    weights = {"w_x": jnp.eye(4, dtype=dtype), "norm_x": params["norm_x"]}
    call = nj.base.Call("batch")

    def apply(x):
        terms.update(
            _input_terms.input_terms(
                Terms, weights, state, x, {"norm_x": lift}, {"norm_x": call}
            )._asdict()
        )
        steps = lift.per_step_inputs(params["norm_x"], state["norm_x"], 3)
        return jax.vmap(
            lambda inputs, m, v: lift.transform_step(
                params["norm_x"], state["norm_x"], inputs, m, v, call
            ).astype(dtype)
        )(steps, terms["measured"]["norm_x"], terms["terms"]["norm_x"])

    dy = jnp.asarray(100 + RNG.normal(size=x.shape), dtype)
    rounded_once(pull(apply, x, dy), slope(x, dy, 1, 1e-5), dtype)


def test_adain_in_half_precision():
    content, style = (jnp.asarray(RNG.normal(size=(2, 64, 3)), jnp.bfloat16) for _ in range(2))
    dy = jnp.asarray(100 + RNG.normal(size=content.shape), jnp.bfloat16)
    spread = np.sqrt(np.asarray(style, np.float64).var(1, keepdims=True) + 1e-5)
    want = slope(content, np.asarray(dy, np.float64) * spread, 1, 1e-5)
    rounded_once(pull(lambda x: nj.adain(x, style), content, dy), want, jnp.bfloat16)


CONSTANT = {
    "layer": of(nj.layer_norm(eps=1e-12)),
    "batch": of(nj.batch_norm(eps=1e-12)),
    "group": of(nj.group_norm(groups=2, eps=1e-12)),
    "instance": of(nj.instance_norm(eps=1e-12)),
    "linen_layer": of_linen(linen.LayerNorm(epsilon=1e-12)),
    "linen_batch": of_linen(linen.BatchNorm(use_running_average=False, epsilon=1e-12)),
    "linen_group": of_linen(linen.GroupNorm(num_groups=2, epsilon=1e-12)),
    "linen_instance": of_linen(linen.InstanceNorm(epsilon=1e-12)),
}


@pytest.mark.parametrize("place", few([*CONSTANT], "layer", "batch", "linen_group"))
def test_constant_rows_in_float16_have_no_gradient(place):
    """1 / sqrt(eps) is 1e6 there, beyond float16; what it multiplies is 0."""
    for value in (0.0, 3.0):
        x = jnp.full((4, 8, 4), value, jnp.float16)
        y, back = jax.vjp(CONSTANT[place], x)
        np.testing.assert_array_equal(y, 0)
        for dy in (1.0, 10.0):
            np.testing.assert_array_equal(back(jnp.full_like(y, dy))[0], 0)
