"""torch's norms and LSTM on a GPU, for `benchmarks.device`: a JSON line for each figure.

It imports torch, waits for a line, and measures: so the import is no part of the time.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from benchmarks._device_programs import (
    BOTH,
    LONG,
    METHODS,
    SHORT,
    WIDE,
    norm_floor,
    norm_shape,
    small,
)
from benchmarks._measure import GROUPS

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def seconds(run: Callable[[], Any], calls: int) -> float:
    """Of a call, of several in a row."""
    wait = torch.cuda.synchronize if DEVICE == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    for _ in range(calls):
        run()
    wait()
    return (time.perf_counter() - start) / calls


def measure(run: Callable[[], Any], **facts: Any) -> None:
    """Print the median of five rounds, or what went wrong."""
    try:
        seconds(run, 2)
        took = seconds(run, 1)
        calls = 1 if took > 0.1 else min(max(int(0.02 / took), 2), 100)
        rounds = sorted(1e6 * seconds(run, calls) for _ in range(5))
    except Exception as raised:
        print(json.dumps({"error": f"{facts['case']}: {raised}"[:300]}), flush=True)
        return
    print(json.dumps({**facts, "us": rounds[2], "rounds_us": rounds, "calls": calls}), flush=True)


def norm(method: str, name: str, quick: bool) -> None:
    """A norm of both directions."""
    shape, dtype = norm_shape(method, name, quick), getattr(torch, name)
    x, dy = (torch.randn(shape, device=DEVICE, dtype=dtype) for _ in range(2))
    if len(shape) == 4:
        # The same memory seen as [batch, channels, height, width]: channels_last.
        x, dy = x.permute(0, 3, 1, 2), dy.permute(0, 3, 1, 2)
    scale, bias = (torch.randn(shape[-1], device=DEVICE, dtype=dtype) for _ in range(2))
    last = (shape[-1],)
    run = {
        "layer": lambda x, s, b: functional.layer_norm(x, last, s, b),
        "rms": lambda x, s, b: functional.rms_norm(x, last, s, 1e-6),
        "batch": lambda x, s, b: functional.batch_norm(x, None, None, s, b, True),
        "group": lambda x, s, b: functional.group_norm(x, GROUPS, s, b),
        "instance": lambda x, s, b: functional.instance_norm(x, weight=s, bias=b),
    }[method]
    weights = [scale] if method == "rms" else [scale, bias]
    leaves = [v.detach().requires_grad_() for v in (x, *weights)]
    full = (*leaves, bias)[:3]

    def both() -> Any:
        y = run(*full)
        return torch.autograd.grad(y, leaves, dy)

    def forward() -> Any:
        with torch.no_grad():
            return run(x, scale, bias)

    for direction, way in zip(BOTH, (forward, both), strict=True):
        floor = norm_floor(method, direction)
        facts = {"shape": shape, "floor_mb": floor * x.numel() * dtype.itemsize / 1e6}
        facts["floor_copies"] = floor / 2
        measure(way, case=f"{method} {name} {direction}", library="torch", **facts)


def lstm(size: Any) -> None:
    """`nn.LSTM`, which is cuDNN's, of both directions."""
    steps, batch, features, hidden = size
    layer = torch.nn.LSTM(features, hidden, batch_first=True).to(DEVICE)
    x, dy = (torch.randn(batch, steps, n, device=DEVICE) for n in (features, hidden))
    leaf = x.detach().requires_grad_()

    def both() -> Any:
        return torch.autograd.grad(layer(leaf)[0], [leaf, *layer.parameters()], dy)

    def forward() -> Any:
        with torch.no_grad():
            return layer(x)

    case = " ".join(f"{letter}{n}" for letter, n in zip("TBDH", size, strict=True))
    for direction, way in zip(BOTH, (forward, both), strict=True):
        measure(way, case=f"{case} {direction}", library="torch lstm", steps=steps)


def main() -> None:
    """Wait for a line, then measure, most valuable first."""
    quick = "--quick" in sys.argv
    torch.zeros(1, device=DEVICE)
    sys.stdin.readline()
    tf32 = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    print(json.dumps({"version": torch.__version__, "device": DEVICE, "tf32": tf32}), flush=True)
    for size in (SHORT, LONG, WIDE):
        lstm(small(size, quick))
    for method in METHODS:
        for name in ("float32", "bfloat16"):
            norm(method, name, quick)


if __name__ == "__main__":
    main()
