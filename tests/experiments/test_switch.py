"""A norm switched by name on the command line or in a grid can be built, and says what it lost."""

from __future__ import annotations

import subprocess
import sys

import pytest

import normjax
from configs.recurrent_bn import digits
from experiments.config import models, switch, validate
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
