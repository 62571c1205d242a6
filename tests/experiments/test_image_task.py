"""The image task of experiments/tasks/image.py, and the claims that are built on it."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.mlp_cnn import _protocol
from experiments import tasks
from experiments.config import validate
from experiments.data import splits
from experiments.ledger import registry
from experiments.runtime import step
from experiments.tasks import Batch, image
from experiments.usage import UsageError

CLAIMS = [n for n, (path, _) in registry.files().items() if path.parent.name == "mlp_cnn"]
BN = {"name": "batch_norm"}


def make_split(examples=6, side=8, seed=0):
    draw = np.random.RandomState(seed)
    pixels = draw.randint(0, 256, (examples, side, side, 1)).astype(np.float32)
    return splits.Split(jnp.asarray(pixels), jnp.asarray(draw.randint(0, 10, examples)))


def make_task(arch="lenet", **model):
    """A tiny classifier of 8 x 8 images."""
    model = {**image.DEFAULTS, "arch": arch, "hidden": 6, "channels": 3, "kernel": 2, **model}
    order = tuple(model["order"])
    layers = image.layers({**model, "order": order}, (8, 8, 1))
    first = model.pop("first", None)
    return image.ImageClassifier(
        layers, 10, 255.0, model["activation"], order, model["dropout"], first=first
    )


def close(a, b, rtol=1e-5, atol=1e-6):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), a, b)


@pytest.mark.parametrize("number", CLAIMS)
def test_every_arm_resolves_to_a_task_that_can_be_a_static_argument(number):
    study = registry.module(number)
    split = make_split(4, side=14)
    dataset = splits.Dataset(split, split, split, 255.0, 10)
    for arm in study.GROUP.arms if registry.trains(study) else ():
        config = validate.check(study.get_config(arm))
        assert config["name"] == arm
        task = tasks.build(config, dataset)
        assert task == tasks.build(config, dataset) and hash(task) is not None


def test_lenet_has_the_published_number_of_parameters():
    """6@5x5, 16@5x5, 120, 84, 10 on 28 x 28 (LeCun et al. 1998, without its sparse maps)."""
    model = {**image.DEFAULTS, "arch": "lenet", "hidden": 120, "channels": 6, "kernel": 5}
    task = image.ImageClassifier(
        image.layers(model, (28, 28, 1)), 10, 255.0, "tanh", model["order"]
    )
    params, _ = jax.eval_shape(task.init, jax.random.key(0))
    assert sum(x.size for x in jax.tree.leaves(params)) == 44_426


@pytest.mark.parametrize(
    "model",
    [
        {"norm_conv": BN, "norm_dense": BN},
        pytest.param(
            {"norm_conv": {"name": "group_norm", "groups": 1}, "order": ("act", "norm")},
            marks=pytest.mark.slow,
        ),
        {"norm_conv": {"name": "batch_norm", "axes": 0}, "weight": {"name": "weight_norm"}},
    ],
    ids=["bn", "gn", "bn of each activation, wn"],
)
def test_padding_enters_no_sum_and_no_statistic(model):
    task, split = make_task(**model), make_split()
    params, norm = task.init(jax.random.key(0))
    rotten = split._replace(pixels=split.pixels.at[4:].set(jnp.nan))
    weight = jnp.array([1.0, 1, 1, 1, 0, 0])

    def loss(params, examples, weight):
        scores, new = task(params, norm, Batch(examples, weight), stats="batch")
        return scores.loss, (scores, new)

    grad = jax.jit(jax.grad(loss, has_aux=True))
    padded = grad(params, rotten, weight)
    whole = grad(params, splits.take(split, slice(0, 4)), None)
    # The gradient of a bias in front of a batch norm is 0 but for rounding, which differs with the
    # order of its 196 terms: 2e-6 on one processor, where the kernel's gradient is 2.6.
    close(padded[0], whole[0], atol=5e-6)
    close(padded[1], whole[1])
    assert padded[1][0].count == 4
    if jax.tree.leaves(norm):
        assert not np.allclose(padded[1][1]["0"]["norm"].mean, norm["0"]["norm"].mean)


def test_statistics_and_sums_over_a_device_axis_are_those_of_the_whole_batch():
    task, split = make_task(norm_conv=BN, norm_dense=BN), make_split()
    params, norm = task.init(jax.random.key(0))

    def scores(examples, axis_name=None):
        how = {"stats": "batch", "train": True, "axis_name": axis_name}
        return task(params, norm, Batch(examples), **how)

    parts = jax.tree.map(lambda x: x.reshape(2, 3, *x.shape[1:]), split)
    over = jax.vmap(lambda b: scores(b, "devices"), axis_name="devices")
    sums, states = jax.jit(over)(parts)
    total, last = jax.tree.map(lambda x: x.sum(0), sums), jax.tree.map(lambda x: x[1], states)
    close((total, last), jax.jit(scores)(split))


def test_members_trained_side_by_side_are_those_trained_alone():
    """`update` under vmap over seeds and learning rates."""
    task = make_task("mlp", norm_dense=BN, dropout=0.2)
    config = validate.check(_protocol.lenet("bn", steps=20))
    optim, _ = step.static(config["optim"])
    tx, split = step.optimizer(config["optim"]), make_split(12)
    runs = [step.start(task, tx, {**config, "seed": seed})["now"] for seed in (1, 2)]
    index = jnp.arange(12).reshape(2, 6)
    rates = jnp.array([0.1, 0.3])

    def update(now, index, rate):
        return step.update(now, split, index, None, rate, task=task, optim=optim)

    together = jax.jit(jax.vmap(update))(jax.tree.map(lambda *x: jnp.stack(x), *runs), index, rates)
    alone = jax.jit(update)(runs[1], index[1], rates[1])
    for part in ("params", "norm", "window"):
        close(jax.tree.map(lambda x: x[1], together[part]), alone[part], rtol=1e-4)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(alone[part]))


def test_dropout_of_the_last_hidden_layer_leaves_the_others_whole():
    config = _protocol.images("a", arch="mlp", hidden=6, dropout=0.5, dropout_last=True)
    dataset = splits.Dataset(*[make_split()] * 3, 255.0, 10)
    task = tasks.build(validate.check(config), dataset)
    assert [task.drops(i) for i in range(len(task.layers))] == [False, True]
    assert [make_task("mlp", dropout=0.5).drops(i) for i in (0, 1)] == [True, True]
    assert not make_task("mlp").drops(1)


def test_raw_bytes_reach_the_network_unscaled():
    dataset = splits.Dataset(*[make_split()] * 3, 255.0, 10)
    for raw, white in ((True, 1.0), (False, 255.0)):
        config = validate.check(_protocol.images("a", arch="mlp", hidden=6, raw=raw))
        assert tasks.build(config, dataset).white == white


@pytest.mark.parametrize("order", [("dropout", "norm", "act"), ("norm", "act", "dropout")])
def test_dropout_is_drawn_in_training_alone(order):
    task, split = make_task("mlp", norm_dense=BN, dropout=0.5, order=order), make_split()
    params, norm = task.init(jax.random.key(0))

    @functools.partial(jax.jit, static_argnums=0)
    def loss(train, seed):
        batch = Batch(split, key=jax.random.key(seed))
        return task(params, norm, batch, stats="batch", train=train)[0].loss

    assert loss(False, 0) == loss(False, 1)
    assert loss(True, 0) != loss(True, 1)


def test_data_dependent_initialization_makes_preactivations_standard():
    split = make_split(50)
    task = make_task(weight={"name": "weight_norm"}, first=np.asarray(split.pixels))
    params, norm = task.init(jax.random.key(0))
    x = split.pixels / 255
    for i, layer in enumerate(task.layers):
        y = np.asarray(layer.linear(params[str(i)], norm[str(i)], x, "batch"))
        axes = tuple(range(y.ndim - 1))
        np.testing.assert_allclose(y.mean(axes), 0, atol=1e-4)
        np.testing.assert_allclose(y.std(axes), 1, rtol=1e-3)
        x = image.pool(jnp.tanh(y))


def test_frozen_statistics_stay_as_they_are():
    model = {**image.DEFAULTS, "hidden": 6, "norm_dense": BN}
    layers = image.layers(model, (8, 8, 1))
    task = image.ImageClassifier(layers, 10, 255.0, "relu", model["order"], frozen=True)
    params, norm = task.init(jax.random.key(0))
    _, new = task(params, norm, Batch(make_split()), stats="batch", train=True)
    close(new, norm, rtol=0, atol=0)
    _, new = task(params, norm, Batch(make_split()), stats="batch", train=False)
    assert not np.allclose(new["0"]["norm"].mean, norm["0"]["norm"].mean)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model.archs", "mlp", "Did you mean 'arch'?"),
        ("model.activation", "rely", "Did you mean 'relu'?"),
        ("model.order", ("norm",), "names each step once at most, and 'act'"),
        ("model.kernel", 7, "leaves nothing of 14 x 14 pixels"),
        ("model.norm_dense.name", "bach_norm", "Did you mean 'batch_norm'?"),
        ("model.weight.name", "cosine_dense", "arch='mlp'"),
        ("model.data_init", True, "needs weight.name='weight_norm'"),
        ("model.dropout", 1.0, "must be in [0, 1)"),
        ("data.layout", "rows", "known: images"),
    ],
)
def test_check_says_what_to_write_instead(key, value, message):
    config = _protocol.lenet("bn", norm_dense=BN, weight={"name": "none"})
    at, _, last = key.rpartition(".")
    place = config
    for name in at.split("."):
        place = place[name]
    with config.unlocked():
        place[last] = value
    with pytest.raises(UsageError) as error:
        validate.check(config)
    assert message in str(error.value)


@pytest.mark.parametrize("seed", range(3))
def test_gradients_through_pools_are_finite_however_xla_rounds(seed):
    """Where XLA computed a pool's input twice, rounded otherwise, the gradient was 0 / 0."""
    draw = np.random.default_rng(0)
    pixels = jnp.asarray(draw.integers(0, 256, (64, 8, 8, 3)), jnp.float32)
    split = splits.Split(pixels, jnp.asarray(draw.integers(0, 4, 64)))
    model = {**image.DEFAULTS, "arch": "lenet", "hidden": 120, "kernel": 2, "activation": "relu"}
    model |= {"norm_conv": BN, "norm_dense": BN, "order": tuple(image.DEFAULTS["order"])}
    task = image.ImageClassifier(image.layers(model, (8, 8, 3)), 4, 255.0, "relu", model["order"])
    params, norm = task.init(jax.random.key(seed))

    def loss(params):
        return task(params, norm, Batch(split), stats="batch", train=True)[0].loss

    for path, grad in jax.tree.leaves_with_path(jax.jit(jax.grad(loss))(params)):
        assert jnp.isfinite(grad).all(), path


def test_a_pool_takes_the_larger_and_nan_and_its_gradient_goes_there():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 7, 3)), jnp.float32)
    want = np.asarray(x)[:, :4, :6].reshape(2, 2, 2, 3, 2, 3).max((2, 4))
    np.testing.assert_array_equal(image.pool(x), want)
    grad = jax.grad(lambda x: image.pool(x).sum())(x)
    assert float(grad.sum()) == want.size and set(np.unique(grad)) == {0.0, 1.0}
    assert (np.asarray(x)[np.asarray(grad) == 1].reshape(-1).sum() - want.sum()) < 1e-5
    for at in np.ndindex(2, 2):
        assert jnp.isnan(image.pool(x.at[0, at[0], at[1], 0].set(jnp.nan))[0, 0, 0, 0])
