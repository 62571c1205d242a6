"""The mechanism behind gamma = 0.1, on real MNIST: figure 1 of the recurrent batch norm paper."""

from __future__ import annotations

import numpy as np
import pytest

from experiments import gradient_flow
from experiments.data import datasets


@pytest.mark.slow
def test_gradients_reach_the_first_step_only_with_a_small_gamma(data_dir):
    dataset = datasets.load("mnist", data_dir=str(data_dir / "tensorflow_datasets"))
    pixels = np.asarray(dataset.train.pixels[:100], np.float32) / dataset.white
    labels = np.asarray(dataset.train.labels[:100])
    assert pixels.shape == (100, 784)
    flow = gradient_flow.measure(pixels, labels, gammas=(0.1, 0.2, 0.6, 1.0))
    for gamma in (0.1, 0.2):  # flat: within two orders of magnitude over all 784 steps
        norm = flow.norms[gamma]
        assert norm.shape == (784,) and np.isfinite(norm).all()
        assert norm.max() / norm.min() < 100
    # The last step does not feel gamma; the past does, the more the larger it is.
    last = [norm[-1] for norm in flow.norms.values()]
    assert max(last) / min(last) < 1.5
    assert flow.norms[0.6][0] < 1e-6 * flow.norms[0.2][0]
    assert flow.norms[1.0][0] == 0
    first = int(np.argmax(flow.norms[1.0] > 0))
    assert 400 < first < 784
