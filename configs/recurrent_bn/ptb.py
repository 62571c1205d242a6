"""BN-LSTM against LSTM on the characters of the Penn Treebank.

Paper:     Cooijmans et al., "Recurrent Batch Normalization", ICLR 2017, arXiv:1603.09025, table 2.
Claim:     BN-LSTM needs fewer bits a character, and keeps its lead on longer sequences.
Numbers:   test bits per character (nats / ln 2) LSTM 1.38, BN-LSTM 1.32; at length 100 1.449 and
           1.398 (read off the figure).
Cost:      400,000 updates (about 50 epochs), made for one GPU. Needs text/ptb with ptb.train.txt,
           ptb.valid.txt and ptb.test.txt in the folder that NORMJAX_DATA_DIR names.
Command:   python -m experiments.train --config=configs/recurrent_bn/ptb.py:bn_lstm \
               --workdir=runs/ptb/bn_lstm

Variants: lstm, bn_lstm, ln_lstm. Another text: --config.data.text=tinyshakespeare, or a folder.
"""

from configs.recurrent_bn import _text


def get_config(variant: str = "bn_lstm"):
    config = _text.ptb(variant)
    config.lock()
    return config
