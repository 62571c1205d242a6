"""The generating task of experiments/tasks/generate.py."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.mlp_cnn import _protocol
from experiments import tasks
from experiments.config import validate
from experiments.config.models import NormConfig
from experiments.data import splits
from experiments.models import Call
from experiments.tasks import Batch, generate
from experiments.usage import UsageError

BN = {"name": "batch_norm"}


def make_split(examples=6):
    draw = np.random.RandomState(0)
    pixels = draw.randint(0, 256, (examples, 8, 8, 1)).astype(np.float32)
    return splits.Split(jnp.asarray(pixels), jnp.zeros(examples, jnp.int32))


def make_task(goal, norm):
    return generate.Generator(goal, 5, 2, 8, 255.0, NormConfig.parse(norm).build())


def close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), a, b)


@pytest.mark.slow
@pytest.mark.parametrize(("goal", "norm"), [("copy", BN), ("style", {"name": "instance_norm"})])
def test_padding_enters_no_sum_no_statistic_and_no_gradient(goal, norm):
    task, split = make_task(goal, norm), make_split()
    params, state = task.init(jax.random.key(0))
    rotten = split._replace(pixels=split.pixels.at[4:].set(jnp.nan))

    def loss(params, examples, weight):
        batch = Batch(examples, weight)
        scores, new = task(params, state, batch, stats="batch", train=True)
        return scores.loss, (scores, new)

    grad = jax.jit(jax.grad(loss, has_aux=True))
    padded = grad(params, rotten, jnp.array([1.0, 1, 1, 1, 0, 0]))
    close(padded, grad(params, splits.take(split, slice(0, 4)), None))
    assert padded[1][0].count == 4 and padded[1][0].correct == 0
    if goal == "copy":
        assert not np.allclose(padded[1][1]["down"].mean, state["down"].mean)


@pytest.mark.slow
def test_statistics_and_sums_over_a_device_axis_are_those_of_the_whole_batch():
    task, split = make_task("copy", BN), make_split()
    params, state = task.init(jax.random.key(0))

    def scores(examples, axis_name=None):
        how = {"stats": "batch", "train": True, "axis_name": axis_name}
        return task(params, state, Batch(examples), **how)

    parts = jax.tree.map(lambda x: x.reshape(2, 3, *x.shape[1:]), split)
    sums, states = jax.jit(jax.vmap(lambda b: scores(b, "devices"), axis_name="devices"))(parts)
    total, last = jax.tree.map(lambda x: x.sum(0), sums), jax.tree.map(lambda x: x[1], states)
    close((total, last), jax.jit(scores)(split))


def test_a_copy_goes_through_its_code_and_its_loss_is_the_squared_error():
    task, split = make_task("copy", {"name": "none"}), make_split()
    params, state = task.init(jax.random.key(0))
    x = split.pixels / 255
    y, _ = task.images(params, state, x, Call("running"))
    assert y.shape == x.shape and params["code"]["kernel"].shape == (2 * 2 * 4, 5)
    scores, _ = task(params, state, Batch(split), stats="running")
    want = np.square(np.asarray(y, np.float64) - np.asarray(x, np.float64)).mean() * len(x)
    np.testing.assert_allclose(scores.loss, want, rtol=1e-5)
    shut = jax.tree.map(jnp.zeros_like, params["code"])
    same, _ = task.images({**params, "code": shut}, state, x, Call("running"))
    close(same, jnp.broadcast_to(same[:1], same.shape))  # nothing goes around it


def test_the_loss_of_style_vanishes_for_the_picture_and_is_what_numpy_says():
    s, x = generate.stripes(8), np.asarray(make_split(2).pixels) / 255
    np.testing.assert_allclose(generate.style_loss(s, s, 3.0), 0, atol=1e-6)
    f_x, f_s = (
        [np.asarray(f, np.float64) for f in generate.features(jnp.asarray(v))] for v in (x, s)
    )

    def products(f):
        flat = f.reshape(len(f), -1, f.shape[-1])
        return flat.transpose(0, 2, 1) @ flat / flat.shape[1]

    want = 0.0
    for a, b in zip(f_x, f_s, strict=True):
        want += 2.0 * ((products(a) - products(b)) ** 2).sum((1, 2)) / (products(b) ** 2).sum()
    np.testing.assert_allclose(generate.style_loss(x, x, 2.0), want, rtol=1e-4)
    content = ((f_s[1] - f_x[1]) ** 2).sum((1, 2, 3)) / (f_s[1] ** 2).sum()
    np.testing.assert_allclose(
        generate.style_loss(jnp.broadcast_to(s, x.shape), x, 2.0), content, rtol=1e-4
    )


def config_of(**changes):
    config = _protocol.images("bn", goal="copy", hidden=32, norm=BN)
    config.task, config.data.side = "generate", 28
    with config.unlocked():
        config.update_from_flattened_dict(changes)
    return config


def test_a_config_builds_a_task_that_can_be_a_static_argument():
    split = make_split(2)
    dataset = splits.Dataset(split, split, split, 255.0, 10)
    task, again = (tasks.build(validate.check(config_of()), dataset) for _ in range(2))
    assert task == again and hash(task) is not None and task.side == 8


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model.goals", "copy", "Did you mean 'goal'?"),
        ("model.goal", "stile", "Did you mean 'style'?"),
        ("model.norm.name", "bach_norm", "Did you mean 'batch_norm'?"),
        ("model.channels", 0, "must be an integer at least 1"),
        ("select", "accuracy", "write config.select='loss'"),
        ("data.side", 14, "cannot be halved twice; write config.data.side=28"),
        ("data.layout", "rows", "known: images"),
    ],
)
def test_check_says_what_to_write_instead(key, value, message):
    with pytest.raises(UsageError) as error:
        validate.check(config_of(**{key: value}))
    assert message in str(error.value)
