from __future__ import annotations

import json

import numpy as np
import pytest

from experiments import sweep
from experiments.runtime import members, run
from experiments.usage import UsageError


def test_a_grid_is_a_product():
    cells = list(sweep.grid(["optim.learning_rate=1e-2,0.001", "model.cell=lstm,gru"]))
    assert len(cells) == 4
    assert cells[0] == {"optim.learning_rate": 0.01, "model.cell": "lstm"}
    assert list(sweep.grid([])) == [{}]
    with pytest.raises(UsageError, match="write --grid=KEY=VALUE,VALUE"):
        list(sweep.grid(["optim.learning_rate"]))


def test_a_misspelt_key_is_told(tiny):
    with pytest.raises(UsageError, match=r"optim\.learning_rat is no key.*optim\.learning_rate"):
        members.with_changes(tiny(), {"optim.learning_rat": 1.0})


def test_changes_are_made_in_a_copy(tiny):
    """Of the groups too, so that members made from one config are independent."""
    config = tiny()
    fast, slow = (
        members.with_changes(config, {"optim.learning_rate": rate, "gamma": gamma})
        for rate, gamma in ((0.1, 0.2), (0.01, 0.3))
    )
    assert (fast.optim.learning_rate, slow.optim.learning_rate) == (0.1, 0.01)
    assert (fast.model.norm_h.scale_init, slow.model.norm_h.scale_init) == (0.2, 0.3)
    assert config == tiny()


def test_a_stopped_sweep_goes_on(tiny, tmp_path, monkeypatch):
    config = tiny("lstm", steps=6, log_every=3, eval_every=3, checkpoint_every=6)
    cells = list(sweep.grid(["optim.learning_rate=0.01,0.001"]))
    real, names = run.train, []

    def counting(config, workdir):
        names.append(workdir.name)
        if len(names) == 2:
            raise KeyboardInterrupt
        return real(config, workdir)

    monkeypatch.setattr(run, "train", counting)
    with pytest.raises(KeyboardInterrupt):
        sweep.sweep(config, tmp_path, seeds=1, cells=cells)
    assert len(json.loads((tmp_path / "sweep.json").read_text())) == 1
    results = sweep.sweep(config, tmp_path, seeds=1, cells=cells)
    assert json.loads((tmp_path / "sweep.json").read_text()) == results and len(results) == 2
    whole = sweep.sweep(config, tmp_path / "whole", seeds=1, cells=cells[1:])
    assert results[1]["metrics"] == whole[0]["metrics"]
    metrics = whole[0]["metrics"]
    errors = 1 - metrics["valid.batch.accuracy"]
    np.testing.assert_allclose(np.exp(metrics["valid.batch.log_error"]), errors)
    lines = sweep.table(results, config).splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("optim.learning_rate=0.01: accuracy valid batch ")
    both = [{**r, "cell": {}} for r in results]
    values = [100 * r["metrics"]["valid.batch.accuracy"] for r in both]
    line = sweep.table(both, config)
    assert f"valid batch {np.mean(values):.2f} % ± {np.std(values, ddof=1):.2f} %" in line


def test_the_table_is_in_the_words_of_the_task(tiny):
    """Each seed's own perplexity is averaged, and that of a mean loss would be another."""
    config = tiny()
    config.task = "language"
    losses = {"chars": np.log(2) * np.array([1, 2]), "words": np.log([2, 4])}
    results = [
        {
            "cell": {"data.unit": unit},
            "seed": seed,
            "metrics": {
                "valid.batch.loss": loss,
                "test.population.loss": 2 * loss,
                "diverged": 0.0,
            },
        }
        for unit in losses
        for seed, loss in enumerate(losses[unit])
    ]
    chars, words, _ = sweep.table(results, config).splitlines()
    assert chars.startswith("data.unit=chars: bits per character valid batch 1.5000 ± 0.7071, ")
    assert words.startswith("data.unit=words: perplexity valid batch 3.00 ± 1.41, ")
    assert words.endswith("test population 10.00 ± 8.49")


def test_a_diverged_run_scores_as_one_that_knows_nothing(tiny, tmp_path, monkeypatch):
    config = tiny("lstm", checkpoint_every=24)
    config.optim.update(name="sgd", learning_rate=1e20, clip_norm=0.0, l2=1.0)
    result = members.run_member(config, tmp_path / "run")
    metrics = result["metrics"]
    assert metrics["diverged"] == 1 and metrics["test.population.accuracy"] == 0.1
    np.testing.assert_allclose(metrics["area.valid"], np.log(10))
    assert np.isnan([metrics[name] for name in ("rough.valid", "gap.end")]).all()
    np.testing.assert_allclose(metrics["test.population.log_error"], np.log(0.9))
    monkeypatch.setattr(run, "train", None)  # and is not tried again
    assert members.run_member(config, tmp_path / "run") == result
