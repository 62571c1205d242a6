"""LSTM and LN-LSTM on film reviews, with one optimizer.

The notebook that the statements come from (keras_layerNorm_mlp_lstm) trained on 1,000 reviews, its
plain LSTM with RMSProp and the other with Adam, validated on 100, and very probably never ran its
layer norm. Here: Adam for both, 10,000 words known, embeddings of 32 learned from scratch, 2,500
reviews to validate on and 25,000 to test on; either as many training reviews, words and units as
there, or all reviews with four times the words. From GloVe's vectors:
--config.data.vectors=glove.6B.100d.txt --config.model.embed=100.
"""

from experiments.config.defaults import default

RATES = (1e-3, 3e-3, 1e-2)


def reviews(variant: str, every: bool):
    """`every`: all reviews, their last 400 words, 5 epochs; or 1,000, 100 words, 50 epochs."""
    config = default()
    config.dataset = "imdb_reviews"
    config.data.update(length=400 if every else 100, vocabulary=10_000)
    config.data.train_size = 0 if every else 1000
    config.model.update(embed=32, recurrent_init="orthogonal_joint", forget_bias=1.0)
    config.model.hidden = 32 if every else 128
    if variant == "ln_lstm":
        for place in ("norm_x", "norm_h", "norm_c"):
            bias = place == "norm_c"  # the layer's own bias does the work of the others
            config.model[place] = {"name": "layer_norm", "use_bias": bias}
    config.optim.update(name="adam", learning_rate=3e-3)
    config.batch_size = 64 if every else 32
    config.eval_batch_size = 500
    config.steps = config.checkpoint_every = 1760 if every else 1560
    config.eval_every = config.steps // 20
    config.log_every = config.steps_per_call = 22 if every else 26
    return config
