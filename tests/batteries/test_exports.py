"""Every norm, layer and drop-in exported: one file for three platforms, with a free batch size."""

from __future__ import annotations

import functools

import flax.nnx
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from jax import export

import normjax as nj
from normjax import linen, nnx, recurrent, testing
from normjax.statistics import _large
from tests._support import check, properties
from tests._support.few import few

pytest.importorskip("flatbuffers", reason="Exported.serialize needs flatbuffers")

PLATFORMS = ("cpu", "cuda", "tpu")
FEW = ("batch_norm", "layer_norm", "group_norm", "dynamic_tanh")  # of `make test`


def is_kernel(sample):
    return getattr(sample.norm, "impl", "xla") == "kernel"


SAMPLES = {  # one of each factory, and the kernels
    s.name: s
    for s, again in check.with_repeats(testing.SAMPLES)
    if not again or is_kernel(s) or s.cuts_batch
}
LAYERS = {
    "lstm": recurrent.lstm(4),
    "gru": recurrent.gru(4),
    "bn_lstm": recurrent.bn_lstm(4, 5),
    "bn_lstm, kernel": recurrent.bn_lstm(4, 5, impl="kernel"),
    "ln_lstm": recurrent.ln_lstm(4, learn_carry=True),
    "stack": recurrent.stack([recurrent.bn_lstm(4, 5), recurrent.rnn(4)]),
    "bidirectional": recurrent.bidirectional(recurrent.ln_lstm(4)),
}
DROP_INS = {
    "BatchNorm": {"use_running_average": False},
    "LayerNorm": {},
    "RMSNorm": {},
    "GroupNorm": {"num_groups": 2},
    "InstanceNorm": {},
}


