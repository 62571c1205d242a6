"""How often a compiled step talks to other devices: docs/scaling.md."""

from __future__ import annotations

import collections
import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.runtime import parallel, step
from normjax import recurrent
from tests._support import models

OPTIM = {"name": "sgd", "learning_rate": 0.1, "decay": 0.9, "momentum": 0.5, "eps": 1e-8}
OPTIM |= {"clip_norm": 1.0, "l2": 0.0, "l1": 0.0}
HIDDEN = 3


@dataclasses.dataclass(frozen=True)
class Layer(models.Sequences):
    def init(self, key):
        params, state = self.layer.init(key, 2)
        return {"layer": params, "head": jnp.ones((HIDDEN, models.CLASSES))}, state


def collectives(layer, mode: str, steps: int) -> list[tuple[bool, str]]:
    """Every all-reduce of a step over four devices: whether it is in a loop, and its shapes."""
    task, layout = Layer(layer), parallel.DeviceLayout(mode, 4)
    constants, rate = step.static(OPTIM)
    config = {"seed": 0, "log_every": 5, "optim": OPTIM}
    now = layout.replicate(step.start(task, step.optimizer(OPTIM), config)["now"])
    split = {
        "x": jnp.ones((8, steps, 2)),
        "lengths": jnp.full((8,), steps),
        "labels": jnp.zeros((8,), jnp.int32),
    }
    batch = layout.split(layout.pad(np.arange(8, dtype=np.int32)))
    run = step.compiled_step(layout, task, constants, False, False)
    text = run.__wrapped__.lower(now, layout.replicate(split), *batch, rate).compile().as_text()
    return in_loops(text)


def in_loops(text: str) -> list[tuple[bool, str]]:
    calls, reduces, here = collections.defaultdict(set), [], ""
    for line in text.splitlines():
        if line[:1].strip() and "{" in line:
            here = line.replace("ENTRY ", "").split()[0].lstrip("%").partition("(")[0]
        calls[here] |= set(re.findall(r"(?:to_apply|calls)=\{?%?([\w.\-]+)", line))
        if match := re.search(r"= (.*?) all-reduce(?:-start)?\(", line):
            reduces.append((here, re.sub(r"\{[\d,]*\}", "", match.group(1))))
    inside = set(re.findall(r"body=%?([\w.\-]+)", text))
    for _ in range(9):
        inside |= {callee for body in inside for callee in calls[body]}
    return [(here in inside, shapes) for here, shapes in reduces]


@pytest.mark.parametrize("mode", ["jit", "shard_map"])
def test_input_statistics_of_all_steps_are_a_fixed_number_of_calls(mode):
    """Outside the scan, with the time axis in their shape, and not one a time step."""
    # Under jit with axes that are not explicit, no type tells the layer that the batch is split.
    layers = {
        t: recurrent.vertical_bn_lstm(HIDDEN, t, input_schedule="before_loop") for t in (5, 9)
    }
    by_length = {t: collectives(layer, mode, t) for t, layer in layers.items()}
    for steps, reduces in by_length.items():
        all_steps = re.compile(rf"\[{steps},(\d+,)*{4 * HIDDEN}\]")
        hoisted = [inside for inside, s in reduces if all_steps.search(s)]
        assert 1 <= len(hoisted) <= 4
        assert not any(hoisted)
    assert len(by_length[5]) == len(by_length[9])


def test_each_place_of_a_step_is_one_exchange_under_shard_map():
    """Forward mean and variance of a place travel together, backward their gradients."""
    layer = recurrent.bn_lstm(HIDDEN, 5, input_schedule="before_loop")
    inside = [s for inside, s in collectives(layer, "shard_map", 5) if inside]
    places = {4 * HIDDEN: "norm_h", HIDDEN: "norm_c"}
    # [devices, mean and variance and count, features], of a batch with weights
    sent = collections.Counter(int(re.search(r",(\d+)\]", s).group(1)) for s in inside)
    assert sent == dict.fromkeys(places, 2)


def test_gradients_of_a_scan_are_reduced_once_under_shard_map():
    """Under jit the partitioner puts the recurrent weights' all-reduce into the loop."""
    reduces = collectives(recurrent.lstm(HIDDEN), "shard_map", 5)
    assert reduces and not any(inside for inside, _ in reduces)


@pytest.mark.parametrize("mode", ["jit", "shard_map", "pmap"])
def test_on_cpu_devices_a_step_waits_for_the_one_before(mode, monkeypatch):
    """Two all-reduces in flight can starve each other of threads: `DeviceLayout.block_on_cpu`."""
    ready = []

    def watched(self, function, several):
        def call(now, *rest):
            ready.append(now.is_ready())
            return compiled(now, *rest)

        compiled = over_devices(self, function, several)
        return call

    def slow(now, split, index, weight, rate, context):
        del split, weight
        x = jax.lax.fori_loop(0, 20_000, lambda _, x: jnp.sin(x + 1), now)
        total = x * rate * index.sum()
        axis = context.axis_name
        return total if axis is None else jax.lax.psum(total, axis)

    over_devices = parallel.DeviceLayout._over_devices
    monkeypatch.setattr(parallel.DeviceLayout, "_over_devices", watched)
    layout = parallel.DeviceLayout(mode, 4)
    step = layout.step(slow)
    now, index = layout.replicate(jnp.ones(500)), layout.split(np.arange(8, dtype=np.int32))
    for _ in range(3):
        now = step(now, (), index, None, np.float32(1))
    assert not now.is_ready()  # or the test would hold of any step
    assert ready == [True] * 3


def test_the_reader_of_programs_sees_a_loop():
    mesh = jax.make_mesh((4,), ("a",), axis_types=(jax.sharding.AxisType.Auto,))

    def body(x):
        return jax.lax.scan(lambda c, _: (jax.lax.psum(jnp.sin(c), "a") / 4, None), x, None, 7)[0]

    spec = jax.sharding.PartitionSpec("a")
    mapped = jax.shard_map(body, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    reduces = in_loops(jax.jit(mapped).lower(jnp.ones(8)).compile().as_text())
    assert [inside for inside, _ in reduces] == [True]
