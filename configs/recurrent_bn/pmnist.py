"""BN-LSTM against LSTM on permuted MNIST: 784 steps in one fixed shuffled order.

Paper:     Cooijmans et al., "Recurrent Batch Normalization", ICLR 2017, arXiv:1603.09025, table 1.
Claim:     BN-LSTM handles the long dependencies that the shuffle makes much better than LSTM.
Numbers:   test accuracy LSTM 90.2 %, BN-LSTM 95.4 %; validation after 20,000 steps about 0.87 and
           0.92 (read off the paper's figure).
Cost:      100,000 steps (200 epochs), made for one GPU; days on a CPU. Needs the TFDS set:
           python -m experiments.prepare mnist
Command:   python -m experiments.train --config=configs/recurrent_bn/pmnist.py:bn_lstm \
               --workdir=runs/pmnist/bn_lstm

Variants: lstm, bn_lstm, bn_shared, bn_sum, bn_x, bn_h, ln_lstm; `_protocol.py` describes them.
Shorter: --config.steps=600. Another gamma: --config.gamma=0.5.

The published script draws the order with replacement, so about 37 % of the pixels never appear:
--config.permutation=sample does the same. The default is a true permutation.
"""

from configs.recurrent_bn import _protocol


def get_config(variant: str = "bn_lstm"):
    config = _protocol.sequential_images("pmnist", variant)
    config.steps = 100_000
    config.log_every = 100
    config.eval_every = 500
    config.checkpoint_every = 500
    config.population.batch_size = 1000  # the authors: 5,000
    config.lock()
    return config
