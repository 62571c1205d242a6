"""Spreads one training step over many devices, in three ways with the same numbers but for noise.

`config.parallel`: "jit" (the compiler splits the arrays), "shard_map" or "pmap" (each device runs
the step on its rows, and statistics, sums and gradients are added up over a named axis). In all
three the state outside the step is the same: arrays replicated over one mesh, batches split over
it. `gradients` is the only place that reduces a gradient. Noise is drawn for the whole batch under
"jit" and by each device for its rows elsewhere: two samples of one distribution.

`config.batch_stats`: "global" statistics are those of the whole batch; with "device" each device's
rows are a batch of their own (under jit: ghost batches, one per device), and the norms' states are
averaged after the step.

A limit: the whole data set is replicated on every device, which is right for sets of MNIST's size.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from experiments.runtime.accumulate import Microbatches, gradient_of_sum
from experiments.tasks.base import Batch
from experiments.usage import UsageError

AXIS = "devices"
Tree = Any


@dataclasses.dataclass(frozen=True)
class StepContext:
    """How a step is traced; the default is a plain function of the batch.

    `axis_name`: the device axis that is mapped over; `checked`: whether replication is part of the
    types (`shard_map`) or not (`pmap`); `pooled`: whether statistics are those of all devices;
    `ghosts`: parts of the batch that have statistics of their own.
    """

    axis_name: str | None = None
    checked: bool = False
    pooled: bool = True
    ghosts: int = 1


SINGLE = StepContext()


class Members(NamedTuple):
    """Runs that one program trains side by side: arrays have a leading axis of members.

    With `own_data` each member has a data set of its own, `[members, examples, ...]`; else they
    share one.
    """

    own_data: bool = False

    @property
    def data_axis(self) -> int | None:
        """The axis of members of the data set, for `jax.vmap`."""
        return 0 if self.own_data else None


def available() -> list[jax.Device]:
    """Return the devices that a run may use."""
    return jax.devices()


def gradients(
    scores_of: Callable[..., tuple[Any, Tree]],
    params: Tree,
    norm: Tree,
    batch: Batch,
    context: StepContext = SINGLE,
    micro: Microbatches | None = None,
) -> tuple[jax.Array, Any, Tree, Tree]:
    """Return the whole batch's mean loss, sums, next norm state and gradient, on every device.

    `scores_of` is a task. The loss is `psum(loss) / psum(count)`: the weights are those
    of the rows, not of the devices. With `micro` the batch is taken in that many parts.
    """
    training = functools.partial(scores_of, stats="batch", train=True)
    if micro is not None:
        return _accumulated_gradients(training, params, norm, batch, context, micro)
    if context.axis_name is not None:
        return _mapped_gradients(training, params, norm, batch, context)
    if context.ghosts > 1:
        return _ghost_gradients(training, params, norm, batch, context.ghosts)

    def whole(params: Tree) -> tuple[jax.Array, tuple[Any, Tree]]:
        scores, state = training(params, norm, batch)
        return scores.loss / scores.count, (scores, state)

    (loss, (scores, state)), grads = jax.value_and_grad(whole, has_aux=True)(params)
    return loss, scores, state, grads


def _ghost_gradients(
    training: Callable[..., tuple[Any, Tree]], params: Tree, norm: Tree, batch: Batch, ghosts: int
) -> tuple[jax.Array, Any, Tree, Tree]:
    """Compute `gradients` on one device, with statistics of their own for parts of the batch."""
    keys = jax.vmap(lambda i: jax.random.fold_in(batch.key, i))(jnp.arange(ghosts))

    def split(x: jax.Array) -> jax.Array:  # [rows, ...] to [ghosts, rows / ghosts, ...]
        return x.reshape(ghosts, x.shape[0] // ghosts, *x.shape[1:])

    examples, weight = jax.tree.map(split, (batch.examples, batch.weight))
    parts = Batch(examples, weight, keys)

    def total(params: Tree) -> tuple[jax.Array, tuple[Any, Tree, jax.Array]]:
        each, states = jax.vmap(lambda part: training(params, norm, part))(parts)
        scores = jax.tree.map(lambda s: s.sum(0), each)
        return scores.loss / scores.count, (scores, states, each.count)

    (loss, (scores, states, counts)), grads = jax.value_and_grad(total, has_aux=True)(params)
    return loss, scores, _merge(norm, states, counts, lambda x: x.sum(0)), grads


def _accumulated_gradients(
    training: Callable[..., tuple[Any, Tree]],
    params: Tree,
    norm: Tree,
    batch: Batch,
    context: StepContext,
    micro: Microbatches,
) -> tuple[jax.Array, Any, Tree, Tree]:
    """Compute `gradients` in microbatches, on one device or inside `shard_map` or `pmap`."""
    axis = context.axis_name
    if axis is None:
        scores, state, grads = gradient_of_sum(training, params, norm, batch, micro)
    else:
        local, batch = _local(params, batch, context)
        training = functools.partial(training, axis_name=axis)
        scores, state, grads = gradient_of_sum(training, local, norm, batch, micro)
        grads, scores = jax.lax.psum((grads, scores), axis)
    return (
        scores.loss / scores.count,
        scores,
        state,
        jax.tree.map(lambda g: g / scores.count, grads),
    )


def _local(params: Tree, batch: Batch, context: StepContext) -> tuple[Tree, Batch]:
    """Return parameters whose gradient is this device's share, and the batch with its own key."""
    axis = context.axis_name
    if jax.lax.axis_size(axis) > 1:  # no two devices draw the same noise; one draws jit's
        batch = batch._replace(key=jax.random.fold_in(batch.key, jax.lax.axis_index(axis)))
    if context.checked:
        # Replicated parameters have the sum over devices in their gradient already; parameters
        # that vary have their device's share, as under pmap, and one psum is right for both.
        params = jax.tree.map(lambda p: jax.lax.pcast(p, axis, to="varying"), params)
    return params, batch


