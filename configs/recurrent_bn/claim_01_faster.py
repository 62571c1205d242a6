"""Trains LSTM and BN-LSTM on permuted MNIST, pixel by pixel, at three lengths."""

from configs.recurrent_bn import _lengths
from experiments.ledger.claims import Claim, Group, less, more

GROUP = Group(
    number=1,
    title="BN-LSTM against LSTM",
    topic="horizontal batch norm",
    source="Cooijmans et al., ICLR 2017, arXiv:1603.09025, table 1",
    axis="length of the sequence in steps",
    scales=_lengths.SCALES,
    arms=("lstm", "bn_lstm"),
    claims=(
        Claim(
            letter="a",
            title="BN-LSTM generalizes better than LSTM",
            statement="On permuted MNIST, BN-LSTM (statistics of each time step, gamma 0.1, input "
            "and recurrent terms normalized apart) has a higher test accuracy than LSTM",
            rule=more("bn_lstm", "lstm", "test.population.accuracy"),
            delta=0.026,
            why="half of the 5.2 points of the source's table 1",
            expect="95.4 % against 90.2 % at 784 steps, table 1",
            published=0.052,
            change="the source's 100,000 updates at 784 steps, with more than one seed",
            methods=("recurrent batch norm",),
        ),
        Claim(
            letter="b",
            title="BN-LSTM learns faster than LSTM",
            statement="On permuted MNIST, the validation error of BN-LSTM, averaged over the run, "
            "is lower than that of LSTM",
            rule=less("bn_lstm", "lstm", "area.error"),
            delta=0.025,
            why="half of the 0.05 between the curves of the source's figure after 20,000 updates",
            expect="validation accuracy about 0.92 against 0.87 after 20,000 updates, figure 2",
            published=0.05,
            controls=(),  # about the course of training, not its end
            change="the source's 100,000 updates at 784 steps, with more than one seed",
            methods=("recurrent batch norm",),
        ),
    ),
    rates=_lengths.RATES,
)


def get_config(arm, scale="pmnist49"):
    return _lengths.permuted(arm, scale)
