"""How a run trains: optimizers, schedules, decay, label smoothing, averages, microbatches."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import normjax
from configs.mlp_cnn import _protocol
from experiments import tasks
from experiments.config import validate
from experiments.runtime import accumulate, optim, parallel, step
from experiments.tasks import Batch, cross_entropy
from experiments.tasks.sequence import SequenceClassifier
from experiments.usage import UsageError
from normjax import recurrent
from tests._support.few import few

from .test_image_task import close, make_split, make_task
from .test_models import make_data

BN = {"name": "batch_norm", "decay": 0.8}
PARAMS = {"w": {"kernel": jnp.array([[1.0, -2.0]]), "bias": jnp.array([3.0])}}
PARAMS |= {"norm": {"scale": jnp.array([1.5, 2.0])}, "other": {"nu": jnp.array([0.5])}}


def checked(**keys):
    """config.optim of a checked config with these keys."""
    return validate.check(with_keys(**keys))["optim"]


def with_keys(**keys):
    config = _protocol.lenet("bn", steps=100)
    config.optim.update(clip_norm=0.0, **keys)
    return config


@pytest.mark.parametrize("name", ["adamw", "lamb"])
def test_weight_decay_leaves_out_norms_and_biases(name):
    """With a gradient of 0 only decay moves a parameter."""
    keys = {"name": name, "weight_decay": 0.1, "learning_rate": 0.5, "eps": 1e-6}
    zero = jax.tree.map(jnp.zeros_like, PARAMS)

    def moved(**more):
        tx = optim.optimizer(checked(**keys, **more))
        updates, _ = tx.update(zero, tx.init(PARAMS), PARAMS)
        return jax.tree.map(lambda u: bool((u != 0).any()), updates), updates

    some, updates = moved()
    assert some["w"] == {"kernel": True, "bias": False}
    assert not some["norm"]["scale"] and not some["other"]["nu"]
    if name == "adamw":
        np.testing.assert_allclose(updates["w"]["kernel"], -0.05 * PARAMS["w"]["kernel"], rtol=1e-6)
    assert all(jax.tree.leaves(moved(decay_norms=True)[0]))
    words = optim.describe_decay(checked(**keys), PARAMS)
    assert "0.1 of 2 weights, not of 4 parameters of norms, biases" in words
    assert optim.describe_decay(checked(name="adam"), PARAMS) == ""


def test_nesterov_is_the_formula():
    """v = m v + g, w -= rate (g + m v) (Sutskever et al. 2013)."""
    tx = optim.optimizer(checked(name="sgd", momentum=0.9, nesterov=True, learning_rate=0.1))
    w, state, v, want = jnp.array([1.0]), tx.init(jnp.array([1.0])), 0.0, 1.0
    for _ in range(4):
        updates, state = tx.update(2 * w, state, w)
        w = w + updates
        g = 2 * want
        v = 0.9 * v + g
        want -= 0.1 * (g + 0.9 * v)
    np.testing.assert_allclose(w, want, rtol=1e-5)


def rates(steps, **keys):
    factor = optim.schedule(checked(schedule_steps=steps, **keys))
    return np.array([float(factor(t)) for t in range(steps)])


def test_schedules_are_their_formulas():
    t = np.arange(40)
    np.testing.assert_allclose(
        rates(40, schedule="cosine"), (1 + np.cos(np.pi * t / 40)) / 2, rtol=1e-5, atol=1e-7
    )
    ramp = np.minimum(t / 10, 1)
    warm = np.where(t < 10, ramp, 1 - (t - 10) / 30)
    np.testing.assert_allclose(rates(40, schedule="linear", warmup=10), warm, rtol=1e-5)
    steps = np.where(t < 20, 1, np.where(t < 30, 0.2, 0.04)) * np.where(t < 4, t / 4, 1)
    found = rates(40, schedule="step", factor=0.2, warmup=4)
    np.testing.assert_allclose(found, steps, rtol=1e-5)
    cycle = rates(40, schedule="one_cycle")
    assert cycle.argmax() == 12 and cycle.max() == pytest.approx(1)
    assert cycle[0] == pytest.approx(1 / 25) and cycle[-1] < 0.02
    assert optim.schedule(checked()) is None
    factor = optim.schedule(checked(warmup=5))
    assert [float(factor(t)) for t in (0, 1, 5, 50)] == pytest.approx([0, 0.2, 1, 1])


def test_the_length_of_a_schedule_is_that_of_the_run_and_stays():
    assert checked(schedule="cosine")["schedule_steps"] == 100
    assert checked(schedule="cosine", schedule_steps=70)["schedule_steps"] == 70
    assert checked()["schedule_steps"] == 0


def test_smoothed_labels_are_the_formula_and_for_training_alone():
    draw = np.random.RandomState(0)
    logits, labels = draw.normal(size=(5, 4)), draw.randint(0, 4, 5)
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    target = 0.9 * np.eye(4)[labels] + 0.1 / 4
    want = -(target * np.log(p)).sum()
    args = jnp.asarray(logits, jnp.float32), jnp.asarray(labels)
    np.testing.assert_allclose(cross_entropy(*args, smoothing=0.1).loss, want, rtol=1e-5)
    config = validate.check(with_keys(label_smoothing=0.1))
    split = make_split(side=14)
    task = tasks.build(config, tasks_dataset(split))
    params, norm = task.init(jax.random.key(0))
    plain = tasks.build(validate.check(with_keys()), tasks_dataset(split))

    def loss(task, train):
        return task(params, norm, Batch(split), stats="batch", train=train)[0].loss

    assert loss(task, False) == loss(plain, False)
    assert loss(task, True) > loss(plain, True)


def tasks_dataset(split):
    from experiments.data import splits

    return splits.Dataset(split, split, split, 255.0, 10)


def test_the_average_of_parameters_is_the_formula_and_is_what_is_scored():
    task, split = make_task("mlp", norm_dense=BN), make_split(12)
    config = validate.check({**with_keys(ema=0.5).to_dict(), "seed": 1})
    constants, rate = step.static(config["optim"])
    now = step.start(task, step.optimizer(config["optim"]), config)["now"]
    start = jax.tree.map(np.float64, now["params"])
    want, index = start, jnp.arange(12)
    take = jax.jit(functools.partial(step.update, task=task, optim=constants))
    for t in range(5):
        now = take(now, split, index, None, rate)
        d = min(0.5, (1 + t) / (10 + t))
        want = jax.tree.map(lambda e, w, d=d: d * e + (1 - d) * np.float64(w), want, now["params"])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), now["ema"], want
    )
    scored = step.scored(now)
    assert scored["params"] is now["ema"] and scored["norm"] is now["norm"]
    assert step.scored({"params": 1, "norm": 2}) == {"params": 1, "norm": 2}


def gradients(task, params, norm, batch, parts):
    micro = accumulate.microbatches(parts, task) if parts > 1 else None
    run = jax.jit(lambda p, n, b: parallel.gradients(task, p, n, b, parallel.SINGLE, micro))
    return run(params, norm, batch)


@pytest.mark.parametrize("weighted", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize(
    "options",
    few(
        {
            "plain": {},
            "debias": {"debias": True},
            "warmup": {"debias": "warmup"},
            "correction": {"correction": 1},
            "all": {"debias": "warmup", "correction": 1, "compensated": True},
        },
        "plain",
        "all",
    ),
)
def test_microbatches_move_statistics_as_the_whole_batch(weighted, options):
    """The first norm's inputs are the same: its averages too. Later ones see other inputs."""
    task, split = make_task("mlp", norm_dense=BN | options), make_split(12)
    params, norm = task.init(jax.random.key(0))
    weight = jnp.array([1.0] * 10 + [0.0] * 2) if weighted else None
    whole = parts = (None, None, norm)
    for step_ in range(3):
        rows = jax.tree.map(lambda x: jnp.roll(x, step_, 0) // (1 + step_), split)  # noqa: B023
        batch = Batch(rows, weight, jax.random.key(1))
        whole = gradients(task, params, whole[2], batch, 1)
        parts = gradients(task, params, parts[2], batch, 3)
    close(parts[2]["0"]["norm"], whole[2]["0"]["norm"], 1e-5, 1e-7)
    assert parts[1].count == (10 if weighted else 12)
    assert jax.tree.structure(parts[2]) == jax.tree.structure(norm)


@pytest.mark.parametrize(
    "debias", few({"warmup": "warmup", "True": True, "False": False}, "warmup")
)
def test_microbatches_move_the_statistics_of_each_time_step(debias):
    """Those that see what the whole batch gives: of the inputs, and of the first hidden state."""
    bn = recurrent.per_step(normjax.batch_norm(decay=0.8, debias=debias), max_steps=7)
    task = SequenceClassifier(recurrent.lstm(4, norm_x=bn, norm_h=bn), classes=4, features=3)
    split = make_data("sequence", 12).train
    params, norm = task.init(jax.random.key(0))
    whole = parts = (None, None, norm)
    for i in range(3):
        rows = split._replace(x=split.x * (i + 1))
        batch = Batch(rows, None, jax.random.key(1))
        whole = gradients(task, params, whole[2], batch, 1)
        parts = gradients(task, params, parts[2], batch, 3)
    close(parts[2]["norm_x"], whole[2]["norm_x"], 1e-5, 1e-7)
    first = [jax.tree.map(lambda s: s[0], run[2]["norm_h"]) for run in (parts, whole)]
    close(*first, 1e-5, 1e-7)
    assert jax.tree.structure(parts[2]) == jax.tree.structure(norm)


def test_microbatches_without_batch_statistics_have_the_gradient_of_the_whole_batch():
    task, split = make_task("mlp", norm_dense={"name": "layer_norm"}), make_split(12)
    params, norm = task.init(jax.random.key(0))
    weight = jnp.array([1.0] * 9 + [0.0] * 3)
    batch = Batch(split, weight, jax.random.key(1))
    whole, parts = (gradients(task, params, norm, batch, n) for n in (1, 4))
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)  # noqa: E731
    jax.tree.map(close, (whole[0], whole[3]), (parts[0], parts[3]))


