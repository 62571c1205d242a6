"""Arrays of the user's own: from a function or a folder, checked with messages, and trained."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from configs.recurrent_bn import digits
from configs.yours import images as yours
from experiments import tasks
from experiments.config import validate
from experiments.data import arrays, datasets, facts, splits
from experiments.runtime import run
from experiments.usage import UsageError

DRAW = np.random.RandomState(0)


def frames(count, time=7, features=3):
    """Sequences whose class is the sign of their mean."""
    y = np.arange(count) % 2
    x = DRAW.normal(size=(count, time, features)) + 2.0 * y[:, None, None]
    return {"x": x, "y": y, "lengths": DRAW.randint(2, time + 1, count)}


def images(count, shape=(8, 8, 3)):
    return {"x": DRAW.randint(0, 256, (count, *shape)).astype(np.uint8), "y": np.arange(count) % 2}


def three(make, sizes=(40, 10, 20)):
    return {split: make(n) for split, n in zip(("train", "valid", "test"), sizes, strict=True)}


def words(count):
    return {"x": DRAW.randint(0, 9, (count, 5)), "y": np.arange(count) % 2}


def text(count):
    return {"x": DRAW.randint(0, 9, (count, 5))}


def pictures(count):
    return {"x": DRAW.rand(count, 4, 6, 2), "y": np.arange(count) % 3}


@pytest.mark.parametrize(
    ("make", "kind", "shape", "dtype", "classes"),
    [
        (frames, "sequences", (7, 3), np.float32, 2),
        (images, "images", (8, 8, 3), np.uint8, 2),
        (lambda n: images(n, (8, 8)), "images", (8, 8, 1), np.uint8, 2),
        (pictures, "images", (4, 6, 2), np.float32, 3),
        (words, "words", (5,), np.int32, 2),
        (text, "text", (5,), np.int32, 9),
    ],
)
def test_arrays_are_what_their_types_and_axes_say(make, kind, shape, dtype, classes):
    given = three(make)
    got, dataset = arrays.checked(given, "mine")
    assert got == kind and dataset.classes == classes
    x = dataset.train[0]
    assert x.shape[1:] == shape and x.dtype == dtype
    np.testing.assert_array_equal(x, given["train"]["x"].reshape(x.shape).astype(dtype))
    assert [splits.size(split) for split in dataset[:3]] == [40, 10, 20]
    assert dataset.white == (255.0 if dtype == np.uint8 else 1.0)


def test_sequences_without_lengths_are_whole_and_pairs_are_taken():
    given = {k: (v["x"], v["y"]) for k, v in three(frames).items()}
    _, dataset = arrays.checked(given, "mine")
    assert (np.asarray(dataset.train.lengths) == 7).all()


@pytest.mark.parametrize(("valid", "count"), [("", 4), ("7", 7), ("0.25", 10)])
def test_the_end_of_the_training_set_validates_where_there_is_no_other(valid, count):
    given = three(frames)
    del given["valid"]
    _, dataset = arrays.checked(given, "mine", valid)
    assert splits.size(dataset.valid) == count and splits.size(dataset.train) == 40 - count
    np.testing.assert_array_equal(dataset.valid.labels, given["train"]["y"][-count:])


def changed(split="train", **changes):
    given = three(frames)
    given[split] = {k: v for k, v in {**given[split], **changes}.items() if v is not None}
    return given


def of_x(x, **more):
    return {s: {"x": x, "y": np.arange(len(x)) % 2, **more} for s in ("train", "valid", "test")}


NAN = np.full((40, 7, 3), np.nan)
WRONG = {
    "a list": ([1], "must be a mapping with 'train', 'valid' and 'test', and is list"),
    "a split more": ({**three(frames), "tset": 1}, "'tset', which is no split. Did you mean 'te"),
    "no test": ({"train": frames(9)}, "has no split 'test'; it has train"),
    "no mapping": ({**three(frames), "test": 3}, "test of mine must be a mapping with the arrays"),
    "an array more": (changed(z=NAN), "train of mine has an array 'z'; known: x, y, lengths"),
    "no labels": (changed(y=None), "train of mine has no labels; add y [40]"),
    "short labels": (changed(y=np.zeros(3, int)), "y must be 40 integers, one for each row"),
    "float labels": (changed(y=np.zeros(40)), "is float64 of shape (40,)"),
    "negative": (changed(y=np.full(40, -1)), "y holds -1; number from 0"),
    "one class": (changed(y=np.full(40, 1)), "all training labels of mine are 1: with one class"),
    "not finite": (changed(x=NAN), "x holds numbers that are not finite; pad with 0"),
    "length 0": (changed(lengths=np.zeros(40, int)), "go from 0 to 0, and must be from 1 to 7"),
    "too long": (changed(lengths=np.full(40, 8)), "lengths go from 8 to 8"),
    "unlike splits": (changed("test", x=np.zeros((20, 7, 4))), "differ in the shape or type"),
    "unlike kinds": ({**three(frames), "test": images(20)}, "of unlike kinds: images, sequences"),
    "empty": (of_x(np.zeros((0, 7, 3))), "train of mine is empty: x has the shape (0, 7, 3)"),
    "no steps": (of_x(np.zeros((9, 0, 3))), "has an axis of length 0"),
    "vectors": (of_x(np.zeros((9, 7))), "Of one number a step write x[:, :, None]"),
    "16 bits": (of_x(np.zeros((9, 8, 8), np.uint16)), "Images are uint8, not uint16"),
    "words": (of_x(np.array([["a"]] * 9)), "x of <U1 with shape (9, 1) is none of"),
    "lengths of images": (
        of_x(np.zeros((9, 8, 8, 1), np.uint8), lengths=np.ones(9, int)),
        "lengths are for sequences and words, and x is images",
    ),
    "few classes": ({**three(frames), "classes": 1}, "classes=1 must be an integer of at least 2"),
    "few words": ({**three(words), "vocabulary": 3}, "vocabulary=3 must be an integer of at"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_wrong_with_arrays_is_told(kind):
    given, message = WRONG[kind]
    with pytest.raises(UsageError) as error:
        arrays.checked(given, "mine")
    assert message in str(error.value) and "\n" not in str(error.value)


# ------------------------------------------------------------------------------------- from where


def write(folder, given):
    folder.mkdir()
    for split, content in given.items():
        np.savez(folder / f"digits_{split}.npz", **content)
    return folder


def sequence_config(**changes):
    config = digits.get_config("lstm")
    small = {"batch_size": 8, "eval_batch_size": 10, "steps": 30, "log_every": 15, "devices": 1}
    small |= {"eval_every": 15, "checkpoint_every": 30, "model.hidden": 5}
    config.update_from_flattened_dict({**small, "population.batch_size": 20, **changes})
    return config


def test_a_folder_of_npz_trains(tmp_path):
    folder = write(tmp_path / "mine", three(frames))
    config = sequence_config(dataset="npz", **{"data.folder": str(folder)})
    assert facts.timesteps(validate.check(config)) == 7
    config.optim.learning_rate = 0.02
    final = run.train(config, tmp_path / "run")
    assert final["test"]["population"]["accuracy"] > 0.85
    assert final["dataset"] == "npz"


def test_a_folder_that_is_none_or_damaged_is_told(tmp_path):
    folder = write(tmp_path / "mine", three(frames))

    def told(where=folder):
        with pytest.raises(UsageError) as error:
            validate.check(sequence_config(dataset="npz", **{"data.folder": str(where)}))
        return str(error.value)

    assert "is no folder; config.dataset='npz' reads train.npz" in told(tmp_path / "none")
    assert "is no folder" in told("")
    (folder / "digits_test.npz").rename(folder / "other.npz")
    assert "each file of" in told() and "with train, valid or test in its name" in told()
    (folder / "other.npz").unlink()
    assert "has no test.npz; it has digits_train.npz, digits_valid.npz" in told()
    (folder / "test.npz").write_bytes(b"PK garbage")
    assert "test.npz is damaged, or no .npz" in told()
    np.savez(folder / "test.npz", x=np.array([{}], dtype=object))
    assert "test.npz is damaged, or no .npz" in told()


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module of the user's, on the path."""
    name = f"mine_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(
        "import numpy as np\n"
        "def split(n):\n"
        "    y = np.arange(n) % 2\n"
        "    x = np.random.RandomState(n).randint(0, 99, (n, 8, 8, 3))\n"
        "    x[y == 1] += 100\n"
        "    return {'x': x.astype(np.uint8), 'y': y}\n"
        "def load():\n"
        "    return {'train': split(60), 'test': split(20)}\n"
        "def sized(options):\n"
        "    return {'train': split(options['train_size']), 'test': split(20)}\n"
        "def wrong():\n"
        "    return {'train': split(60)['x']}\n"
        "def failing():\n"
        "    raise KeyError('the file')\n"
        "value = 3\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield name
    sys.modules.pop(name, None)


