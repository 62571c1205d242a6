"""Defines every key of a config with its default, and compares configs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_collections

OPTIMIZERS = ("rmsprop", "adam", "adamw", "lamb", "sgd")
SCHEDULES = ("constant", "cosine", "linear", "one_cycle", "step")
DTYPES = ("float32", "bfloat16")
HEADS = ("orthogonal", "lecun_normal", "glorot_uniform")
POPULATION = ("pooled", "unbiased", "mean")
PERMUTATIONS = ("permute", "sample")
LAYOUTS = ("pixels", "rows", "images")
SHUFFLE = ("epoch", "once")
SELECT = ("accuracy", "loss")
PARALLEL = ("jit", "shard_map", "pmap")
BATCH_STATS = ("global", "device")
NONFINITE = ("stop", "skip")
UNITS = ("chars", "words")
SIDE = {"digits": 8, "mnist": 28, "pmnist": 28, "fashion_mnist": 28}  # the image sets
TRAIN_SIZE = {"digits": 1437, "mnist": 50_000, "pmnist": 50_000, "fashion_mnist": 50_000}
TRAIN_SIZE |= {"fsdd": 2400, "imdb_reviews": 22_500}
FOLDS, FOLD_SIZE = 6, 2250  # fsdd's speakers, and the training examples of the other five
DATASETS = (*TRAIN_SIZE, "npz", "text")  # and any image set of TFDS

# Keys that may differ between a workdir's config and a command that continues it: none of them
# changes a number up to the step reached.
FREE_KEYS: tuple[str, ...] = ("data_dir", "resume", "steps", "checkpoint_every", "keep_checkpoints")
FREE_KEYS += ("data.memory", "data.workers")
# Nor do these, except for the order in which sums are rounded, and for the noise of a layer, which
# depends on the first two: `workdir` prints a note then.
FREE_KEYS += ("parallel", "devices", "steps_per_call", "nonfinite", "nonfinite_limit")


def default() -> ml_collections.ConfigDict:
    """Return a config with every key at its default."""
    config = ml_collections.ConfigDict()
    config.name = "run"  # the run's name in reports
    config.task = "sequence"  # the model's family, see experiments.tasks
    config.dataset = "digits"  # see experiments.data.datasets
    config.data_dir = ""  # a TFDS folder; empty: see experiments.data.locate
    config.permutation = "permute"  # pmnist: a true permutation, or "sample" as the authors' script
    config.permutation_seed = 0
    config.data = ml_collections.ConfigDict({"train_size": 0})  # 0: all; else so many examples
    config.data.valid_size = 0  # the same of the validation set, which is scored often,
    config.data.test_size = 0  # and of the test set
    config.data.train = ""  # a TFDS set by name: split expressions; empty: "train", "test" and
    config.data.valid = ""  # "validation"; or a number: so many of the last training examples
    config.data.test = ""
    config.data.source = ""  # package.module:function that returns the splits, see data.arrays
    config.data.folder = ""  # npz: a folder of train.npz, valid.npz and test.npz
    config.data.augment = ""  # images, while training: flip, crop:4, mixup:0.2, with commas
    config.data.memory = 2.0  # GB: what is larger stays on the disk, and is read in the background
    config.data.workers = 0  # by so many processes; 0: by a thread
    config.data.draw = 0  # 0: the first ones; n: training and validation examples drawn by seed n
    config.data.fold = 0  # fsdd: 0: its own test set; n from 1 to 6: speaker n is the test set
    config.data.shuffle = "epoch"  # new batches each epoch; "once": the same ones in a new order
    config.data.side = 0  # images: average blocks down to side x side; 0: as they are
    config.data.shift = 0  # images: move each by up to so many pixels along both sides
    config.data.contrast = 1.0  # images: divide the contrast of each by up to this
    config.data.layout = "pixels"  # images: a pixel a step, "rows" a row a step, "images" [H, W, 1]
    config.data.length = 100  # text: predictions a segment; fsdd, imdb_reviews: longest sequence
    config.data.stride = 0  # text: from one segment's start to the next; 0: length
    config.data.text = "ptb"  # text: folder of text files, by path or by name in the data folder
    config.data.unit = "chars"  # text: chars | words
    config.data.vocabulary = 10_000  # text, imdb_reviews: so many most frequent words
    config.data.vectors = ""  # imdb_reviews: a file such as GloVe's that embeddings start from
    config.batch_size = 100
    config.eval_batch_size = 100  # batch statistics depend on it, so it is part of the protocol
    config.steps = 1000
    config.seed = 0
    config.log_every = 50
    config.eval_every = 50
    config.checkpoint_every = 200
    config.keep_checkpoints = 2  # the newest ones; each of them has the best parameters too
    config.dtype = "float32"  # of activations and matrix products; parameters stay float32
    config.parallel = "jit"  # jit | shard_map | pmap, see experiments.runtime.parallel
    config.devices = 0  # 0: all; otherwise the first so many
    config.batch_stats = "global"  # statistics of the whole batch, or of each device's rows
    config.steps_per_call = 1  # steps in one call of the compiled program; divides the *_every
    config.nonfinite = "stop"  # at a loss or gradient that is not finite, or "skip" the step
    config.nonfinite_limit = 10  # skip: so many in a run, then stop
    config.target_accuracy = 0.9  # the report counts the steps to this validation accuracy
    config.select = "accuracy"  # or "loss": the validation score that picks the best parameters
    config.resume = ""  # a workdir to continue from when --workdir has no checkpoint of its own
    config.model = ml_collections.ConfigDict({"cell": "lstm", "hidden": 100})
    config.model.head_init = "orthogonal"
    config.optim = ml_collections.ConfigDict(
        {"name": "rmsprop", "learning_rate": 1e-3, "decay": 0.9, "momentum": 0.0, "eps": 1e-8}
    )
    config.optim.l2 = 0.0  # times |w|^2 / 2, of weights alone
    config.optim.l1 = 0.0  # times |w|_1, of weights alone
    config.optim.clip_norm = 1.0  # global norm, before the optimizer; 0: none
    config.optim.b2 = 0.999  # adam, adamw, lamb: decay of the squared gradients
    config.optim.nesterov = False  # sgd with momentum
    config.optim.weight_decay = 0.0  # adamw, lamb: decoupled from the gradient
    config.optim.decay_norms = False  # weight_decay also on norms, biases and other vectors
    config.optim.schedule = "constant"  # of the learning rate, which is its highest value
    config.optim.schedule_steps = 0  # its length; 0: config.steps, which then may not change
    config.optim.warmup = 0  # steps in which the rate rises from 0; one_cycle: 0: 30 %
    config.optim.drops = "0.5,0.75"  # step: after these parts of the schedule
    config.optim.factor = 0.1  # step: the rate is multiplied by this
    config.optim.label_smoothing = 0.0  # in training alone
    config.optim.ema = 0.0  # decay of an average of the parameters, which is scored; 0: none
    config.optim.accumulate = 1  # microbatches of a step
    config.population = ml_collections.ConfigDict({"how": "pooled", "batch_size": 500})
    return config


def timesteps(config: Mapping[str, Any]) -> int:
    """Return the number of steps of the longest sequence in a config's data."""
    options, name = config["data"], config["dataset"]
    if name not in SIDE:
        return options["length"]
    side = options["side"] or SIDE[name]
    return side if options["layout"] == "rows" else side * side


