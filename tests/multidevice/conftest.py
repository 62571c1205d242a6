from __future__ import annotations

import jax
import pytest


@pytest.fixture(autouse=True)
def standard_promotion(strict_numerics):
    """Optax wants the standard promotion, which is what users run with."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield
