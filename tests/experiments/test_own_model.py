"""The user's own Flax module, in a file outside the repository, as `config.model.module`."""

from __future__ import annotations

import itertools
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import tasks
from experiments.config import validate
from experiments.data import splits
from experiments.models import own
from experiments.runtime import step, workdir
from experiments.tasks import Batch
from experiments.usage import UsageError

from .test_models import close, make_config, make_data

BN = {"name": "batch_norm", "decay": 0.9}
LINEN = """
    from typing import Any
    import flax.linen as nn

    class Net(nn.Module):
        outputs: int
        norm: Any
        width: int = 8
        rate: float = 0.0

        @nn.compact
        def __call__(self, x, train=False):
            x = nn.relu(self.norm()(nn.Conv(self.width, (3, 3))(x)))
            x = nn.Dropout(self.rate, deterministic=not train)(x.mean((1, 2)))
            return nn.Dense(self.outputs)(x)
    """
NNX = """
    import jax
    from flax import nnx

    class Net(nnx.Module):
        def __init__(self, outputs, norm, *, rngs, width=8, rate=0.0):
            self.layers = nnx.List([nnx.Conv(2, width, (3, 3), rngs=rngs)])
            self.norm, self.drop = norm(width), nnx.Dropout(rate, rngs=rngs)
            self.head = nnx.Linear(width, outputs, rngs=rngs)

        def __call__(self, x):
            x = jax.nn.relu(self.norm(self.layers[0](x)))
            return self.head(self.drop(x.mean((1, 2))))
    """
SEQUENCE = """
    import flax.linen as nn
    import jax.numpy as jnp
    from typing import Any

    class Net(nn.Module):
        outputs: int
        norm: Any
        vocabulary: int = 0

        @nn.compact
        def __call__(self, x, lengths):
            x = nn.Embed(self.vocabulary, 6)(x) if self.vocabulary else x
            x = self.norm("places")(nn.Dense(6)(x))
            if self.vocabulary:
                return nn.Dense(self.outputs)(x)
            seen = jnp.arange(x.shape[1])[:, None] < lengths[:, None, None]
            return nn.Dense(self.outputs)(jnp.where(seen, x, 0).sum(1) / lengths[:, None].clip(1))
    """
