"""The BN-LSTM's recurrence on a GPU: one block of threads walks all steps of one model.

Statistics over the batch need the whole batch, so a block has all rows of a model and no block
waits for another. The grid is the models: one, or as many as `jax.vmap`, which puts its axis in
front of the grid, has. So models that are trained side by side fill a GPU.

The loop over time is inside the kernel. A step goes over tiles of units: the four products of a
tile add up in registers over slices of h and of the weights, and all that follows, statistics,
gates and cell, is made of what the tile's threads hold. h and c of the step before are read from
the outputs, that is from the caches, after all threads of the block have written theirs.

Backward, the recurrent terms of all steps are one product before the walk, since h is known, and
the gradient of the weights is one after it. The walk takes these and the input terms, writes their
gradients in their place, and sums over the batch at each step what scale and bias need.

Triton's blocks are powers of two; rows and units beyond the end are masked. Why Triton and not
Mosaic GPU: there `dot_general` has no lowering (JAX 0.10 and 0.11), and its own product, `wgmma`,
reads float32 without its last 13 bits, as TF32, where the twin's products are float32.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl

from normjax._internal._paired import Arrays
from normjax.kernels import _bn_lstm_step as one
from normjax.kernels import _pallas, _registry
from normjax.kernels._registry import Backend

WARPS = 8  # 256 threads: each may have up to 255 registers
# Values of a tile of units. An array of one takes 16 registers of each thread forward, 8 backward,
# where the most arrays are alive, and 32 in the product backward, where there is one.
FORWARD, BACKWARD, PRODUCT = 2**12, 2**11, 2**13
LEAST = 16  # rows, units and depth of a product, at least
DEPTH = 32  # of a product's slice: what is in shared memory at a time
WORK = 2**24  # operations of a step's products


def fits(batch: int, hidden: int) -> bool:
    """Whether a tile stays in registers, and one multiprocessor is enough for a model.

    A thread has 255 registers. Forward, four products and about four arrays more are alive: 128 of
    them; backward, two gates, their normalized terms and about five arrays more: 72. Addresses and
    operands take the rest. A tile has at least 16 units, so that backward takes up to 128 rows.
    Shared memory holds two operands of a product, at most 66 KiB of 227. One multiprocessor of an
    H100 has 128 float32 units: for more than `WORK` operations a step it takes as long as the
    launches of the scan, and with one model all others stand idle.
    """
    return _power(batch) * LEAST <= BACKWARD and 8 * batch * hidden * hidden <= WORK


def _power(n: int, least: int = LEAST) -> int:
    """The least power of two that is at least n."""
    return max(least, 1 << (n - 1).bit_length())


class _Tile(NamedTuple):
    """A part of a matrix, `[rows, columns]`: the indices of its values, and which there are."""

    rows: jax.Array
    columns: jax.Array
    inside: jax.Array


def _tile(shape: tuple[int, int], first: tuple[Any, Any], end: tuple[int, int]) -> _Tile:
    """The tile of a shape from row and column `first` on, of a matrix with so many."""
    rows, columns = (lax.broadcasted_iota(jnp.int32, shape, a) + first[a] for a in (0, 1))
    return _Tile(rows, columns, (rows < end[0]) & (columns < end[1]))


def _triton() -> Any:
    return _registry.triton()


def _load(ref: Any, *index: Any, inside: jax.Array) -> jax.Array:
    """Read values, 0 where there is none."""
    return _triton().load(ref.at[index], mask=inside, other=0.0)


def _store(ref: Any, value: jax.Array, *index: Any, inside: jax.Array) -> None:
    """Write the values that there are."""
    _triton().store(ref.at[index], value, mask=inside)


def _before(ref: Any, first: Any, t: jax.Array, at: _Tile) -> jax.Array:
    """Read the state before step t: of the step before, or before the first."""
    place = at.rows, at.columns
    start = _load(first, *place, inside=at.inside & (t == 0))
    return start + _load(ref, jnp.maximum(t - 1, 0), *place, inside=at.inside & (t > 0))


def _loop(n: int, body: Callable[..., Any], start: Any = ()) -> Any:
    return lax.fori_loop(np.int32(0), np.int32(n), body, start)


@dataclasses.dataclass(frozen=True)
class _Walk:
    """The kernels of a recurrence.

    Attributes:
        steps: length of the time axis.
        batch: rows of a model.
        hidden: units.
        eps: of the recurrent term's norm and of the cell's.
        wait: lets all threads of a block see what each of them has written.
    """

    steps: int
    batch: int
    hidden: int
    eps: tuple[float, float]
    wait: Callable[[], None]

    @property
    def rows(self) -> int:
        """Rows of a tile: the batch."""
        return _power(self.batch)

    def tiles(self, values: int) -> int:
        """How many tiles of so many values there are."""
        return pl.cdiv(self.hidden, self.units(values))

    def units(self, values: int) -> int:
        """Columns of a tile of so many values."""
        return min(values // self.rows, _power(self.hidden))

    def tile(self, values: int, j: jax.Array) -> tuple[_Tile, _Tile]:
        """The j-th tile of units: of all rows, and of features, `[1, units]`."""
        units = self.units(values)
        first, end = j * units, (self.batch, self.hidden)
        return _tile((self.rows, units), (0, first), end), _tile((1, units), (0, first), end)

    def forward(self, r: _ForwardRefs, t: jax.Array, _: Any) -> Any:
        """One step forward."""
        _loop(self.tiles(FORWARD), functools.partial(self.forward_tile, r, t))
        self.wait()
        return ()

    def forward_tile(self, r: _ForwardRefs, t: jax.Array, j: jax.Array, _: Any) -> Any:
        """One step of a tile of units."""
        at, line = self.tile(FORWARD, j)
        z = []
        for k, product in enumerate(self.products(r, t, j)):
            x = one.normalize(product, self.eps[0], self.batch, at.inside)
            place = line.columns + k * self.hidden
            _store(r.mean_h, x.mean, t, place, inside=line.inside)
            _store(r.var_h, x.var, t, place, inside=line.inside)
            scale = _load(r.scale_h, place, inside=line.inside)
            here = at.rows, at.columns + k * self.hidden
            z.append(_load(r.term, t, *here, inside=at.inside) + x.hat * scale)
        c, (_, _, _, o) = one.update(z, _before(r.c, r.c_first, t, at))
        cell = one.normalize(c, self.eps[1], self.batch, at.inside)
        scale, bias = (_load(v, line.columns, inside=line.inside) for v in (r.scale_c, r.bias_c))
        h = o * jnp.tanh(cell.hat * scale + bias)
        for ref, value in ((r.c, c), (r.h, h)):
            _store(ref, value, t, at.rows, at.columns, inside=at.inside)
        for ref, value in ((r.mean_c, cell.mean), (r.var_c, cell.var)):
            _store(ref, value, t, line.columns, inside=line.inside)
        return ()

    def products(self, r: _ForwardRefs, t: jax.Array, j: jax.Array) -> list[jax.Array]:
        """The recurrent terms of a tile's gates, `[rows, units]` each."""
        units = self.units(FORWARD)

        def add(i: jax.Array, totals: Any) -> Any:
            left = _tile((self.rows, DEPTH), (0, i * DEPTH), (self.batch, self.hidden))
            h = _before(r.h, r.h_first, t, left)
            right = _tile((DEPTH, units), (i * DEPTH, j * units), (self.hidden, self.hidden))
            return [
                total
                + one.dot(
                    h,
                    _load(r.w, right.rows, right.columns + k * self.hidden, inside=right.inside),
                    (1, 0),
                )
                for k, total in enumerate(totals)
            ]

        zeros = [jnp.zeros((self.rows, units), jnp.float32)] * one.GATES
        return _loop(pl.cdiv(self.hidden, DEPTH), add, zeros)

    def backward(self, r: _BackwardRefs, i: jax.Array, _: Any) -> Any:
        """One step backward, the i-th before the last."""
        t = self.steps - 1 - i
        _loop(self.tiles(BACKWARD), functools.partial(self.backward_tile, r, t))
        self.wait()
        _loop(self.tiles(PRODUCT), functools.partial(self.back_product, r, t))
        self.wait()
        return ()

    def backward_tile(self, r: _BackwardRefs, t: jax.Array, j: jax.Array, _: Any) -> Any:
        """One step of a tile of units, made again and differentiated.

        Gate by gate, so that few arrays are alive at a time: the output's first, which the cell's
        gradient needs, the forget gate last.
        """
        at, line = self.tile(BACKWARD, j)
        place = at.rows, at.columns
        gate = functools.partial(self.gate, r, t, at, line)
        back = functools.partial(self.back_gate, r, t, at, line)

        def feature(ref: Any, *index: Any) -> jax.Array:
            return _load(ref, *index, line.columns, inside=line.inside)

        # The output, and the norm of the cell; after the last step there is no gradient.
        z, recurrent = gate(3)
        o = jax.nn.sigmoid(z)
        c_new = _load(r.c, t, *place, inside=at.inside)
        cell = one.normalize(c_new, self.eps[1], self.batch, at.inside)
        scale_c = feature(r.scale_c)
        squashed = jnp.tanh(cell.hat * scale_c + feature(r.bias_c))
        later = at.inside & (t < self.steps - 1)
        dh = _load(r.dh_out, t, *place, inside=at.inside) + _load(r.dh, *place, inside=later)
        dnormalized = dh * o * (1 - squashed * squashed)
        total = one.sums(dnormalized, cell.hat)
        _store(r.dbias_c, total[0], t, line.columns, inside=line.inside)
        _store(r.dscale_c, total[1], t, line.columns, inside=line.inside)
        dstats = feature(r.dmean_c, t), feature(r.dvar_c, t)
        dc = one.back(dnormalized, scale_c, cell, total, dstats, self.batch)
        dc = jnp.where(at.inside, dc, 0.0)
        dc += _load(r.dc_out, t, *place, inside=at.inside) + _load(r.dc, *place, inside=later)
        back(3, dh * squashed * o * (1 - o), recurrent)

        (z_i, recurrent_i), (z_g, recurrent_g) = gate(0), gate(2)
        i, g = jax.nn.sigmoid(z_i), jnp.tanh(z_g)
        back(0, dc * g * i * (1 - i), recurrent_i)
        back(2, dc * i * (1 - g * g), recurrent_g)

        z, recurrent = gate(1)
        f = jax.nn.sigmoid(z)
        _store(r.dc, dc * f, *place, inside=at.inside)
        back(1, dc * _before(r.c, r.c_first, t, at) * f * (1 - f), recurrent)
        return ()

    def gate(
        self, r: _BackwardRefs, t: jax.Array, at: _Tile, line: _Tile, k: int
    ) -> tuple[jax.Array, one.Normalized]:
        """Gate k of a tile before its nonlinearity, and its normalized recurrent term."""
        here = t, at.rows, at.columns + k * self.hidden
        product = _load(r.dproduct, *here, inside=at.inside)
        recurrent = one.normalize(product, self.eps[0], self.batch, at.inside)
        scale = _load(r.scale_h, line.columns + k * self.hidden, inside=line.inside)
        return _load(r.dterm, *here, inside=at.inside) + recurrent.hat * scale, recurrent

    def back_gate(
        self,
        r: _BackwardRefs,
        t: jax.Array,
        at: _Tile,
        line: _Tile,
        k: int,
        dz: jax.Array,
        recurrent: one.Normalized,
    ) -> None:
        """Write the gradients of gate k before its nonlinearity and of its recurrent term."""
        here, column = (t, at.rows, at.columns + k * self.hidden), line.columns + k * self.hidden
        _store(r.dterm, dz, *here, inside=at.inside)
        total = one.sums(dz, recurrent.hat)
        _store(r.dscale_h, total[1], t, column, inside=line.inside)
        scale = _load(r.scale_h, column, inside=line.inside)
        dmean, dvar = (_load(v, t, column, inside=line.inside) for v in (r.dmean_h, r.dvar_h))
        dproduct = one.back(dz, scale, recurrent, total, (dmean, dvar), self.batch)
        _store(r.dproduct, dproduct, *here, inside=at.inside)

    def back_product(self, r: _BackwardRefs, t: jax.Array, j: jax.Array, _: Any) -> Any:
        """The gradient of h before a step, a tile of units, from those of the recurrent terms."""
        width, units = one.GATES * self.hidden, self.units(PRODUCT)
        at, _ = self.tile(PRODUCT, j)

        def add(i: jax.Array, total: jax.Array) -> jax.Array:
            left = _tile((self.rows, DEPTH), (0, i * DEPTH), (self.batch, width))
            right = _tile((units, DEPTH), (j * units, i * DEPTH), (self.hidden, width))
            dproduct = _load(r.dproduct, t, left.rows, left.columns, inside=left.inside)
            w = _load(r.w, right.rows, right.columns, inside=right.inside)
            return total + one.dot(dproduct, w, (1, 1))

        zeros = jnp.zeros((self.rows, units), jnp.float32)
        dh = _loop(pl.cdiv(width, DEPTH), add, zeros)
        _store(r.dh, dh, at.rows, at.columns, inside=at.inside)
        return ()


