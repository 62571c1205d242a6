"""The libraries that are measured: the same few calls in each one's own words."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import normjax as nj


class NotOffered(Exception):
    """The library has no such method or argument."""


class Trained(NamedTuple):
    """What one training call of a batch norm returns: output and kept statistics."""

    y: Any
    mean: Any
    var: Any


DECAY = 0.9


# Libraries: the same few calls in each one's own words ------------------------------------------


class Normjax:
    """This library."""

    name = "normjax"
    eps = {"batch": 1e-5, "layer": 1e-5, "group": 1e-5}

    def batch(self, x, mask=None, start=None, axis_name=None):
        norm = nj.batch_norm(decay=DECAY, allow_single=True)
        params, state = norm.init(x.shape)
        state = state if start is None else nj.Running(*start)
        y, s = norm.apply(params, state, x, stats="batch", mask=mask, axis_name=axis_name)
        return Trained(y, s.mean, s.var)

    def batch_eval(self, x, mean, var):
        norm = nj.batch_norm()
        params, _ = norm.init(x.shape, x.dtype)
        return norm.apply(params, nj.Running(mean, var), x, stats="running")[0]

    def layer(self, x, mask=None):
        norm = nj.layer_norm()
        return norm.apply(*norm.init(x.shape), x, stats="batch", mask=mask)[0]

    def group(self, x, groups, mask=None, leading=1):
        axes = None if leading == 1 else tuple(range(leading, x.ndim - 1))
        norm = nj.group_norm(groups=groups, **({} if axes is None else {"axes": axes}))
        return norm.apply(*norm.init(x.shape), x, stats="batch", mask=mask)[0]

    def accumulate(self, parts, start):
        norm = nj.batch_norm(decay=DECAY)
        params, _ = norm.init(parts[0].shape)
        state = nj.accumulate_statistics(nj.Running(*start))
        for x in parts:
            _, state = norm.apply(params, state, x, stats="batch")
        s = nj.finalize_statistics(state, decay=DECAY)
        return s.mean, s.var


class Linen:
    """Flax Linen."""

    name = "flax.linen"
    eps = {"batch": 1e-5, "layer": 1e-6, "group": 1e-6}

    def __init__(self):
        import flax.linen as nn

        self.nn = nn

    def batch(self, x, mask=None, start=None, axis_name=None):
        m = self.nn.BatchNorm(use_running_average=False, momentum=DECAY, axis_name=axis_name)
        v = self.nn.BatchNorm(use_running_average=False).init(jax.random.key(0), x)
        if start is not None:
            v = {**v, "batch_stats": {"mean": start[0], "var": start[1]}}
        y, new = m.apply(v, x, mask=mask, mutable=["batch_stats"])
        return Trained(y, new["batch_stats"]["mean"], new["batch_stats"]["var"])

    def batch_eval(self, x, mean, var):
        m = self.nn.BatchNorm(use_running_average=True, dtype=x.dtype)
        v = {**m.init(jax.random.key(0), x), "batch_stats": {"mean": mean, "var": var}}
        return m.apply(v, x)

    def layer(self, x, mask=None):
        m = self.nn.LayerNorm()
        return m.apply(m.init(jax.random.key(0), x), x, mask=mask)

    def group(self, x, groups, mask=None, leading=1):
        axes = None if leading == 1 else tuple(range(leading, x.ndim))
        m = self.nn.GroupNorm(groups, reduction_axes=axes)
        return m.apply(m.init(jax.random.key(0), x), x, mask=mask)

    def accumulate(self, parts, start):
        for x in parts:
            _, *start = self.batch(x, start=start)
        return tuple(start)


class NNX(Linen):
    """Flax NNX."""

    name = "flax.nnx"

    def __init__(self):
        from flax import nnx

        self.nnx = nnx

    def batch(self, x, mask=None, start=None, axis_name=None):
        m = self.nnx.BatchNorm(
            x.shape[-1], momentum=DECAY, axis_name=axis_name, rngs=self.nnx.Rngs(0)
        )
        if start is not None:
            m.mean[...], m.var[...] = start
        y = m(x, use_running_average=False, mask=mask)
        return Trained(y, m.mean[...], m.var[...])

    def batch_eval(self, x, mean, var):
        m = self.nnx.BatchNorm(x.shape[-1], dtype=x.dtype, rngs=self.nnx.Rngs(0))
        m.mean[...], m.var[...] = mean, var
        return m(x, use_running_average=True)

    def layer(self, x, mask=None):
        return self.nnx.LayerNorm(x.shape[-1], rngs=self.nnx.Rngs(0))(x, mask=mask)

    def group(self, x, groups, mask=None, leading=1):
        axes = None if leading == 1 else tuple(range(leading, x.ndim))
        m = self.nnx.GroupNorm(x.shape[-1], groups, reduction_axes=axes, rngs=self.nnx.Rngs(0))
        return m(x, mask=mask)


class Haiku:
    """Haiku."""

    name = "haiku"
    eps = {"batch": 1e-5, "layer": 1e-5, "group": 1e-5}

    def __init__(self):
        import haiku

        self.hk = haiku

    def _run(self, make: Callable, x, *args, state=None, **kw):
        f = self.hk.transform_with_state(lambda x: make()(x, *args, **kw))
        params, fresh = f.init(jax.random.key(0), x)
        return f.apply(params, fresh if state is None else state(fresh), None, x)

    def batch(self, x, mask=None, start=None, axis_name=None):
        if mask is not None:
            raise NotOffered
        if start is not None:
            raise NotOffered
        axis = {} if axis_name is None else {"cross_replica_axis": axis_name}
        y, s = self._run(lambda: self.hk.BatchNorm(True, True, DECAY, **axis), x, is_training=True)
        at = "batch_norm/~/"
        mean, var = s[at + "mean_ema"]["average"], s[at + "var_ema"]["average"]
        return Trained(y, mean.reshape(-1), var.reshape(-1))

    def batch_eval(self, x, mean, var):
        def fill(s):
            values = {"batch_norm/~/mean_ema": mean, "batch_norm/~/var_ema": var}
            return {
                k: {
                    **v,
                    "average": values[k].reshape(v["average"].shape).astype(v["average"].dtype),
                }
                for k, v in s.items()
            }

        return self._run(
            lambda: self.hk.BatchNorm(True, True, DECAY), x, is_training=False, state=fill
        )[0]

    def layer(self, x, mask=None):
        if mask is not None:
            raise NotOffered
        return self._run(lambda: self.hk.LayerNorm(-1, True, True), x)[0]

    def group(self, x, groups, mask=None, leading=1):
        if mask is not None or leading > 1:
            raise NotOffered
        return self._run(lambda: self.hk.GroupNorm(groups), x)[0]

    def accumulate(self, parts, start):
        raise NotOffered


class Equinox:
    """Equinox."""

    name = "equinox"
    eps = {"batch": 1e-5, "layer": 1e-5, "group": 1e-5}

    def __init__(self):
        import equinox

        self.eqx = equinox

    def batch(self, x, mask=None, start=None, axis_name=None):
        if mask is not None or start is not None or axis_name is not None:
            raise NotOffered
        m, state = self.eqx.nn.make_with_state(self.eqx.nn.BatchNorm)(
            x.shape[-1], axis_name="b", momentum=DECAY, mode="batch"
        )
        y, state = jax.vmap(m, axis_name="b", in_axes=(0, None), out_axes=(0, None))(x, state)
        kept = state.get(m.batch_state_index)
        return Trained(y, *kept[:2])

    def batch_eval(self, x, mean, var):
        raise NotOffered

    def layer(self, x, mask=None):
        if mask is not None:
            raise NotOffered
        return jax.vmap(self.eqx.nn.LayerNorm(x.shape[-1]))(x)

    def group(self, x, groups, mask=None, leading=1):
        if mask is not None or leading > 1:
            raise NotOffered
        m = self.eqx.nn.GroupNorm(groups, x.shape[-1])
        first = jax.vmap(lambda v: jnp.moveaxis(m(jnp.moveaxis(v, -1, 0)), 0, -1))
        return first(x)

    def accumulate(self, parts, start):
        raise NotOffered


def libraries() -> list[Any]:
    """All that are installed, ours first."""
    found = []
    for make in (Normjax, Linen, NNX, Equinox, Haiku):
        try:
            found.append(make())
        except ImportError:
            print(f"{make.name} is not installed and left out: make peers")
    return found


def versions() -> dict[str, str]:
    """What the table was made with."""
    names = ("jax", "flax", "equinox", "dm-haiku", "numpy")
    found = {"normjax": nj.__version__, "python": platform.python_version()}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