@pytest.fixture(autouse=True)
def symbols_are_sizes():
    """The checker of types that tests run under takes no symbol for an int."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jaxtyping.config, "jaxtyping_disable", True)
        yield


def again(function, *args, platforms=PLATFORMS):
    """Export, write to bytes and read back, with a first derivative."""
    made = export.export(jax.jit(function), platforms=platforms)(*args)
    return export.deserialize(made.serialize(vjp_order=1))


def symbol(shape, names="b"):
    """An input of float32 whose first sizes are free."""
    sizes = export.symbolic_shape(names)
    return jax.ShapeDtypeStruct((*sizes, *shape[len(sizes) :]), jnp.float32)


def inputs(shape):
    """Batches of two sizes."""
    x = jax.random.normal(jax.random.key(5), (2 * shape[0], *shape[1:]))
    return x[: shape[0]], x


def agree(read, function, params, rest, *batches):
    """What was read computes what the function does, of the last batch with the gradient."""
    for x in batches:
        properties.same(
            read.call(params, *rest, x), function(params, *rest, x), rtol=1e-4, atol=1e-4
        )

    def total(run, params, x):
        y = jax.tree.leaves(run(params, *rest, x))[0]
        return jnp.sum(jnp.sin(y))

    got, want = (jax.grad(functools.partial(total, f), (0, 1)) for f in (read.call, function))
    properties.same(got(params, x), want(params, x), rtol=1e-3, atol=1e-3)


def with_modes(cases):
    """Each case in both modes; in one where it keeps no statistics, and both are one program."""
    return {
        f"{name}-{mode}": (given, mode)
        for name, given in cases.items()
        for mode in ("batch", "running")
        if mode == "batch" or getattr(given, "norm", given).stateful
    }


@pytest.mark.parametrize(
    ("sample", "mode"), few(with_modes(SAMPLES), *(f"{name}-batch" for name in FEW))
)
def test_a_norm_with_a_free_batch(sample, mode):
    params, state, _ = check.started(sample)
    apply = jax.jit(lambda p, s, x: sample.norm.apply(p, s, x, stats=mode))
    if sample.cuts_batch and mode == "batch":
        with pytest.raises(ValueError, match="whose size is the symbol b: export it with a batch"):
            again(apply, params, state, symbol(sample.shape))
        return
    read = again(apply, params, state, symbol(sample.shape))
    agree(read, apply, params, (state,), *inputs(sample.shape))


@pytest.mark.slow
@pytest.mark.parametrize(
    "sample",
    [s for s in SAMPLES.values() if s.name in FEW or s.cuts_batch or is_kernel(s)],
    ids=lambda s: s.name,
)
def test_a_norm_with_a_known_batch(sample):
    """Above all what a free one does without: parts of the batch, and kernels."""
    params, state, x = check.started(sample)
    apply = jax.jit(lambda p, s, x: sample.norm.apply(p, s, x, stats="batch"))
    # A kernel for a GPU is lowered with newer JAX only where one is.
    kernel = is_kernel(sample)
    platforms = ("cpu", "tpu") if kernel else PLATFORMS
    agree(again(apply, params, state, x, platforms=platforms), apply, params, (state,), x)


@pytest.mark.parametrize(("layer", "mode"), few(with_modes(LAYERS), "bn_lstm-batch"))
def test_a_layer_with_a_free_batch(layer, mode):
    params, state = layer.init(jax.random.key(0), 3)
    apply = jax.jit(lambda p, s, x: layer.apply(p, s, x, stats=mode))
    read = again(apply, params, state, symbol((4, 5, 3)))
    agree(read, apply, params, (state,), *inputs((4, 5, 3)))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lstm", "gru", "ln_lstm"])
def test_a_layer_with_a_free_batch_and_time(name):
    """Where no step has statistics of its own."""
    layer = LAYERS[name]
    params, state = layer.init(jax.random.key(0), 3)
    apply = jax.jit(lambda p, s, x: layer.apply(p, s, x, stats="running"))
    read = again(apply, params, state, symbol((4, 5, 3), "b, t"))
    agree(read, apply, params, (state,), *(*inputs((4, 5, 3)), *inputs((2, 9, 3))))


@pytest.mark.parametrize("name", few([*DROP_INS], "BatchNorm", "GroupNorm"))
def test_a_drop_in_of_linen_with_a_free_batch(name):
    module = getattr(linen, name)(**DROP_INS[name])
    variables = module.init(jax.random.key(0), jnp.zeros((4, 3, 6)))
    apply = jax.jit(lambda v, x: module.apply(v, x, mutable=["batch_stats"])[0])
    read = again(apply, variables, symbol((4, 3, 6)))
    for x in inputs((4, 3, 6)):
        properties.same(read.call(variables, x), apply(variables, x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", few([*DROP_INS], "BatchNorm", "LayerNorm"))
def test_a_drop_in_of_nnx_with_a_free_batch(name):
    options = {} if name == "BatchNorm" else DROP_INS[name]
    graph, leaves = flax.nnx.split(getattr(nnx, name)(6, **options, rngs=flax.nnx.Rngs(0)))
    pure = flax.nnx.to_pure_dict(leaves)

    def apply(values, x):
        return flax.nnx.merge(graph, values)(x)

    read = again(apply, pure, symbol((4, 3, 6)))
    for x in inputs((4, 3, 6)):
        properties.same(read.call(pure, x), apply(pure, x), rtol=1e-5, atol=1e-5)


def test_programs_for_accelerators_hold_no_rule_of_a_cpu(monkeypatch):
    """Whose formulas for large arrays have barriers, and branch; here of arrays of any size."""
    monkeypatch.setattr(_large, "MIN_SIZE", 0)
    for norm in (nj.layer_norm(), nj.batch_norm(), nj.group_norm(groups=2)):
        params, state = norm.init((4, 3, 6))

        def loss(params, x, norm=norm, state=state):
            return jnp.sum(norm.apply(params, state, x, stats="batch")[0] ** 2)

        grad = jax.jit(jax.grad(loss, (0, 1)))
        texts = [
            export.export(grad, platforms=p)(params, jnp.ones((4, 3, 6))).mlir_module()
            for p in (("cpu",), ("cuda",), ("tpu",), ("cuda", "tpu"))
        ]
        assert ["optimization_barrier" in text for text in texts] == [True, False, False, False]
        assert ["stablehlo.case" in text for text in texts[:3]] == [True, False, False]


NAMES = {
    nj.Moments: "normjax.Moments",
    nj.Running: "normjax.Running",
    nj.Affine: "normjax.Affine",
    recurrent.LSTMCarry: "normjax.LSTMCarry",
}


def test_files_keep_the_names_of_types():
    """Files that were written before hold them."""
    for cls, name in NAMES.items():
        made = export.export(jax.jit(lambda t: t))(cls(*(jnp.ones(2) for _ in cls._fields)))
        assert name.encode() in made.serialize()


@pytest.mark.slow
def test_states_that_accumulate_or_compensate_travel_too():
    norm = nj.batch_norm(compensated=True)
    params, state = norm.init((4, 6))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 6)), jnp.float32)
    apply = jax.jit(lambda p, s, x: norm.apply(p, s, x, stats="batch"))
    for s in (state, nj.accumulate_statistics(state)):
        read = again(apply, params, s, symbol((4, 6)))
        properties.same(read.call(params, s, x), apply(params, s, x), rtol=1e-5, atol=1e-5)
