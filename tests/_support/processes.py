"""Runs as processes of their own, and what two of them must have in common."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

from etils import epath

from experiments.runtime import metrics

CONFIG = "--config=configs/recurrent_bn/digits.py:bn_lstm"
SHORT = {"model.hidden": 4, "data.side": 2, "batch_size": 17, "eval_batch_size": 90, "devices": 1}


def rows(folder):
    read = metrics.read_rows(epath.Path(folder) / "metrics.jsonl")
    return [{k: v for k, v in row.items() if k != "seconds"} for row in read]


def result(folder):
    final = json.loads((epath.Path(folder) / "final.json").read_text())
    return {k: final[k] for k in ("valid", "test", "best_step", "steps", "steps_to_target")}


def command(folder, *words, **keys):
    """Give the words of a run of four steps a sequence."""
    keys = {k.replace("__", "."): v for k, v in keys.items()}
    flags = [f"--config.{k}={v}" for k, v in (SHORT | keys).items()]
    return [
        sys.executable,
        "-m",
        "experiments.train",
        CONFIG,
        f"--workdir={folder}",
        *flags,
        *words,
    ]


def begin(words, devices=1, **kwargs):
    settings = {"JAX_NUM_CPU_DEVICES": str(devices), "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(words, env={**os.environ, **settings}, **pipes | kwargs)


def until(condition, seconds=200.0):
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds
        time.sleep(0.01)


def compare(folder, whole):
    """Equal to the bit: the rows, the scores and the parameters of the last step."""
    assert rows(folder) == rows(whole)
    assert result(folder) == result(whole)
    last = str(json.loads((whole / "final.json").read_text())["steps"])
    metadata = [
        json.loads((f / "checkpoints" / last / "data" / "metadata").read_text())
        for f in (folder, whole)
    ]
    sums = [{k: v for k, v in k["checksums"].items() if k != "seconds"} for k in metadata]
    assert sums[0] == sums[1] and any(k.startswith("now/params") for k in sums[0])


def killed(child, reached, wait):
    """Send SIGKILL to a run that has come so far, and is still running, after some seconds."""
    try:
        until(lambda: reached() or child.poll() is not None)
        assert child.poll() is None
        time.sleep(wait)
    finally:
        child.kill()
        child.communicate()
