"""The table of invariances of the layer norm paper, measured; and what must not be invariant."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import normjax as nj
from normjax import analysis
from tests._support.few import few
from tests.conftest import unchecked

# Ba, Kiros, Hinton 2016, table 1 (batch, weight and layer norm); Zhang, Sennrich 2019, table 1
# (RMS norm); Luo et al. 2017 (cosine, and centred cosine). True: nothing changes.
ROWS = (
    "weight_rescale",
    "weight_recentre",
    "weight_vector_rescale",
    "data_rescale",
    "feature_shift",
    "sample_rescale",
)
TABLE = {
    "batch_norm": (True, False, True, True, True, False),
    "weight_norm": (True, False, True, False, False, False),
    "layer_norm": (True, True, False, True, False, True),
    "rms_norm": (True, False, False, True, False, True),
    "cosine": (True, False, True, True, False, True),
    "identity": (False, False, False, False, False, False),
}
METHODS = {
    "batch_norm": nj.batch_norm(eps=1e-14),
    "weight_norm": nj.weight_norm(),
    "layer_norm": nj.layer_norm(eps=1e-14),
    "rms_norm": nj.rms_norm(eps=1e-14),
    "cosine": lambda x, w: nj.cosine_dense(w.shape[1]).apply({"kernel": w}, (), x, stats="batch")[
        0
    ],
    "identity": nj.identity(),
}


def _data():
    x = jax.random.normal(jax.random.key(0), (7, 5), jnp.float64)
    return x, jax.random.normal(jax.random.key(1), (5, 4), jnp.float64)


@pytest.mark.parametrize("name", few([*TABLE], "batch_norm", "weight_norm", "layer_norm"))
def test_invariance_table(x64, name):
    x, w = _data()
    run = jax.jit(functools.partial(analysis.invariance, METHODS[name]))
    report = run(x, w)
    for row, expected in zip(ROWS, TABLE[name], strict=True):
        change = getattr(report, row)
        if expected:
            assert change.output < 1e-8, (name, row)
            assert change.gradient < 1e-8, (name, row)
        else:
            assert change.output > 1e-2, (name, row)
    if TABLE[name][0]:
        np.testing.assert_allclose(report.weight_rescale.ratio, 1 / 3, rtol=1e-8)
    if TABLE[name][3]:
        np.testing.assert_allclose(report.data_rescale.ratio, 1 / 3, rtol=1e-8)


def test_cosine_dense_as_in_its_docstring_is_the_function_above(x64):
    x, w = _data()
    y = METHODS["cosine"](x, w)
    expected = np.asarray(x) @ np.asarray(w)
    expected /= np.linalg.norm(x, axis=1)[:, None] * np.linalg.norm(w, axis=0)[None]
    np.testing.assert_allclose(y, expected, rtol=1e-9)


def test_without_a_weight_the_features_are_what_is_normalized(x64):
    x, _ = _data()
    of_batch = analysis.invariance(nj.batch_norm(eps=1e-14), x)
    assert of_batch.weight_rescale is None
    for row in ("data_rescale", "data_shift", "feature_rescale", "feature_shift"):
        assert getattr(of_batch, row).output < 1e-8, row
    for row in ("sample_rescale", "sample_shift"):
        assert getattr(of_batch, row).output > 1e-2, row
    of_layer = analysis.invariance(nj.layer_norm(eps=1e-14), x)
    for row in ("data_rescale", "data_shift", "sample_rescale", "sample_shift"):
        assert getattr(of_layer, row).output < 1e-8, row
    for row in ("feature_rescale", "feature_shift"):
        assert getattr(of_layer, row).output > 1e-2, row


def test_changes_are_those_of_the_definition(x64):
    """A linear function: output and gradient by hand."""
    x, w = _data()
    out = analysis.invariance(lambda x, w: x @ w, x, w, scale=2.0, shift=1.5)
    np.testing.assert_allclose(out.weight_rescale.output, 1, rtol=1e-12)  # |2y - y| / |y|
    np.testing.assert_allclose(out.weight_rescale.ratio, 1, rtol=1e-12)
    np.testing.assert_allclose(out.weight_rescale.gradient, 1, rtol=1e-12)
    x_, w_ = np.asarray(x), np.asarray(w)
    rms = np.sqrt((x_**2).mean())
    for row, moved in {
        "sample_rescale": x_ * 2.0 ** np.linspace(1, -1, 7)[:, None],
        "feature_rescale": x_ * 2.0 ** np.linspace(1, -1, 5)[None],
        "data_shift": x_ + 1.5 * rms,
        "sample_shift": x_ + 1.5 * rms * np.linspace(1, 0, 7)[:, None],
        "feature_shift": x_ + 1.5 * rms * np.linspace(1, 0, 5)[None],
    }.items():
        expected = np.linalg.norm((moved - x_) @ w_) / np.linalg.norm(x_ @ w_)
        np.testing.assert_allclose(getattr(out, row).output, expected, rtol=1e-10, err_msg=row)
    wide = np.sqrt((w_**2).mean())
    for row, moved in {
        "weight_vector_rescale": w_ * 2.0 ** np.linspace(1, -1, 4)[None],
        "weight_recentre": w_ + 1.5 * wide * np.linspace(1, 0, 5)[:, None],
    }.items():
        expected = np.linalg.norm(x_ @ (moved - w_)) / np.linalg.norm(x_ @ w_)
        np.testing.assert_allclose(getattr(out, row).output, expected, rtol=1e-10, err_msg=row)


@pytest.mark.slow
def test_eps_and_half_precision_show():
    x = jax.random.normal(jax.random.key(0), (64, 8))
    broad = analysis.invariance(nj.batch_norm(eps=0.5), x)
    assert broad.data_rescale.output > 0.05
    half = analysis.invariance(nj.batch_norm(), x.astype(jnp.bfloat16))
    assert 1e-4 < half.data_rescale.output < 2e-2
    kept = analysis.invariance(nj.batch_norm(), x, stats="running")
    np.testing.assert_allclose(kept.data_rescale.output, 2, rtol=1e-5)  # an affine map


@pytest.mark.slow
def test_space_between_samples_and_features():
    x = jax.random.normal(jax.random.key(0), (4, 3, 3, 6))
    report = analysis.invariance(nj.group_norm(groups=2, eps=1e-8), x)
    assert report.sample_rescale.output < 1e-4 and report.feature_rescale.output > 1e-2


def test_errors_say_what_to_write():
    x = jnp.ones((3, 2))
    with pytest.raises(ValueError, match=r"invariance\(method, x, w\)"):
        analysis.invariance(nj.weight_norm(), x)
    with pytest.raises(ValueError, match="scale=1"):
        analysis.invariance(nj.batch_norm(), x, scale=1.0)
    with pytest.raises(TypeError, match="Reparam"):
        unchecked(analysis.invariance)(3, x)
