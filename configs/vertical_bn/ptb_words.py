"""Vertical batch norm in a stacked LSTM on the words of the Penn Treebank.

Paper:     Laurent et al., "Batch Normalized Recurrent Neural Networks", ICASSP 2016,
           arXiv:1510.01378, section 5.2; networks of Zaremba et al., arXiv:1409.2329.
Claim:     Frame-wise batch norm on the input terms lowers the training loss faster, not the
           validation loss.
Numbers:   perplexity (e to the loss) train / valid of the small network: 78.5 / 119.2 without and
           62.5 / 120.9 with batch norm; from memory of the paper's table, not checked against it.
Cost:      60,000 updates (26 epochs), made for one GPU. Needs text/ptb in the folder that
           NORMJAX_DATA_DIR names.
Command:   python -m experiments.train --config=configs/vertical_bn/ptb_words.py:bn \
               --workdir=runs/ptb_words/bn

Variants: none, bn. Two layers of 200 units, embeddings of 200, 20 steps, batches of 20, SGD at 1
with clipping at 5. Unlike the published networks a segment starts from the initial state, and the
rate does not fall.
"""

from experiments.config.defaults import default


def get_config(variant: str = "bn"):
    if variant not in ("none", "bn"):
        raise ValueError(f"no variant {variant!r}; variants: none, bn.")
    config = default()
    config.name = variant
    config.task = "language"
    config.dataset = "text"
    config.data.update(unit="words", length=20)
    config.select = "loss"
    config.model.update(hidden=200, embed=200, depth=2)
    if variant == "bn":
        config.model.norm_x = {
            "name": "batch_norm",
            "lift": "per_step",
            "max_steps": 20,
            "use_bias": False,
        }
    config.optim.update(name="sgd", learning_rate=1.0, clip_norm=5.0)
    config.batch_size = 20
    config.target_accuracy = 0.2
    config.steps = 60_000
    config.log_every = 100
    config.eval_every = 2000
    config.checkpoint_every = 2000
    config.lock()
    return config
