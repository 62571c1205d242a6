"""Statistics, axes and decays that do not fit are refused before anything is reshaped."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import normjax as nj
from normjax import recurrent
from tests.conftest import unchecked

X = jnp.ones((2, 2, 3))


@pytest.mark.parametrize("shape", [(3, 2), (6,), (1, 2, 3)])
def test_a_variance_of_another_shape_is_refused(shape):
    m = nj.Running(jnp.zeros((2, 3)), jnp.arange(1.0, 7).reshape(shape))
    with pytest.raises(ValueError, match="do not fit x"):
        nj.normalize(X, m, 0, eps=0.0)
    norm = nj.batch_norm(axes=0)
    params, _ = norm.init(X.shape)
    with pytest.raises(ValueError, match="do not fit x"):
        unchecked(type(norm).apply)(norm, params, m, X, stats="running")


def test_statistics_of_other_channels_are_refused():
    norm = nj.switchable_norm()
    params, state = norm.init((2, 5, 4))
    with pytest.raises(ValueError, match="fit x"):
        norm.apply(params, state, jnp.ones((2, 5, 1)), stats="running")


@pytest.mark.parametrize("axes", [np.array([0, 1]), [0, 1], (0, 1), (np.int64(0), np.int64(1))])
def test_axes_in_any_form(axes):
    moments = unchecked(nj.moments)(X, axes)
    assert moments.mean.shape == (3,) and float(moments.count[0]) == 4


def test_a_decay_that_is_a_truth_value_is_refused():
    state = nj.Running(jnp.zeros(3), jnp.ones(3))
    with pytest.raises(ValueError, match="decay=True"):
        unchecked(nj.ema)(state, nj.moments(X, (0, 1)), decay=True)


def test_params_and_state_exchanged_in_a_lift():
    lift = recurrent.per_step(nj.batch_norm(), 5)
    params, state = lift.init((1, 3))
    with pytest.raises(TypeError, match="apply takes \\(params, state, x\\)"):
        lift.apply(state, params, jnp.ones((5, 4, 3)), stats="batch")


def _psums(function, *args):
    text = str(jax.make_jaxpr(function, axis_env=[("d", 2)])(*args))
    return text.count("psum")


def test_a_count_that_is_known_is_not_exchanged():
    """Without a mask two all-reduces do: the means, and the spread around their mean."""
    x = jnp.ones((4, 3))
    assert _psums(lambda x: nj.moments(x, 0, axis_name="d"), x) == 2
    assert _psums(lambda x: nj.mean_square(x, 0, axis_name="d"), x) == 1