def _mapped_gradients(
    training: Callable[..., tuple[Any, Tree]],
    params: Tree,
    norm: Tree,
    batch: Batch,
    context: StepContext,
) -> tuple[jax.Array, Any, Tree, Tree]:
    """Compute `gradients` inside `shard_map` or `pmap`, where `batch` is this device's rows."""
    axis = context.axis_name
    local, batch = _local(params, batch, context)

    def share(params: Tree) -> tuple[jax.Array, tuple[Any, Tree]]:
        scores, state = training(params, norm, batch, axis_name=axis if context.pooled else None)
        return scores.loss / jax.lax.psum(scores.count, axis), (scores, state)

    (_, (scores, state)), grads = jax.value_and_grad(share, has_aux=True)(local)
    grads, total = jax.lax.psum((grads, scores), axis)
    if not context.pooled:
        state = _merge(norm, state, scores.count, lambda x: jax.lax.psum(x, axis))
    return total.loss / total.count, total, state, grads


def _merge(old: Tree, new: Tree, count: jax.Array, add: Callable[[Any], Any]) -> Tree:
    """Average the devices' norm states, weighted by their rows.

    The running average is linear in the statistics, so this is the average of the devices' means
    and of their variances, not the variance of all rows together.
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
    """The devices of a run, and how its arrays and its step are spread over them."""

    def __init__(self, mode: str = "jit", devices: int = 0, batch_stats: str = "global"):
        present = available()
        if devices > len(present):
            raise UsageError(
                f"config.devices={devices}, but there are {len(present)}; 0 takes all of them."
            )
        if devices and jax.process_count() > 1 and devices != len(present):
            raise UsageError(
                f"config.devices={devices}, but {jax.process_count()} processes have "
                f"{len(present)}; with several processes all are used: write 0."
            )
        self.mode, self.pooled = mode, batch_stats == "global"
        self.devices = tuple(present[: devices or len(present)])
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
    def context(self) -> StepContext:
        """How the step is traced."""
        if self.mode == "jit":
            return StepContext(ghosts=1 if self.pooled else self.count)
        return StepContext(AXIS, self.mode == "shard_map", self.pooled)

    # ------------------------------------------------------------------------- placing arrays

    def replicate(self, tree: Tree) -> Tree:
        """Put the same values on every device; each process must hold all of them."""
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
        """Split rows (the last axis of index batches) over the devices, each process its own."""
        if self.plain:
            return tree

        def one(x: np.ndarray) -> jax.Array:
            spec = PartitionSpec(*[None] * (x.ndim - 1), AXIS)
            return self._place(np.asarray(x), NamedSharding(self.mesh, spec))

        return jax.tree.map(one, tree)

    # ------------------------------------------------------------------------------- the step

    def step(
        self, update: Callable[..., Tree], several: bool = False, members: Members | None = None
    ) -> Callable[..., Tree]:
        """Compile `update(train_state, split, index, weight, rate, context=...)`.

        The train state is donated. With `several`, index and weight have a leading axis of steps,
        taken one after the other. With `members`, all arguments but a shared data set have an axis
        of members, in index and weight after that of the steps.
        """
        function = functools.partial(update, context=self.context)
        if members is not None:
            function = jax.vmap(function, in_axes=(0, members.data_axis, 0, 0, 0))
        if several:
            function = functools.partial(_multi_step, function)
        if self.plain:
            return jax.jit(function, donate_argnums=0)
        compiled = self._over_devices(function, several)

        @functools.wraps(compiled)
        def step(train_state: Tree, *rest: Any) -> Tree:
            return compiled(self.block_on_cpu(train_state), *rest)

        return step

    def block_on_cpu(self, tree: Tree) -> Tree:
        """Return the same arrays; on several CPU devices, wait until they are computed.

        CPU devices share one pool of threads, and an all-reduce holds a thread until the last
        device joins. Two programs in flight can hold all of them, each waiting for a device that
        the other has: XLA aborts after 40 seconds, and several processes hang forever.
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
        self,
        mapped: Any,
        axis: int,
        train_state: Tree,
        split: Tree,
        index: Any,
        weight: Any,
        rate: Any,
    ) -> Tree:
        """Call a pmapped step, which handles one process at a time, with arrays of the mesh."""
        here = len(self.mesh.local_devices)

        def deal(x: Any) -> np.ndarray:
            rows = np.concatenate([np.asarray(s.data) for s in _in_order(x)], axis)
            return rows.reshape(*x.shape[:axis], here, -1)

        local = functools.partial(jax.tree.map, self._local)
        index, weight = jax.tree.map(deal, (index, weight))
        state = mapped(local(train_state), local(split), index, weight, rate)
        return jax.tree.map(self._global, state)

    @functools.cached_property
    def _here(self) -> NamedSharding:
        local = np.array(self.mesh.local_devices)
        return NamedSharding(Mesh(local, (AXIS,), axis_types=(AxisType.Auto,)), PartitionSpec())

    def _local(self, x: Any) -> Any:
        return x if self.processes == 1 else _rewrap(x, self._here)

    def _global(self, x: Any) -> Any:
        return x if self.processes == 1 else _rewrap(x, self.everywhere)


def _multi_step(
    update: Callable[..., Tree], train_state: Tree, split: Tree, index: Any, weight: Any, rate: Any
) -> Tree:
    def one(train_state: Tree, rows: tuple[Any, Any]) -> tuple[Tree, None]:
        return update(train_state, split, *rows, rate), None

    return jax.lax.scan(one, train_state, (index, weight))[0]


def _in_order(x: jax.Array) -> Sequence[Any]:
    """Return this process's shards of an array that is split over its last axis, in order."""
    return sorted(x.addressable_shards, key=lambda shard: shard.index[-1].start or 0)


def _rewrap(x: jax.Array, sharding: NamedSharding) -> jax.Array:
    """Make an array of another mesh from the same replicated buffers."""
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        data = _rewrap(jax.random.key_data(x), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
    pieces = [shard.data for shard in x.addressable_shards]
    return jax.make_array_from_single_device_arrays(x.shape, sharding, pieces)
