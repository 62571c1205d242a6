"""Writes checkpoints in the background, whole or not at all, and verifies them when read.

A checkpoint is one pytree (parameters, norm state, optimizer, key, step, the best parameters so
far) with the data iterator's position and a checksum of every leaf. A half-written one is never
read (Orbax writes elsewhere and renames); one that was damaged later is detected by its checksums,
set aside, and the one before it is used. The newest `keep` stay, each with the best parameters.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import os
import sys
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging as absl_logging
from etils import epath

from experiments.usage import UsageError

Tree = Any


def local(path: epath.PathLike) -> bool:
    """Whether a path is on a file system of this machine, and not in a bucket."""
    return "://" not in os.fspath(path)


def name(path: Any) -> str:
    """Write the path of a leaf as ``params/layer/cell/kernel``."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _data(leaf: Any) -> Any:
    """Return a leaf as a plain array; of a PRNG key, its words."""
    if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.key_data(leaf)
    return leaf


def checksums(tree: Tree) -> dict[str, int]:
    """Compute the CRC-32 of every leaf, by its path."""
    leaves = jax.device_get(
        [(name(path), _data(leaf)) for path, leaf in jax.tree.leaves_with_path(tree)]
    )
    return {path: zlib.crc32(np.ascontiguousarray(leaf).tobytes()) for path, leaf in leaves}


def _crc(value: Any) -> int:
    return zlib.crc32(json.dumps(value, sort_keys=True).encode())


@contextlib.contextmanager
def _quiet(collect: bool) -> Iterator[None]:
    """Keep the abandoned coroutines of failed reads from logging.

    They are collected when nothing holds them: after the next read that succeeds, or the last.
    """
    before, logger = sys.unraisablehook, logging.getLogger(asyncio.__name__)
    disabled, logger.disabled = logger.disabled, True
    sys.unraisablehook = lambda _: None
    try:
        yield
        if collect:
            gc.collect()
    finally:
        sys.unraisablehook, logger.disabled = before, disabled


def _move(source: epath.Path, target: epath.Path) -> None:
    if local(source):
        source.rename(target)
        return
    _copy(source, target)  # a bucket has no folders that could be renamed
    source.rmtree()


def _copy(source: epath.Path, target: epath.Path) -> None:
    for path in source.iterdir():
        if path.is_dir():
            _copy(path, target / path.name)
        else:
            path.copy(target / path.name)


class Restored(NamedTuple):
    """What a checkpoint holds: the run, the data iterator's position, the metrics' digest."""

    run: Tree
    position: dict
    metrics: dict[str, int] | None


