"""Trains small character transformers with layer norm, RMS norm, QK-norm, dynamic tanh and erf.

AdamW and a cosine to 0, after 5 % of warm-up but for "pre_ln_cold". Every arm but "post_ln" has its
norms before attention and dense layers; "pre_qk" adds a layer norm of queries and keys to "pre_ln".
Embeddings start with a deviation of 1, since dynamic tanh and erf see them as they are, and their
authors enlarge them in language models; both start with the authors' slope of 0.5. The sources'
differences between such norms are hundredths of a nat, or tenths of a point of BLEU, at sizes far
from these.
"""

from configs.language import _transformers
from configs.language._transformers import LOSS
from experiments.ledger.claims import Claim, Group, Settled, less, not_worse

ARMS = {
    "pre_ln": {"norm": "ln"},
    "pre_rms": {"norm": "rms"},
    "pre_dyt": {"norm": "dyt"},
    "pre_derf": {"norm": "derf"},
    "pre_qk": {"norm": "ln", "qk": True},
    "pre_ln_cold": {"norm": "ln", "warm": False},
    "post_ln": {"norm": "ln", "position": "post"},
    "none": {"norm": "none"},
}
RATES = (1e-3, 3e-3, 1e-2)
DELTA = 0.015
WHY = (
    "half of about 0.03 nats, by which GPT-2 with dynamic tanh is behind layer norm in a table of "
    "Chen et al. 2025 (2.97 against 2.94; from memory, not verified): the smallest difference "
    "between norms of a language model that a source calls one"
)
CHEN = "Chen et al. 2025, arXiv:2512.10938"


def claim(letter, title, statement, rule, source, expect, methods, *, why=WHY, published=None):
    return Claim(
        letter=letter,
        title=title,
        statement=statement,
        rule=rule,
        delta=DELTA,
        why=why,
        expect=expect,
        published=published,
        controls=(Settled(),),
        source=source,
        change="a model and a text a hundred times as large",
        methods=methods,
    )


GROUP = Group(
    number=41,
    title="Norms in a small character transformer",
    topic="transformers",
    source="Zhang, Sennrich 2019; Zhu et al. 2025; Chen et al. 2025; Henry et al. 2020; Xiong et "
    "al. 2020",
    axis="blocks",
    scales=_transformers.scales(
        len(ARMS) * len(RATES), "translation with 6 and 6 blocks; GPT-2 and LLaMA of 12 to 80"
    ),
    arms=tuple(ARMS),
    claims=(
        claim(
            "a",
            "Transformer: RMS norm is no worse than layer norm",
            "With RMS norm, a character transformer has a test loss no higher than with layer norm",
            not_worse("pre_rms", "pre_ln", LOSS),
            "Zhang, Sennrich 2019, arXiv:1910.07467",
            "22.4 points of BLEU against 22.6 of layer norm, with a GRU; for transformers the same "
            "within a few tenths (in words)",
            ("RMS norm", "layer norm"),
        ),
        claim(
            "b",
            "Transformer: dynamic tanh is no worse than layer norm",
            "With dynamic tanh in place of its norms, a character transformer has a test loss no "
            "higher than with layer norm",
            not_worse("pre_dyt", "pre_ln", LOSS),
            "Zhu et al. 2025, arXiv:2503.10622",
            "training losses of LLaMA equal within 0.01 nats (from memory, not verified); against "
            "it, validation losses of GPT-2 of 64 million weights: 18.8 % worse with 118 million "
            "tokens, 27.3 % better with 1 million (Verma 2026, abstract, arXiv:2604.23434)",
            ("dynamic tanh", "layer norm"),
        ),
        claim(
            "c",
            "Transformer: dynamic erf is no worse than layer norm",
            "With dynamic erf in place of its norms, a character transformer has a test loss no "
            "higher than with layer norm",
            not_worse("pre_derf", "pre_ln", LOSS),
            CHEN,
            "about 2.94 nats with either, GPT-2 (from memory, not verified)",
            ("dynamic erf", "layer norm"),
        ),
        claim(
            "d",
            "Transformer: dynamic erf is better than dynamic tanh",
            "In place of its norms, dynamic erf gives a character transformer a lower test loss "
            "than dynamic tanh",
            less("pre_derf", "pre_dyt", LOSS),
            CHEN,
            "about 2.94 against 2.97 nats, GPT-2 (from memory, not verified)",
            ("dynamic erf", "dynamic tanh"),
            published=0.03,
        ),
        claim(
            "e",
            "Transformer: QK-norm is no worse than none",
            "With norms of queries and keys beside layer norm, a character transformer has a test "
            "loss no higher than with layer norm alone, each at its own best rate",
            not_worse("pre_qk", "pre_ln", LOSS),
            "Henry et al. 2020, arXiv:2010.04245",
            "0.928 points of BLEU better on average over five small translation sets, abstract; "
            "there l2 norms with a learned factor",
            ("QK-norm", "layer norm"),
        ),
        claim(
            "f",
            "Transformer: pre-norm without warm-up matches post-norm",
            "Without warm-up, a character transformer with layer norm before its layers has a test "
            "loss no higher than one with layer norm after the sums and with warm-up",
            not_worse("pre_ln_cold", "post_ln", LOSS),
            "Xiong et al. 2020, arXiv:2002.04745",
            "comparable results (abstract); against it, on a large translation set pre-norm is "
            "worse (Nguyen, Salazar 2019, abstract, arXiv:1910.05895)",
            ("layer norm",),
        ),
        claim(
            "g",
            "Transformer: layer norm is better than no norm",
            "With layer norm before its layers, a character transformer has a lower test loss than "
            "without any norm",
            less("pre_ln", "none", LOSS),
            "a question of this ledger",
            "no number of a language model without any norm; those who replace it presuppose that "
            "it is needed (Zhu et al. 2025, Chen et al. 2025)",
            ("layer norm",),
        ),
    ),
    rates=RATES,
)


def get_config(arm, scale="blocks2"):
    return _transformers.transformer(arm, scale, **ARMS[arm])
