"""Trains BN-LSTMs on digits from different initial gammas."""

from experiments.ledger.rules import Claim, less, more

from configs.recurrent_bn import _small

CLAIM = Claim(
    number=2,
    statement="A start of gamma about 0.1 is right; larger ones learn more slowly",
    source=(
        'Cooijmans et al., "Recurrent Batch Normalization", ICLR 2017, arXiv:1603.09025, '
        "section 4 and appendix B"
    ),
    expect=(
        "on permuted MNIST curves ordered by gamma, 0.1 and 0.3 close, 1.0 near chance for "
        "27,000 updates"
    ),
    arms=("gamma_0.1", "gamma_0.3", "gamma_0.5", "gamma_0.7", "gamma_1.0"),
    rules=(
        less("gamma_0.1", "gamma_0.3", "area.error", by=-0.02),
        less("gamma_0.1", "gamma_0.5", "area.error"),
        less("gamma_0.1", "gamma_0.7", "area.error"),
        less("gamma_0.1", "gamma_1.0", "area.error"),
        more("gamma_0.1", "gamma_1.0", "test.population.accuracy"),
    ),
    rates=_small.RATES,
    minutes=15,
    scale=(
        "scikit-learn's digits (64 steps of a pixel) for sequential MNIST (784), 50 units for"
        " 100, 800 updates for 100,000"
    ),
    twin="configs/recurrent_bn/pmnist.py:bn_lstm with --config.gamma=0.1, 0.3, 0.5, 0.7, 1.0",
)


def get_config(arm: str = "gamma_0.1"):
    config = _small.digits("bn_lstm", float(arm.removeprefix("gamma_")))
    config.name = arm
    config.lock()
    return config
