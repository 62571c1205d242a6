"""Recurrent layers with norms by place: `lstm(hidden, norm_x=…, norm_h=…, norm_sum=…, norm_c=…)`.

Lifts say what a norm's statistics do over time: `per_step`, `shared`, `sequence_wise`.
"""

from normjax.recurrent._cells import LSTMCarry, gru, lstm, rnn
from normjax.recurrent._compose import bidirectional, stack
from normjax.recurrent._contract import Info, Layer
from normjax.recurrent._convert import from_flax, from_torch, to_flax, to_torch
from normjax.recurrent._layer import Recurrent
from normjax.recurrent._lifts import SeqNorm, per_step, sequence_wise, shared
from normjax.recurrent._presets import (
    bn_gru,
    bn_lstm,
    bn_lstm_ablations,
    deep_speech_rnn,
    ln_gru,
    ln_lstm,
    rms_lstm,
    vertical_bn_lstm,
    wn_lstm,
)

__all__ = [
    "Info",
    "LSTMCarry",
    "Layer",
    "Recurrent",
    "SeqNorm",
    "bidirectional",
    "bn_gru",
    "bn_lstm",
    "bn_lstm_ablations",
    "deep_speech_rnn",
    "from_flax",
    "from_torch",
    "gru",
    "ln_gru",
    "ln_lstm",
    "lstm",
    "per_step",
    "rms_lstm",
    "rnn",
    "sequence_wise",
    "shared",
    "stack",
    "to_flax",
    "to_torch",
    "vertical_bn_lstm",
    "wn_lstm",
]
