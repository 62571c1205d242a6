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
import logging
import os
import sys
import zlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
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


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the abandoned coroutines of a failed read from logging."""
    before, logger = sys.unraisablehook, logging.getLogger(asyncio.__name__)
    disabled, logger.disabled = logger.disabled, True
    sys.unraisablehook = lambda _: None
    try:
        yield
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


class Checkpoints:
    """The checkpoints of one workdir."""

    def __init__(self, workdir: epath.PathLike, keep: int = 2):
        folder = epath.Path(workdir)
        # Orbax wants whole paths, and `resolve` would put a bucket into the working directory.
        self.folder = (folder.resolve() if local(folder) else folder) / "checkpoints"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.keep = keep
        self._open()

    def _open(self) -> None:
        self.manager = ocp.CheckpointManager(
            self.folder,
            item_handlers={
                "run": ocp.StandardCheckpointHandler(),
                "data": ocp.JsonCheckpointHandler(),
            },
            options=ocp.CheckpointManagerOptions(
                max_to_keep=self.keep, enable_async_checkpointing=True, create=False
            ),
        )

    def latest(self) -> int | None:
        """Step of the newest complete checkpoint, None if there is none."""
        return self.manager.latest_step()

    def save(self, step: int, run: Tree, position: dict) -> None:
        """Start to write a checkpoint, unless that step has one, after the previous one is done."""
        if step == self.latest():
            return
        data = {"place": position, "checksums": checksums(run)}
        items = ocp.args.Composite(run=ocp.args.StandardSave(run), data=ocp.args.JsonSave(data))
        self.manager.save(step, args=items)

    def restore(self, like: Tree) -> tuple[Tree, dict]:
        """Read the newest sound checkpoint, structured like `like`, and the iterator's position."""
        for step in sorted(self.manager.all_steps(), reverse=True):
            try:
                with _quiet():
                    return self._read(step, like)
            except UsageError:
                raise
            except Exception as error:  # readers of damaged files raise anything
                line = (str(error).strip().splitlines() or [type(error).__name__])[0]
                self._set_aside(step, line.partition(" [")[0][:160])
        raise UsageError(
            f"no checkpoint in {self.folder} can be read; remove that folder to start over."
        )

    def _read(self, step: int, like: Tree) -> tuple[Tree, dict]:
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
        return restored["run"], restored["data"]["place"]

    def _set_aside(self, step: int, why: str) -> None:
        """Report a damaged checkpoint and move it away, so that its step can be saved again."""
        aside = self.folder.parent / "damaged" / str(step)
        before = [s for s in self.manager.all_steps() if s < step]
        instead = f"step {max(before)} is used instead" if before else "there is none before it"
        print(
            f"note: the checkpoint of step {step} in {self.folder} is damaged ({why}); "
            f"{instead}. The damaged one is now {aside}.",
            flush=True,
        )
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
