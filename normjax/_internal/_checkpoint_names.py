"""Names for values that a backward pass should keep rather than compute again.

They mean something inside `jax.checkpoint` with a policy of names, as in the scan of a recurrent
layer, and nothing elsewhere: `checkpoint_name` returns what it is given.
"""

from jax.ad_checkpoint import checkpoint_name

STATISTICS = "normjax.statistics"
POOLED = "normjax.pooled"  # what other devices sent: computing it again is a second collective
ACTIVATIONS = "normjax.activations"

__all__ = ["ACTIVATIONS", "POOLED", "STATISTICS", "checkpoint_name"]
