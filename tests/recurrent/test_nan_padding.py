"""NaN in padding whose lengths were forgotten: under `jax.debug_nans` the error names them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax import recurrent
from tests._support.few import few

X = np.random.default_rng(0).normal(size=(3, 4, 2)).astype(np.float32)


def _padded():
    x = X.copy()
    x[1, 2:], x[2, 3:] = np.nan, np.nan
    return x


@pytest.mark.parametrize("name", few(["gru", "stack"], "gru"))
@pytest.mark.parametrize("compiled", [False, True])
def test_nan_in_padding_names_lengths(name, compiled):
    layers = {"gru": recurrent.gru(3), "stack": recurrent.stack([recurrent.gru(3)] * 2)}
    layer = layers[name]
    params, state = layer.init(jax.random.key(0), 2)

    def run(x, lengths=None):
        return layer.apply(params, state, x, stats="batch", lengths=lengths)[0][0]

    wrap = (lambda f: jax.jit(lambda *args: f(*args))) if compiled else (lambda f: f)
    padded, lengths = jnp.asarray(_padded()), jnp.array([4, 2, 3])
    # Without the switch a forgotten length is NaN, silently.
    np.testing.assert_array_equal(np.isnan(wrap(run)(padded)).any((1, 2)), [False, True, True])
    run = wrap(run)  # what was traced without the switch has no check
    with jax.debug_nans(True):
        assert np.isfinite(run(jnp.asarray(X))).all()
        with pytest.raises(Exception, match=r"sequence 1 at step 2.*write lengths="):
            jax.block_until_ready(run(padded))
        if compiled:  # outside of jit `debug_nans` refuses any operation on NaN
            assert np.isfinite(run(padded, lengths)).all()


def test_nan_in_a_gap_names_mask():
    layer = recurrent.rnn(3)
    params, state = layer.init(jax.random.key(0), 2)
    x = X.copy()
    x[0, 1] = np.nan
    with (
        jax.debug_nans(True),
        pytest.raises(FloatingPointError, match="mask= where there are gaps"),
    ):
        layer.apply(params, state, x, stats="batch")
    mask = ~np.isnan(x).any(-1)
    (y, _), _ = layer.apply(params, state, x, stats="batch", mask=mask)
    assert np.isfinite(y).all()
