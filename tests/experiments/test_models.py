"""The networks of experiments/models as tasks: sizes, formulas, padding, devices, norms by name."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from configs.image_classification import fashion_mnist
from configs.language import characters
from configs.recurrent_bn import gru
from experiments import models, tasks
from experiments.config import defaults, validate
from experiments.config.models import build_layer
from experiments.data import splits
from experiments.data.sequences import Segments, Sequences
from experiments.models import lru
from experiments.runtime import step
from experiments.tasks import Batch
from experiments.usage import UsageError
from normjax import recurrent
from tests._support.few import few

BN = {"name": "batch_norm", "decay": 0.9}
LN, DYT = ({"name": name} for name in ("layer_norm", "dynamic_tanh"))
RMS = {"name": "rms_norm", "eps": 1e-6}


def make_config(task, **model):
    """A config of a task's data with this model alone."""
    config = defaults.default()
    config.task = task
    config.model = ml_collections.ConfigDict(model)
    if task == "image":
        config.data.layout = "images"
    if task == "language":
        config.dataset = "text"
    return config


def make_data(task, examples=6, seed=0):
    """Pictures [6, 8, 8, 2], sequences [6, 7, 3] with lengths, or text [6, 8] of 5 tokens."""
    draw = np.random.RandomState(seed)
    labels = jnp.asarray(draw.randint(0, 4, examples))
    if task == "image":
        pixels = jnp.asarray(draw.randint(0, 256, (examples, 8, 8, 2)).astype(np.float32))
        return splits.Dataset(*[splits.Split(pixels, labels)] * 3, 255.0, 4)
    if task == "language":
        return splits.Dataset(
            *[Segments(jnp.asarray(draw.randint(0, 5, (examples, 8))))] * 3, 1.0, 0, 5
        )
    x = jnp.asarray(draw.normal(size=(examples, 7, 3)), jnp.float32)
    lengths = jnp.asarray(draw.randint(2, 8, examples))
    return splits.Dataset(*[Sequences(x, lengths, labels)] * 3, 1.0, 4)


def make_task(task, examples=6, **model):
    """The task of a checked config, and a batch of its data."""
    data = make_data(task, examples)
    config = validate.check(make_config(task, **model))
    built = tasks.build(config, data)
    assert built == tasks.build(config, data) and hash(built) == hash(tasks.build(config, data))
    return built, data.train


def close(a, b, rtol=1e-4, atol=1e-5):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), a, b)


SMALL = {
    "resnet": {"depth": 8},
    "convnext": {"widths": (4, 6), "depths": (1, 1), "kernel": 3},
    "transformer": {"width": 8, "heads": 2, "depth": 1},
    "lru": {"width": 6, "states": 5, "depth": 1},
}
CASES = {
    "resnet": ("image", "resnet", {"norm": BN}),
    "resnet, pre": ("image", "resnet", {"norm": BN, "position": "pre", "shortcut": "conv"}),
    "convnext": ("image", "convnext", {"norm": BN}),
    "transformer": ("language", "transformer", {"norm": BN, "position": "sandwich"}),
    "classifier": ("sequence", "transformer", {"norm": BN, "norm_qk": BN, "position": "post"}),
    "lru": ("sequence", "lru", {"norm": BN, "position": "post"}),
}


def count(params):
    return sum(x.size for x in jax.tree.leaves(params))


def test_resnet_20_has_the_published_number_of_parameters():
    """0.27 million (He et al. 2016, table 6), with shortcuts that have none: 269,722."""
    model = models.build({"arch": "resnet"}, models.Data("image", (32, 32, 3), 10))
    params, state = jax.eval_shape(model.init, jax.random.key(0))
    assert count(params) == 269_722
    assert count(state) == 2 * (16 * 7 + 32 * 6 + 64 * 6)
    deeper = models.build({"arch": "resnet", "depth": 56}, models.Data("image", (32, 32, 3), 10))
    assert round(count(jax.eval_shape(deeper.init, jax.random.key(0))[0]) / 1e6, 2) == 0.85


