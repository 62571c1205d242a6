from __future__ import annotations

import pathlib
import subprocess
import sys

import jax
import ml_collections
import numpy as np
import pytest
from absl import flags
from ml_collections import config_flags

import normjax as nj
from configs.recurrent_bn import _protocol, digits, mnist, pmnist
from experiments.config import command_line, models, validate
from experiments.config.models import NormConfig
from experiments.usage import UsageError
from normjax import recurrent
from tests._support.few import few


def test_norm_config_builds_the_value_that_the_code_would():
    built = NormConfig.parse({"name": "batch_norm", "eps": 1e-3, "scale_init": 0.1}).build()
    assert built == nj.batch_norm(eps=1e-3, scale_init=0.1)


def test_norm_config_splits_arguments_between_norm_and_lift():
    norm = {"name": "batch_norm", "lift": "per_step", "max_steps": 7, "use_bias": False}
    assert NormConfig.parse(norm).build() == recurrent.per_step(nj.batch_norm(use_bias=False), 7)


def test_norm_config_none_is_no_norm_whatever_stands_beside_it():
    assert NormConfig.parse({"name": "none", "lift": "per_step", "max_steps": 7}).build() is None


@pytest.mark.parametrize(
    ("norm", "message"),
    [
        ({}, r"names no norm; write for instance norm\.name=batch_norm"),
        ({"name": "bach_norm"}, r"known: .*layer_norm.*Did you mean 'batch_norm'\?"),
        ({"name": "batch_norm", "epsilon": 1}, r"no argument 'epsilon'; known: axes, eps.*'eps'\?"),
        ({"name": "batch_norm", "lift": "perstep"}, r"known: per_step.*Did you mean 'per_step'\?"),
        ({"name": "batch_norm", "lift": "per_step"}, r"per_step needs 'max_steps'"),
        (
            {"name": "batch_norm", "lift": "per_step", "max_step": 3},
            r"neither batch_norm nor per_step has an argument 'max_step'.*Did you mean 'max_steps'",
        ),
        ({"name": "batch_norm", "eps": -1.0}, r"norm: .*eps"),
    ],
)
def test_norm_config_says_what_is_wrong(norm, message):
    with pytest.raises(UsageError, match=message):
        NormConfig.parse(norm).build()


def model_of(cell, *, norm, places=None, **more):
    """A model of one cell with a norm in these places, or in every one that the cell has."""
    model = {"cell": cell, "hidden": 3, **more}
    return model | {place: dict(norm) for place in places or models.places(cell)}


TERMS = ("norm_x", "norm_h", "norm_xn", "norm_hn")  # of a GRU
OTHERS = ("norm_x3", "norm_h3", "norm_sum", "norm_sumn")


BN = {"name": "batch_norm", "lift": "per_step", "max_steps": 5}


@pytest.mark.parametrize("norm", few({"ln": {"name": "layer_norm"}, "bn": BN}, "bn"))
@pytest.mark.parametrize(
    ("cell", "places", "without"),
    [
        ("lstm", {"norm_x", "norm_h", "norm_sum", "norm_c"}, {"norm_sum"}),
        ("gru", {*TERMS, *OTHERS}, OTHERS),
        ("gru", {*TERMS, *OTHERS}, TERMS),
        ("rnn", {"norm_x", "norm_h", "norm_sum"}, {"norm_sum"}),
    ],
)
def test_a_norm_stands_in_every_place_of_a_cell(cell, places, without, norm):
    """Built and stepped; a cell with norms of x and h has none of their sum."""
    assert set(models.places(cell)) == places
    model = model_of(cell, norm=norm)
    layer = models.build_layer(model | {place: {"name": "none"} for place in without})
    assert set(layer.norms()) == places - set(without)
    params, state = layer.init(jax.random.key(0), 2)
    x = jax.random.normal(jax.random.key(1), (4, 5, 2))
    (y, _), _ = layer.apply(params, state, x, stats="batch")
    plain = models.build_layer({"cell": cell, "hidden": 3})
    bare, none = plain.init(jax.random.key(0), 2)
    (unlike, _), _ = plain.apply(bare, none, x, stats="batch")
    assert y.shape == (4, 5, 3) and np.isfinite(y).all() and not np.allclose(y, unlike)


