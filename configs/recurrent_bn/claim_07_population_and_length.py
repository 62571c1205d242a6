"""Trains LSTM and BN-LSTM on characters and tests them on segments of 100 and of 1,000.

Bits a character on the whole test set, in batches of 100 segments. Population statistics are those
of steps 1 to 100, and the last ones serve all later steps; the rate is the source's.
"""

import math

from configs.recurrent_bn import _statistics, _text
from experiments.data import datasets
from experiments.ledger.claims import Claim, Control, Group, Scale, Settled, contrast, less

UNITS = {"chars100": 100, "chars250": 250, "chars1000": 1000}
FIGURE = "read off the figure of test lengths, section 5.2"
PER_STEP, BATCH, SHARED = "bits.population", "bits.batch", "bits.shared"


def scale(name, updates, **more):
    text = (
        f"characters of Penn Treebank in segments of 100, LSTM of {UNITS[name]:,} units, "
        f"{updates:,} updates of 64 (the source: 1,000 units, 50 epochs)"
    )
    return Scale(name, UNITS[name], text, **more)


def claim(letter, title, statement, rule, delta, why, expect, published=None, controls=()):
    return Claim(
        letter=letter,
        title=title,
        statement=statement,
        rule=rule,
        delta=delta,
        why=why,
        expect=expect,
        published=published,
        controls=(Settled(), *controls),
        change="the source's 1,000 units and 50 epochs",
        methods=("recurrent batch norm", "population statistics"),
    )


LEAD = less("bn_lstm", "lstm", f"{PER_STEP}.100")
GROUP = Group(
    number=7,
    title="BN-LSTM on characters: statistics and lengths at test",
    topic="population statistics",
    source="Cooijmans et al., ICLR 2017, arXiv:1603.09025, section 5.2",
    axis="units of the LSTM",
    scales=(
        scale("chars100", 5000, replicates=8, minutes=8),
        scale("chars250", 5000, replicates=8, minutes=34),
        scale("chars1000", 40_000, replicates=8, minutes=5000, device="gpu", of_source=True),
    ),
    arms=("lstm", "bn_lstm"),
    claims=(
        claim(
            "a",
            "Population beat batch statistics at the trained length",
            "On test segments of 100 characters, as long as those of training, BN-LSTM needs fewer "
            "bits with population statistics than with the batch's own",
            less("bn_lstm", "bn_lstm", f"{PER_STEP}.100", other=f"{BATCH}.100"),
            0.011,
            "half of the source's 0.022 bits",
            f"1.398 against 1.420 bits, {FIGURE}",
            published=0.022,
        ),
        claim(
            "b",
            "Population beat batch statistics at ten times the length",
            "On test segments of 1,000 characters BN-LSTM needs fewer bits with population "
            "statistics, the last ones repeated, than with the batch's own",
            less("bn_lstm", "bn_lstm", f"{PER_STEP}.1000", other=f"{BATCH}.1000"),
            0.0145,
            "half of the source's 0.029 bits",
            f"1.333 against 1.362 bits, {FIGURE}",
            published=0.029,
        ),
        claim(
            "c",
            "BN-LSTM needs fewer bits a character than LSTM",
            "On test segments of 100 characters BN-LSTM needs fewer bits a character than LSTM",
            LEAD,
            0.025,
            "half of the source's 0.051 bits",
            f"1.398 against 1.449 bits, {FIGURE}; 1.32 against 1.38 on the whole text, table 2",
            published=0.051,
        ),
        claim(
            "d",
            "BN-LSTM keeps its lead at ten times the length",
            "The lead of BN-LSTM over LSTM is no smaller on test segments of 1,000 characters than "
            "on segments of 100, its length in training",
            contrast(
                "lead at 1,000 − lead at 100, bits",
                (1.0, "lstm", f"{PER_STEP}.1000"),
                (-1.0, "bn_lstm", f"{PER_STEP}.1000"),
                (-1.0, "lstm", f"{PER_STEP}.100"),
                (1.0, "bn_lstm", f"{PER_STEP}.100"),
                kind="not_worse",
            ),
            0.025,
            "half of the source's lead at 100, 0.051 bits: less would be half lost",
            f"a lead of 0.057 bits at 1,000 and of 0.051 at 100, {FIGURE}",
            published=0.006,
            controls=(Control("BN-LSTM leads at length 100", LEAD, 0.025),),
        ),
        claim(
            "e",
            "On text, statistics shared over time are worse",
            "On test segments of 100 characters BN-LSTM needs more bits with population statistics "
            "averaged over time than with those of each step",
            less("bn_lstm", "bn_lstm", f"{PER_STEP}.100", other=f"{SHARED}.100"),
            0.025,
            "the source gives no number; half of the 0.051 bits that batch norm gains in all",
            "sharing statistics over time hurts badly, because of the initial transient, section 3",
        ),
    ),
    rates=(2e-3,),
)


def get_config(arm, scale="chars100"):
    if scale == "chars1000":
        return _text.published(arm)
    return _text.small(arm, UNITS[scale])


def extra(finished):
    """Bits a character of the test set, by statistics and length."""
    places = [p for p in ("norm_x", "norm_h", "norm_c") if _has_statistics(finished.config, p)]
    each = _statistics.population(finished)
    over_time = _statistics.population(finished, places)
    found = {}
    for length in (100, 1000):
        data = {**finished.config["data"], "length": length}
        data |= dict.fromkeys(("train_size", "valid_size", "test_size"), 0)
        test = datasets.load_config_data({**finished.config, "data": data}).test
        for kind, (task, norm), stats in (
            (PER_STEP, each, "running"),
            (BATCH, each, "batch"),
            (SHARED, over_time, "running"),
        ):
            scores = _statistics.score(finished, task, norm, test, stats, batch_size=100)
            found[f"{kind}.{length}"] = scores["loss"] / math.log(2)
    return found


def _has_statistics(config, place):
    return config["model"].get(place, {}).get("name") == "batch_norm"
