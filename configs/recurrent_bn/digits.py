"""BN-LSTM against LSTM on scikit-learn's digits, pixel by pixel: 64 steps.

Paper:     Cooijmans et al., "Recurrent Batch Normalization", ICLR 2017, arXiv:1603.09025.
Claim:     BN-LSTM learns in fewer steps than LSTM and generalizes at least as well.
Numbers:   none published for this set; it is the protocol of sequential MNIST at a size that runs
           on a laptop with no download.
           Here, seed 0, test accuracy with population statistics: LSTM 77.8 %, BN-LSTM 96.7 %;
           the test set is small (180 examples), so a seed moves this by a few points.
Cost:      1,000 steps (70 epochs); on two CPU cores about 30 s for LSTM, 70 s for BN-LSTM.
Command:   python -m experiments.train --config=configs/recurrent_bn/digits.py:bn_lstm \
               --workdir=runs/digits/bn_lstm

Variants: lstm, bn_lstm, bn_shared, bn_sum, bn_x, bn_h, ln_lstm; `_protocol.py` describes them.
Corner pixels hardly vary, so the true variances of the first steps lie below eps = 1e-5. After 950
steps the running averages still hold 0.99^950 = 7e-5 of the variance 1 they began with, and lag in
the mean: final.json's "running" accuracy is then far below its "population" accuracy.
Shorter: --config.steps=600. Another gamma: --config.gamma=0.5.
"""

from configs.recurrent_bn import _protocol


def get_config(variant: str = "bn_lstm"):
    config = _protocol.sequential_images("digits", variant)
    config.steps = 1000
    config.lock()
    return config
