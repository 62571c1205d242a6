"""Arms of the recurrent claims: what their configs and their own measures are meant to be."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from configs.recurrent_bn import _protocol, _statistics
from configs.recurrent_bn import claim_02_gamma as gamma
from configs.recurrent_bn import claim_05_shared_gamma as shared_gamma
from configs.recurrent_bn import claim_06_places as places
from configs.vertical_bn import _small as spoken
from configs.vertical_bn import claim_09_depth as depth
from configs.vertical_bn import claim_11_more_data as more_data
from configs.vertical_bn import claim_46_leak as leak
from experiments import tasks
from experiments.config import validate
from experiments.config.models import build_layer
from experiments.data import datasets, sequences, splits
from experiments.ledger import replicates
from experiments.runtime import members, step


def parameters(config, features=1, classes=10):
    """Number of weights of the layer and the readout."""
    layer = build_layer(validate.check(config)["model"])
    params, _ = jax.eval_shape(lambda key: layer.init(key, features), jax.random.key(0))
    count = sum(x.size for x in jax.tree.leaves(params))
    return count + classes * (layer.features_out + 1)


def test_the_wide_arm_has_as_many_weights_as_a_gamma_for_each_step():
    by_arm = {
        arm: parameters(shared_gamma.get_config(arm, "pmnist49")) for arm in shared_gamma.GROUP.arms
    }
    assert by_arm["shared"] == 43_010 == shared_gamma.weights(100)  # the source's BN-LSTM
    assert by_arm["per_step"] == shared_gamma.weights(100, 49)
    assert by_arm["shared_wide"] == pytest.approx(by_arm["per_step"], rel=0.01)


def test_the_rise_with_gamma_is_that_of_a_line():
    rule = gamma.GROUP.claims[0].rule
    slope = 0.25
    rise = sum(t.weight * slope * float(t.arm.removeprefix("gamma_")) for t in rule.terms)
    assert rise == pytest.approx(slope * 0.9)
    assert sum(t.weight for t in rule.terms) == pytest.approx(0)
    x = np.array([0.1, 0.3, 0.5, 0.7, 1.0])
    y = np.array([0.2, 0.1, 0.4, 0.3, 0.9])
    fit = sum(t.weight * v for t, v in zip(rule.terms, y, strict=True))
    assert fit == pytest.approx(0.9 * np.polyfit(x, y, 1)[0])


def test_a_term_has_the_gamma_that_its_arm_names():
    for arm, want in places.GAMMAS.items():
        model = validate.check(places.get_config(arm))["model"]
        found = {p: model[p]["scale_init"] for p in ("norm_x", "norm_h") if p in model}
        assert found == want and model["norm_c"]["name"] == "identity"


def test_stacks_have_equal_weights_and_another_speaker_each_replicate():
    scale = depth.GROUP.scale("depth7")
    for layers in (1, 3, 5, 7, 9):
        h = spoken.width("rnn", layers)
        assert h * (20 + h) + (layers - 1) * 2 * h * h == pytest.approx(spoken.WEIGHTS, rel=0.02)
    configs = [replicates.config_of(depth, scale, "relu_bn", 1e-3, n) for n in range(1, 8)]
    assert [c.data.fold for c in configs] == [1, 2, 3, 4, 5, 6, 1]
    assert len({c.name for c in configs}) == 1
    assert {c.model.activation for c in configs} == {"clipped_relu"}
    # The whole set is that of the claim about depth: its runs are shared.
    whole = more_data.GROUP.scale("recordings2250")
    at_five = depth.GROUP.scale("depth5")
    for arm, same in (("none_5", "relu_none"), ("bn_5", "relu_bn")):
        names = [
            replicates.config_of(study, at, a, 1e-3, 1).name
            for study, at, a in ((more_data, whole, arm), (depth, at_five, same))
        ]
        assert names[0] == names[1]


@pytest.mark.parametrize("arm", leak.GROUP.arms)
def test_another_future_changes_a_prediction_by_the_statistics_alone(arm, monkeypatch):
    monkeypatch.setattr(leak, "PLACES", (2, 5))
    monkeypatch.setattr(leak, "AT_ONCE", 2)
    tokens = np.random.default_rng(0).integers(0, 5, (6, 9)).astype(np.int32)
    text = sequences.Segments(tokens)
    config = validate.check(leak.get_config(arm))
    config["model"]["hidden"] = 3
    dataset = splits.Dataset(text, text, text, 1.0, 0, vocabulary=5)
    task = tasks.build(config, dataset)
    params, norm = task.init(jax.random.key(0))
    found = leak.extra(members.Finished(task, params, norm, dataset, config))

    def loss(read, following, place):
        x = np.eye(5, dtype=np.float32)[read[None, :-1]]
        (y, _), _ = task.layer.apply(params["layer"], norm, x, stats="batch")
        logits = np.asarray(y[0, place - 1] @ params["head"]["kernel"], np.float64)
        return np.log(np.exp(logits).sum()) - logits[following]

    want = {"true.loss": [], "replaced.loss": []}
    for place in (2, 5):
        for i in range(6):
            other = np.concatenate([tokens[i, :place], tokens[i - 3, place:]])
            want["true.loss"].append(loss(tokens[i], tokens[i, place], place))
            want["replaced.loss"].append(loss(other, tokens[i, place], place))
    assert found == pytest.approx({k: np.mean(v) for k, v in want.items()}, rel=1e-5)
    assert (found["true.loss"] == found["replaced.loss"]) == (arm == "none")


@pytest.mark.slow
def test_statistics_shared_afterwards_are_those_of_a_net_that_shares_them():
    def config_of(variant):
        config = _protocol.sequential_images("digits", variant)
        config.data.update(side=4, train_size=120, test_size=60)
        for norm in config.model.values():
            if hasattr(norm, "get") and norm.get("lift") == "per_step":
                norm.max_steps = 16
        config.model.hidden = 4
        config.population.batch_size = 40
        return validate.check(config)

    each, over_time = config_of("bn_lstm"), config_of("bn_shared")
    dataset = datasets.load_config_data(each).on_device()
    task, other = tasks.build(each, dataset), tasks.build(over_time, dataset)
    params, norm = task.init(jax.random.key(0))
    finished = members.Finished(task, params, norm, dataset, each)

    def direct(task):
        start = task.init(jax.random.key(0))[1]
        return step.population(params, start, dataset.train, task=task, how="pooled", batch_size=40)

    everywhere = ("norm_x", "norm_h", "norm_c")
    for shared, want in (((), direct(task)), (everywhere, direct(other))):
        found_task, found = _statistics.population(finished, shared)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, want)
        scores = _statistics.score(finished, found_task, found, dataset.test)
        assert np.isfinite(scores["loss"])
    one = _statistics.population(finished, ("norm_h",))[1]
    sizes = {name: jax.tree.leaves(state)[0].ndim for name, state in one.items()}
    assert sizes["norm_h"] < sizes["norm_x"]  # no axis of steps