@pytest.mark.parametrize("case", few([*CASES], "classifier", "lru"))
def test_padding_enters_no_sum_and_no_statistic(case):
    """Rows of weight 0, and steps after the end of a sequence, may hold anything."""
    kind, arch, model = CASES[case]
    task, split = make_task(kind, arch=arch, **SMALL[arch], **model)
    params, norm = task.init(jax.random.key(0))
    if kind == "image":
        rotten = split._replace(pixels=split.pixels.at[4:].set(jnp.nan))
    elif kind == "sequence":
        beyond = jnp.arange(7) >= split.lengths[:, None]
        x = jnp.where(beyond[..., None], jnp.nan, split.x)
        rotten = split._replace(x=x.at[4:].set(jnp.nan))
    else:
        rotten = split._replace(tokens=split.tokens.at[4:].set(0))
    weight = jnp.array([1.0, 1, 1, 1, 0, 0])

    def loss(params, examples, weight):
        scores, new = task(params, norm, Batch(examples, weight), stats="batch")
        return scores.loss, (scores, new)

    grad = jax.jit(jax.grad(loss, has_aux=True))
    padded = grad(params, rotten, weight)
    whole = grad(params, splits.take(split, slice(0, 4)), None)
    close(padded, whole)
    assert padded[1][0].count == (28 if kind == "language" else 4)
    assert jax.tree.structure(padded[1][1]) == jax.tree.structure(norm)
    pairs = zip(jax.tree.leaves(norm), jax.tree.leaves(padded[1][1]), strict=True)
    moved = [bool((a != b).any()) for a, b in pairs]
    assert all(moved) and moved


@pytest.mark.parametrize("case", few(["resnet", "classifier", "lru"], "classifier"))
def test_statistics_over_a_device_axis_are_those_of_the_whole_batch(case):
    kind, arch, model = CASES[case]
    task, split = make_task(kind, arch=arch, **SMALL[arch], **model)
    params, norm = task.init(jax.random.key(0))

    def scores(examples, axis_name=None):
        how = {"stats": "batch", "train": True, "axis_name": axis_name}
        return task(params, norm, Batch(examples), **how)

    parts = jax.tree.map(lambda x: x.reshape(2, 3, *x.shape[1:]), split)
    over = jax.vmap(lambda b: scores(b, "devices"), axis_name="devices")
    sums, states = jax.jit(over)(parts)
    total, last = jax.tree.map(lambda x: x.sum(0), sums), jax.tree.map(lambda x: x[1], states)
    close((total, last), jax.jit(scores)(split))


