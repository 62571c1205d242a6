"""A model changed on the command line or in a grid: what is added, and what a norm loses."""

from __future__ import annotations

import subprocess
import sys

import pytest
from absl import flags
from ml_collections import config_flags

import normjax
from configs.recurrent_bn import digits
from experiments.config import command_line, models, switch, validate
from experiments.config.defaults import flatten
from experiments.runtime import members
from experiments.usage import UsageError


@pytest.mark.parametrize("name", sorted(models.factories(normjax, "Norm")))
def test_every_norm_can_take_the_place_of_a_batch_norm_per_step(name, capsys):
    config = digits.get_config("bn_lstm")
    switched = members.with_changes(config, {"model.norm_h.name": name})
    needed = [k for k, p in parameters(name) if p.default is p.empty and k not in ("x",)]
    if needed:  # arguments that no default knows: their names are asked for
        with pytest.raises(UsageError, match=needed[0]):
            validate.check(switched)
        return
    try:
        plain = validate.check(switched)
    except UsageError as error:
        # a norm that no recurrent layer takes says so itself; none of the old arguments is named
        for argument in ("decay", "eps", "scale_init", "use_bias", "max_steps"):
            assert f"no argument {argument!r}" not in str(error)
        return
    assert plain["model"]["norm_h"]["name"] == name
    if name != "batch_norm":
        assert plain["name"] == f"bn_lstm,norm_h={name}"
        dropped = config.model.norm_h.keys() - plain["model"]["norm_h"].keys()
        printed = capsys.readouterr().out
        assert all(key in printed for key in dropped)


def parameters(name):
    import inspect

    return inspect.signature(models.factories(normjax, "Norm")[name]).parameters.items()


def test_a_layer_norm_needs_no_lift_and_what_was_written_is_kept():
    config = digits.get_config("bn_lstm")
    before = switch.names(config)
    config.model.norm_h.name = "layer_norm"
    written = {"model.norm_h.name", "model.norm_h.decay", "name"}
    notes = switch.switch_norms(config, before, written)
    assert notes == [
        "config.model.norm_h: layer_norm in place of batch_norm, without lift, max_steps"
    ]
    assert config.name == "bn_lstm"  # it was written
    with pytest.raises(UsageError, match="layer_norm has no argument 'decay'"):
        validate.check(config)


def test_a_norm_of_another_batch_keeps_its_lift():
    switched = members.with_changes(
        digits.get_config("bn_lstm"), {"model.norm_h.name": "mean_only_batch_norm"}
    )
    plain = validate.check(switched)
    assert plain["model"]["norm_h"]["lift"] == "per_step"
    assert plain["model"]["norm_h"]["max_steps"] == 64


# config_flags loads a config's file in a way that Python deprecates.
loads = pytest.mark.filterwarnings(r"ignore:the load_module\(\) method:DeprecationWarning")


def parsed(monkeypatch, *words):
    """The config that a command makes of the words behind its file."""
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values)
    monkeypatch.setattr(flags, "FLAGS", values)
    command = ["train", "--config=configs/recurrent_bn/digits.py:bn_lstm", *words]
    monkeypatch.setattr(sys, "argv", command)
    assert command_line.parse_flags(command) == ["train"] and sys.argv is command
    return values["config"].value


@loads
def test_the_command_line_adds_what_a_model_takes_and_its_config_does_not_name(monkeypatch):
    changes = {
        "model.norm_h.debias": "warmup",  # of the norm,
        "model.norm_x.beyond": "merge",  # of its lift,
        "model.zoneout_h": 0.1,  # of the layer,
        "model.norm_sum.name": "group_norm",  # in a place without a norm,
        "model.norm_sum.groups": 2,  # of that one,
        "seed": 7,  # and absl's
    }
    config = parsed(monkeypatch, *(f"--config.{key}={value}" for key, value in changes.items()))
    flat = flatten(validate.check(config))
    assert {key: flat[key] for key in changes} == changes
    assert config.name == "bn_lstm,norm_sum=group_norm"
    with_grid = members.with_changes(digits.get_config("bn_lstm"), changes)
    assert validate.check(with_grid) == validate.check(config)


@loads
@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("model.norm_h.dbias=True", "neither batch_norm nor per_step has .*Did you mean 'debias'"),
        ("model.norm_h.debias=warm", "config.model.norm_h: .*debias"),
        (
            "model.norm_c.name=ghost_batch_norm",
            "needs 'size'; write config.model.norm_c.size=VALUE",
        ),
        ("model.hidden_size=4", "lstm has no argument 'hidden_size'.*Did you mean 'hidden'"),
        ("model.norm_z.eps=1", "lstm has no argument 'norm_z'"),
    ],
)
def test_what_no_model_takes_is_refused_by_the_check(word, message, monkeypatch):
    config = parsed(monkeypatch, f"--config.{word}")
    with pytest.raises(UsageError, match=message):
        validate.check(config)


@pytest.mark.slow
def test_the_command_line_switches_a_norm(tmp_path):
    command = [
        *(sys.executable, "-m", "experiments.train", f"--workdir={tmp_path / 'run'}"),
        "--config=configs/recurrent_bn/digits.py:bn_lstm",
        *("--config.model.norm_h.name=layer_norm", "--config.data.valid_size=9999"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert "norm_h: layer_norm in place of batch_norm, without decay, lift, max" in done.stdout
    # The run got as far as the data; nothing of it is left.
    assert done.returncode == 2 and "config.data.valid_size=9999, but" in done.stderr
    assert not (tmp_path / "run").exists()
