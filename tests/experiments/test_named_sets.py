"""Image sets of TFDS by their names: read, split, refused with what they are, and trained."""

from __future__ import annotations

import json
import math
import pickle
import sys

import numpy as np
import pytest

from configs.recurrent_bn import digits
from configs.yours import images as yours
from experiments import tasks
from experiments.config import validate
from experiments.data import datasets, expressions, facts, locate, named, splits, tfds_records
from experiments.runtime import curves, run
from experiments.usage import UsageError
from tests._support import processes
from tests._support import tfds_sets as sets
from tests._support.few import few

FORMATS = pytest.mark.parametrize("file_format", tfds_records.FORMATS)


def own_config(root, variant="lenet", *, dataset="patches", **changes):
    """A small config of an image set in a folder."""
    config = yours.get_config(variant)
    small = {"batch_size": 16, "eval_batch_size": 20, "steps": 12, "log_every": 6, "devices": 1}
    small |= {"eval_every": 6, "checkpoint_every": 6, "model.hidden": 8, "model.channels": 3}
    small |= {"data_dir": str(root), "dataset": dataset, "population.batch_size": 30}
    config.update_from_flattened_dict({**small, **changes})
    return config


def load(root, name="patches", **options):
    return datasets.load(name, data_dir=str(root), options={"layout": "images", **options})


@FORMATS
def test_a_colour_set_is_read_as_it_was_written(tmp_path, file_format):
    train, test = sets.images(50), sets.images(20, seed=1)
    sets.write_set(tmp_path, {"train": train, "test": test}, file_format=file_format, shards=3)
    read = load(tmp_path)
    assert [splits.size(s) for s in read[:3]] == [45, 5, 20]
    assert read.classes == 3 and read.white == 255.0
    assert read.train.pixels.dtype == np.uint8 and read.train.labels.dtype == np.int32
    together = np.concatenate([read.train.pixels, read.valid.pixels])
    np.testing.assert_array_equal(together, [pixels for pixels, _ in train])
    np.testing.assert_array_equal(read.test.labels, [label for _, label in test])


def test_layouts_of_colour_and_of_other_shapes(tmp_path):
    shape = (4, 6, 3)
    pairs = sets.images(30, shape)
    features = {"image": sets.image_feature(shape), "label": sets.label_feature()}
    sets.write_set(tmp_path, {"train": pairs, "test": pairs[:9]}, features=features)
    first = pairs[0][0]
    for layout, laid in (("images", shape), ("rows", (4, 18)), ("pixels", (24, 3))):
        train = load(tmp_path, layout=layout).train
        np.testing.assert_array_equal(train.pixels[0], first.reshape(laid))
    config = own_config(tmp_path).to_dict()
    assert facts.of(config) == facts.Facts("images", 3, 27, shape)
    config["data"]["layout"] = "rows"
    assert facts.timesteps(config) == 4
    config["data"]["layout"] = "pixels"
    assert facts.timesteps(config) == 24


def test_images_of_unequal_sizes_want_a_side(tmp_path):
    features = {"image": sets.image_feature((None, None, 3)), "label": sets.label_feature()}
    tall, wide = (sets.images(15, shape) for shape in ((12, 8, 3), (8, 20, 3)))
    sets.write_set(tmp_path, {"train": tall + wide, "test": wide}, features=features)
    with pytest.raises(UsageError, match=r"differ in size; write --config\.data\.side=64"):
        load(tmp_path)
    read = load(tmp_path, side=8)
    assert read.test.pixels.shape == (15, 8, 8, 3)
    np.testing.assert_array_equal(read.test.pixels[0], wide[0][0][:, 6:14])  # the middle
    assert load(tmp_path, side=5).train.pixels.shape == (27, 5, 5, 3)


def test_resizing_keeps_flat_images_flat_and_averages_others():
    flat = np.full((9, 12, 2), 77, np.uint8)
    np.testing.assert_array_equal(named.resize(flat, 4), np.full((4, 4, 2), 77))
    ramp = np.repeat(np.arange(0, 160, 10, dtype=np.uint8)[None, :, None], 16, 0)
    half = named.resize(ramp, 8)[..., 0]
    assert half.shape == (8, 8) and (np.abs(np.diff(half[:, 1:-1].astype(int)) - 20) <= 1).all()