@pytest.mark.parametrize("case", few(["resnet", "lru"], "lru"))
def test_population_statistics_are_those_of_all_batches(case):
    """Of the first norm, whose inputs no other norm decides, computed in float64."""
    kind, arch, model = CASES[case]
    task, split = make_task(kind, arch=arch, **SMALL[arch], **(model | {"position": "post"}))
    params, norm = task.init(jax.random.key(0))
    args = {"task": task, "how": "pooled", "batch_size": 4}  # the second batch is padded
    exact = step.population(params, norm, split, **args)
    x, mask = task.inputs(Batch(split))
    if case == "resnet":
        y = models.base.conv(x, params["stem"]["kernel"])
        values, own = np.asarray(y, np.float64).reshape(-1, 16), exact["norm"]
    else:
        h = models.base.linear(params["embed"], x)
        h = h + lru._unit(params["0"], h)
        values, own = np.asarray(h, np.float64)[np.asarray(mask)], exact["0"]["norm"]
    np.testing.assert_allclose(own.mean, values.mean(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(own.var, values.var(0), rtol=1e-4)
    scores = step.evaluate(params, exact, split, task=task, stats="running", batch_size=4)
    assert np.isfinite(scores["loss"])


@pytest.mark.parametrize("norm", [LN, RMS, DYT], ids=lambda norm: norm["name"])
def test_a_transformer_sees_the_past_alone(norm):
    task, split = make_task(
        "language", arch="transformer", norm=norm, norm_qk=RMS, **SMALL["transformer"]
    )
    params, state = task.init(jax.random.key(0))
    apply = jax.jit(lambda x: task.model.apply(params, state, x, models.Call())[0])
    tokens = split.tokens[:, :-1]
    other = tokens.at[:, 4:].set((tokens[:, 4:] + 1) % 5)
    a, b = apply(tokens), apply(other)
    np.testing.assert_array_equal(a[:, :4], b[:, :4])
    assert not np.allclose(a[:, 4:], b[:, 4:])


def test_attention_is_the_formula():
    """In float64 by NumPy, with keys and queries of root mean square 1."""
    task, split = make_task("sequence", arch="transformer", norm_qk=RMS, **SMALL["transformer"])
    params, state = task.init(jax.random.key(0))
    block, mask = params["0"], np.asarray(jnp.arange(7) < split.lengths[:, None])
    x = jax.random.normal(jax.random.key(1), (6, 7, 8))
    call = models.Call(mask=jnp.asarray(mask))
    y, _ = task.model._attention(block, state["0"], x, call)
    q, k, v = (
        (np.asarray(x, np.float64) @ np.float64(block[n]["kernel"])).reshape(6, 7, 2, 4)
        for n in "qkv"
    )
    q, k = (z / np.sqrt((z**2).mean(-1, keepdims=True) + 1e-6) for z in (q, k))
    scores = np.einsum("nqhd,nkhd->nhqk", q, k) / 2
    scores = np.where(mask[:, None, None], scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    want = np.einsum("nhqk,nkhd->nqhd", weights, v).reshape(6, 7, 8)
    want = want @ np.float64(block["o"]["kernel"])
    # what a query after the end of its sequence gets is nobody's
    np.testing.assert_allclose(y[mask], want[mask], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("position", ["pre", "post", "sandwich"])
def test_norms_stand_where_the_position_says(position):
    """With a norm that makes all 0, `pre` and `sandwich` blocks are the identity."""
    zero = {"name": "layer_norm", "scale_init": 0.0}
    task, _ = make_task(
        "sequence", arch="transformer", norm=zero, position=position, **SMALL["transformer"]
    )
    params, state = task.init(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (6, 7, 8))
    y, _ = task.model._block(params["0"], state["0"], x, models.Call(), 0)
    wanted = {"pre": x, "sandwich": x, "post": jnp.zeros_like(x)}[position]
    np.testing.assert_allclose(y, wanted, atol=1e-6)
    names = set(params["0"]) - {"norm_q", "norm_k"}
    assert sum("before" in name or "after" in name for name in names) == 2 + 2 * (
        position == "sandwich"
    )
    assert ("norm" in params) == (position != "post")


def test_the_associative_scan_is_the_recurrence():
    draw = np.random.RandomState(0)
    decay = 0.9 * np.exp(1j * draw.uniform(0, 6, 5))
    inputs = draw.normal(size=(2, 13, 5)) + 1j * draw.normal(size=(2, 13, 5))
    h, want = np.zeros((2, 5), complex), []
    for t in range(13):
        h = decay * h + inputs[:, t]
        want.append(h)
    got = jax.jit(lru.scan)(jnp.asarray(decay, jnp.complex64), jnp.asarray(inputs, jnp.complex64))
    np.testing.assert_allclose(got, np.stack(want, 1), rtol=1e-4, atol=1e-5)


def test_the_eigenvalues_of_an_lru_start_on_the_ring():
    task, _ = make_task("sequence", arch="lru", width=4, states=200, r_min=0.5, r_max=0.8)
    own = task.init(jax.random.key(0))[0]["0"]["recurrence"]
    size = np.exp(-np.exp(np.float64(own["nu"])))
    assert size.min() > 0.5 and size.max() < 0.8 and np.ptp(size) > 0.25
    np.testing.assert_allclose(np.exp(2 * np.float64(own["log_gamma"])), 1 - size**2, rtol=1e-4)


@pytest.mark.parametrize("position", ["post", "pre"])
@pytest.mark.parametrize("norm", [BN, {"name": "none"}], ids=["bn", "none"])
def test_blocks_that_start_as_their_shortcut_learn(position, norm):
    task, split = make_task(
        "image", arch="resnet", depth=8, position=position, norm=norm, zero_last=True
    )
    params, state = task.init(jax.random.key(0))
    block = task.model.blocks[0]
    x = jax.nn.relu(jax.random.normal(jax.random.key(1), (4, 8, 8, 16)))
    y, _ = block.apply(params["0"], state["0"], x, models.Call())
    np.testing.assert_array_equal(y, x)

    def loss(params):
        return task(params, state, Batch(split), stats="batch", train=True)[0].loss

    first = jax.jit(jax.grad(loss))(params)["0"]["second"]
    scaled = position == "post" and norm is BN
    assert np.abs(first["norm"].scale if scaled else first["kernel"]).max() > 1e-6


@pytest.mark.parametrize(
    "case", few(["convnext", "resnet", "transformer", "lru"], "convnext", "lru")
)
def test_half_precision_keeps_parameters_and_statistics_in_float32(case):
    kind, arch, model = CASES[case]
    task, split = make_task(kind, arch=arch, **SMALL[arch], **model)
    half = dataclasses.replace(task, dtype="bfloat16")
    params, norm = task.init(jax.random.key(0))

    def loss(params, task):
        scores, new = task(params, norm, Batch(split), stats="batch", train=True)
        return scores.loss, (scores, new)

    text = str(jax.make_jaxpr(lambda p: loss(p, half))(params))
    assert "dot_general" in text
    products = [line for line in text.splitlines() if "dot_general" in line or "conv_gen" in line]
    narrow = [line for line in products if ":bf16" in line.partition("=")[0]]
    assert len(narrow) > 0.6 * len(products)
    grads, (scores, new) = jax.jit(jax.grad(loss, has_aux=True), static_argnums=1)(params, half)
    exact, (wanted, _) = jax.jit(jax.grad(loss, has_aux=True), static_argnums=1)(params, task)
    assert {x.dtype for x in jax.tree.leaves((grads, new, scores))} == {jnp.dtype("float32")}
    np.testing.assert_allclose(scores.loss, wanted.loss, rtol=0.02)
    flat, true = (jnp.concatenate([x.ravel() for x in jax.tree.leaves(g)]) for g in (grads, exact))
    cosine = flat @ true / jnp.linalg.norm(flat) / jnp.linalg.norm(true)
    assert cosine > 0.95


def test_channels_are_standardized_by_the_training_images():
    task, split = make_task("image", arch="resnet", depth=8)
    x = np.asarray(task.pixels(split.pixels), np.float64)
    np.testing.assert_allclose(x.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(x.std((0, 1, 2)), 1, rtol=1e-5)
    raw, _ = make_task("image", arch="resnet", depth=8, standardize=False)
    np.testing.assert_allclose(raw.pixels(split.pixels), split.pixels / 255, rtol=1e-6)


@pytest.mark.parametrize(
    ("study", "count"),
    [(fashion_mnist, 8), (characters, 30), (gru, 5)],
    ids=["image", "text", "gru"],
)
def test_every_variant_of_the_starting_configs_is_valid(study, count):
    assert len(study.VARIANTS) == count
    for variant in study.VARIANTS:
        assert validate.check(study.get_config(variant))["name"] == variant
    with pytest.raises(ValueError, match="variants: "):
        study.get_config("nothing")


def test_gru_variants_are_the_presets():
    def layer(variant):
        return build_layer(validate.check(gru.get_config(variant))["model"])

    start = {"kernel_init": "orthogonal_joint", "learn_carry": True}
    start["input_schedule"] = "before_loop"  # for several devices, which the tests have
    assert layer("bn_gru") == recurrent.bn_gru(100, 64, debias=False, **start)
    assert layer("ln_gru") == recurrent.ln_gru(100, **start)
    assert layer("gru") == recurrent.gru(100, **start)


@pytest.mark.parametrize(
    ("task", "model", "message"),
    [
        (
            "image",
            {"arch": "resnett"},
            "known: mlp, lenet, resnet, convnext, transformer, lru. Did",
        ),
        ("language", {"arch": "mlp", "hidden": 3}, "known: resnet, convnext, transformer, lru"),
        ("image", {"arch": "resnet", "depth": 21}, "depth=21 is not 6n + 2; write 20"),
        ("image", {"arch": "resnet", "depht": 20}, "Did you mean 'depth'?"),
        ("image", {"arch": "resnet", "position": "both"}, "known: post, pre"),
        ("image", {"arch": "resnet", "norm": {"name": "bach_norm"}}, "Did you mean 'batch_norm'?"),
        ("image", {"arch": "transformer"}, "takes no image data; it is for text and sequence"),
        ("sequence", {"arch": "resnet"}, "takes no sequence data; it is for image data"),
        ("sequence", {"arch": "transformer", "heads": 3}, "heads=3 must divide config.model.width"),
        ("sequence", {"arch": "lru", "r_min": 0.9, "r_max": 0.8}, "r_min first"),
        ("image", {"arch": "convnext", "depths": (1,)}, "write as many of both"),
        ("image", {"arch": "resnet", "standardize": 1}, "standardize must be True or False"),
    ],
)
def test_check_says_what_to_write_instead(task, model, message):
    with pytest.raises(UsageError) as error:
        validate.check(make_config(task, **model))
    assert message in str(error.value)
