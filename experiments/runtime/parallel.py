"""One training step over many devices, in three ways that give the same numbers, but for noise.

`config.parallel`: "jit" (the compiler splits the arrays), "shard_map" or "pmap" (each device runs
the step on its rows, and statistics, sums and gradients are added up over a named axis). Whatever
the way, the state outside the step is the same: arrays replicated over one mesh, batches split
over it. `gradients` is the only place that reduces a gradient. Noise is drawn for the whole batch
under "jit" and by each device for its rows elsewhere: two samples of one thing.

`config.batch_stats`: "global" statistics are those of the whole batch; with "device" each device's
rows are a batch of their own (under jit: ghost batches, one a device), and what the norms keep is
merged after the step.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from experiments.usage import UsageError

AXIS = "devices"
Tree = Any


@dataclasses.dataclass(frozen=True)
class StepContext:
    """What a step must know of the way it is traced; the default is a plain function of the batch.

    `axis_name`: the device axis that is mapped over; `checked`: whether replication is part of the
    types (`shard_map`) or not (`pmap`); `ghosts`: batches that keep statistics of their own.
    """

    axis_name: str | None = None
    checked: bool = False
    pooled: bool = True
    ghosts: int = 1

    def sum(self, tree: Tree) -> Tree:
        """Add up over the devices."""
        return tree if self.axis_name is None else jax.lax.psum(tree, self.axis_name)


SINGLE = StepContext()


def available() -> list[jax.Device]:
    """The devices that a run may take."""
    return jax.devices()


def gradients(
    scores_of: Callable[..., tuple[Any, Tree]],
    params: Tree,
    norm: Tree,
    batch: Tree,
    weight: jax.Array | None,
    key: jax.Array,
    how: StepContext = SINGLE,
) -> tuple[jax.Array, Any, Tree, Tree]:
    """Mean loss, sums, next norm state and gradient of the whole batch, the same on every device.

    `scores_of(params, norm, batch, weight, key, axis_name)` returns sums over its rows and a state.
    The loss is `psum(loss) / psum(count)`: rows are weighed, not devices.
    """
    if how.axis_name is None and how.ghosts == 1:

        def whole(params: Tree) -> tuple[jax.Array, tuple[Any, Tree]]:
            scores, state = scores_of(params, norm, batch, weight, key, None)
            return scores.loss / scores.count, (scores, state)

        (loss, (scores, state)), grads = jax.value_and_grad(whole, has_aux=True)(params)
        return loss, scores, state, grads

    if how.axis_name is None:
        split = functools.partial(_split, parts=how.ghosts)
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(how.ghosts))
        parts = (jax.tree.map(split, batch), None if weight is None else split(weight), keys)

        def ghosts(params: Tree) -> tuple[jax.Array, tuple[Any, Tree, jax.Array]]:
            each, states = jax.vmap(lambda b, w, k: scores_of(params, norm, b, w, k, None))(*parts)
            scores = jax.tree.map(lambda s: s.sum(0), each)
            return scores.loss / scores.count, (scores, states, each.count)

        (loss, (scores, states, counts)), grads = jax.value_and_grad(ghosts, has_aux=True)(params)
        return loss, scores, _merge(norm, states, counts, lambda x: x.sum(0)), grads

    axis = how.axis_name
    if jax.lax.axis_size(axis) > 1:  # no two devices draw the same noise; one draws jit's
        key = jax.random.fold_in(key, jax.lax.axis_index(axis))
    local = params
    if how.checked:
        # Replicated parameters have the sum over devices in their gradient already; parameters
        # that vary have their device's share, as under pmap, and one psum is right for both.
        local = jax.tree.map(lambda p: jax.lax.pcast(p, axis, to="varying"), params)

    def share(params: Tree) -> tuple[jax.Array, tuple[Any, Tree]]:
        pooled = axis if how.pooled else None
        scores, state = scores_of(params, norm, batch, weight, key, pooled)
        return scores.loss / jax.lax.psum(scores.count, axis), (scores, state)

    (_, (scores, state)), grads = jax.value_and_grad(share, has_aux=True)(local)
    grads, total = jax.lax.psum((grads, scores), axis)
    if not how.pooled:
        state = _merge(norm, state, scores.count, lambda x: jax.lax.psum(x, axis))
    return total.loss / total.count, total, state, grads


def _split(x: jax.Array, parts: int) -> jax.Array:
    return x.reshape(parts, x.shape[0] // parts, *x.shape[1:])


def _merge(old: Tree, new: Tree, count: jax.Array, add: Callable[[Any], Any]) -> Tree:
    """What each device's norms keep, averaged with the weight of its rows.

    The running average is linear in the statistics, so this is the average of the devices' means
    and of their variances: what each saw, not the variance of all rows together.
    """
    total = add(count)

    def one(before: jax.Array, after: jax.Array) -> jax.Array:
        if not jnp.issubdtype(after.dtype, jnp.inexact):
            raise UsageError(
                f"config.batch_stats=device cannot merge a state of {after.dtype}; write 'global'."
            )
        share = count / jnp.where(total == 0, 1, total)
        share = share.reshape(share.shape + (1,) * (after.ndim - share.ndim)).astype(after.dtype)
        return jnp.where(total == 0, before, add(share * after))

    return jax.tree.map(one, old, new)


class DeviceLayout:
    """The devices of a run and the way that its step is spread over them."""

    def __init__(self, mode: str = "jit", devices: int = 0, batch_stats: str = "global"):
        found = available()
        if devices > len(found):
            raise UsageError(
                f"config.devices={devices}, but there are {len(found)}; 0 takes all of them."
            )
        if devices and jax.process_count() > 1 and devices != len(found):
            raise UsageError(
                f"config.devices={devices}, but {jax.process_count()} processes have "
                f"{len(found)}; with several processes all are used: write 0."
            )
        self.mode, self.pooled = mode, batch_stats == "global"
        self.devices = tuple(found[: devices or len(found)])
        self.count = len(self.devices)
        self.plain = mode == "jit" and self.count == 1
        self.mesh = Mesh(np.array(self.devices), (AXIS,), axis_types=(AxisType.Auto,))
        self.everywhere = NamedSharding(self.mesh, PartitionSpec())
        self.processes = jax.process_count()

    def _same(self) -> tuple:
        return self.mode, self.pooled, self.devices

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DeviceLayout) and self._same() == other._same()

    def __hash__(self) -> int:
        return hash(self._same())

    @property
    def how(self) -> StepContext:
        """What the step is told."""
        if self.mode == "jit":
            return StepContext(ghosts=1 if self.pooled else self.count)
        return StepContext(AXIS, self.mode == "shard_map", self.pooled)

    # ------------------------------------------------------------------------- placing arrays

    def replicate(self, tree: Tree) -> Tree:
        """The same values on every device; each process must hold all of them."""
        if self.plain:
            return tree
        return jax.tree.map(lambda x: self._place(x, self.everywhere), tree)

    def _place(self, x: Any, sharding: NamedSharding) -> Any:
        if not isinstance(x, jax.Array | np.ndarray):
            return x
        if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            data = self._place(jax.random.key_data(x), sharding)
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
        if self.processes == 1:
            return jax.device_put(x, sharding)
        values = np.asarray(x)
        return jax.make_array_from_callback(values.shape, sharding, lambda at: values[at])

    def pad(self, index: np.ndarray, weight: np.ndarray | None = None) -> tuple[Any, Any]:
        """Fill the last axis up to a multiple of the devices with rows of weight 0."""
        missing = -index.shape[-1] % self.count
        if not missing:
            return index, weight
        edge = [(0, 0)] * (index.ndim - 1) + [(0, missing)]
        weight = np.ones(index.shape, np.float32) if weight is None else weight
        return np.pad(index, edge, mode="edge"), np.pad(weight, edge)

    def split(self, tree: Tree) -> Tree:
        """Rows (the last axis of index batches) dealt to the devices, each process its own."""
        if self.plain:
            return tree

        def one(x: np.ndarray) -> jax.Array:
            spec = PartitionSpec(*[None] * (x.ndim - 1), AXIS)
            return self._place(np.asarray(x), NamedSharding(self.mesh, spec))

        return jax.tree.map(one, tree)

    # ------------------------------------------------------------------------------- the step

    def step(self, update: Callable[..., Tree], several: bool = False) -> Callable[..., Tree]:
        """Compile `update(now, split, index, weight, rate, how=...)`, whose `now` is donated.

        With `several`, index and weight have a leading axis of steps, taken one after the other.
        """
        function = functools.partial(update, how=self.how)
        if several:
            function = functools.partial(_multi_step, function)
        if self.plain:
            return jax.jit(function, donate_argnums=0)
        compiled = self._over_devices(function, several)

        @functools.wraps(compiled)
        def step(now: Tree, *rest: Any) -> Tree:
            return compiled(self.done(now), *rest)

        return step

    def done(self, tree: Tree) -> Tree:
        """The same arrays, on CPU devices not before they are computed.

        CPU devices share one pool of threads, and an all-reduce holds a thread until the last
        device joins. Two programs in flight can hold all of them, each waiting for a device that
        the other has: XLA aborts after 40 seconds, and several processes wait for ever.
        """
        shared = self.count > 1 and self.devices[0].platform == "cpu"
        return jax.block_until_ready(tree) if shared else tree

    def _over_devices(self, function: Callable[..., Tree], several: bool) -> Callable[..., Tree]:
        if self.mode == "jit":
            return jax.jit(function, donate_argnums=0, out_shardings=self.everywhere)
        if self.mode == "shard_map":
            every, rows = PartitionSpec(), PartitionSpec(*[None] * several, AXIS)
            mapped = jax.shard_map(
                function,
                mesh=self.mesh,
                in_specs=(every, every, rows, rows, every),
                out_specs=every,
            )
            return jax.jit(mapped, donate_argnums=0)
        rows_axis = 1 if several else 0
        mapped = jax.pmap(
            function,
            axis_name=AXIS,
            in_axes=(None, None, rows_axis, rows_axis, None),
            out_axes=None,
            donate_argnums=0,
            devices=self.devices,
        )
        return functools.partial(self._pmapped, mapped, rows_axis)

    def _pmapped(
        self, mapped: Any, axis: int, now: Tree, split: Tree, index: Any, weight: Any, rate: Any
    ) -> Tree:
        """Between the rest of the program's mesh and pmap, which sees one process at a time."""
        here = len(self.mesh.local_devices)

        def deal(x: Any) -> np.ndarray:
            rows = np.concatenate([np.asarray(s.data) for s in _in_order(x)], axis)
            return rows.reshape(*x.shape[:axis], here, -1)

        local = functools.partial(jax.tree.map, self._local)
        index, weight = jax.tree.map(deal, (index, weight))
        return jax.tree.map(self._global, mapped(local(now), local(split), index, weight, rate))

    @functools.cached_property
    def _here(self) -> NamedSharding:
        local = np.array(self.mesh.local_devices)
        return NamedSharding(Mesh(local, (AXIS,), axis_types=(AxisType.Auto,)), PartitionSpec())

    def _local(self, x: Any) -> Any:
        return x if self.processes == 1 else _rewrap(x, self._here)

    def _global(self, x: Any) -> Any:
        return x if self.processes == 1 else _rewrap(x, self.everywhere)


def _multi_step(
    update: Callable[..., Tree], now: Tree, split: Tree, index: Any, weight: Any, rate: Any
) -> Tree:
    def one(now: Tree, rows: tuple[Any, Any]) -> tuple[Tree, None]:
        return update(now, split, *rows, rate), None

    return jax.lax.scan(one, now, (index, weight))[0]


def _in_order(x: jax.Array) -> Sequence[Any]:
    """This process's pieces of an array that is split over its last axis."""
    return sorted(x.addressable_shards, key=lambda shard: shard.index[-1].start or 0)


def _rewrap(x: jax.Array, sharding: NamedSharding) -> jax.Array:
    """The same replicated buffers as an array of another mesh."""
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        data = _rewrap(jax.random.key_data(x), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
    pieces = [shard.data for shard in x.addressable_shards]
    return jax.make_array_from_single_device_arrays(x.shape, sharding, pieces)
