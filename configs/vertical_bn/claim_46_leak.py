"""Trains a character LSTM whose input term is normalized over its whole segment, future included.

Statistics of a whole segment tell the network which characters are still to come. How much it
relies on that is measured at five places of each test segment: the characters after the place are
replaced by those of another segment, and the next character of the true text is predicted. The text
up to the place is the same, and the statistics are still those of a segment, as in training. What
is lost is what the true future says; since the replaced one misleads as well, the difference is
the most that the future can be worth. Statistics of the training set (46b) tell nothing, but are
not what the network was trained with. In batches of several segments all futures are replaced.

Characters of Penn Treebank in segments of 100, 100 units, 8,000 updates by Adam, batch norm with
gamma 1 on the input term alone. Each arm is trained, and scored, in batches of the same size.

Before registration four draws of one segment a batch were seen, at rates 0.001 to 0.01, the whole
group's test losses and, at 0.001, 46a's: a test loss of 1.45 without norm (best at 0.01), of 1.39
with batch norm by its own statistics and 1.42 by the training set's (0.003); 46a 0.05 to 0.06.
"""

import jax
import jax.numpy as jnp
import numpy as np

from configs.recurrent_bn import _text
from experiments.ledger.claims import Claim, Group, Scale, Settled, less

LAURENT = "Laurent et al., ICASSP 2016, arXiv:1510.01378"
PLACES = (10, 30, 50, 70, 90)  # characters that are read before the one that is predicted
AT_ONCE = 256  # segments
MINUTES = {1: 3.5, 4: 5, 16: 15}
DELTA = 0.018
WHY = (
    "no source has a number; in nats, half of the 0.051 bits a character that batch norm gains on "
    "this text in the figure of Cooijmans et al."
)


def scale(batch):
    text = (
        f"characters of Penn Treebank in segments of 100, LSTM of 100 units, 8,000 updates of "
        f"{batch} segment{'s' * (batch > 1)} (the source: words, two layers of 200 or 650 units)"
    )
    return Scale(f"batch{batch}", batch, text, replicates=8, minutes=MINUTES[batch])


def claim(letter, title, statement, rule, expect, controls=()):
    return Claim(
        letter=letter,
        title=title,
        statement=statement,
        rule=rule,
        delta=DELTA,
        why=WHY,
        expect=expect,
        controls=controls,
        change="words in place of characters, or a network that cannot count what it has read",
        methods=("vertical batch norm", "sequence-wise batch norm"),
    )


GROUP = Group(
    number=46,
    title="Sequence-wise batch norm shows a language model its future",
    topic="vertical batch norm",
    source=f"{LAURENT}, section 3",
    axis="segments in a batch",
    scales=tuple(scale(batch) for batch in MINUTES),
    arms=("none", "sequence"),
    claims=(
        claim(
            "a",
            "Sequence-wise statistics tell of the future",
            "With sequence-wise batch norm of the input term a trained language model predicts the "
            "next character better if the characters after it, in the statistics, are the true "
            "ones than if they are another text's",
            less("sequence", "sequence", "true.loss", other="replaced.loss"),
            "a model that may not see future frames is normalized frame by frame instead, "
            "section 3; no number",
        ),
        claim(
            "b",
            "Its own statistics score better than the training set's",
            "With sequence-wise batch norm the test text has a lower loss with its own "
            "statistics than with those of the training set",
            less("sequence", "sequence", "test.batch.loss", other="test.population.loss"),
            "no number: the sources score recurrent nets with population statistics; it may be the "
            "leak, or that training had such statistics: 46a separates them",
        ),
        claim(
            "c",
            "Without its future it still beats no norm",
            "Scored with population statistics, an LSTM with sequence-wise batch norm of the input "
            "term has a lower loss than one without a norm",
            less("sequence", "none", "test.population.loss"),
            "no number; on words of this text frame-wise batch norm did not improve validation, "
            "section 5.2",
            (Settled(),),
        ),
    ),
    rates=(1e-3, 3e-3, 1e-2, 3e-2),
)


def get_config(arm, scale="batch1"):
    config = _text.small("lstm", 100)
    config.name = arm
    if arm == "sequence":
        config.model.norm_x = {
            "name": "batch_norm",
            "decay": 0.95,
            "use_bias": False,
            "lift": "sequence_wise",
            "scale_init": 1.0,
        }
    config.data.update(valid_size=512, test_size=2048)
    config.batch_size = config.eval_batch_size = int(GROUP.scale(scale).at)
    config.steps = config.checkpoint_every = 8000
    config.eval_every = 400
    return config


def extra(finished):
    """Nats of the next character with its true future in the statistics, and with another's."""
    tokens = np.asarray(finished.dataset.test.tokens)
    other = np.roll(tokens, len(tokens) // 2, axis=0)
    mean_loss = jax.jit(_mean_loss(finished))
    true, replaced = [], []
    for place in PLACES:
        mixed = np.concatenate([tokens[:, :place], other[:, place:]], axis=1)
        for found, text in ((true, tokens), (replaced, mixed)):
            found.append(float(mean_loss(text, tokens[:, place], place)))
    return {"true.loss": np.mean(true), "replaced.loss": np.mean(replaced)}


def _mean_loss(finished):
    """Return the mean loss of the characters after so many, by statistics of the batch."""
    task, params, size = finished.task, finished.params, finished.config["batch_size"]

    def mean_loss(text, following, place):
        def of_batch(batch):
            tokens, after = batch
            x = jax.nn.one_hot(tokens[:, :-1], task.vocabulary)
            (y, _), _ = task.layer.apply(params["layer"], finished.norm, x, stats="batch")
            logits = y[:, place - 1] @ params["head"]["kernel"] + params["head"]["bias"]
            return -jnp.take_along_axis(jax.nn.log_softmax(logits), after[:, None], axis=1)

        batches = (text.reshape(-1, size, text.shape[1]), following.reshape(-1, size))
        return jax.lax.map(of_batch, batches, batch_size=AT_ONCE // size).mean()

    return mean_loss
