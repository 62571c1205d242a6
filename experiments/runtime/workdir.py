"""Opens the folder of a run, which holds its config, checkpoints, metrics and result.

config.json holds the resolved config with versions and hardware, checkpoints/ the newest few,
metrics.jsonl and tensorboard/ the curves, final.json the result. A workdir is a local folder or a
bucket (gs://…): the same code, through `etils.epath`. Of several processes the first writes.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from etils import epath

import normjax
from experiments import models
from experiments.config import defaults
from experiments.data import facts
from experiments.runtime.checkpoints import local
from experiments.runtime.metrics import write_text
from experiments.usage import UsageError

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
Tree = Any


BEGAN = "%Y-%m-%dT%H:%M:%SZ"  # of "began" in a run's config.json, in UTC; sorts as text


@functools.cache
def code() -> str:
    """Hash the source that computes the numbers."""
    root = pathlib.Path(__file__).parents[2]
    files = sorted(p for name in ("normjax", "experiments") for p in (root / name).rglob("*.py"))
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def versions(config: Mapping[str, Any] | None = None) -> dict[str, str]:
    """Return the versions of everything that computes the numbers, the user's model too."""
    numbers = {"python": platform.python_version(), "normjax": normjax.__version__, "code": code()}
    if config is not None and (own := models.fingerprint(config["model"])):
        numbers["model"] = own
    return numbers | {name: importlib.metadata.version(name) for name in PACKAGES}


def matmul_precision() -> str:
    """Return the precision that matrix products are asked for, "" for JAX's default."""
    return jax.config.jax_default_matmul_precision or ""  # type: ignore[attr-defined]


def hardware(devices: int = 0) -> dict[str, Any]:
    """Describe the machine that computes the numbers."""
    device = jax.devices()[0]
    found = {
        "device": device.device_kind,
        "platform": device.platform,
        "devices": devices or jax.device_count(),
        "cpus": os.cpu_count(),
    }
    if device.platform != "cpu":
        # Where float32 products may be rounded: on a GPU to TF32, on a TPU to bfloat16.
        found["matmul_precision"] = matmul_precision() or "default"
    return found


def folders_with(name: str, folder: epath.Path) -> Iterator[epath.Path]:
    """Yield the folders in and below one that hold a file; below such a folder nothing is read."""
    if (folder / name).exists():
        yield folder
    elif folder.is_dir():  # epath has no ** for buckets
        for path in sorted(folder.iterdir()):
            yield from folders_with(name, path)


def write_json(path: epath.PathLike, value: Any) -> None:
    """Write a JSON file, whole or not at all."""
    write_text(epath.Path(path), json.dumps(value, indent=2) + "\n")


def read_json(path: epath.PathLike, *keys: str) -> dict[str, Any]:
    """Read a JSON object with some keys; what is wrong with the file is the user's to know."""
    path = epath.Path(path)
    try:
        value = json.loads(path.read_text())
        missing = [key for key in keys if key not in value]
        if missing or not isinstance(value, dict):
            raise ValueError(f"it has no {missing[0] if missing else 'keys'}")
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(
            f"{path} is damaged ({error}); restore it from a copy, or remove its folder to start "
            "over."
        ) from error
    return value


