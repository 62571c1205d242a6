"""Damaged copies of real data sets: a run says which folder and what to do, before it trains."""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import subprocess

import pytest

from configs.imdb_lstm import _small as reviews
from configs.recurrent_bn import mnist, ptb
from configs.vertical_bn import _small as spoken
from experiments.runtime import run
from experiments.usage import UsageError
from tests._support.processes import begin, command

NOISE = random.Random(0).randbytes(1000)
CONFIGS = {
    "mnist": lambda: mnist.get_config("lstm"),
    "fashion_mnist": lambda: _fashion(),
    "fsdd": lambda: spoken.spoken(1),
    "imdb_reviews": lambda: reviews.reviews("lstm", every=True),
}


def _fashion():
    config = mnist.get_config("lstm")
    with config.unlocked():
        config.dataset = "fashion_mnist"
    return config


def copied(data_dir, name, root):
    """A set as links to its files, which damage replaces; return the folder of its version."""
    source = data_dir / "tensorflow_datasets" / name
    if not source.is_dir():
        pytest.skip(f"{source} is absent")
    shutil.copytree(source, root / name, copy_function=os.symlink)
    return next((root / name).rglob("dataset_info.json")).parent


def shard(folder, split):
    return next(folder.glob(f"*-{split}.array_record-*"))


def change(path, how):
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(how(content))


def zeros(content, at):
    start = int(len(content) * at)
    return content[:start] + bytes(4096) + content[start + 4096 :]


def garbage_in(content, at):
    start = int(len(content) * at)
    return content[:start] + b"\x5a" * 512 + content[start + 512 :]


def swap_splits(folder):
    first, second = shard(folder, "train"), shard(folder, "test")
    targets = first.readlink(), second.readlink()
    for path, target in zip((first, second), reversed(targets), strict=True):
        path.unlink()
        path.symlink_to(target)


def train(folder):
    return shard(folder, "train")


DAMAGE = {
    "train missing": lambda f: train(f).unlink(),
    "test missing": lambda f: shard(f, "test").unlink(),
    "cut at half": lambda f: change(train(f), lambda c: c[: len(c) // 2]),
    "cut at the end": lambda f: change(train(f), lambda c: c[:-100_000]),
    "empty": lambda f: change(train(f), lambda c: b""),
    "zeros at a third": lambda f: change(train(f), lambda c: zeros(c, 0.33)),
    "zeros in the middle": lambda f: change(shard(f, "test"), lambda c: zeros(c, 0.5)),
    "zeros at the start": lambda f: change(train(f), lambda c: zeros(c, 0.0)),
    "other bytes": lambda f: change(train(f), lambda c: garbage_in(c, 0.4)),
    "splits swapped": swap_splits,
    "info garbage": lambda f: change(f / "dataset_info.json", lambda c: NOISE[:200]),
    "info cut": lambda f: change(f / "dataset_info.json", lambda c: c[: len(c) // 2]),
    "info zeroed": lambda f: change(f / "dataset_info.json", lambda c: bytes(len(c))),
    "features garbage": lambda f: change(f / "features.json", lambda c: NOISE[:200]),
    "features cut": lambda f: change(f / "features.json", lambda c: c[: len(c) // 2]),
    "features missing": lambda f: (f / "features.json").unlink(),
    "features of another set": lambda f: change(
        f / "features.json", lambda c: json.dumps(OTHER).encode()
    ),
}
OTHER = {
    "pythonClassName": "tensorflow_datasets.core.features.features_dict.FeaturesDict",
    "featuresDict": {
        "features": {
            "other": {
                "pythonClassName": "tensorflow_datasets.core.features.tensor_feature.Tensor",
                "tensor": {"shape": {}, "dtype": "int32", "encoding": "none"},
            }
        }
    },
}


def refused(config, tmp_path, folder):
    """The message of a run that is refused; it has left nothing behind."""
    with config.unlocked():
        config.data_dir = str(tmp_path / "sets")
    with pytest.raises(UsageError) as error:
        run.train(config, tmp_path / "run")
    message = str(error.value)
    assert "\n" not in message and str(folder.parent) in message, message
    assert "prepare" in message
    assert not (tmp_path / "run").exists()
    return message


# Each damage to one of the sets; tests/experiments/test_broken_data.py does all to one it makes.
CASES = list(zip(itertools.cycle(CONFIGS), DAMAGE, strict=False))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "how"), CASES)
def test_a_damaged_set_is_named_before_a_run_trains(data_dir, tmp_path, name, how):
    folder = copied(data_dir, name, tmp_path / "sets")
    DAMAGE[how](folder)
    refused(CONFIGS[name](), tmp_path, folder)


@pytest.mark.slow
def test_records_of_another_set_are_told(data_dir, tmp_path):
    """As many images of the same size; only their bytes differ."""
    folder = copied(data_dir, "mnist", tmp_path / "sets")
    other = copied(data_dir, "fashion_mnist", tmp_path / "other")
    train(folder).unlink()
    (folder / train(other).name.replace("fashion_", "")).symlink_to(train(other).resolve())
    message = refused(CONFIGS["mnist"](), tmp_path, folder)
    assert "is it another set's" in message


@pytest.mark.slow
@pytest.mark.parametrize("how", ["zeros", "latin-1", "garbage", "missing", "folder"])
def test_a_damaged_text_is_named_before_a_run_trains(data_dir, tmp_path, how):
    source = data_dir / "text" / "ptb"
    if not source.is_dir():
        pytest.skip(f"{source} is absent")
    folder = tmp_path / "ptb"
    shutil.copytree(source, folder, copy_function=os.symlink)
    path = folder / "ptb.valid.txt"
    if how in ("missing", "folder"):
        path.unlink()
        if how == "folder":
            path.mkdir()
    else:
        damage = {
            "zeros": lambda c: zeros(c, 0.5),
            "latin-1": lambda c: c[:1000] + "é".encode("latin-1") + c[1000:],
            "garbage": lambda c: NOISE,
        }[how]
        change(path, damage)
    config = ptb.get_config("lstm")
    with config.unlocked():
        config.data.text = str(folder)
    with pytest.raises(UsageError, match=r"ptb") as error:
        run.train(config, tmp_path / "run")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_command_ends_with_status_2_and_no_traceback(data_dir, tmp_path):
    folder = copied(data_dir, "mnist", tmp_path / "sets")
    DAMAGE["zeros at a third"](folder)
    words = command(tmp_path / "run", data_dir=str(tmp_path / "sets"))
    words = [w.replace("recurrent_bn/digits", "recurrent_bn/mnist") for w in words]
    child = begin(words, stdin=subprocess.DEVNULL)
    _, errors = child.communicate(timeout=300)
    assert child.returncode == 2, errors
    assert "Traceback" not in errors
    (told,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert str(folder) in told and "prepare it again" in told
    assert not (tmp_path / "run").exists()
