"""What a run may be asked to do: the keys of a config, their checks, and the layer that they name.

A config is an ml_collections ``ConfigDict``. Everything wrong with it is found here, before any
data is read, and is told as a `UsageError`: one paragraph that says what to write instead.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import inspect
import json
import pathlib
import runpy
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import ml_collections
from absl import flags

import normjax
from normjax import recurrent

CELLS = tuple(name for name in ("lstm", "gru", "rnn") if hasattr(recurrent, name))
PLACES = ("norm_x", "norm_h", "norm_sum", "norm_c")
LIFTS = ("per_step", "shared", "sequence_wise")
OPTIMIZERS = ("rmsprop", "adam", "sgd")
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
DATASETS = (*TRAIN_SIZE, "text")

# Keys that may differ between a workdir's config and a command that continues it: none of them
# changes a number up to the step reached.
FREE_KEYS: tuple[str, ...] = ("data_dir", "resume", "steps", "checkpoint_every", "keep_checkpoints")
# Nor do these, but for the order in which sums are rounded, and for the noise of a layer that
# has some, which the first two deal out: `workdir` says so.
FREE_KEYS += ("parallel", "devices", "steps_per_call", "nonfinite", "nonfinite_limit")


class UsageError(ValueError):
    """A mistake in what was asked for; its message says what to ask for instead."""


@contextlib.contextmanager
def usage() -> Iterator[None]:
    """End the program with a usage error's message and exit status 2 instead of a traceback."""
    try:
        yield
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def nearest(word: str, known: Iterable[str]) -> str:
    """' Did you mean …?' for the known name nearest to a word, or nothing."""
    close = difflib.get_close_matches(str(word), [str(k) for k in known], n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


def one_of(what: str, value: Any, known: Sequence[str]) -> None:
    """Insist that a value is one of the known ones."""
    if value not in known:
        names = ", ".join(known)
        raise UsageError(f"{what}={value!r} is unknown; known: {names}.{nearest(value, known)}")


def default() -> ml_collections.ConfigDict:
    """Every key that a config has, with the values that most runs keep."""
    config = ml_collections.ConfigDict()
    config.name = "run"  # what the report calls it
    config.task = "sequence"  # the model's family, see experiments.tasks
    config.dataset = "digits"  # see experiments.data
    config.data_dir = ""  # a TFDS folder; empty: see experiments.data.data_dir
    config.permutation = "permute"  # pmnist: a true permutation, or "sample" as the authors' script
    config.permutation_seed = 0
    config.data = ml_collections.ConfigDict({"train_size": 0})  # 0: all; else so many examples
    config.data.valid_size = 0  # the same of the validation set, which is scored often,
    config.data.test_size = 0  # and of the test set
    config.data.shuffle = "epoch"  # batches dealt anew each epoch, or "once", their order anew
    config.data.side = 0  # images: average blocks down to side x side; 0: as they are
    config.data.layout = "pixels"  # images: a pixel a step, "rows" a row a step, "images" [H, W, 1]
    config.data.length = 100  # text: predictions a segment; fsdd, imdb_reviews: longest sequence
    config.data.stride = 0  # text: from one segment's start to the next; 0: length
    config.data.text = "ptb"  # text: folder of text files, by path or by name in the data folder
    config.data.unit = "chars"  # text: chars | words
    config.data.vocabulary = 10_000  # text, imdb_reviews: the most frequent words that are kept
    config.data.vectors = ""  # imdb_reviews: a file such as GloVe's that embeddings start from
    config.batch_size = 100
    config.eval_batch_size = 100  # batch statistics depend on it, so it is part of the protocol
    config.steps = 1000
    config.seed = 0
    config.log_every = 50
    config.eval_every = 50
    config.checkpoint_every = 200
    config.keep_checkpoints = 2  # the newest so many; the best parameters are in each of them
    config.parallel = "jit"  # jit | shard_map | pmap: the same step, see experiments.parallel
    config.devices = 0  # 0: all; otherwise the first so many
    config.batch_stats = "global"  # statistics of the whole batch, or of each device's rows
    config.steps_per_call = 1  # steps in one call of the compiled program; divides the *_every
    config.nonfinite = "stop"  # at a loss or gradient that is not finite, or "skip" the step
    config.nonfinite_limit = 10  # skip: so many in a run, then stop
    config.target_accuracy = 0.9  # the report counts the steps to this validation accuracy
    config.select = "accuracy"  # what picks the best parameters on the validation set, or "loss"
    config.resume = ""  # a workdir to continue from when --workdir has no checkpoint of its own
    config.model = ml_collections.ConfigDict({"cell": "lstm", "hidden": 100})
    config.model.head_init = "orthogonal"
    config.optim = ml_collections.ConfigDict(
        {"name": "rmsprop", "learning_rate": 1e-3, "decay": 0.9, "momentum": 0.0, "eps": 1e-8}
    )
    config.optim.l2 = 0.0  # times |w|^2 / 2, and
    config.optim.l1 = 0.0  # times |w|_1, of weights alone
    config.optim.clip_norm = 1.0  # global norm, before the optimizer; 0: none
    config.population = ml_collections.ConfigDict({"how": "pooled", "batch_size": 500})
    return config


# ---------------------------------------------------------------------------------------- norms


def factories(module: Any, result: str) -> dict[str, Callable[..., Any]]:
    """The public functions of a module that are annotated to return one type."""
    found: dict[str, Callable[..., Any]] = {}
    for name in getattr(module, "__all__", dir(module)):
        value = getattr(module, name, None)
        if not inspect.isfunction(value) or name.startswith("_"):
            continue
        annotation = inspect.signature(value).return_annotation
        if getattr(annotation, "__name__", str(annotation)).split(".")[-1] == result:
            found[name] = value
    return found


def _check_arguments(
    where: str, function: Callable[..., Any], given: Mapping[str, Any], skip: Iterable[str] = ()
) -> None:
    """Compare arguments with a factory's signature, before it is called."""
    parameters = inspect.signature(function).parameters
    known = [name for name in parameters if name not in set(skip)]
    for name in given:
        if name not in known:
            raise UsageError(
                f"{where}: {function.__name__} has no argument {name!r}; "
                f"known: {', '.join(known)}.{nearest(name, known)}"
            )
    for name in known:
        parameter = parameters[name]
        if parameter.default is parameter.empty and name not in given:
            raise UsageError(f"{where}: {function.__name__} needs {name!r}; write {name}=VALUE.")


def _call(where: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a factory; what it refuses is the user's to mend, so it becomes a `UsageError`."""
    try:
        return function(*args, **kwargs)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{where}: {error}") from error


@dataclasses.dataclass(frozen=True)
class NormConfig:
    """A norm by name with its arguments, and the lift over time, if any, that it goes through.

    ``{"name": "batch_norm", "lift": "per_step", "max_steps": 64, "scale_init": 0.1}`` is
    ``per_step(batch_norm(scale_init=0.1), max_steps=64)``. ``{"name": "none"}`` is no norm at all,
    whatever arguments stand beside it, so that one override switches a norm off.
    """

    name: str
    lift: str = ""
    arguments: tuple[tuple[str, Any], ...] = ()
    where: str = "norm"

    @classmethod
    def parse(cls, given: Mapping[str, Any], where: str = "norm") -> NormConfig:
        """Read a config's mapping."""
        if "name" not in given:
            raise UsageError(f"{where} names no norm; write for instance {where}.name=batch_norm.")
        rest = sorted((k, v) for k, v in given.items() if k not in ("name", "lift"))
        return cls(str(given["name"]), str(given.get("lift") or ""), tuple(rest), where)

    def build(self) -> Any:
        """Make the norm; every argument is checked against the factory that takes it."""
        if self.name == "none":
            return None
        known = factories(normjax, "Norm")
        one_of(f"{self.where}.name", self.name, [*sorted(known), "none"])
        given = dict(self.arguments)
        if not self.lift:
            _check_arguments(self.where, known[self.name], given)
            return _call(self.where, known[self.name], **given)
        one_of(f"{self.where}.lift", self.lift, LIFTS)
        lift, factory = getattr(recurrent, self.lift), known[self.name]
        # The first parameter of a lift is the norm; an argument that the lift does not know is
        # the norm's, and a misspelling is compared with the names of both.
        first, *of_lift = inspect.signature(lift).parameters
        of_norm = list(inspect.signature(factory).parameters)
        for name in given:
            if name not in of_lift + of_norm:
                known_names = of_norm + of_lift
                raise UsageError(
                    f"{self.where}: neither {self.name} nor {self.lift} has an argument {name!r}; "
                    f"known: {', '.join(known_names)}.{nearest(name, known_names)}"
                )
        to_lift = {k: v for k, v in given.items() if k in of_lift}
        _check_arguments(self.where, lift, to_lift, skip=[first])
        norm = _call(self.where, factory, **{k: v for k, v in given.items() if k not in of_lift})
        return _call(self.where, lift, norm, **to_lift)


def build_layer(model: Mapping[str, Any], skip: Iterable[str] = ("head_init",)) -> Any:
    """The recurrent layer of ``config.model``: its cell, its norms by place, `depth` of them.

    `skip` are keys of the group that are not the layer's.
    """
    one_of("config.model.cell", model["cell"], CELLS)
    cell = getattr(recurrent, model["cell"])
    skip = {"cell", "depth", "dropout", *skip}
    given = {k: v for k, v in model.items() if k not in skip}
    _check_arguments("config.model", cell, given)
    for place in PLACES:
        if given.get(place) is not None:
            given[place] = NormConfig.parse(given[place], f"config.model.{place}").build()
    layer = _call("config.model", cell, **given)
    depth, dropout = model.get("depth", 1), model.get("dropout", 0.0)
    _number("model.depth", depth, 1)
    _number("model.dropout", dropout, 0, 1)
    if depth == 1 and not dropout:
        return layer
    return _call("config.model", recurrent.stack, [layer] * depth, dropout=dropout)


def timesteps(config: Mapping[str, Any]) -> int:
    """The longest sequence of a config's data."""
    options, name = config["data"], config["dataset"]
    if name not in SIDE:
        return options["length"]
    side = options["side"] or SIDE[name]
    return side if options["layout"] == "rows" else side * side


def check_steps(config: Mapping[str, Any]) -> None:
    """Refuse a norm per step that keeps fewer steps than the data have, unless it says so."""
    length = timesteps(config)
    for place in PLACES:
        norm = config["model"].get(place)
        if norm and norm.get("lift") == "per_step" and norm.get("name") != "none":
            steps = norm.get("max_steps")
            if isinstance(steps, int) and steps < length and "beyond" not in norm:
                raise UsageError(
                    f"config.model.{place}.max_steps={steps}, but a sequence of "
                    f"{config['dataset']} has {length} steps; write max_steps={length}, or say "
                    "with 'beyond' what becomes of the later ones."
                )


# ------------------------------------------------------------------------------------- the whole


def _number(
    key: str, value: Any, low: float, high: float = float("inf"), *, open_low=False
) -> None:
    bad = isinstance(value, bool) or not isinstance(value, int | float)
    if bad or not (low < value if open_low else low <= value) or not value <= high:
        relation = "greater than" if open_low else "at least"
        upper = "" if high == float("inf") else f" and at most {high:g}"
        raise UsageError(f"config.{key}={value!r} must be a number {relation} {low:g}{upper}.")


def check(config: Mapping[str, Any]) -> dict[str, Any]:
    """Check a whole config and return it as plain nested dictionaries, every reference resolved."""
    plain: dict[str, Any] = json.loads(json.dumps(_plain(config)))
    reference = _plain(default())
    for key in reference:
        if key not in plain:
            raise UsageError(
                f"the config has no key {key!r}; start from experiments.config.default()."
            )
    for key in plain:
        if key not in reference and key != "gamma":
            raise UsageError(f"config.{key} is no key of a run.{nearest(key, reference)}")
    for group in ("data", "optim", "population"):
        for key in plain[group]:
            if key not in reference[group]:
                raise UsageError(f"config.{group}.{key} is no key.{nearest(key, reference[group])}")

    one_of("config.dataset", plain["dataset"], DATASETS)
    one_of("config.permutation", plain["permutation"], PERMUTATIONS)
    one_of("config.optim.name", plain["optim"]["name"], OPTIMIZERS)
    one_of("config.population.how", plain["population"]["how"], POPULATION)
    one_of("config.select", plain["select"], SELECT)
    one_of("config.parallel", plain["parallel"], PARALLEL)
    one_of("config.batch_stats", plain["batch_stats"], BATCH_STATS)
    one_of("config.nonfinite", plain["nonfinite"], NONFINITE)
    one_of("config.data.layout", plain["data"]["layout"], LAYOUTS)
    one_of("config.data.shuffle", plain["data"]["shuffle"], SHUFFLE)
    one_of("config.data.unit", plain["data"]["unit"], UNITS)
    for key in ("train_size", "valid_size", "test_size", "side", "stride"):
        _number(f"data.{key}", plain["data"][key], 0)
    for key in ("length", "vocabulary"):
        _number(f"data.{key}", plain["data"][key], 1)
    side, native = plain["data"]["side"], SIDE.get(plain["dataset"], 0)
    if side and native and native % side:
        raise UsageError(
            f"config.data.side={side} does not divide {native}, the side of {plain['dataset']}; "
            f"write one of {', '.join(str(k) for k in range(1, native + 1) if native % k == 0)}."
        )
    size = TRAIN_SIZE.get(plain["dataset"], 2**31)  # a text's size shows when it is read
    size = min(size, plain["data"]["train_size"] or size)
    for key in ("devices", "nonfinite_limit"):
        _number(key, plain[key], 0)
    for key in ("steps", "steps_per_call", "keep_checkpoints"):
        _number(key, plain[key], 1)
    for key in ("log_every", "eval_every", "checkpoint_every"):
        _number(key, plain[key], 1)
        if plain[key] % plain["steps_per_call"]:
            raise UsageError(
                f"config.steps_per_call={plain['steps_per_call']} must divide config.{key}, "
                f"which is {plain[key]}."
            )
    for key in ("batch_size", "eval_batch_size"):
        _number(key, plain[key], 1)
        if plain[key] > size:
            raise UsageError(
                f"config.{key}={plain[key]} is more than the {size} training examples of "
                f"{plain['dataset']}; write a number from 1 to {size}."
            )
    _number("population.batch_size", plain["population"]["batch_size"], 1)
    _number("seed", plain["seed"], 0, 2**31 - 1)
    _number("permutation_seed", plain["permutation_seed"], 0, 2**31 - 1)
    _number("target_accuracy", plain["target_accuracy"], 0, 1, open_low=True)
    _number("model.hidden", plain["model"].get("hidden"), 1)
    _number("optim.learning_rate", plain["optim"]["learning_rate"], 0, open_low=True)
    _number("optim.decay", plain["optim"]["decay"], 0, 1)
    _number("optim.momentum", plain["optim"]["momentum"], 0, 1)
    _number("optim.eps", plain["optim"]["eps"], 0)
    for key in ("l2", "l1", "clip_norm"):
        _number(f"optim.{key}", plain["optim"][key], 0)

    from experiments import tasks  # which imports this module

    tasks.check(plain)
    return plain


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(config, ml_collections.ConfigDict):
        return config.to_dict()
    return dict(config)


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"a": {"b": 1}}`` as ``{"a.b": 1}``."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def noisy(config: Mapping[str, Any]) -> bool:
    """Whether the model of a checked config draws noise while it is trained."""
    kinds = ("h0_noise", "zoneout_h", "zoneout_c", "dropout_h", "dropout")
    return any(config["model"].get(kind) for kind in kinds)


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Lines 'key: old -> new' for each key, but the free ones, in which two configs differ."""
    a, b = flatten(old), flatten(new)
    keys = [k for k in sorted(a.keys() | b.keys()) if k not in FREE_KEYS]
    missing = "(absent)"
    return [
        f"  config.{k}: {a.get(k, missing)!r} there, {b.get(k, missing)!r} asked for"
        for k in keys
        if a.get(k, missing) != b.get(k, missing)
    ]


def parse_flags(argv: Sequence[str]) -> list[str]:
    """Absl's parser, whose failures (a misspelt key above all) end in one paragraph, status 2."""
    with usage():
        path, _, variant = _given_config(argv).partition(":")
        if path and not pathlib.Path(path).is_file():
            raise UsageError(
                f"there is no config file {path!r}; paths start at {pathlib.Path.cwd()}."
            )
        try:
            return flags.FLAGS(list(argv))
        except (AttributeError, KeyError) as error:
            # A locked config refuses a key, and by then holds no value: load it again to look.
            make = runpy.run_path(path)["get_config"]
            told = _misspelt(argv, make(variant) if variant else make())
            raise UsageError(told or f"a --config key was refused: {error}") from error
        except flags.Error as error:
            # A config file that refuses its variant arrives here with its traceback in the text.
            line = str(error).strip().splitlines()[-1]
            raise UsageError(_unread(line) or line.removeprefix("ValueError: ")) from error


def _unread(line: str) -> str:
    """Say what a value must be that absl, in its own words, could not read."""
    kinds = {
        "invalid literal for int": ("an integer", "100"),
        "could not convert string to float": ("a number", "0.01"),
        "('Non-boolean argument": ("True or False", "True"),
    }
    flag, _, reason = line.removeprefix("flag ").partition(": ")
    for start, (kind, example) in kinds.items():
        if reason.startswith(start):
            key, _, value = flag.partition("=")
            return f"{key}={value!r} is not {kind}; write for instance {key}={example}."
    return ""


def no_arguments(argv: Sequence[str]) -> None:
    """Refuse words that are no options."""
    if len(argv) > 1:
        raise UsageError(f"did not understand {argv[1]!r}; options are written --key=value.")


def _given_config(argv: Sequence[str]) -> str:
    """The last --config=FILE:VARIANT or --config FILE:VARIANT."""
    given = ""
    for word, after in zip(argv, [*argv[1:], ""], strict=True):
        name, equals, value = word.partition("=")
        if word.startswith("-") and name.lstrip("-") == "config":
            given = value if equals else after
    return given


def _misspelt(argv: Sequence[str], config: ml_collections.ConfigDict) -> str:
    """Say which --config.KEY a config does not have, and what its neighbours are."""
    for word in argv:
        if not word.lstrip("-").startswith("config."):
            continue
        at, node = "config", config
        for key in word.lstrip("-").partition("=")[0].split(".")[1:]:
            if not isinstance(node, ml_collections.ConfigDict) or key not in node:
                here = list(node.keys()) if isinstance(node, ml_collections.ConfigDict) else []
                full = [k for k in flatten(config.to_dict()) if k.rpartition(".")[2] == key]
                hint = nearest(key, here)
                if full and not hint:
                    hint = f" Did you mean 'config.{full[0]}'?"
                names = ", ".join(sorted(here)) or f"none, {at} is a plain value"
                return f"--{at}.{key} is no key of this config.{hint} Keys of {at}: {names}."
            at, node = f"{at}.{key}", node[key]
    return ""
