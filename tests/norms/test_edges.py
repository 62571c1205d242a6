"""Edges between parts: each test is a case that once gave a wrong number or a bare error."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import normjax as nj
from normjax import recurrent, testing
from normjax.state import _names
from tests._support import check
from tests.conftest import unchecked


@pytest.mark.parametrize(
    "norm",
    [
        nj.group_norm(groups=1),
        nj.instance_norm(),
        nj.filter_response_norm(),
        nj.global_response_norm(),
        nj.evo_norm_s0(groups=2),
    ],
    ids=lambda n: n.factory,
)
def test_sequence_wise_keeps_samples_apart_where_the_norm_does(norm):
    layer = recurrent.lstm(4, norm_x=recurrent.sequence_wise(norm))
    params, state = layer.init(jax.random.key(0), 3)
    x = jax.random.normal(jax.random.key(1), (3, 6, 3))
    (y, _), _ = layer.apply(params, state, x, stats="batch")
    (z, _), _ = layer.apply(params, state, x.at[1].set(x[1, ::-1] ** 3), stats="batch")
    np.testing.assert_allclose(y[0], z[0], rtol=1e-5, atol=1e-6)
    assert not np.allclose(y[1], z[1])


def test_unbiased_estimates_leave_single_values_out():
    """m / (m - 1) does not exist at m = 1; such a batch says something of the mean alone."""
    norm = nj.batch_norm(correction=1, decay=0.5, allow_single=True)
    params, state = norm.init((1, 1))
    pair, one = jnp.array([[1.0], [3.0]]), jnp.array([[6.0]])
    got = nj.population_statistics(norm, params, state, [pair, one], how="unbiased")
    np.testing.assert_allclose((got.mean[0], got.var[0]), (4.0, 2.0), rtol=1e-6)
    _, moved = norm.apply(params, state, one, stats="batch")
    np.testing.assert_allclose((moved.mean[0], moved.var[0]), (3.0, 1.0), rtol=1e-6)
    alone = nj.population_statistics(norm, params, state, [one], how="unbiased")
    np.testing.assert_allclose((alone.mean[0], alone.var[0]), (6.0, 1.0), rtol=1e-6)


def test_population_statistics_measure_one_model_though_its_weights_would_move(x64):
    inner = recurrent.rnn(6, norm_x=recurrent.sequence_wise(nj.batch_norm()))
    layer = nj.reparam(inner, {"w_x": nj.spectral_norm()})
    params, state = layer.init(jax.random.key(0), 3, jnp.float64)
    noise = jax.random.normal(jax.random.key(1), params["w_x"].v.shape, jnp.float64)
    params["w_x"] = params["w_x"]._replace(v=params["w_x"].v + noise)
    data = [jax.random.normal(jax.random.key(k), (4, 5, 3), jnp.float64) for k in range(3)]
    got = nj.population_statistics(layer, params, state, data)
    weights, _ = nj.materialize(params, state.weights, dict(layer.rules), stats="running")
    z = np.concatenate(data).reshape(-1, 3) @ np.asarray(weights["w_x"])
    np.testing.assert_allclose(got.inner["norm_x"].var, z.var(0), rtol=1e-9)


def test_complex_statistics_need_a_complex_state():
    norm = nj.batch_norm()
    params, state = norm.init((1, 2))
    x = jax.random.normal(jax.random.key(0), (3, 2), jnp.complex64)
    with pytest.raises(TypeError, match=r"init\(shape, dtype=jnp.complex64\)"):
        norm.apply(params, state, x, stats="batch")


def test_nonfinite_variance_does_not_enter_the_state(x64):
    norm = nj.batch_norm()
    params, state = norm.init((1, 1), jnp.float32)
    _, new = norm.apply(params, state, jnp.array([[1e30], [-1e30]]), stats="batch")
    np.testing.assert_array_equal(new.var, 1)


def test_the_hessian_of_a_variance_at_a_constant_set(x64):
    variance = lambda x: nj.moments(x, 0).var[0]  # noqa: E731
    hessian = jax.hessian(variance)(jnp.ones((2, 1), jnp.float64))[:, 0, :, 0]
    np.testing.assert_allclose(hessian, [[0.5, -0.5], [-0.5, 0.5]], rtol=1e-12)


def test_moments_of_an_empty_batch():
    m = nj.moments(jnp.zeros((0, 3)), 0)
    for leaf in m:
        np.testing.assert_array_equal(leaf, 0)
    some = nj.moments(jnp.arange(6.0).reshape(2, 3), 0)
    for a, b in zip(nj.merge(m, some), some, strict=True):
        np.testing.assert_array_equal(a, b)


def test_zoneout_and_dropout_are_off_in_evaluation_though_h0_has_noise():
    layer = recurrent.lstm(4, h0_noise=1e-9, zoneout_h=0.5, zoneout_c=0.5, dropout_h=0.5)
    params, state = layer.init(jax.random.key(0), 3)
    x = jax.random.normal(jax.random.key(1), (3, 6, 3))
    runs = [
        layer.apply(params, state, x, stats="running", key=jax.random.key(k))[0][0] for k in (1, 2)
    ]
    np.testing.assert_allclose(*runs, atol=1e-6)


def test_state_of_another_shape_is_refused():
    norm = nj.batch_norm()
    params, state = norm.init((1, 1))
    with pytest.raises(ValueError, match="shape of this x"):
        unchecked(type(norm).apply)(norm, params, state, jnp.ones((5, 4)), stats="batch")


def test_conditional_batch_norm_takes_an_affine_per_sample():
    norm = nj.batch_norm()
    _, state = norm.init((1, 2))
    x = jax.random.normal(jax.random.key(0), (4, 5, 2))
    scale, bias = jax.random.normal(jax.random.key(1), (2, 4, 2))
    y, _ = norm.apply(nj.Affine(scale, bias), state, x, stats="batch")
    plain, _ = norm.apply(nj.Affine(None, None), state, x, stats="batch")
    want = np.asarray(plain) * np.asarray(scale)[:, None] + np.asarray(bias)[:, None]
    np.testing.assert_allclose(y, want, rtol=1e-6, atol=1e-6)


def test_hidden_perturbation_takes_the_dtype_of_the_computation():
    layer = recurrent.rnn(4)
    params, state = layer.init(jax.random.key(0), 3)
    x = jnp.ones((2, 5, 3), jnp.bfloat16)
    layer.apply(params, state, x, stats="running", hidden_perturbation=jnp.zeros((2, 5, 4)))


def test_info_of_a_reparametrized_layer():
    layer, plain = recurrent.wn_lstm(4), recurrent.lstm(4)
    x = jax.random.normal(jax.random.key(1), (3, 6, 3))
    got = layer.info(*layer.init(jax.random.key(0), 3), x, stats="running")
    want = plain.info(*plain.init(jax.random.key(0), 3), x, stats="running")
    np.testing.assert_allclose(got.hidden_norm, want.hidden_norm, rtol=1e-5)


def test_bidirectional_takes_a_pair_of_carries():
    layer = recurrent.bidirectional(recurrent.rnn(4))
    params, state = layer.init(jax.random.key(0), 3)
    with pytest.raises(ValueError, match="carry has 3"):
        layer.apply(params, state, jnp.ones((2, 5, 3)), stats="running", carry=(None,) * 3)


def test_accumulated_microbatches_move_the_average_as_one_batch():
    layer = recurrent.bn_lstm(4, 5, decay=0.9)
    norm = nj.batch_norm(decay=0.9)
    params, state = norm.init((1, 3))
    x = jax.random.normal(jax.random.key(0), (12, 3)) + 2
    _, whole = norm.apply(params, state, x, stats="batch")
    parts = nj.accumulate_statistics(state)
    for micro in (x[:2], x[2:7], x[7:]):
        _, parts = norm.apply(params, parts, micro, stats="batch")
    for a, b in zip(nj.finalize_statistics(parts, decay=0.9), whole, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)
    # Any tree: of a layer one microbatch is the batch itself.
    params, state = layer.init(jax.random.key(1), 3)
    x = jax.random.normal(jax.random.key(2), (6, 5, 3))
    _, whole = layer.apply(params, state, x, stats="batch")
    _, parts = layer.apply(params, nj.accumulate_statistics(state), x, stats="batch")
    got = nj.finalize_statistics(parts, decay=0.9)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match='takes how="pooled"'):
        nj.finalize_statistics(nj.accumulate_statistics(state, "mean"), "mean", decay=0.9)


@pytest.mark.parametrize(
    "norm", [nj.batch_norm(), nj.batch_renorm(), nj.mean_only_batch_norm()], ids=lambda n: n.factory
)
def test_state_of_another_norm_is_refused(norm):
    params, state = norm.init((1, 4))
    x = jnp.ones((6, 4))
    with pytest.raises((TypeError, ValueError)):
        unchecked(type(norm).apply)(norm, params, (), x, stats="batch")
    with pytest.raises(ValueError, match="shape"):
        unchecked(type(norm).apply)(norm, params, state, x[:, :1], stats="batch")


def test_traced_lengths_past_the_end_are_the_end():
    layer = recurrent.bidirectional(recurrent.rnn(4))
    params, state = layer.init(jax.random.key(0), 3)
    x = jax.random.normal(jax.random.key(1), (2, 5, 3))
    run = jax.jit(lambda n: layer.apply(params, state, x, stats="running", lengths=n)[0][0])
    np.testing.assert_array_equal(run(jnp.array([9, 4])), run(jnp.array([5, 4])))


def test_decay_outside_its_range_is_refused_in_hyper_too():
    norm = nj.batch_norm()
    params, state = norm.init((1, 1))
    for decay in (2.0, np.float32(9), np.float64(-1)):
        with pytest.raises(ValueError, match="decay"):
            norm.apply(params, state, jnp.ones((2, 1)), stats="batch", hyper={"decay": decay})
    norm = nj.batch_renorm()
    for hyper, words in (
        ({"r_max": 0.1}, r"r_max=0\.1"),
        ({"d_max": np.float32(-1)}, "d_max"),
    ):
        with pytest.raises(ValueError, match=words):
            norm.apply(params, state, jnp.ones((2, 1)), stats="batch", hyper=hyper)


def test_params_or_state_of_another_layer_are_refused():
    layer = recurrent.bn_lstm(4, 5)
    params, state = layer.init(jax.random.key(0), 3)
    x = jnp.ones((2, 5, 3))
    with pytest.raises(ValueError, match="init of this layer"):
        recurrent.lstm(4).apply(params, {}, x, stats="running")
    with pytest.raises(ValueError, match="write max_steps=5"):
        recurrent.bn_lstm(4, 7).apply(params, state, x, stats="batch")


@pytest.mark.parametrize(
    "sample",
    [s for s in testing.SAMPLES if jax.tree.leaves(s.norm.init(s.shape))],
    ids=lambda s: s.name,
)
def test_params_and_state_in_the_wrong_order_are_refused(sample):
    params, state = sample.norm.init(sample.shape)
    with pytest.raises(TypeError, match=r"\(params, state, x\)"):
        unchecked(type(sample.norm).apply)(
            sample.norm, state, params, sample.input(), stats="batch"
        )


def test_population_statistics_take_batches_of_inputs_alone():
    layer = recurrent.bn_lstm(4, 5)
    for apply, shape in ((nj.batch_norm(), (4, 3)), (layer, (2, 5, 3))):
        args = (shape,) if apply is not layer else (jax.random.key(0), 3)
        params, state = apply.init(*args)
        x = jnp.ones(shape)
        for batch in ((x, x + 100), [x, x], (x, jnp.ones(shape[0]))):
            with pytest.raises(TypeError, match=r'write \(\{"x": x\} for x, y in batches\)'):
                nj.population_statistics(apply, params, state, [batch])
        for batches in (x, np.asarray(x)):
            with pytest.raises(TypeError, match=r"write \[x\]"):
                nj.population_statistics(apply, params, state, batches)
    # A function of a whole model takes what it takes.
    norm = nj.batch_norm()
    params, state = norm.init((1, 3))
    pair = (jnp.ones((4, 3)), jnp.ones(4))
    run = lambda p, s, batch, *, stats: norm.apply(p, s, batch[0], stats=stats)  # noqa: E731
    np.testing.assert_allclose(nj.population_statistics(run, params, state, [pair]).mean, 1.0)


def test_finalize_statistics_that_accumulated_nothing_is_refused():
    _, state = recurrent.bn_lstm(4, 5).init(jax.random.key(0), 3)
    with pytest.raises(ValueError, match=r"write state = .*accumulate_statistics\(state\)"):
        nj.finalize_statistics(state)
    with pytest.raises(ValueError, match=r"write state = .*accumulate_statistics\(state\)"):
        nj.finalize_statistics(())


@pytest.mark.parametrize(
    "sample",
    [sample for sample, again in check.with_repeats(testing.SAMPLES) if not again],
    ids=lambda s: s.name,
)
def test_params_and_state_restored_as_dictionaries_are_read_by_their_names(sample):
    params, state = sample.norm.init(sample.shape, key=jax.random.key(0))
    x = sample.input()
    loose = _names.to_dict(params), _names.to_dict(state)
    for stats in ("batch", "running"):
        want, moved = sample.norm.apply(params, state, x, stats=stats)
        got, after = unchecked(type(sample.norm).apply)(sample.norm, *loose, x, stats=stats)
        np.testing.assert_array_equal(got, want)
        assert jax.tree.structure(after) == jax.tree.structure(moved)
        jax.tree.map(np.testing.assert_array_equal, after, moved)


def test_a_dictionary_with_other_names_says_which():
    norm, x = nj.batch_norm(), jnp.ones((4, 3))
    params, state = norm.init(x.shape)
    for loose, message in (
        ({"gamma": jnp.ones(3), "bias": jnp.ones(3)}, "variable 'scale' is missing"),
        ({**params._asdict(), "gamma": jnp.ones(3)}, r"\['gamma'\] are unknown"),
    ):
        with pytest.raises(ValueError, match=message):
            norm.apply(loose, state, x, stats="batch")