def as_dict(config: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a config to plain nested dictionaries."""
    if isinstance(config, ml_collections.ConfigDict):
        return config.to_dict()
    return dict(config)


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turn ``{"a": {"b": 1}}`` into ``{"a.b": 1}``."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def completed(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of a run of an earlier version with the keys that are new since."""
    usual, whole = as_dict(default()), {**as_dict(default()), **config}
    for group in ("data", "optim", "population"):
        whole[group] = {**usual[group], **config.get(group, {})}
    return whole


def draws_noise(config: Mapping[str, Any]) -> bool:
    """Whether the model of a checked config draws noise in training."""
    kinds = ("h0_noise", "zoneout_h", "zoneout_c", "dropout_h", "dropout")
    augment, noisy = config["data"].get("augment"), (*kinds, "module")  # the user's may
    return bool(augment) or any(config["model"].get(kind) for kind in noisy)


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Describe, in a line each, the keys other than the free ones in which two configs differ.

    A key that one of them lacks, since it is older than the key, has its default there.
    """
    usual = {k: v for k, v in flatten(as_dict(default())).items() if not k.startswith("model.")}
    a, b = usual | flatten(old), usual | flatten(new)
    keys = [k for k in sorted(a.keys() | b.keys()) if k not in FREE_KEYS]
    missing = "(absent)"
    return [
        f"  config.{k}: {a.get(k, missing)!r} there, {b.get(k, missing)!r} asked for"
        for k in keys
        if a.get(k, missing) != b.get(k, missing)
    ]