class _ForwardRefs(NamedTuple):
    """Arrays of a model, whole: the arguments and outputs of `_bn_lstm`."""

    term: Any
    w: Any
    scale_h: Any
    scale_c: Any
    bias_c: Any
    c_first: Any
    h_first: Any

    h: Any
    c: Any
    mean_h: Any
    var_h: Any
    mean_c: Any
    var_c: Any


def _forward_kernel(*refs: Any, walk: _Walk) -> None:
    """All steps of a model, from the first to the last."""
    _loop(walk.steps, functools.partial(walk.forward, _ForwardRefs(*refs)))


class _BackwardRefs(NamedTuple):
    """Arrays of a model, whole; those of features are sums of each step."""

    # What `dproduct` and `dterm` start as: they are read there.
    product: Any
    term: Any
    w: Any
    scale_h: Any
    scale_c: Any
    bias_c: Any
    c_first: Any
    c: Any

    # Cotangents of the outputs.
    dh_out: Any
    dc_out: Any
    dmean_h: Any
    dvar_h: Any
    dmean_c: Any
    dvar_c: Any

    # [time, batch, 4 * hidden]: recurrent and input terms, and after a step their gradients.
    dproduct: Any
    dterm: Any
    dscale_h: Any  # [time, 4 * hidden]
    dscale_c: Any  # [time, hidden]
    dbias_c: Any  # [time, hidden]
    # Of the state after a step; at the end, of the first one.
    dc: Any  # [batch, hidden]
    dh: Any  # [batch, hidden]


