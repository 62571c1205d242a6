"""Trains BN-LSTMs and LN-LSTMs on permuted MNIST from gains of 0.1 and 1, at three lengths.

With one pixel a step, layer norm of the input term nearly forgets how bright the pixel is; the
norms are kept where the source has them.
"""

from configs.recurrent_bn import _lengths
from experiments.ledger.claims import Claim, Group, contrast, less

CURVES = (
    "the source shows curves and no number; half of the 0.05 between the validation errors of "
    "BN-LSTM and LSTM on this task in Cooijmans et al. after 20,000 updates"
)


def claim(letter, title, statement, rule, expect, delta=0.025, why=CURVES):
    return Claim(
        letter=letter,
        title=title,
        statement=statement,
        rule=rule,
        delta=delta,
        why=why,
        expect=expect,
        controls=(),  # about the speed of training, not its end
        change="the source's attentive reader, or an input of many numbers a step",
        methods=("layer norm", "recurrent batch norm"),
    )


GROUP = Group(
    number=8,
    title="The initial gain of layer norm in an LSTM",
    topic="layer norm",
    source="Ba, Kiros, Hinton 2016, arXiv:1607.06450, section 6.2",
    axis="length of the sequence in steps",
    scales=_lengths.scales(1, 4),
    arms=("lstm", "bn_0.1", "bn_1.0", "ln_0.1", "ln_1.0"),
    claims=(
        claim(
            "a",
            "LN-LSTM learns faster from a gain of 1 than of 0.1",
            "LN-LSTM with an initial gain of 1 has a lower validation error, averaged over the "
            "run, than with 0.1",
            less("ln_1.0", "ln_0.1", "area.error"),
            "1 clearly better than 0.1 on the attentive reader, section 6.2",
        ),
        claim(
            "b",
            "Layer norm wants its gain larger than batch norm does",
            "Starting the gain at 1 rather than 0.1 lowers the validation error, averaged over the "
            "run, more in LN-LSTM than in BN-LSTM, where 0.1 is better",
            contrast(
                "(ln_0.1 − ln_1.0) − (bn_0.1 − bn_1.0), area.error",
                (1.0, "ln_0.1", "area.error"),
                (-1.0, "ln_1.0", "area.error"),
                (-1.0, "bn_0.1", "area.error"),
                (1.0, "bn_1.0", "area.error"),
            ),
            "1 better for layer norm, 0.1 for batch norm (Cooijmans et al.)",
            delta=0.05,
            why=f"twice that of 8a, for the two differences: {CURVES}",
        ),
        claim(
            "c",
            "LN-LSTM learns faster than BN-LSTM",
            "LN-LSTM (gain 1) has a lower validation error, averaged over the run, than BN-LSTM "
            "(gamma 0.1)",
            less("ln_1.0", "bn_0.1", "area.error"),
            "faster and lower validation error than BN-LSTM on the attentive reader, section 6.2",
        ),
        claim(
            "d",
            "LN-LSTM learns faster than LSTM",
            "LN-LSTM (gain 1) has a lower validation error, averaged over the run, than LSTM",
            less("ln_1.0", "lstm", "area.error"),
            "faster than the baseline on the attentive reader, section 6.2 (not verified)",
        ),
    ),
    rates=_lengths.RATES,
)


def get_config(arm, scale="pmnist49"):
    variant, _, gamma = arm.partition("_")
    known = {"lstm": "lstm", "bn": "bn_lstm", "ln": "ln_lstm"}
    return _lengths.permuted(known[variant], scale, float(gamma) if gamma else None)
