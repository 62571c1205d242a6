"""Workdirs and data in a bucket, over the clients that the cloud is used with: see `bucket`."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from experiments.runtime.checkpoints import Checkpoints
from tests._support import bucket
from tests._support.processes import begin, command, until

RUN = "gs://bucket/runs/one"
QUICK = {"steps": 40, "log_every": 5, "eval_every": 20, "checkpoint_every": 10}
READ = """
import sys
from experiments import evaluate
from experiments.data import locate, sequences
from experiments.runtime import curves
from tests._support.processes import result, rows
run, out, whole = sys.argv[1:]
assert rows(run) == rows(whole) and result(run) == result(whole)
scored = evaluate.evaluate(run, split="test", stats="batch")
assert scored["loss"] == result(whole)["test"]["batch"]["loss"]
assert "bn_lstm" in curves.report(["gs://bucket/runs"], out)
assert list(sequences.find_text("gs://bucket/text/one")) == ["all"]
print(locate.cache_locally(locate.find("mnist", "gs://bucket/tfds")))
"""


def test_checkpoints_of_a_bucket_are_not_put_into_the_working_directory(monkeypatch):
    monkeypatch.setattr(Checkpoints, "_open", lambda self: None)
    monkeypatch.setattr("etils.epath.gpath._GPath.mkdir", lambda self, **_: None)
    assert str(Checkpoints("gs://bucket/run").folder) == "gs://bucket/run/checkpoints"


def saved(store):
    names = [n.split("/") for n in store.names("bucket/runs/one/checkpoints/")]
    return sorted(int(n[4]) for n in names if n[5:] == ["commit_success.txt"])


@pytest.mark.slow
def test_a_run_in_a_bucket_is_killed_damaged_resumed_and_read(tmp_path, monkeypatch):
    """Rows and scores of a run on the disk; evaluated, reported and fed from the bucket."""
    pytest.importorskip("gcsfs", reason="buckets need gcsfs: pip install --group gcs")
    with bucket.serve() as store:
        for key, value in store.environment().items():
            monkeypatch.setenv(key, value)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        first = begin(command(RUN, **QUICK))
        try:
            until(lambda: len(saved(store)) == 2 or first.poll() is not None)
            assert first.poll() is None
        finally:
            first.kill()
            _, errors = first.communicate()
        last = saved(store)[-1]
        at = [n for n in store.names(f"bucket/runs/one/checkpoints/{last}/") if "/run/" in n]
        largest = max(at, key=lambda name: len(store.objects[name][0]))
        bytes_ = bytearray(store.objects[largest][0])
        bytes_[len(bytes_) // 2] ^= 0x55
        store.put(largest, bytes(bytes_))
        again, whole = begin(command(RUN, **QUICK)), begin(command(tmp_path / "whole", **QUICK))
        output, errors = again.communicate(timeout=300)
        assert again.returncode == 0, errors
        whole.communicate(timeout=300)
        assert whole.returncode == 0
        assert f"the checkpoint of step {last}" in output and "is used instead" in output
        assert any(f"/damaged/{last}/" in name for name in store.names("bucket/runs/one/"))
        assert any("/tensorboard/" in name for name in store.names("bucket/runs/one/"))
        store.put("bucket/text/one/all.txt", b"a text")
        info = b'{"fileFormat": "array_record"}'
        store.put("bucket/tfds/mnist/3.0.1/dataset_info.json", info)
        store.put("bucket/tfds/mnist/3.0.1/mnist-train.array_record-00000-of-00001", b"records")
        read = [sys.executable, "-c", READ, RUN, str(tmp_path / "out"), str(tmp_path / "whole")]
        as_trained = {**os.environ, "XLA_FLAGS": ""}
        reader = subprocess.run(
            read, env=as_trained, capture_output=True, text=True, timeout=300, check=False
        )
        assert reader.returncode == 0, reader.stderr
        assert not store.unknown
    here = tmp_path / "cache" / "normjax" / "gs" / "bucket" / "tfds" / "mnist" / "3.0.1"
    assert reader.stdout.split()[-1] == str(here)
    assert (here / "dataset_info.json").read_bytes() == info and len(list(here.iterdir())) == 2
    assert (tmp_path / "out" / "curves.png").stat().st_size > 1000
