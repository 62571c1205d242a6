"""Hints for what users of Flax and PyTorch write: `normjax/_internal/_hints.py`."""

from __future__ import annotations

import inspect
import pickle
import re

import flax.core
import jax
import jax.numpy as jnp
import pytest

import normjax as nj
from normjax import recurrent
from normjax._internal import _hints
from tests.conftest import unchecked

FACTORIES = [
    getattr(home, name)
    for home in (nj, recurrent)
    for name in home.__all__
    if getattr(getattr(home, name), "__annotations__", {}).get("return")
    in ("Norm", "Reparam", "CosineDense", "Recurrent", "Layer", "SeqNorm", "dict[str, Recurrent]")
]


def taken(make):
    """Names of what a factory takes, those of the cell that its options go to among them."""
    own = set(inspect.signature(make).parameters)
    if "options" not in own:
        return own
    cell = next(cell for cell in ("gru", "lstm", "rnn") if cell in make.__name__)
    return own | taken(getattr(recurrent, cell))


MADE = [
    (
        "batch_norm",
        {"momentum": 0.9},
        "batch_norm() has no argument 'momentum': write decay=0.9 fo",
    ),
    ("batch_norm", {"momentum": 0.9}, "and decay=0.1 for PyTorch's"),
    ("batch_norm", {"momentum": None}, "PyTorch's momentum is 1 - decay"),
    ("batch_norm", {"affine": False}, "write use_scale=False, use_bias=False"),
    ("batch_norm", {"track_running_stats": False}, "ignoring the state that apply returns"),
    ("batch_norm", {"use_running_average": True}, 'write apply(…, stats="running"), at each call'),
    ("batch_norm", {"axis_name": "i"}, "write apply(…, axis_name='i'), at each call"),
    (
        "batch_norm",
        {"decya": 1.0},
        "(did you mean 'decay'?): it takes axes, eps, decay, correction",
    ),
    (
        "batch_norm",
        {"num_features": 3, "epsilon": 1.0},
        "(1, features)); batch_norm() has no argum",
    ),
    ("layer_norm", {"epsilon": 1e-5}, "layer_norm() has no argument 'epsilon': write eps=1e-05"),
    ("layer_norm", {"elementwise_affine": False}, "write use_scale=False, use_bias=False"),
    ("layer_norm", {"axis_name": "i"}, "write feature_axis_name='i' where the features are split"),
    ("layer_norm", {"dtype": jnp.float32}, "write init(shape, dtype)"),
    ("l2_norm", {"affine": True}, "write use_scale=True"),
    ("scale_norm", {"use_bias": False}, "'use_bias': it takes axes, eps, scale_init"),
    ("group_norm", {"num_groups": 8}, "write groups=8"),
    ("spectral_norm", {"n_power_iterations": 2}, "write iterations=2"),
]
LAYERS = [
    ("lstm", {"hidden_size": 4}, "lstm() has no argument 'hidden_size': write hidden=4"),
    ("lstm", {"hidden": 4, "use_bias": False}, "for example norm_x=layer_norm(use_bias=False)"),
    ("lstm", {"hidden": 4, "batch_first": True}, "write time_major=False"),
    ("lstm", {"hidden": 4, "num_layers": 2}, "write recurrent.stack([layer] * 2)"),
    (
        "bn_lstm",
        {"hidden": 4, "max_steps": 5, "momentum": 0.9},
        "bn_lstm() has no argument 'moment",
    ),
    ("bn_lstm", {"hidden": 4, "max_steps": 5, "momentum": 0.9}, "write decay=0.9"),
    (
        "ln_gru",
        {"hidden": 4, "norm_c": 5},
        "ln_gru() has no argument 'norm_c' (did you mean 'norm_",
    ),
    ("deep_speech_rnn", {"hidden": 4, "nonlinearity": "relu"}, "it takes hidden, max_steps, eps"),
]


@pytest.mark.parametrize(
    ("make", "keywords", "message"),
    [(getattr(nj, n), *rest) for n, *rest in MADE]
    + [(getattr(recurrent, n), *rest) for n, *rest in LAYERS],
)
def test_a_factory_says_what_to_write(make, keywords, message):
    with pytest.raises(TypeError, match=re.escape(message)):
        make(**keywords)


def test_norms_stacks_pairs_and_wrapped_layers_say_it_in_init():
    norm = nj.batch_norm()
    with pytest.raises(TypeError, match=r"batch_norm\(…\).init\(\) .*: write key=…"):
        norm.init((1, 3), rngs={})
    cell = recurrent.lstm(4)
    for layer in (recurrent.stack([cell]), recurrent.bidirectional(cell), recurrent.wn_lstm(4)):
        with pytest.raises(
            TypeError, match=r"\(…\).init\(\) has no argument 'feature' \(did you m"
        ):
            layer.init(jax.random.key(0), feature=3)


