"""torch's layers, in training mode; imported only by the process that runs them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks._measure import Contender, timed


def _draw(shape: Any, seed: int) -> torch.Tensor:
    values = np.random.RandomState(seed).standard_normal(shape).astype(np.float32)
    return torch.from_numpy(values)


def _contender(run: Callable[[], Any]) -> Contender:
    return Contender("torch", lambda: timed(run, lambda _: None))


def norm(method: str, shape: list[int], groups: int, backward: bool) -> Contender:
    """A norm."""
    features = shape[-1]
    layer = {
        "layer": lambda: torch.nn.LayerNorm(features),
        "rms": lambda: torch.nn.RMSNorm(features, eps=1e-6),
        "batch": lambda: torch.nn.BatchNorm2d(features),
        "group": lambda: torch.nn.GroupNorm(groups, features),
    }[method]()
    x, dy = _draw(shape, 0), _draw(shape, 1)
    if len(shape) == 4:
        # The same memory seen as [batch, channels, height, width]: channels_last.
        x, dy = x.permute(0, 3, 1, 2), dy.permute(0, 3, 1, 2)

    def run() -> Any:
        if not backward:
            with torch.no_grad():
                return layer(x)
        leaf = x.detach().requires_grad_()
        y = layer(leaf)
        return y, torch.autograd.grad(y, [leaf, *layer.parameters()], dy)

    return _contender(run)


def lstm(steps: int, batch: int, features: int, hidden: int, train: bool = False) -> Contender:
    """`nn.LSTM` forward and backward, or a step of Adam on a classifier of the last output."""
    layer = torch.nn.LSTM(features, hidden, batch_first=True)
    x, dy = _draw((batch, steps, features), 0), _draw((batch, steps, hidden), 1)
    if not train:

        def run() -> Any:
            leaf = x.detach().requires_grad_()
            y, _ = layer(leaf)
            return y, torch.autograd.grad(y, [leaf, *layer.parameters()], dy)

        return _contender(run)

    head = torch.nn.Linear(hidden, 10)
    labels = torch.from_numpy(np.random.RandomState(2).randint(0, 10, batch))
    adam = torch.optim.Adam([*layer.parameters(), *head.parameters()], 1e-3)

    def step() -> Any:
        adam.zero_grad()
        loss = torch.nn.functional.cross_entropy(head(layer(x)[0][:, -1]), labels)
        loss.backward()
        adam.step()
        return loss.item()

    return _contender(step)
