"""Trains LSTMs on permuted MNIST with norms of the input term, the recurrent term, both or none.

No arm normalizes the cell.
"""

from configs.recurrent_bn import _lengths
from experiments.ledger.claims import Claim, Group, Settled, less, more, not_worse

ACCURACY = "test.population.accuracy"
GAMMAS = {
    "none": {},
    "x_1": {"norm_x": 1.0},
    "h_0.1": {"norm_h": 0.1},
    "h_1": {"norm_h": 1.0},
    "both_0.1": {"norm_x": 0.1, "norm_h": 0.1},
}
GAIN = "half of the 5.2 points that normalizing both terms and the cell gains in the source"


def claim(letter, title, statement, rule, expect, source, delta=0.026, why=GAIN, speed=False):
    return Claim(
        letter=letter,
        title=title,
        statement=statement,
        rule=rule,
        delta=delta,
        why=why,
        expect=expect,
        source=source,
        controls=() if speed else (Settled(),),  # about the speed of training, or its end
        change="the same at 784 steps, or in the sources' stacks",
        methods=("recurrent batch norm", "vertical batch norm"),
    )


OURS = f"the source gives no number for this task; {_lengths.WHOLE_GAIN}"
CURVES = (
    "the source gives no number for this task; half of the 0.05 between the curves of validation "
    "error of BN-LSTM and LSTM in Cooijmans et al. after 20,000 updates"
)
GROUP = Group(
    number=6,
    title="Which terms of an LSTM to normalize",
    topic="horizontal batch norm",
    source=f"{_lengths.COOIJMANS}; {_lengths.LAURENT}",
    axis="length of the sequence in steps",
    scales=_lengths.scales(1, 4),
    arms=tuple(GAMMAS),
    claims=(
        claim(
            "a",
            "Normalizing the recurrent term alone generalizes better",
            "It is beneficial to normalize the recurrent term: LSTM generalizes better with batch "
            "norm (gamma 0.1) of the recurrent term than without any",
            more("h_0.1", "none", ACCURACY),
            "LSTM 90.2 %, with both terms and the cell normalized 95.4 %, table 1",
            _lengths.COOIJMANS,
        ),
        claim(
            "b",
            "Normalizing both terms beats the input term alone",
            "Normalizing the recurrent term as well (gamma 0.1) generalizes better than "
            "normalizing the input term alone (gamma 1, as Laurent et al.)",
            more("both_0.1", "x_1", ACCURACY),
            "beneficial, against Laurent et al.; no net with the input term alone was published",
            _lengths.COOIJMANS,
        ),
        claim(
            "c",
            "Normalizing the recurrent term does not help training",
            "Batch norm (gamma 1) of the recurrent term does not help training: the net without "
            "norm does not learn more slowly, by the validation error averaged over the run",
            not_worse("none", "h_1", "area.error"),
            "batch norm of hidden-to-hidden transitions does not help, abstract",
            _lengths.LAURENT,
            delta=0.025,
            why=CURVES,
            speed=True,
        ),
        claim(
            "d",
            "Normalizing the input term trains faster",
            "Batch norm (gamma 1) of the input term makes training faster: the net learns faster "
            "than without norm, by the validation error averaged over the run",
            less("x_1", "none", "area.error"),
            "faster convergence of the training criterion, abstract (validation error is judged "
            "here, since its curves on this task have a published size)",
            _lengths.LAURENT,
            delta=0.025,
            why=CURVES,
            speed=True,
        ),
        claim(
            "e",
            "Normalizing the input term does not generalize better",
            "Batch norm (gamma 1) of the input term does not improve generalization: the net "
            "without norm has no lower test accuracy",
            not_worse("none", "x_1", ACCURACY),
            "no improvement of generalization, abstract",
            _lengths.LAURENT,
            why=OURS,
        ),
    ),
    rates=_lengths.RATES,
)


def get_config(arm, scale="pmnist49"):
    config = _lengths.permuted("bn_lstm", scale)
    with config.unlocked():
        for place in ("norm_x", "norm_h"):
            if place in GAMMAS[arm]:
                config.model[place].scale_init = GAMMAS[arm][place]
            else:
                del config.model[place]
        config.model.norm_c = {"name": "identity", "use_bias": True}
        del config.gamma
    return config
