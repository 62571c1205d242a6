"""The folder of a run: its config, checkpoints, metrics, and what is shown meanwhile.

config.json holds the resolved config with versions and hardware, checkpoints/ the newest few,
metrics.jsonl and tensorboard/ the curves, final.json the result. A workdir is a local folder or a
bucket (gs://…): the same code, through `etils.epath`. Of several processes the first writes.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
from typing import Any

import jax
from etils import epath

import normjax
from experiments.config import defaults
from experiments.runtime.metrics import write_text
from experiments.usage import UsageError

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
Tree = Any


@functools.cache
def code() -> str:
    """A hash of the source that computes the numbers."""
    root = pathlib.Path(__file__).parents[2]
    files = sorted(p for name in ("normjax", "experiments") for p in (root / name).rglob("*.py"))
    told = hashlib.sha256()
    for path in files:
        told.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return told.hexdigest()[:12]


def versions() -> dict[str, str]:
    """Versions of what computes the numbers."""
    found = {"python": platform.python_version(), "normjax": normjax.__version__, "code": code()}
    return found | {name: importlib.metadata.version(name) for name in PACKAGES}


def hardware(devices: int = 0) -> dict[str, Any]:
    """What the numbers were computed on."""
    device = jax.devices()[0]
    return {
        "device": device.device_kind,
        "platform": device.platform,
        "devices": devices or jax.device_count(),
        "cpus": os.cpu_count(),
    }


def write_json(path: epath.PathLike, value: Any) -> None:
    """Write a JSON file whole or not at all."""
    write_text(epath.Path(path), json.dumps(value, indent=2) + "\n")


def _draws(config: dict, devices: int) -> int:
    """How many devices draw noise of their own."""
    return 1 if (config["parallel"], config["batch_stats"]) == ("jit", "global") else devices


def _notes(there: dict, config: dict, devices: int) -> list[str]:
    """What is not as it was when a workdir was begun, in plain words."""
    now, notes = versions(), []
    changed = [
        f"{k} {there['versions'].get(k, 'unknown')} -> {now[k]}"
        for k in now
        if there["versions"].get(k) != now[k]
    ]
    if changed:
        notes.append(f"begun with other versions ({', '.join(changed)}); bits may differ")
    was, is_ = there["hardware"], hardware(devices)
    if was.get("devices") != is_["devices"]:
        notes.append(
            f"begun on {was.get('devices')} devices and goes on on {is_['devices']}; sums are "
            "rounded in another order, so bits may differ"
        )
    if was.get("device") != is_["device"]:
        notes.append(f"begun on {was.get('device')}, goes on on {is_['device']}; bits may differ")
    drew, draw = _draws(there["config"], was["devices"]), _draws(config, is_["devices"])
    if defaults.draws_noise(config) and drew != draw:
        notes.append(
            f"begun with the model's noise drawn in {drew} and goes on with it drawn in {draw} "
            "(config.parallel, config.devices): other noise, so other numbers, from here on"
        )
    return notes


def open_workdir(workdir: epath.PathLike, config: dict, devices: int = 0) -> None:
    """Make the workdir, or check that what is in it belongs to this config."""
    workdir = epath.Path(workdir)
    path = workdir / "config.json"
    if workdir.exists() and not workdir.is_dir():
        raise UsageError(f"--workdir={workdir} is a file; name a folder.")
    if path.exists():
        try:
            there = json.loads(path.read_text())
        except json.JSONDecodeError as error:
            raise UsageError(
                f"{path} is damaged ({error}); restore it, or choose another --workdir."
            ) from error
        if lines := defaults.differences(there["config"], config):
            raise UsageError(
                f"{workdir} holds a run of another config:\n" + "\n".join(lines) + "\n"
                "Choose another --workdir, or remove that one to start over."
            )
        before = there["hardware"].get("devices")
        if config["batch_stats"] == "device" and before != hardware(devices)["devices"]:
            raise UsageError(
                f"{workdir} was begun on {before} devices with config.batch_stats=device, where "
                "the batch of a statistic is what one device has: another number of devices is "
                "another experiment. Choose another --workdir."
            )
        for note in _notes(there, config, devices):
            print(f"note: {workdir} was {note}", flush=True)
    elif workdir.is_dir() and any(workdir.iterdir()):
        raise UsageError(
            f"{workdir} is not empty and holds no run (no config.json); choose another --workdir."
        )
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        write_json(path, {"config": config, "versions": versions(), "hardware": hardware(devices)})
    except OSError as error:
        raise UsageError(
            f"--workdir={workdir} cannot be written ({error.strerror}); name a folder that can."
        ) from error