def _backward_kernel(*refs: Any, walk: _Walk) -> None:
    """All steps of a model, from the last to the first."""
    _loop(walk.steps, functools.partial(walk.backward, _BackwardRefs(*refs)))


def kernel_forward(*args: jax.Array, eps: tuple[float, float], backend: Backend) -> Arrays:
    """All steps by the kernel; the outputs are also all that backward needs."""
    steps, batch, width = args[0].shape
    hidden = width // one.GATES
    shapes = [(steps, batch, hidden)] * 2 + [(steps, width)] * 2 + [(steps, hidden)] * 2
    walk = _Walk(steps, batch, hidden, eps, _wait(backend))
    return _call(walk, _forward_kernel, args, shapes, backend)


def kernel_backward(*operands: jax.Array, eps: tuple[float, float], backend: Backend) -> Arrays:
    """Gradients of all arguments, from the last step to the first.

    The operands are the seven arguments, the six outputs and their cotangents.
    """
    args, (hs, cs), cotangents = operands[:7], operands[7:9], operands[13:]
    *first, c, h = args
    steps, batch, width = args[0].shape
    hidden = width // one.GATES
    product = functools.partial(
        lax.dot_general, precision=lax.Precision.HIGHEST, preferred_element_type=jnp.float32
    )
    # Before each step h is known: the first one, then those of all steps but the last.
    h_before = jnp.concatenate([h[None], hs[:-1]])
    terms = product(h_before, args[1], (((2,), (0,)), ((), ())))
    walk = _Walk(steps, batch, hidden, eps, _wait(backend))
    dproduct, dterm, dscale_h, dscale_c, dbias_c, dc, dh = _call(
        walk,
        _backward_kernel,
        (terms, *first, c, cs, *cotangents),
        [terms.shape] * 2 + [(steps, width)] + [(steps, hidden)] * 2 + [c.shape] * 2,
        backend,
        input_output_aliases={0: 0, 1: 1},
    )
    dw = product(h_before, dproduct, (((0, 1), (0, 1)), ((), ())))
    return dterm, dw, *(s.sum(0) for s in (dscale_h, dscale_c, dbias_c)), dc, dh