SIZES = {"train": 100, "test": 40, "validation": 10}


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, {"train": [("train", 0, 100)], "valid": [("validation", 0, 10)]}),
        ({"valid": "25"}, {"train": [("train", 0, 75)], "valid": [("train", 75, 100)]}),
        ({"valid": "0.2"}, {"train": [("train", 0, 80)], "valid": [("train", 80, 100)]}),
        (
            {"valid": "train[10%:30%]"},
            {"train": [("train", 0, 10), ("train", 30, 100)], "valid": [("train", 10, 30)]},
        ),
        ({"test": "train[-5:]"}, {"train": [("train", 0, 95)], "test": [("train", 95, 100)]}),
        (
            {"train": "test[:20]+train[:50]", "valid": "60", "test": "test[20:]"},
            {
                "train": [("test", 0, 10)],
                "valid": [("test", 10, 20), ("train", 0, 50)],
                "test": [("test", 20, 40)],
            },
        ),
    ],
)
def test_split_expressions_become_intervals(options, wanted):
    found = expressions.parts("a", SIZES, options)
    assert {key: found[key] for key in wanted} == wanted


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"valid": "trainn[:5]"}, r"no split of a, which has train \(100\).* Did you mean 'train'"),
        ({"valid": "train[:50"}, r"config\.data\.valid='train\[:50' is no split of a"),
        ({"valid": "100"}, "leaves one of both empty; write a number from 1 to 99"),
        ({"valid": "0"}, "leaves one of both empty"),
        ({"valid": "2.5"}, "leaves one of both empty"),
        ({"train": "train", "valid": "train[90%:]"}, r"train and config\.data\.valid share 10 ex"),
        ({"test": "validation"}, r"valid and config\.data\.test share 10 examples"),
        ({"test": "test[5:5]"}, r"the test split of a is empty \(config\.data\.test='test\[5:5\]'"),
    ],
)
def test_splits_that_cannot_be_are_told(options, message):
    with pytest.raises(UsageError, match=message):
        expressions.parts("a", SIZES, options)


def test_a_set_of_one_split_is_told_how_to_divide_it():
    with pytest.raises(UsageError, match=r"no split 'test', but train; .*train='train\[:80%\]'"):
        expressions.parts("a", {"train": 10}, {})
    expressions.parts("a", {"train": 10}, {"train": "train[:80%]", "test": "train[80%:]"})
    with pytest.raises(UsageError, match="the train split of a is empty"):
        expressions.parts("a", {"train": 0, "test": 9}, {})


def features_of(**changes):
    return {"image": sets.image_feature(), "label": sets.label_feature(), **changes}


def without(key):
    return {k: v for k, v in features_of().items() if k != key}


