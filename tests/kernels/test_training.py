"""The experiments' switch: the same run with and without the kernel."""

from __future__ import annotations

import numpy as np
import pytest

from configs.recurrent_bn import kernel
from experiments import train
from normjax.kernels import _bn_lstm, _pallas
from tests._support.processes import result, rows
from tests.experiments.conftest import make_tiny


@pytest.mark.slow
@pytest.mark.standard_numerics
def test_a_run_has_the_same_numbers(tmp_path, monkeypatch):
    called = []
    run = _bn_lstm.run
    monkeypatch.setattr(_bn_lstm, "run", lambda *a: called.append(1) or run(*a))
    config = make_tiny()
    train.train(config, tmp_path / "plain")
    assert not called
    with config.unlocked():
        config.model.impl = kernel.get_config("digits").model.impl
    with _pallas.interpreted():
        train.train(config, tmp_path / "kernel")
    assert called
    # Losses: of an untrained model's accuracy a rounding error decides ties.
    each = [[row["loss"] for row in rows(tmp_path / name)] for name in ("plain", "kernel")]
    np.testing.assert_allclose(each[1], each[0], rtol=1e-3)
    assert max(each[0]) - min(each[0]) > 1e-2
    plain, fast = (result(tmp_path / name)["test"] for name in ("plain", "kernel"))
    for kind, scores in plain.items():
        np.testing.assert_allclose(fast[kind]["loss"], scores["loss"], rtol=1e-3)
