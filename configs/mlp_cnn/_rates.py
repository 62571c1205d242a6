"""What the claims about learning rates share: an MLP at nine rates, half a decade apart.

The plain MLP trains best at rate 1 (the tuned rate of an earlier run); 3, 10 and 30 are three, ten
and thirty times that. An arm is a network and its rate, "bn_0.1", and runs that claims share are
trained once.
"""

from __future__ import annotations

from typing import Any

from configs.mlp_cnn import _protocol
from experiments.ledger.claims import Rule, contrast

RATES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
LARGE = (3.0, 10.0, 30.0)
ACCURACY = "test.population.accuracy"
NETS: dict[str, dict[str, Any]] = {
    "none": {},
    "bn": {"norm_dense": _protocol.NORMS["bn"]},
    "ln": {"norm_dense": _protocol.NORMS["ln"]},
    "wn": {"weight": {"name": "weight_norm"}},
}


def mlp(arm: str, net: str, scale: str, **more: Any) -> Any:
    """The config of a network at a scale."""
    return _protocol.mlp(arm, **_protocol.sized(scale), **NETS[net], **more)


def ahead(left: str, right: str, rates: tuple[float, ...] = LARGE) -> Rule:
    """Claim a higher mean accuracy over some rates; `left` and `right` as in "bn_"."""
    share = 1 / len(rates)
    return contrast(
        f"{left.rstrip('_')} − {right.rstrip('_')}, mean over rates "
        f"{', '.join(f'{r:g}' for r in rates)}, {ACCURACY}",
        *((share, f"{left}{r:g}", ACCURACY) for r in rates),
        *((-share, f"{right}{r:g}", ACCURACY) for r in rates),
    )


def alive(*arms: str, rates: tuple[float, ...] = LARGE) -> Rule:
    """Claim that networks' mean accuracy over some rates is above 0; delta sets above what."""
    share = 1 / len(rates) / len(arms)
    return contrast(
        f"mean accuracy of {', '.join(a.rstrip('_') for a in arms)}",
        *((share, f"{arm}{r:g}", ACCURACY) for arm in arms for r in rates),
    )
