"""Data sets, texts and vectors that are damaged: each is named, with what to do."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from array_record.python import array_record_module

from experiments.data import locate, sequences, tfds_records
from experiments.usage import UsageError

SIZES = {"train": 300, "test": 100}
TFDS = "tensorflow_datasets.core.features."
TENSOR = {
    "pythonClassName": f"{TFDS}tensor_feature.Tensor",
    "tensor": {"shape": {}, "dtype": "int32", "encoding": "none"},
}
FEATURES = {
    "pythonClassName": f"{TFDS}features_dict.FeaturesDict",
    "featuresDict": {"features": {"label": TENSOR}},
}


def shard(folder, split):
    return folder / f"tiny-{split}.array_record-00000-of-00001"


@pytest.fixture
def folder(tmp_path):
    """A set of two splits, as far as it is read before its examples are decoded."""
    where = tmp_path / "tiny" / "1.0.0"
    where.mkdir(parents=True)
    splits, draw = [], np.random.RandomState(0)
    for split, size in SIZES.items():
        writer = array_record_module.ArrayRecordWriter(str(shard(where, split)), "group_size:1")
        for _ in range(size):
            writer.write(draw.bytes(1000))
        writer.close()
        name = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
        splits.append(
            {
                "name": split,
                "numBytes": str(1000 * size),
                "shardLengths": [str(size)],
                "filepathTemplate": name,
            }
        )
    info = {"name": "tiny", "version": "1.0.0", "fileFormat": "array_record", "splits": splits}
    (where / "dataset_info.json").write_text(json.dumps(info))
    (where / "features.json").write_text(json.dumps(FEATURES))
    return where


def test_a_whole_set_passes_the_checks(folder):
    found = tfds_records.sources(folder, SIZES, ("label",))
    assert {split: len(source) for split, source in found.items()} == SIZES


def zero_middle(path):
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 5000] = bytes(5000)
    path.write_bytes(content)


def swap(folder):
    a, b = shard(folder, "train"), shard(folder, "test")
    content = a.read_bytes()
    a.write_bytes(b.read_bytes())
    b.write_bytes(content)


def other_bytes(folder):
    """A file of as many records, of another set."""
    writer = array_record_module.ArrayRecordWriter(str(shard(folder, "test")), "group_size:1")
    for i in range(100):
        writer.write(bytes([i]) * 1001)
    writer.close()


BREAK = {
    "missing": lambda f: shard(f, "train").unlink(),
    "truncated": lambda f: shard(f, "train").write_bytes(shard(f, "train").read_bytes()[:100_000]),
    "empty": lambda f: shard(f, "train").write_bytes(b""),
    "zeroed in the middle": lambda f: zero_middle(shard(f, "train")),
    "swapped": swap,
    "of another set": other_bytes,
    "garbage": lambda f: shard(f, "test").write_bytes(b"garbage" * 1000),
    "info is garbage": lambda f: (f / "dataset_info.json").write_bytes(b"\xff\xfe\x00"),
    "info is a list": lambda f: (f / "dataset_info.json").write_text("[]"),
    "info lacks splits": lambda f: (f / "dataset_info.json").write_text("{}"),
    "info's splits are numbers": lambda f: (f / "dataset_info.json").write_text('{"splits": [1]}'),
    "features are gone": lambda f: (f / "features.json").unlink(),
    "features are garbage": lambda f: (f / "features.json").write_text("{"),
    "features are empty": lambda f: (f / "features.json").write_text("{}"),
    "features are others": lambda f: (f / "features.json").write_text(
        json.dumps(FEATURES).replace("label", "image")
    ),
    "features of no class": lambda f: (f / "features.json").write_text(
        json.dumps(FEATURES).replace("Tensor", "Tensr")
    ),
}


@pytest.mark.parametrize("change", BREAK.values(), ids=BREAK)
def test_a_damaged_set_is_named(folder, change):
    change(folder)
    with pytest.raises(UsageError, match=r"prepare it again") as error:
        tfds_records.sources(folder, SIZES, ("label",))
    assert str(folder) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("key", ["pythonClassName", "type"])
@pytest.mark.parametrize("name", ["evil_module.Evil", f"{TFDS}..os.system", "os.path"])
def test_classes_that_are_not_tfds_own_are_never_imported(folder, key, name, monkeypatch):
    (folder / "evil_module.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(str(folder))
    deep = {"featuresDict": {"features": {"label": {**TENSOR, key: name}}}}
    (folder / "features.json").write_text(json.dumps({**FEATURES, **deep}))
    with pytest.raises(UsageError, match=r"features\.json names the class .* is not loaded"):
        tfds_records.sources(folder, SIZES, ("label",))
    assert "evil_module" not in sys.modules


def test_an_info_that_is_no_json_is_told_when_the_set_is_looked_for(folder, monkeypatch):
    root = folder.parents[1]
    assert locate.find("tiny", str(root)) == folder
    for content in (b"", b"{", b"[]", b"\xff"):
        (folder / "dataset_info.json").write_bytes(content)
        with pytest.raises(UsageError, match=r"dataset_info\.json is damaged"):
            locate.find("tiny", str(root))


@pytest.mark.parametrize(
    "content", ["é".encode("latin-1"), "text".encode("utf-16"), b"\x00\x01\x02" * 50, b"\x80"]
)
def test_a_text_that_is_no_utf8_is_named(tmp_path, content):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(UsageError, match=r"a\.txt .*UTF-8"):
        sequences.text.__wrapped__(str(tmp_path), "", "chars", 100, 5, 0)


def test_a_folder_named_as_a_text_is_none(tmp_path):
    (tmp_path / "x.txt").mkdir()
    with pytest.raises(UsageError, match=r"is no folder with \*\.txt files"):
        sequences.find_text(str(tmp_path))
    (tmp_path / "a.txt").write_text("one")
    assert [p.name for p in sequences.find_text(str(tmp_path))["all"]] == ["a.txt"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"the 0.1 0.2\ncat 0.1 x\n", "line 2 of .* holds what is no number"),
        (b"the 0.1 0.2\ncat 0.1 nan\n", "line 2 of .* is not finite"),
        (b"the 0.1 0.2\ncat 0.1\n", "line 2 of .* has 1 numbers and the first has 2"),
        (b"", "is empty"),
        (b"\xff\xfe\x00", "cannot be read as UTF-8"),
    ],
)
def test_vectors_that_are_damaged_are_named(tmp_path, content, message):
    path = tmp_path / "glove.txt"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=message) as error:
        sequences.vectors(path, {"<unk>": 0, "the": 1, "cat": 2}, 3)
    assert str(path) in str(error.value)