def test_microbatches_of_batch_norm_have_the_mean_of_their_gradients():
    """Each is a batch of its own, of every third row, with statistics of its own."""
    task, split = make_task("mlp", norm_dense=BN), make_split(12)
    params, norm = task.init(jax.random.key(0))
    _, _, _, found = gradients(task, params, norm, Batch(split, None, jax.random.key(1)), 3)
    each = []
    for i in range(3):
        part = jax.tree.map(lambda x, i=i: x[i::3], split)
        each.append(gradients(task, params, norm, Batch(part, None, jax.random.key(1)), 1)[3])
    want = jax.tree.map(lambda *g: np.mean([np.float64(x) for x in g], 0), *each)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), found, want)


def test_norms_of_unlike_decay_are_refused_with_microbatches():
    """Or of unlike correction; one that stores no spread has none."""
    task = make_task("lenet", norm_conv=BN, norm_dense={"name": "batch_norm", "decay": 0.7})
    with pytest.raises(UsageError, match=r"norms have 0\.7, 0\.8; write the same decay"):
        accumulate.microbatches(2, task)
    task = make_task("lenet", norm_conv=BN, norm_dense={**BN, "correction": 1})
    with pytest.raises(UsageError, match=r"norms have 0, 1; write the same correction"):
        accumulate.microbatches(2, task)
    mean_only = {"name": "mean_only_batch_norm", "decay": 0.8}
    task = make_task("lenet", norm_conv={**BN, "correction": 1}, norm_dense=mean_only)
    assert accumulate.microbatches(2, task) == (2, 0.8, 1)
    assert accumulate.microbatches(2, make_task("lenet", norm_dense=mean_only)) == (2, 0.8, 0)
    assert accumulate.microbatches(2, make_task("mlp")) == (2, None, 0)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"name": "adamw", "schedule": "cosin"}, "Did you mean 'cosine'?"),
        ({"name": "sgd", "weight_decay": 0.1}, "write config.optim.l2=0.1"),
        ({"name": "sgd", "nesterov": True}, "write config.optim.momentum=0.9"),
        ({"name": "sgd", "b2": 0.9}, "b2 is for adam, adamw, lamb"),
        ({"name": "adamw", "decay_norms": True}, "needs config.optim.weight_decay"),
        ({"schedule_steps": 10}, "write config.optim.schedule='cosine'"),
        ({"schedule": "cosine", "warmup": 100}, "must be less than the schedule's 100 steps"),
        ({"schedule": "step", "drops": "0.5;0.7"}, "write config.optim.drops=0.5,0.75"),
        ({"schedule": "step", "warmup": 60}, "begins within the warm-up"),
        ({"accumulate": 3}, "must divide config.batch_size"),
        ({"ema": 1.0}, "config.optim.ema=1.0 must be"),
    ],
)
def test_check_says_what_to_write_instead(keys, message):
    with pytest.raises(UsageError) as error:
        checked(**keys)
    assert message in str(error.value)