def test_a_gru_config_is_the_preset():
    terms = {"name": "batch_norm", "lift": "per_step", "max_steps": 5}
    terms |= {"scale_init": 0.1, "use_bias": False}
    term = NormConfig.parse(terms).build()
    want = recurrent.gru(
        3,
        norm_x=term,
        norm_h=term,
        norm_xn=term,
        norm_hn=term,
        input_schedule="before_loop",  # for several devices, which the tests have
    )
    assert models.build_layer(model_of("gru", norm=terms, places=TERMS)) == want
    with pytest.raises(UsageError, match=r"lstm has no argument 'norm_xn'; known: .*norm_x"):
        models.build_layer({"cell": "lstm", "hidden": 3, "norm_xn": terms})


def test_a_stack_has_a_norm_between_its_layers():
    layer = models.build_layer({"cell": "rnn", "hidden": 3, "depth": 2, "norm_between": BN})
    assert layer.norm_between == NormConfig.parse(BN).build()
    with pytest.raises(UsageError, match=r"norm_between .* write config\.model\.depth=2"):
        models.build_layer({"cell": "rnn", "hidden": 3, "norm_between": BN})


def test_a_norm_of_too_few_steps_is_refused_in_every_place():
    config = digits.get_config("lstm")
    for place, model in (
        ("norm_hn", model_of("gru", norm=BN, places=["norm_hn"])),
        ("norm_between", {"cell": "rnn", "hidden": 3, "depth": 2, "norm_between": BN}),
    ):
        config.model = {**model, "head_init": "orthogonal"}
        with pytest.raises(UsageError, match=rf"model\.{place}\.max_steps=5, but a sequence"):
            validate.check(config)


@pytest.mark.parametrize(
    ("word", "suggestion"),
    [
        ("--config.learning_rate=3", "config.optim.learning_rate"),
        ("--config.model.hidden.max_steps=3", "config.model.norm_c.max_steps"),
        ("--config.optim.learn_rate=3", "learning_rate"),
    ],
)
def test_a_misspelt_key_is_looked_for_near_by(word, suggestion):
    config = digits.get_config("bn_lstm")
    with config.unlocked():
        config.data.max_steps = 7  # the same key in a group that is farther away
    message = command_line._misspelt([word], config)
    assert f"Did you mean {suggestion!r}?" in message


def test_a_misspelt_key_is_not_looked_for_in_other_sections():
    config = digits.get_config("bn_lstm")
    for key in ("data.scale_init", "data.name", "data.seed", "optim.hidden", "population.name"):
        message = command_line._misspelt([f"--config.{key}=x"], config)
        section = key.partition(".")[0]
        start = f"--config.{key} is no key of this config. Keys of config.{section}: "
        assert message.startswith(start), message


@pytest.mark.parametrize("variant", _protocol.VARIANTS)
@pytest.mark.parametrize("study", [digits, mnist, pmnist])
def test_every_variant_is_a_valid_config(study, variant):
    plain = validate.check(study.get_config(variant))
    assert plain["name"] == variant


def test_the_bn_lstm_variant_is_the_preset():
    plain = validate.check(mnist.get_config("bn_lstm"))
    preset = recurrent.bn_lstm(
        100,
        784,
        kernel_init="orthogonal_joint",
        recurrent_init="identity",
        learn_carry=True,
        h0_noise=0.1,
        input_schedule="before_loop",  # for several devices, which the tests have
        debias=False,  # the authors' averages
    )
    assert models.build_layer(plain["model"]) == preset


def test_gamma_is_one_key_for_all_norms():
    config = digits.get_config("bn_lstm")
    config.gamma = 0.7
    plain = validate.check(config)
    assert {plain["model"][place]["scale_init"] for place in ("norm_x", "norm_h", "norm_c")} == {
        0.7
    }


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("steps", 0, "config.steps=0 must be an integer at least 1"),
        ("batch_size", 5000, "more than the 1437 training examples of digits; write a number"),
        ("dataset", "digts", "Did you mean 'digits'? No TFDS set of that name is in"),
        ("dataset", "mnist", "max_steps=64, but a sequence of mnist has 784 steps; write"),
        ("seed", -1, "config.seed=-1 must be an integer at least 0"),
        ("target_accuracy", 90.0, "must be a number greater than 0 and at most 1"),
        ("permutation", "random", "known: permute, sample"),
        ("optim.name", "rmsprob", "Did you mean 'rmsprop'?"),
        ("optim.learning_rate", 0.0, "must be a number greater than 0"),
        ("population.how", "exact", "known: pooled, unbiased, mean"),
        ("model.cell", "lsdm", "Did you mean 'lstm'?"),
        ("data.shuffle", "never", "config.data.shuffle='never' is unknown; known: epoch, once"),
        ("model.recurrent_init", "idendity", "recurrent_init='idendity'"),
        ("model.hidden", 0, "config.model.hidden=0 must be an integer at least 1"),
        ("data.fold", 7, "config.data.fold=7 must be an integer at least 0 and at most 6"),
        ("data.fold", 2, "holds out a speaker of fsdd; digits has none: write config.data.fold=0"),
        ("model.norm_x.eps", -1.0, "config.model.norm_x.eps=-1.0 must be a number at least 0"),
    ],
)
def test_check_says_what_to_write_instead(key, value, message):
    config = digits.get_config("bn_lstm")
    config.update_from_flattened_dict({key: value})
    with pytest.raises(UsageError) as error:
        validate.check(config)
    assert message in str(error.value)