def _wait(backend: Backend) -> Callable[[], None]:
    """What lets a block's threads wait for each other; the interpreter has one thread."""
    if backend == "interpreter":
        return lambda: None
    wait: Callable[[], None] = _triton().debug_barrier
    return wait


def _call(
    walk: _Walk,
    kernel: Callable[..., None],
    args: Arrays,
    shapes: Sequence[tuple[int, ...]],
    backend: Backend,
    **options: Any,
) -> Arrays:
    """Run a kernel, one program for a model, over whole arrays."""
    if backend == "gpu":
        # Not pipelined: a load that is moved to the step before would read what is not written.
        options["compiler_params"] = _triton().CompilerParams(num_warps=WARPS, num_stages=1)
    outputs = _pallas.pallas_call(
        functools.partial(kernel, walk=walk),
        *args,
        backend=backend,
        flops=one.flops(walk.steps, walk.batch, walk.hidden),
        transcendentals=5 * walk.steps * walk.batch * walk.hidden,
        grid=(1,),
        take=[_whole(arg.shape) for arg in args],
        give=[(shape, jnp.float32, *_whole(shape)) for shape in shapes],
        **options,
    )
    return tuple(outputs)


def _whole(shape: tuple[int, ...]) -> Any:
    return shape, lambda i: (0,) * len(shape)
