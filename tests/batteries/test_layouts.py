"""Names, shapes and dtypes of what is stored, frozen: a renamed field fails here, not a restore.

    NORMJAX_WRITE_LAYOUTS=1 python -m pytest tests/batteries/test_layouts.py

writes the file anew; do so only for new methods, or with a line in CHANGELOG on how to convert.
"""

from __future__ import annotations

import functools
import json
import os
import pathlib

import jax
import jax.numpy as jnp

from normjax import recurrent, testing
from normjax.state import _names

FILE = pathlib.Path(__file__).parent / "layouts.json"

LAYERS = {
    "bn_lstm": recurrent.bn_lstm(5, 7, learn_carry=True),
    "bn_gru": recurrent.bn_gru(5, 7),
    "deep_speech_rnn": recurrent.deep_speech_rnn(5),
    "ln_lstm": recurrent.ln_lstm(5),
    "wn_lstm": recurrent.wn_lstm(5),
    "stack": recurrent.stack([recurrent.rnn(5), recurrent.bidirectional(recurrent.rnn(5))]),
}


def _flat(tree, at=""):
    """Paths of a nested dictionary, in the names that Flax's collections and Orbax show."""
    flat = {}
    for name, value in _names.to_dict(tree).items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{at}{name}/")
        else:
            flat[at + name] = f"{jnp.dtype(value.dtype).name}{list(value.shape)}"
    return flat


def layouts():
    found, key = {}, jax.random.key(0)
    # Shapes alone: nothing is computed.
    for sample in testing.SAMPLES:
        make = functools.partial(sample.norm.init, sample.shape)
        params, state = jax.eval_shape(lambda key, make=make: make(key=key), key)
        found[sample.name] = {"params": _flat(params), "state": _flat(state)}
    for sample in testing.REPARAMS:
        make = functools.partial(sample.reparam.init, key=key)
        params, state = jax.eval_shape(make, sample.weight())
        found[sample.name] = {"params": _flat(params), "state": _flat(state)}
    for name, layer in LAYERS.items():
        make = functools.partial(layer.init, features=3)
        params, state = jax.eval_shape(make, key)
        found[name] = {"params": _flat(params), "state": _flat(state)}
    return found


def test_layouts_are_as_they_were():
    found = layouts()
    if os.environ.get("NORMJAX_WRITE_LAYOUTS"):
        FILE.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    frozen = json.loads(FILE.read_text())
    assert found == frozen
