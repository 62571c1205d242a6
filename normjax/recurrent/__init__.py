"""Recurrent layers with norms by place: `lstm(hidden, norm_x=…, norm_h=…, norm_sum=…, norm_c=…)`.

Lifts say what a norm's statistics do over time: `per_step`, `shared`, `sequence_wise`.
"""

from normjax.recurrent._base import Info, Layer
from normjax.recurrent._bidirectional import bidirectional
from normjax.recurrent._convert import from_flax, from_torch, to_flax, to_torch
from normjax.recurrent._fold import fold
from normjax.recurrent._gru import gru
from normjax.recurrent._last import last
from normjax.recurrent._lstm import LSTMCarry, lstm
from normjax.recurrent._per_step import per_step
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
from normjax.recurrent._recurrent import Recurrent
from normjax.recurrent._rnn import rnn
from normjax.recurrent._seq_norm import SeqNorm
from normjax.recurrent._sequence_wise import sequence_wise
from normjax.recurrent._shared import shared
from normjax.recurrent._stack import stack

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
    "fold",
    "from_flax",
    "from_torch",
    "gru",
    "last",
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