class Checkpoints:
    """The checkpoints of one workdir; with `write=False` it is only read."""

    def __init__(self, workdir: epath.PathLike, keep: int = 2, *, write: bool = True):
        folder = epath.Path(workdir)
        # Orbax wants whole paths, and `resolve` would put a bucket into the working directory.
        self.folder = (folder.resolve() if local(folder) else folder) / "checkpoints"
        self.keep, self.write = keep, write
        if local(folder) and self.folder.exists() and not self.folder.is_dir():
            raise UsageError(f"{self.folder} is a file and must be a folder; remove it.")
        if write:
            self.folder.mkdir(parents=True, exist_ok=True)
        elif not self.folder.is_dir():
            raise UsageError(f"{folder} has no checkpoint yet (no folder checkpoints in it).")
        self._open()

    def _open(self) -> None:
        verbosity = absl_logging.get_verbosity()
        if not self.write:  # Orbax would warn that a read-only manager is read-only
            absl_logging.set_verbosity(absl_logging.ERROR)
        self.manager = ocp.CheckpointManager(
            self.folder,
            item_handlers={
                "run": ocp.StandardCheckpointHandler(),
                "data": ocp.JsonCheckpointHandler(),
            },
            options=ocp.CheckpointManagerOptions(
                max_to_keep=self.keep if self.write else None,
                enable_async_checkpointing=self.write,
                create=False,
                read_only=not self.write,
                cleanup_tmp_directories=self.write,  # what a killed run was writing
            ),
        )
        absl_logging.set_verbosity(verbosity)

    def latest(self) -> int | None:
        """Step of the newest complete checkpoint, None if there is none."""
        return self.manager.latest_step()

    def save(
        self, step: int, run: Tree, position: dict, metrics: dict[str, int] | None = None
    ) -> None:
        """Start to write a checkpoint, unless that step has one, after the previous one is done."""
        if step == self.latest():
            return
        data = {"step": step, "place": position, "place_crc": _crc(position)}
        data |= {"metrics": metrics, "checksums": checksums(run)}
        items = ocp.args.Composite(run=ocp.args.StandardSave(run), data=ocp.args.JsonSave(data))
        self.manager.save(step, args=items)

    def restore(self, like: Tree) -> Restored:
        """Read the newest sound checkpoint, structured like `like`."""
        failed = False
        for _ in range(1 if self.write else 3):
            steps = sorted(self.manager.all_steps(), reverse=True)
            for step in steps:
                try:
                    with _quiet(collect=failed):
                        return self._read(step, like)
                except UsageError:
                    raise
                except Exception as error:  # readers of damaged files raise anything
                    failed = True
                    if not self.write and not (self.folder / str(step)).exists():
                        continue  # the run that is going on replaced it while it was read
                    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
                    self._report_damage(step, line.partition(" [")[0][:160])
            self.manager.reload()
            if self.write or set(self.manager.all_steps()) <= set(steps):
                break
        with _quiet(collect=failed):
            pass
        raise UsageError(
            f"no checkpoint in {self.folder} can be read; remove that folder to start over."
        )

    def _read(self, step: int, like: Tree) -> Restored:
        saved = jax.tree.leaves_with_path(self.manager.item_metadata(step)["run"].tree)
        there = {name(path): tuple(leaf.shape) for path, leaf in saved}
        here = {name(p): np.shape(_data(leaf)) for p, leaf in jax.tree.leaves_with_path(like)}
        if there != here:
            other = sorted(k for k in there.keys() | here.keys() if there.get(k) != here.get(k))
            first = other[0]
            raise UsageError(
                f"the checkpoint in {self.folder} does not fit this config's model or optimizer: "
                f"{len(other)} leaves differ, first {first}: {there.get(first, 'absent')} there, "
                f"{here.get(first, 'absent')} here."
            )
        shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        items = ocp.args.Composite(
            run=ocp.args.StandardRestore(shapes), data=ocp.args.JsonRestore()
        )
        restored = self.manager.restore(step, args=items)
        sums = checksums(restored["run"])
        if bad := [
            path for path, crc in restored["data"]["checksums"].items() if sums[path] != crc
        ]:
            raise ValueError(f"the checksum of {bad[0]} is wrong")
        data = restored["data"]
        # Checkpoints of earlier versions have neither.
        if data.get("step", step) != step:
            raise ValueError(f"it was written at step {data['step']}")
        if "place_crc" in data and data["place_crc"] != _crc(data["place"]):
            raise ValueError("the checksum of the data iterator's position is wrong")
        return Restored(restored["run"], data["place"], data.get("metrics"))

    def _report_damage(self, step: int, why: str) -> None:
        """Report a damaged checkpoint; a writer moves it away, and can save its step again."""
        aside = self.folder.parent / "damaged" / str(step)
        before = [s for s in self.manager.all_steps() if s < step]
        instead = f"step {max(before)} is used instead" if before else "there is none before it"
        moved = f" The damaged one is now {aside}." if self.write else ""
        print(
            f"note: the checkpoint of step {step} in {self.folder} is damaged ({why}); "
            f"{instead}.{moved}",
            flush=True,
        )
        if not self.write:
            return
        self.manager.close()
        if jax.process_index() == 0:
            if aside.exists():
                aside.rmtree()
            aside.parent.mkdir(exist_ok=True)
            _move(self.folder / str(step), aside)
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            multihost_utils.sync_global_devices(f"set aside {step}")
        self._open()

    def wait(self) -> None:
        """Wait until all writes are on the disk; a failed write raises here."""
        self.manager.wait_until_finished()

    def close(self) -> None:
        """Finish all writes and release the folder."""
        self.manager.close()
