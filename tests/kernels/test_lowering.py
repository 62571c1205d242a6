"""Programs with kernels, lowered for a TPU or GPU that is not there."""

from __future__ import annotations

import contextlib
import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

import normjax as nj
from normjax import recurrent
from normjax.kernels import _pallas
from tests._support import properties
from tests.kernels.test_kernels import started

accelerator = pytest.mark.parametrize("accelerator", ["tpu", "cuda"])


def described(platform):
    """JAX 0.11 and newer lower a GPU kernel only for a GPU that is there or is described."""
    if platform != "cuda" or jax.__version_info__ < (0, 11):
        return contextlib.nullcontext()
    device = jax.sharding.AbstractDevice("NVIDIA H100 80GB HBM3", num_cores=132, platform="gpu")
    auto = (jax.sharding.AxisType.Auto,)
    mesh = jax.sharding.AbstractMesh((1,), ("device",), auto, abstract_device=device)
    return jax.sharding.use_abstract_mesh(mesh)


def lowered(function, *args, platform):
    with described(platform):
        text = jax.jit(function).trace(*args).lower(lowering_platforms=(platform,)).as_text()
    return text.count("@tpu_custom_call") if platform == "tpu" else text.count("xla.gpu.triton")


@pytest.mark.parametrize(
    ("make", "shape", "calls"),
    [
        (nj.layer_norm, (64, 256), 2),
        (nj.rms_norm, (64, 256), 2),
        (nj.batch_norm, (16, 8, 8, 64), 2),
        (functools.partial(nj.group_norm, groups=8), (16, 8, 8, 64), 2),
    ],
    ids=["layer", "rms", "batch", "group"],
)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@accelerator
def test_a_step_has_one_kernel_forward_and_one_backward(make, shape, calls, dtype, accelerator):
    params, state, x, dy = started(make(), shape, dtype)
    norm = make(impl="kernel")

    def loss(params, x):
        return jnp.sum(norm.apply(params, state, x, stats="batch")[0] * dy)

    grad = jax.grad(loss, (0, 1))
    assert lowered(grad, params, x, platform=accelerator) == calls


@pytest.mark.parametrize(
    ("make", "shape"),
    [(nj.layer_norm, (37, 32)), (nj.rms_norm, (64, 24)), (nj.batch_norm, (300, 64))],
    ids=["odd rows", "odd features", "odd rows of columns"],
)
def test_a_gpu_has_kernels_for_whole_blocks_alone(make, shape):
    """Triton's blocks are powers of two; where x is not cut into whole ones it has the twin."""
    norm = make(impl="kernel")
    params, state, x, _ = started(norm, shape)
    apply = lambda x: norm.apply(params, state, x, stats="batch")[0]  # noqa: E731
    calls = {p: lowered(apply, x, platform=p) for p in ("tpu", "cuda")}
    assert calls == {"tpu": 1, "cuda": 0}


@accelerator
def test_bn_lstms_side_by_side_have_one_kernel_forward_and_one_backward(accelerator):
    """Under `vmap` too, which a grid of the models takes the place of."""
    layer = recurrent.bn_lstm(100, max_steps=20, impl="kernel")
    params, state = layer.init(jax.random.key(0), 1)
    models = jax.tree.map(lambda v: jnp.stack([v, v, v]), params)
    x = jnp.ones((64, 20, 1))

    def loss(params):
        return jnp.sum(layer.apply(params, state, x, stats="batch")[0][0])

    assert lowered(jax.vmap(jax.grad(loss)), models, platform=accelerator) == 2


def test_one_exported_program_has_each_platforms_own_way():
    """Kernels for a TPU, their twin for a CPU, where it runs again."""
    norm = nj.layer_norm(impl="kernel")
    params, state, x, _ = started(norm, (16, 128))
    with _pallas.interpreted(False):
        apply = jax.jit(lambda p, x: norm.apply(p, state, x, stats="batch")[0])
        exported = jax.export.export(apply, platforms=("cpu", "tpu"))(params, x)
    assert exported.mlir_module().count("@tpu_custom_call") == 1
    properties.same(
        exported.call(params, x), nj.layer_norm().apply(params, state, x, stats="batch")[0]
    )


WITHOUT_TRITON = """
import sys
sys.modules["jax.experimental.pallas.triton"] = None
import jax, jax.numpy as jnp
import normjax as nj
import normjax.kernels
found = {name for name in sys.modules if name.startswith("normjax.kernels.")}
assert found == {"normjax.kernels._registry"}, found
from normjax.kernels import _bn_lstm, _bn_lstm_gpu, _batch_norm, _layer_norm, _pallas
for norm in (nj.layer_norm(impl="kernel"), nj.batch_norm(impl="kernel")):
    x = jnp.ones((64, 128)) * jnp.arange(64.0)[:, None]
    params, state = norm.init(x.shape)
    apply = lambda x: norm.apply(params, state, x, stats="batch")[0]
    with _pallas.interpreted():
        assert jnp.isfinite(apply(x)).all()
    traced = jax.jit(lambda x: jax.vjp(apply, x)[1](x)).trace(x)
    for platform, calls in (("tpu", True), ("cuda", False)):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert ("custom_call" in text) == calls, platform
"""


def test_kernels_are_imported_when_needed_and_those_for_a_tpu_do_without_triton():
    """JAX is to remove it."""
    subprocess.run([sys.executable, "-c", WITHOUT_TRITON], check=True)