NUMBERS = itertools.count()


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Write a module of a new name where Python finds it; return `module:Net`."""

    def write(text):
        name = f"a_users_model_{next(NUMBERS)}"
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(text))
        monkeypatch.syspath_prepend(str(tmp_path))
        return f"{name}:Net"

    yield write
    for name in [name for name in sys.modules if name.startswith("a_users_model_")]:
        del sys.modules[name]


def make(module, kind="image", **model):
    data = make_data(kind)
    config = validate.check(make_config(kind, module=module, **model))
    task = tasks.build(config, data)
    assert task == tasks.build(config, data) and hash(task) is not None
    return task, data.train


@pytest.mark.parametrize("text", [LINEN, NNX], ids=["linen", "nnx"])
def test_padding_devices_and_population_are_those_of_our_models(text, written):
    task, split = make(written(text), norm=BN, width=4)
    params, norm = jax.jit(task.init)(jax.random.key(0))
    rotten = split._replace(pixels=split.pixels.at[4:].set(jnp.nan))
    weight = jnp.array([1.0, 1, 1, 1, 0, 0])

    def loss(params, examples, weight=None, axis_name=None):
        how = {"stats": "batch", "train": True, "axis_name": axis_name}
        scores, new = task(params, norm, Batch(examples, weight, jax.random.key(1)), **how)
        return scores.loss, (scores, new)

    grad = jax.jit(jax.grad(loss, has_aux=True))
    close(grad(params, rotten, weight), grad(params, splits.take(split, slice(0, 4))))
    parts = jax.tree.map(lambda x: x.reshape(2, 3, *x.shape[1:]), split)
    over = jax.vmap(lambda b: loss(params, b, None, "devices")[1], axis_name="devices")
    sums, states = jax.jit(over)(parts)
    whole = jax.jit(loss)(params, split)[1]
    close((jax.tree.map(lambda x: x.sum(0), sums), jax.tree.map(lambda x: x[1], states)), whole)

    exact = step.population(params, norm, split, task=task, how="pooled", batch_size=4)
    kernel = jax.tree.leaves([p for p in jax.tree.leaves(params) if p.ndim == 4])[0]
    x, _ = task.inputs(Batch(split))
    y = jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    values = np.asarray(y, np.float64).reshape(-1, 4)
    mean, var = jax.tree.leaves(exact)
    np.testing.assert_allclose(mean, values.mean(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(var, values.var(0), rtol=1e-4)
    scores = step.evaluate(params, exact, split, task=task, stats="running", batch_size=4)
    assert np.isfinite(scores["loss"])


@pytest.mark.parametrize("text", [LINEN, NNX], ids=["linen", "nnx"])
def test_dropout_draws_in_training_alone(text, written):
    task, split = make(written(text), norm={"name": "group_norm", "groups": 2}, rate=0.5)
    params, norm = task.init(jax.random.key(0))

    @jax.jit
    def losses(keys):
        def one(key, train):
            batch = Batch(split, key=key)
            return task(params, norm, batch, stats="batch", train=train)[0].loss

        return [[one(key, train) for key in keys] for train in (True, False)]

    (a, b), (c, d) = losses(jax.random.split(jax.random.key(0)))
    assert a != b and c == d


@pytest.mark.parametrize("kind", ["sequence", "language"])
def test_sequences_and_text_bring_lengths_and_a_vocabulary(kind, written):
    task, split = make(written(SEQUENCE), kind, norm=BN)
    params, norm = task.init(jax.random.key(0))
    scores, new = jax.jit(lambda b: task(params, norm, b, stats="batch"))(Batch(split))
    assert scores.count == (42 if kind == "language" else 6) and np.isfinite(scores.loss)
    if kind == "sequence":  # steps after the end enter no statistic
        beyond = jnp.arange(7)[:, None] >= split.lengths[:, None, None]
        rotten = Batch(split._replace(x=jnp.where(beyond, jnp.nan, split.x)))
        close(jax.jit(lambda b: task(params, norm, b, stats="batch"))(rotten), (scores, new))


BAD = {
    "no norm": (LINEN.replace("norm: Any", "other: Any = None"), "takes no norm; give it"),
    "an error": (LINEN.replace("nn.Dense(self.outputs)", "nn.Dense(self.out)"), "has no attribute"),
    "wrong outputs": (LINEN.replace("nn.Dense(self.outputs)", "nn.Dense(7)"), "must make logits"),
    "flax's own": (
        LINEN.replace("self.norm()", "nn.BatchNorm(use_running_average=False)"),
        "has a flax.linen.BatchNorm",
    ),
    "flax's own, nnx": (
        NNX.replace("norm(width)", "nnx.BatchNorm(width, rngs=rngs)"),
        "has a flax.nnx.BatchNorm",
    ),
    "no rngs": (NNX.replace("*, rngs, ", "").replace("rngs=rngs", "rngs=nnx.Rngs(0)"), "no 'rngs'"),
    "no module": ("class Net: pass", "is no Flax module"),
    "another class": ("class Nets: pass", "has no class 'Net'. Did you mean 'Nets'?"),
    "a syntax error": ("class Net(", "cannot be imported: SyntaxError"),
    "flat": (
        SEQUENCE.replace(
            '"places")(nn.Dense(6)(x))', ")(nn.Dense(6)(x).reshape(-1, 6)).reshape(*x.shape[:2], 6)"
        ),
        "a norm got an input of shape (14, 6)",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_does_not_fit_is_told(kind, written):
    text, message = BAD[kind]
    with pytest.raises(UsageError) as error:
        make(written(text), "sequence" if kind == "flat" else "image", norm=BN)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"widthh": 3}, "Did you mean 'width'?"),
        ({"norm": None}, "needs 'norm'; write config.model.norm.name=batch_norm"),
        ({"norm": {"name": "bach_norm"}}, "Did you mean 'batch_norm'?"),
        ({"module": "nowhere.models:Net"}, "no module 'nowhere.models'"),
        ({"module": "nowhere"}, "write 'package.module:class'"),
    ],
)
def test_check_says_what_to_write_instead(model, message, written):
    model = {"module": written(LINEN), "norm": BN, **model}
    model = {k: v for k, v in model.items() if v is not None}
    with pytest.raises(UsageError) as error:
        validate.check(make_config("image", **model))
    assert message in str(error.value)


def test_a_workdir_knows_the_file_of_the_model(written, tmp_path, capsys):
    module = written(NNX)
    config = validate.check(make_config("image", module=module, norm=BN))
    folder = tmp_path / "run"
    workdir.make_workdir(folder, config, 1)
    workdir.check_workdir(folder, config, 1)
    assert "note" not in capsys.readouterr().out
    path = tmp_path / f"{module.partition(':')[0]}.py"
    path.write_text(path.read_text() + "\n# changed\n")
    workdir.check_workdir(folder, config, 1)
    assert "model" in capsys.readouterr().out
    assert own.fingerprint({}) == ""