REFUSED = {
    "no labels": (without("label"), r"no labels \(its features: image Image of shape"),
    "no images": (without("image"), "it has no images"),
    "16 bits": (features_of(image=sets.image_feature(dtype="uint16")), "its images are 16-bit"),
    "floats": (features_of(image=sets.image_feature((8, 8, 1), "float32")), "32-bit float32"),
    "a number": (features_of(label=sets.number_feature()), "'label' is a Tensor of shape"),
    "one class": (features_of(label=sets.label_feature(1)), "'label' has 1 classes, not 2"),
    "channels": (features_of(image=sets.image_feature((8, 8, 0))), "channels are unknown"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_image_classification_is_refused_with_what_it_is(tmp_path, kind):
    features, message = REFUSED[kind]
    sets.write_set(tmp_path, {"train": sets.images(30), "test": sets.images(9)}, features=features)
    with pytest.raises(UsageError, match=message) as error:
        run.train(own_config(tmp_path), tmp_path / "run")
    assert "patches" in str(error.value) and "config.data.source" in str(error.value)
    assert not (tmp_path / "run").exists()


def lose(split):
    def change(folder):
        (shard,) = folder.glob(f"*-{split}.*")
        shard.unlink()

    return change


def flip_a_byte(folder):
    (shard,) = folder.glob("*-train.*")
    content = bytearray(shard.read_bytes())
    used = np.flatnonzero(np.frombuffer(bytes(content), np.uint8))
    content[used[len(used) // 2]] ^= 0xFF  # array_record fills its file up with zeros
    shard.write_bytes(content)


def cut(folder):
    (shard,) = folder.glob("*-test.*")
    shard.write_bytes(shard.read_bytes()[:-500])


DAMAGED = {"missing": lose("train"), "a byte": flip_a_byte, "cut": cut}
LABELLED = sets.images(30)
ODD = {
    "three images": ({"train": LABELLED[:3], "test": LABELLED}, "leaves one of both empty"),
    "few images": ({"train": LABELLED[:16], "test": LABELLED}, "batch_size=16 is more than the 14"),
    "an empty split": ({"train": LABELLED, "test": []}, "the test split of patches is empty"),
    "no public labels": (
        {"train": LABELLED, "test": [(p, -1) for p, _ in LABELLED]},
        r"has a label -1, and its 3 classes are 0 to 2: TFDS writes -1",
    ),
    "all of one class": (
        {"train": [(p, 1) for p, _ in LABELLED], "test": LABELLED},
        "all 27 training images of patches have the label 1: with one class",
    ),
    "no image": (
        {"train": [(b"no image", 1), *LABELLED], "test": LABELLED},
        r"is damaged \(example 0 of train: UnidentifiedImageError",
    ),
    "another size": (
        {"train": [*sets.images(1, (9, 9, 3)), *LABELLED], "test": LABELLED},
        r"an image of \(9, 9, 3\), not \(8, 8, 3\)",
    ),
}


@FORMATS
@pytest.mark.parametrize("how", [*DAMAGED, *ODD])
def test_bad_sets_are_told_before_any_training(tmp_path, file_format, how):
    given = ODD[how][0] if how in ODD else {"train": LABELLED, "test": LABELLED}
    folder = sets.write_set(tmp_path, given, file_format=file_format)
    message = ODD[how][1] if how in ODD else r"is damaged \("
    if how in DAMAGED:
        DAMAGED[how](folder)
    with pytest.raises(UsageError, match=message) as error:
        run.train(own_config(tmp_path), tmp_path / "run")
    assert "\n" not in str(error.value) and "patches" in str(error.value)
    assert not (tmp_path / "run").exists()


def test_configs_and_versions_are_found_as_tfds_writes_them(tmp_path):
    given = {"train": LABELLED, "test": LABELLED}
    for config, version in (
        ("big", "1.0.0"),
        ("big", "1.10.0"),
        ("big", "1.9.0"),
        ("a.b", "2.0.0"),
    ):
        sets.write_set(tmp_path, given, config=config, version=version)
    found = {name: locate.find_any(name, str(tmp_path)) for name in ("patches/big", "patches/a.b")}
    assert [path.name for path in found.values()] == ["1.10.0", "2.0.0"]
    assert locate.find_any("patches/big:1.9.0", str(tmp_path)).name == "1.9.0"
    with pytest.raises(UsageError, match=r"several configs in .*patches/a\.b, patches/big"):
        locate.find_any("patches", str(tmp_path))
    with pytest.raises(UsageError, match=r"no version 3\.0\.0 .* write one of 1\.0\.0, 1\.9\.0, 1"):
        locate.find_any("patches/big:3.0.0", str(tmp_path))
    assert locate.prepared(str(tmp_path)) == ["patches/a.b", "patches/big"]
    assert locate.find_any("nothing", str(tmp_path)) is None


@pytest.mark.parametrize("name", ["../up", "a b", "A", "a/b/c", "x" * 300, "", "a:1", "é"])
def test_what_is_no_name_is_refused(tmp_path, name):
    with pytest.raises(UsageError, match=r"config\.dataset=.* is unknown; known: digits, mnist"):
        validate.check(own_config(tmp_path, dataset=name))


def test_an_unknown_name_says_where_it_was_looked_for(tmp_path):
    sets.write_set(tmp_path, {"train": LABELLED, "test": LABELLED})
    with pytest.raises(UsageError) as error:
        validate.check(own_config(tmp_path, dataset="patchez"))
    message = str(error.value)
    assert "Did you mean 'patches'?" in message and f"--data_dir={tmp_path}" in message
    assert "python -m experiments.prepare patchez" in message


def test_a_format_that_cannot_be_read_is_told(tmp_path):
    folder = sets.write_set(tmp_path, {"train": LABELLED, "test": LABELLED})
    info = json.loads((folder / "dataset_info.json").read_text())
    (folder / "dataset_info.json").write_text(json.dumps({**info, "fileFormat": "parquet"}))
    with pytest.raises(UsageError, match="stored as parquet; array_record and tfrecord can be"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"dataset": "digits", "data.valid": "5"},
            "digits has its own splits; write config.data.v",
        ),
        ({"dataset": "mnist", "data.valid": "5"}, "write --config.dataset=mnist:3.0.1"),
        ({"dataset": "digits", "data.train": "train"}, "is a split of a TFDS set by its name"),
        ({"data.folder": "x"}, "config.data.folder='x' is for config.dataset='npz'"),
        ({"data.memory": -1.0}, "config.data.memory=-1.0 must be a number at least 0"),
        ({"data.workers": -1}, "config.data.workers=-1 must be an integer at least 0"),
    ],
)
def test_keys_of_other_data_are_refused(tmp_path, changes, message):
    sets.write_set(tmp_path, {"train": LABELLED, "test": LABELLED})
    with pytest.raises(UsageError) as error:
        validate.check(own_config(tmp_path, **changes))
    assert message in str(error.value)


def test_the_checksum_of_tfrecord_is_the_published_one():
    """RFC 3720 has the CRC-32C of 32 zeros, 0x8A9136AA; the files have it masked."""
    crc = 0x8A9136AA
    masked = (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF
    assert tfds_records.masked_crc([b"", bytes(32), b"x"])[1] == masked


def test_images_travel_to_another_process(tmp_path):
    sets.write_set(tmp_path, {"train": LABELLED, "test": LABELLED}, shards=2)
    found = named.describe("patches", str(tmp_path))
    images = named.Images(found, [("test", 3, 9), ("train", 0, 5)], (8, 8, 3))
    numbers = [10, 0, 7, 5]
    there = pickle.loads(pickle.dumps(images)).read(numbers)
    np.testing.assert_array_equal(images.read(numbers).pixels, there.pixels)
    wanted = [LABELLED[i][1] for i in (4, 3, 1, 8)]
    np.testing.assert_array_equal(there.labels, wanted)


@pytest.mark.parametrize(
    ("variant", "file_format"),
    few({"lenet": ("lenet", "array_record"), "bn_mlp": ("bn_mlp", "tfrecord")}, "bn_mlp"),
)
def test_a_colour_set_trains(tmp_path, variant, file_format):
    given = {"train": sets.images(120), "test": sets.images(40, seed=1)}
    sets.write_set(tmp_path, given, file_format=file_format)
    changes = {"steps": 40, "log_every": 20, "eval_every": 20, "checkpoint_every": 40}
    config = own_config(tmp_path, variant, **changes, **{"optim.learning_rate": 0.02})
    final = run.train(config, tmp_path / "run")
    assert final["dataset"] == "patches" and final["steps"] == 40
    assert final["test"]["population"]["accuracy"] > 0.8  # a third by chance
    assert math.isfinite(final["test"]["batch"]["loss"])


@pytest.mark.parametrize(("layout", "features"), [("rows", 24), ("pixels", 3)])
def test_a_recurrent_layer_reads_colour(tmp_path, layout, features):
    sets.write_set(tmp_path, {"train": sets.images(60), "test": sets.images(20, seed=1)})
    config = digits.get_config("lstm")
    small = {"batch_size": 16, "eval_batch_size": 20, "data_dir": str(tmp_path)}
    config.update_from_flattened_dict({**small, "dataset": "patches", "data.layout": layout})
    plain = validate.check(config)
    dataset = datasets.load_config_data(plain)
    task = tasks.build(plain, dataset)
    assert task.features == features and task.classes == 3
    x, _ = task.inputs({}, splits.take(dataset.test, np.arange(2)), None)
    assert x.shape == (2, {"rows": 8, "pixels": 64}[layout], features)


@pytest.mark.slow
def test_a_run_on_a_set_by_name_is_killed_resumed_and_reported(tmp_path):
    """By the command line, with the set on the disk and read by another process."""
    given = {"train": sets.images(300), "test": sets.images(40, seed=1)}
    sets.write_set(tmp_path / "sets", given, config="small", file_format="tfrecord", shards=2)
    keys = {"dataset": "patches/small", "data_dir": tmp_path / "sets", "steps": 600}
    keys |= {"data.augment": "flip,crop:1", "data.memory": 0.0, "data.workers": 1}
    keys |= {"log_every": 20, "eval_every": 100, "checkpoint_every": 20, "model.hidden": 8}
    keys |= {"data.valid": "60", "eval_batch_size": 30, "batch_size": 16, "devices": 1}

    def words(folder):
        flags = [f"--config.{key}={value}" for key, value in keys.items()]
        config = "--config=configs/yours/images.py:bn_lenet"
        program = [sys.executable, "-m", "experiments.train", config]
        return [*program, f"--workdir={folder}", *flags]

    def reached(folder):
        rows = folder / "metrics.jsonl"
        return rows.exists() and any(r["step"] >= 60 for r in processes.rows(folder))

    killed, whole = tmp_path / "runs" / "killed", tmp_path / "runs" / "whole"
    processes.killed(processes.begin(words(killed)), lambda: reached(killed), 0.0)
    assert not (killed / "final.json").exists()
    for folder in (killed, whole):
        child = processes.begin(words(folder))
        out, errors = child.communicate(timeout=300)
        assert child.returncode == 0, errors
    assert "test accuracy by statistics" in out
    processes.compare(killed, whole)
    final = json.loads((whole / "final.json").read_text())
    assert final["test"]["population"]["accuracy"] > 0.9
    told = curves.report([tmp_path / "runs"])
    assert "bn_lenet (killed)" in told
    runs = curves.find([tmp_path / "runs"])
    heading = curves.title([r.config for r in runs], [r.data for r in runs])
    assert heading == "patches/small: images of 8 x 8 x 3, 3 classes"