def image_config(**changes):
    config = yours.get_config("bn_mlp")
    small = {"batch_size": 8, "eval_batch_size": 10, "steps": 20, "log_every": 10, "devices": 1}
    small |= {"eval_every": 10, "checkpoint_every": 20, "model.hidden": 8, "dataset": "mine"}
    config.update_from_flattened_dict({**small, "population.batch_size": 20, **changes})
    return config


def test_a_function_gives_the_data_of_a_run(tmp_path, module):
    config = image_config(**{"data.source": f"{module}:load", "optim.learning_rate": 0.02})
    final = run.train(config, tmp_path / "run")
    assert final["dataset"] == "mine" and final["test"]["population"]["accuracy"] > 0.85
    config.data.memory = 0.0
    dataset = datasets.load_config_data(validate.check(config))
    assert isinstance(dataset.train, splits.Streamed)
    assert run.train(config, tmp_path / "streamed")["test"] == final["test"]


def test_a_function_may_take_the_options(module):
    config = image_config(**{"data.source": f"{module}:sized", "data.train_size": 30})
    config.data.valid = "10"
    plain = validate.check(config)
    assert facts.of(plain).examples == 20
    with pytest.raises(UsageError, match=r"train_size=30, but the train split of mine has 20"):
        datasets.load_config_data(plain)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{}", "write 'package.module:function'"),
        ("{}:loadd", "has no function 'loadd'. Did you mean 'load'?"),
        ("{}:value", "has no function 'value'"),
        ("{}:failing", "failed: KeyError: 'the file', "),
        ("{}:wrong", "has no split 'test'"),
        ("no_such_module:load", "there is no module 'no_such_module' in"),
        ("a/b:load", "names no function of a module"),
    ],
)
def test_a_source_that_is_none_is_told(module, source, message):
    with pytest.raises(UsageError) as error:
        validate.check(image_config(**{"data.source": source.format(module)}))
    assert message in str(error.value)


def test_own_data_have_a_name_of_their_own(module):
    with pytest.raises(UsageError, match=r"write --config\.dataset=NAME, any name for yours"):
        validate.check(image_config(dataset="mnist", **{"data.source": f"{module}:load"}))


def test_own_words_and_text_build_their_models(tmp_path):
    folder = write(tmp_path / "words", three(words))
    config = sequence_config(dataset="npz", **{"data.folder": str(folder)})
    with pytest.raises(UsageError, match=r"npz is words; write config\.model\.embed=32"):
        validate.check(config)
    with config.unlocked():
        config.model.embed = 4
    plain = validate.check(config)
    task = tasks.build(plain, datasets.load_config_data(plain))
    assert task.vocabulary == 9 and task.features == 4
    folder = write(tmp_path / "text", three(text))
    config = sequence_config(dataset="npz", task="language", **{"data.folder": str(folder)})
    plain = validate.check(config)
    assert facts.timesteps(plain) == 4
    assert tasks.build(plain, datasets.load_config_data(plain)).vocabulary == 9