@contextlib.contextmanager
def writer_lock(workdir: epath.PathLike) -> Iterator[None]:
    """Hold a local workdir for writing; a second process that would write there is refused.

    The lock is the operating system's and goes with the process, however it ends. A bucket has
    none: there two runs in one workdir are the user's to avoid.
    """
    if not local(workdir) or jax.process_index() != 0:
        yield
        return
    path = pathlib.Path(workdir) / "lock"
    if path.is_symlink() or path.is_dir():
        raise UsageError(f"{path} is not the file that a run locks; remove it.")
    with open(path, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UsageError(
                f"another process is training in {workdir}; wait for it, or choose another "
                "--workdir."
            ) from error
        yield


def _draws(config: dict, devices: int) -> int:
    """Return how many devices draw noise of their own."""
    return 1 if (config["parallel"], config["batch_stats"]) == ("jit", "global") else devices


def _notes(there: dict, config: dict, devices: int) -> list[str]:
    """Describe what has changed since a workdir was begun."""
    now, notes = versions(config), []
    changed = [
        f"{k} {there['versions'].get(k, 'unknown')} -> {now[k]}"
        for k in now
        if there["versions"].get(k) != now[k]
    ]
    if changed:
        notes.append(f"begun with other versions ({', '.join(changed)}); bits may differ")
    before, after = there["hardware"], hardware(devices)
    if before.get("devices") != after["devices"]:
        notes.append(
            f"begun on {before.get('devices')} devices and continues on {after['devices']}; sums "
            "are rounded in another order, so bits may differ"
        )
    if before.get("device") != after["device"]:
        notes.append(
            f"begun on {before.get('device')}, continues on {after['device']}; bits may differ"
        )
    drew, draw = _draws(there["config"], before["devices"]), _draws(config, after["devices"])
    if defaults.draws_noise(config) and drew != draw:
        notes.append(
            f"begun with the model's noise drawn on {drew} devices and continues with {draw} "
            "(config.parallel, config.devices): other noise, so other numbers, from here on"
        )
    return notes


def check_workdir(workdir: epath.PathLike, config: dict, devices: int = 0) -> None:
    """Check that a workdir may be made, or that the run in it belongs to this config."""
    workdir = epath.Path(workdir)
    path = workdir / "config.json"
    if workdir.exists() and not workdir.is_dir():
        raise UsageError(f"--workdir={workdir} is a file; name a folder.")
    for name in ("checkpoints", "tensorboard"):
        _require_folder(workdir / name)
    _refuse_links(workdir / "checkpoints")
    if path.exists():
        there = read_json(path, "config", "versions", "hardware")
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
        done = workdir / "final.json"
        if not (done.exists() and read_json(done, "steps")["steps"] == config["steps"]):
            for note in _notes(there, config, devices):
                print(f"note: {workdir} was {note}", flush=True)
    elif workdir.is_dir() and any(workdir.iterdir()):
        raise UsageError(
            f"{workdir} is not empty and holds no run (no config.json); choose another --workdir."
        )


def _require_folder(path: epath.Path) -> None:
    """Refuse what stands where a run makes a folder."""
    if path.is_dir():
        return
    if path.exists():
        raise UsageError(f"{path} is a file and must be a folder; move it away.")
    if local(path) and os.path.islink(path):
        raise UsageError(
            f"{path} is a link to {os.readlink(path)}, which does not exist; remove it, or make "
            "that folder."
        )


def _refuse_links(checkpoints: epath.Path) -> None:
    """Refuse a checkpoint that is a link: an old one is removed, which a link cannot be."""
    if not local(checkpoints) or not checkpoints.is_dir():
        return
    for path in checkpoints.iterdir():
        if os.path.islink(path):
            raise UsageError(
                f"{path} is a link, and old checkpoints are removed as folders; move "
                f"{os.readlink(path)} to its place."
            )


def make_workdir(workdir: epath.PathLike, config: dict, devices: int = 0) -> None:
    """Make a checked workdir and write its config.json, with what is known of the data."""
    workdir = epath.Path(workdir)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        described: dict[str, Any] = {"config": config, "data": facts.of(config)._asdict()}
        described |= {"versions": versions(config), "hardware": hardware(devices)}
        path = workdir / "config.json"
        there = read_json(path) if path.exists() else {"began": time.strftime(BEGAN, time.gmtime())}
        described["began"] = there.get("began", "")  # a run continued did not begin now
        write_json(path, described)
    except OSError as error:
        raise UsageError(
            f"--workdir={workdir} cannot be written ({error.strerror}); name a folder that can."
        ) from error


# In the workdir of a run that is trained together with others until they have finished: the folder
# that holds their checkpoint, NAME beside the workdir or ../NAME one folder further up.
GROUP = "group.json"


def join_group(workdir: epath.Path, group: epath.Path) -> None:
    """Write into a workdir which group it is trained in, so that both may move together."""
    up = len(workdir.parent.relative_to(group.parent).parts)
    write_json(workdir / GROUP, {"group": "../" * up + group.name})


def group_of(workdir: epath.Path) -> epath.Path | None:
    """Return the folder of the group that a workdir was begun in; None for a run alone."""
    path = workdir / GROUP
    if not path.exists():
        return None
    name, place = read_json(path, "group")["group"], workdir.parent
    while name.startswith("../"):  # by hand: a path in a bucket knows no ..
        name, place = name.removeprefix("../"), place.parent
    return place / name


def leave_group(workdir: epath.PathLike) -> None:
    """Take a workdir out of the group that it was begun in: from here on it is trained alone."""
    path = epath.Path(workdir) / GROUP
    if path.exists():
        where = read_json(path, "group")["group"]
        print(
            f"note: {workdir} was begun together with others, whose checkpoint is in {where}; it "
            "now goes on alone, from its own last checkpoint or from the start.",
            flush=True,
        )
        path.unlink()


@contextlib.contextmanager
def removed_if_refused(workdir: epath.PathLike) -> Iterator[None]:
    """Take a new workdir away again if its first command is refused before anything is trained.

    The corrected command would otherwise be another config's.
    """
    workdir = epath.Path(workdir)
    was_there, new = workdir.exists(), not (workdir / "config.json").exists()
    try:
        yield
    except UsageError:
        made = new and local(workdir) and (workdir / "config.json").exists()
        if made and jax.process_index() == 0 and not _trained(workdir):
            for name in ("config.json", GROUP, "metrics.jsonl", "lock"):
                (workdir / name).unlink(missing_ok=True)
            for name in ("checkpoints", "tensorboard"):
                if (workdir / name).is_dir():
                    (workdir / name).rmtree()
            if not was_there and workdir.is_dir() and not any(workdir.iterdir()):
                workdir.rmdir()
        raise


def _trained(workdir: epath.Path) -> bool:
    """Whether a workdir holds a row of metrics or a checkpoint."""
    metrics, checkpoints = workdir / "metrics.jsonl", workdir / "checkpoints"
    rows = metrics.exists() and metrics.stat().length
    return bool(rows or (checkpoints.is_dir() and any(checkpoints.iterdir())))
