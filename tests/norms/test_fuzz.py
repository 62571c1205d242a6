"""Every norm under shapes with 0 and 1, masks, all dtypes and extreme values.

What comes out is right, against two passes in float64 NumPy, or NaN where float32 cannot hold the
squares, or an error of this library that says what is wrong.
"""

from __future__ import annotations

import functools
import pathlib
import traceback

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import normjax as nj
from normjax import testing

hypothesis = pytest.importorskip("hypothesis")
st = pytest.importorskip("hypothesis.strategies")

EXAMPLES = 8  # of each norm, the same ones in every run
HERE = pathlib.Path(nj.__file__).parent

# Of norms whose output is (x - mean) / root of a mean square: the axes averaged, whether it
# centres, and whether it divides by a sum of squares rather than a mean.
TEXTBOOK = {
    s.name: (s.centres, True, False) for s in testing.SAMPLES if s.centres is not None and s.scales
} | {"rms_norm": ((-1,), False, False), "l2_norm": ((-1,), False, True)}


def exact(name, x, mask, eps):
    """The output before the affine, and the smallest root that was divided by."""
    axes, centres, total = TEXTBOOK[name]
    count = np.maximum(mask.sum(axes, keepdims=True), 1)
    x = np.where(mask, x, 0)
    mean = x.sum(axes, keepdims=True) / count if centres else 0
    d = np.where(mask, x - mean, 0)
    square = (d**2).sum(axes, keepdims=True) / (1 if total else count)
    root = np.sqrt(square + eps)
    return d / root, root.min(initial=np.inf)


@st.composite
def calls(draw, sample):
    """A shape, an input, a mask and a mode."""
    last = sample.shape[-1]
    shape = (*(draw(st.sampled_from((0, 1, 2, n))) for n in sample.shape[:-1]), last)
    if sample.name == "batch_norm_channels_first":
        shape = (shape[0], sample.shape[1], *shape[2:])
    dtype = draw(st.sampled_from(("bfloat16", "float16", "float32", "float64")))
    scale = draw(st.sampled_from((0.0, 1e-30, 1e-3, 1.0, 100.0, 1e10, 1e17, 1e25)))
    offset = draw(st.sampled_from((0.0, 1.0, 1e4)))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    x = scale * (rng.normal(size=shape) + offset)
    mask = None
    if sample.mask_shape is not None and draw(st.booleans()):
        of_mask = tuple(min(m, n) for m, n in zip(sample.mask_shape, shape, strict=True))
        share = draw(st.sampled_from((0.0, 0.5, 1.0)))
        mask = rng.random(of_mask) < share
        x = np.where(mask, x, draw(st.sampled_from((0.0, np.nan, np.inf))))
    return x, dtype, mask, draw(st.sampled_from(("batch", "running")))


@functools.partial(jax.jit, static_argnames=("sample", "stats"))  # else forty programs a shape
def run(sample, x, mask, stats):
    params, state = sample.norm.init(x.shape, jnp.float32, key=jax.random.key(0))
    if x.dtype == jnp.float64:
        params, state = jax.tree.map(lambda v: v.astype(jnp.float64), (params, state))
    return sample.norm.apply(params, state, x, stats=stats, mask=mask)


def compare(sample, values, dtype, mask, stats):
    x = jnp.asarray(values).astype(dtype)
    wide = np.asarray(x.astype(jnp.float64))
    mask = None if mask is None else jnp.asarray(mask)
    whole = np.broadcast_to(True if mask is None else np.asarray(mask), x.shape)
    try:
        y, state = run(sample, x, mask, stats)
    except (ValueError, TypeError) as error:
        raised_in = traceback.extract_tb(error.__traceback__)[-1].filename
        assert HERE in pathlib.Path(raised_in).parents, "a bare error of JAX or NumPy"
        assert len(str(error)) > 20
        return
    assert y.shape == x.shape and y.dtype == x.dtype
    for leaf in jax.tree.leaves(state):
        assert np.isfinite(np.asarray(leaf)).all(), "a running average that is not finite"
    kept = wide[whole]
    if not kept.size or not np.isfinite(kept).all():  # a value beyond float16
        return
    got, largest = np.asarray(y.astype(jnp.float64)), np.abs(kept).max()
    squares = largest**2 * x.size
    held = squares < (1e300 if dtype == "float64" else 1e36)
    if not held and not np.isfinite(got[whole]).all():
        return
    if stats == "batch" and sample.name in TEXTBOOK:
        want, root = exact(sample.name, wide, whole, sample.norm.eps)
        scale = getattr(sample.norm, "scale_init", 1.0)
        want = want * scale
    else:
        want = np.asarray(run(sample, jnp.asarray(wide), mask, stats)[0])
        root = np.sqrt(getattr(sample.norm, "eps", 1.0))
    if not np.isfinite(want[whole]).all() or np.abs(want[whole]).max() > 6e4:
        return  # of a float64 run that overflows too, or beyond float16
    # A rounding of x costs as much of the output as x is larger than its spread.
    unit = np.finfo(np.float64 if dtype == "float64" else np.float32).eps
    lost = 64 * unit * largest / root
    out = float(jnp.finfo(dtype).eps)
    if lost > 1e-2:
        return
    np.testing.assert_allclose(got[whole], want[whole], rtol=2 * out + 1e-3, atol=lost + 1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("sample", testing.SAMPLES, ids=lambda s: s.name)
def test_no_silent_wrong_number_and_no_bare_error(sample):
    @hypothesis.settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(calls(sample))
    def trial(call):
        with jax.enable_x64(True):
            compare(sample, *call)

    trial()