def test_check_knows_keys_that_a_config_file_invents():
    config = digits.get_config("lstm")
    with config.unlocked():
        config.model.forget_bais = 1.0
    with pytest.raises(UsageError, match=r"no argument 'forget_bais'.*'forget_bias'"):
        validate.check(config)
    with config.unlocked():
        del config.model.forget_bais
        config.evaluate_every = 3
    with pytest.raises(UsageError, match="Did you mean 'eval_every'"):
        validate.check(config)


@pytest.mark.slow
def test_command_lines_end_in_one_paragraph_and_status_2(tmp_path):
    file = "--config=configs/recurrent_bn/digits.py"
    cases = {
        (f"{file}:foo",): "no variant 'foo'; variants: lstm, bn_lstm",
        (
            file,
            "--config.stepz=3",
        ): "--config.stepz is no key of this config. Did you mean 'steps'",
        (file, "--config.model.norm_x.scales=1"): "has an argument 'scales'; known: axes, eps,",
        (file, "--config.="): "'--config.=' names no key; write for instance --config.steps=100",
        (file, "--config.steps=1e2"): "--config.steps='1e2' is not an integer; write for instance",
        ("--config=nowhere.py",): "there is no config file 'nowhere.py'",
        (): "write --config=configs/recurrent_bn/digits.py:bn_lstm",
    }
    workdir = tmp_path / "run"
    command = [sys.executable, "-m", "experiments.train", f"--workdir={workdir}"]
    started = {
        words: subprocess.Popen([*command, *words], stderr=subprocess.PIPE, text=True)
        for words in cases
    }
    for words, message in cases.items():
        _, errors = started[words].communicate(timeout=100)
        assert started[words].returncode == 2, errors
        assert errors.startswith("error: ") and message in errors
        assert "Traceback" not in errors
    assert not workdir.exists()


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("--c.n=1e2", "--c.n='1e2' is not an integer; write for instance --c.n=100."),
        ("--c.rate=fast", "--c.rate='fast' is not a number; write for instance --c.rate=0.01."),
        ("--c.on=maybe", "--c.on='maybe' is not True or False; write for instance --c.on=True."),
    ],
)
def test_a_value_of_another_type_is_told(word, message, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["program", word])  # where config_flags looks for its keys
    values = flags.FlagValues()
    config = ml_collections.ConfigDict({"n": 1, "rate": 0.5, "on": False})
    config_flags.DEFINE_config_dict("c", config, flag_values=values)
    with pytest.raises(flags.Error) as error:
        values(sys.argv)
    assert command_line._unreadable(str(error.value)) == message


SENSELESS = {
    "optim.learning_rate": [float("inf"), float("nan"), 1e24, 1e-300, -1.0],
    "optim.decay": [1.0, -0.1],
    "optim.momentum": [1.0, 2.0],
    "optim.eps": [float("inf"), 10.0],
    "optim.l2": [float("inf"), -1.0],
    "model.norm_h.decay": [1.0, float("inf")],
    "model.norm_h.eps": [float("inf")],
    "model.norm_h.scale_init": [float("inf")],
    "model.forget_bias": [float("inf"), 1e300],
    "model.hidden": [100.5, 10**9, True],
    "model.embed": [-1, 2.5],
    "eval_batch_size": [1, 2.5],
    "population.batch_size": [1],
    "data.valid_size": [1],
    "steps": [100.5, 10**20, True],
    "log_every": [10**11],
    "data.length": [10**9, 1.5],
    "data.layout": ["images"],
    "name": ["a\nb", "a\x1b[31m", "", " ", "x" * 500, 3],
    "data_dir": ["a\0b"],
    "seed": [0.5, 2**31],
}


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, values in SENSELESS.items() for value in values]
)
def test_values_that_make_no_sense_are_refused_by_their_key(key, value):
    plain = digits.get_config("bn_lstm").to_dict()
    *groups, last = key.split(".")
    node = plain
    for group in groups:
        node = node[group]
    node[last] = value
    with pytest.raises(UsageError, match=rf"config\.{key}\b") as error:
        validate.check(plain)
    assert "\n" not in str(error.value)


