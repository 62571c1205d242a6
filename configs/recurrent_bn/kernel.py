"""The BN-LSTM with its recurrence as one kernel, weights and state on the chip over all steps.

Paper:     Cooijmans et al., "Recurrent Batch Normalization", ICLR 2017, arXiv:1603.09025.
Claim:     none of the paper's: the same network as `mnist.py:bn_lstm`, in the same protocol, with
           `impl="kernel"`; its numbers differ by rounding alone.
Numbers:   none: it has not been trained. On an H100 a time step of one model takes 316 us, forward
           and backward, where the plain scan takes 58. A CPU runs the kernel's twin, a plain scan.
Command:   python -m experiments.train --config=configs/recurrent_bn/kernel.py:pmnist \
               --workdir=runs/kernel/pmnist

Variants: the data sets digits, mnist, pmnist. On several devices the plain scan serves, as a step's
statistics are those of all of them. On a GPU a kernel runs on one multiprocessor for each model: it
is level with the scan from about 130 models that are trained together, and slower below.
"""

from configs.recurrent_bn import digits, mnist, pmnist

SETS = {"digits": digits, "mnist": mnist, "pmnist": pmnist}


def get_config(dataset: str = "mnist"):
    if dataset not in SETS:
        raise ValueError(f"no data set {dataset!r}; data sets: {', '.join(SETS)}.")
    config = SETS[dataset].get_config("bn_lstm")
    config.unlock()
    config.name = "bn_lstm_kernel"
    config.model.impl = "kernel"
    config.lock()
    return config
