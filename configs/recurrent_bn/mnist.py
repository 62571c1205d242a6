"""BN-LSTM against LSTM on sequential MNIST: 784 steps in scan order.

Paper:     Cooijmans et al., "Recurrent Batch Normalization", ICLR 2017, arXiv:1603.09025, table 1.
Claim:     BN-LSTM converges faster and ends slightly better.
Numbers:   test accuracy LSTM 98.9 %, BN-LSTM 99.0 %.
Cost:      100,000 steps (200 epochs), made for one GPU; days on a CPU. Needs the TFDS set:
           python -m experiments.prepare mnist
Command:   python -m experiments.train --config=configs/recurrent_bn/mnist.py:bn_lstm \
               --workdir=runs/mnist/bn_lstm

Variants: lstm, bn_lstm, bn_shared, bn_sum, bn_x, bn_h, ln_lstm; `_protocol.py` describes them.
Shorter: --config.steps=600. Another gamma: --config.gamma=0.5.

The first rows of every image are black, so at the first hundred steps h is the same in the whole
batch, its variance is 0 and the gradient through its norm explodes. As published, a norm on h
therefore comes with Gaussian noise of 0.1 on h0, in training and evaluation, here and only here.
"""

from configs.recurrent_bn import _protocol


def get_config(variant: str = "bn_lstm"):
    config = _protocol.sequential_images("mnist", variant)
    if variant in ("bn_lstm", "bn_shared", "bn_sum", "bn_h"):
        config.model.h0_noise = 0.1
    config.steps = 100_000
    config.log_every = 100
    config.eval_every = 500
    config.checkpoint_every = 500
    config.population.batch_size = 1000  # the authors: 5,000
    config.lock()
    return config
