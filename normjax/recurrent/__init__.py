"""Recurrent layers with norms by place: `lstm(hidden, norm_x=…, norm_h=…, norm_sum=…, norm_c=…)`.

Lifts say what a norm's statistics do over time: `per_step`, `shared`, `sequence_wise`.
"""

from normjax.recurrent._cells import LSTMCarry, lstm, rnn
from normjax.recurrent._layer import Recurrent
from normjax.recurrent._lifts import SeqNorm, per_step, sequence_wise, shared
from normjax.recurrent._presets import bn_lstm

__all__ = [
    "LSTMCarry",
    "Recurrent",
    "SeqNorm",
    "bn_lstm",
    "lstm",
    "per_step",
    "rnn",
    "sequence_wise",
    "shared",
]