@pytest.mark.parametrize("make", FACTORIES, ids=lambda f: f.__name__)
def test_every_factory_has_an_answer_for_every_word(make):
    """Whatever the answer names as an argument is one, here or at the call it shows."""
    for word in {*_hints.HINTS, "no_such_word"} - taken(make):
        with pytest.raises(TypeError) as told:
            make(**{word: True})
        start, _, answer = str(told.value).partition(f" has no argument {word!r}")
        assert start == f"{make.__name__}()" and answer
        for name in re.findall(r"(\w+)=", re.sub(r"\w+\(.*?\)", "", answer)):
            assert name in taken(make), answer


def test_no_answer_is_idle():
    """Each fits some function of the library."""
    takes = [*map(_hints._arguments, FACTORIES)]
    takes += [_hints._arguments(f) for f in (nj.Norm.init, recurrent.Recurrent.init)]
    for word, answers in _hints.HINTS.items():
        for needed, _ in answers:
            fits = [known for known in takes if word not in known and {*needed.split()} <= {*known}]
            assert fits, (word, needed)


def test_signature_annotations_and_pickle_are_kept():
    parameters = inspect.signature(nj.batch_norm).parameters
    assert parameters["eps"].default == 1e-5 and parameters["eps"].kind.name == "KEYWORD_ONLY"
    assert nj.batch_norm.__annotations__["return"] == "Norm"
    assert nj.batch_norm.__doc__.startswith("Batch normalization")
    assert pickle.loads(pickle.dumps(recurrent.bn_lstm)) is recurrent.bn_lstm
    assert "lengths" in inspect.signature(recurrent.Recurrent.apply).parameters


def test_other_errors_of_type_pass():
    made = ValueError("why")

    @_hints.with_hints()
    def fails(x, eps=1.0):
        raise TypeError("inside") from made

    with pytest.raises(TypeError, match=r"^inside$") as found:
        fails(1, eps=2.0)
    assert found.value.__cause__ is made
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'x'"):
        fails(eps=2.0)


@pytest.mark.parametrize("norm", [nj.batch_norm(), nj.layer_norm(), nj.identity()], ids=repr)
def test_init_of_what_is_no_shape(norm):
    key, x = jax.random.key(0), jnp.ones((2, 5, 4))
    init = unchecked(type(norm).init)
    with pytest.raises(TypeError, match=rf"init of {norm.factory} takes .* write init\(\(1, 4\)\)"):
        init(norm, 4)
    for given in ((key, x), (jax.random.PRNGKey(0), x), (x,)):
        with pytest.raises(TypeError, match=r"takes the shape of x first .* write init\(x.shape\)"):
            init(norm, *given)
    with pytest.raises(TypeError, match=r"write init\(\(1, 4\)\)"):
        init(norm, shape=4)


@pytest.mark.parametrize("layer", [recurrent.lstm(4), nj.cosine_dense(4)], ids=lambda v: v.factory)
def test_init_of_a_layer_with_an_input(layer):
    init = unchecked(type(layer).init)
    for features in (jnp.ones((2, 5, 3)), (2, 5, 3)):
        with pytest.raises(TypeError, match=r"got features of shape .*write init\(key, x.shape"):
            init(layer, jax.random.key(0), features)


def test_a_size_or_anything_else_without_its_name():
    for factory in (nj.layer_norm, nj.batch_norm, nj.rms_norm):
        with pytest.raises(TypeError, match=r"takes arguments by name and was given 64: leave a"):
            factory(64)
    with pytest.raises(TypeError, match=r"group_norm\(\) .* was given 32: write groups=32$"):
        nj.group_norm(32)
    with pytest.raises(TypeError, match=r"was given …: leave a size out"):
        nj.layer_norm((4, 5))
    with pytest.raises(TypeError, match=r"was given 1e-06: it takes axes, .*eps"):
        nj.layer_norm(1e-6)


def test_weight_normed_params_in_a_plain_layer():
    params, _ = recurrent.wn_lstm(4).init(jax.random.key(0), 3)
    with pytest.raises(ValueError, match=r"w_x is a DirectionAndGain .* are applied by that layer"):
        recurrent.lstm(4).apply(params, {}, jnp.ones((2, 5, 3)), stats="batch")


@pytest.mark.parametrize("freeze", [dict, flax.core.freeze])
def test_the_variables_of_a_flax_module_are_refused(freeze):
    x = jnp.ones((4, 3))
    variables = freeze(
        {
            "params": {"scale": jnp.ones(3), "bias": jnp.zeros(3)},
            "batch_stats": {"mean": jnp.zeros(3), "var": jnp.ones(3)},
        }
    )
    norm = nj.batch_norm()
    _, state = norm.init((1, 3))
    want = (
        r"was given the variables of a Flax module.*write .*Affine\(\*\*variables\[\"params\"\]\)"
    )
    with pytest.raises(TypeError, match=want):
        norm.apply(variables, state, x, stats="running")
    # What it says works.
    params, state = nj.Affine(**variables["params"]), nj.Running(**variables["batch_stats"])
    norm.apply(params, state, x, stats="running")
    cell, xs = recurrent.gru(4), jnp.ones((2, 5, 3))
    for layer in (cell, recurrent.stack([cell]), recurrent.bidirectional(cell)):
        with pytest.raises(TypeError, match="was given the variables of a Flax module"):
            layer.apply(variables, {}, xs, stats="running")
