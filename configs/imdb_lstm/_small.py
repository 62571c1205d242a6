"""LSTM and LN-LSTM on film reviews, at a size for two CPU cores.

The notebook that the statement comes from (keras_layerNorm_mlp_lstm) trained on 1,000 reviews, its
plain LSTM with RMSProp and the other with Adam, validated on 100, and very probably never ran its
layer norm. Here: one optimizer (Adam), 5,000 reviews, their last 100 words, 10,000 words known,
embeddings of 32 learned from scratch, 32 units, 10 epochs, and the whole test set of 25,000.
"""

from experiments.config.defaults import default

RATES = (1e-3, 3e-3, 1e-2)


def reviews(variant: str):
    config = default()
    config.name = variant
    config.dataset = "imdb_reviews"
    config.data.update(length=100, vocabulary=10_000, train_size=5000)
    config.model.update(hidden=32, embed=32, recurrent_init="orthogonal_joint", forget_bias=1.0)
    if variant == "ln_lstm":
        for place in ("norm_x", "norm_h", "norm_c"):
            bias = place == "norm_c"  # the layer's own bias does the work of the others
            config.model[place] = {"name": "layer_norm", "use_bias": bias}
    config.optim.update(name="adam", learning_rate=3e-3)
    config.batch_size = 64
    config.eval_batch_size = 500
    config.steps = config.checkpoint_every = 780
    config.log_every = 20
    config.eval_every = 78
    return config