def test_running_statistics_of_few_updates_are_told():
    model = digits.get_config("bn_lstm").to_dict()["model"]
    assert models.early(model, 40).startswith(
        "running statistics of config.model.norm_c, norm_h, norm_x had 40 updates with decay 0.99, "
        "and 67 % of them is still the mean 0 and variance 1 of the start: "
    )
    assert not models.early(model, 100)
    for place in ("norm_x", "norm_h", "norm_c"):
        model[place]["debias"] = True
    assert not models.early(model, 1)
    model["norm_c"] = {"name": "batch_norm", "decay": 0.9}
    assert "config.model.norm_c had 1 updates" in models.early(model, 1)
    others = {"norm": {"name": "layer_norm"}, "norm_qk": {"name": "none"}, "depth": 2}
    assert not models.early({**others, "weight": {"name": "weight_norm"}}, 1)


def test_evaluation_one_by_one_is_for_norms_without_batch_statistics():
    for variant, refused in (("lstm", False), ("ln_lstm", False), ("bn_shared", True)):
        config = digits.get_config(variant)
        config.eval_batch_size = 1
        if refused:
            with pytest.raises(UsageError, match=r"eval_batch_size=1, but batch_norm at .*norm_"):
                validate.check(config)
        else:
            validate.check(config)


def test_a_config_that_is_no_json_is_refused():
    plain = digits.get_config("lstm").to_dict()
    plain["name"] = object()
    with pytest.raises(UsageError, match="cannot be written as JSON"):
        validate.check(plain)
    del plain["name"]
    with pytest.raises(UsageError, match="has no key 'name'"):
        validate.check(plain)


FILES = {
    "no get_config": ("x = 1\n", "it defines no get_config"),
    "a syntax error": (
        "def get_config(:\n",
        r"is no config file: SyntaxError: .*, .*\.py line 1\.",
    ),
    "an error": ("x = 1\nx.y\n", r"is no config file: AttributeError: .*, config\.py line 2\."),
    "nothing returned": ("def get_config():\n    pass\n", "get_config returns NoneType"),
    "a dict": ("def get_config():\n    return {}\n", "get_config returns dict"),
    "a wrong variant": ("def get_config(v='a'):\n    return {'a': 1}[v]\n", "no variant 'foo'"),
    "no argument": ("def get_config():\n    pass\n", "makes no config: TypeError"),
    "bytes": (b"\xff\xfe\x00", "is no config file"),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_file_that_is_no_config_is_told(kind, tmp_path):
    content, message = FILES[kind]
    path = tmp_path / "config.py"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    variant = ":foo" if kind in ("a wrong variant", "no argument") else ""
    with pytest.raises(UsageError, match=message) as error:
        command_line.load(f"{path}{variant}")
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("file", sorted(str(p) for p in pathlib.Path("configs").rglob("*.py")))
def test_no_config_of_ours_takes_a_variant_that_is_none(file):
    with pytest.raises(UsageError, match=r"variant|no get_config|CLAIM\.ARM|data set"):
        command_line.load(f"{file}:foo")


def test_an_empty_config_flag_and_a_key_without_a_name_are_told(tmp_path):
    with pytest.raises(UsageError, match=r"--config is empty; write --config="):
        command_line.load("")
    with pytest.raises(UsageError, match="no config file"):
        command_line.load(str(tmp_path))
    with pytest.raises(UsageError, match=r"wants a variant, one of .*; write --config="):
        command_line.load("configs/mlp_cnn/claim_13_lenet_batch_128.py")
    config = digits.get_config("lstm")
    assert "names no key" in command_line._misspelt(["--config.=1"], config)
    assert command_line._config_argument(["train", "--config="]) == ""
    assert command_line._config_argument(["train", "--workdir=x"]) is None
