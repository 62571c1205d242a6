"""Independent references: two-pass NumPy in float64, written from the papers' equations.

Nothing here imports normjax. Loops are plain so that they can be read against a paper.
"""

from __future__ import annotations

import numpy as np


def moments(x, axes, mask=None):
    """Mean, biased variance and count over `axes`, two passes in float64."""
    wide = np.complex128 if np.iscomplexobj(x) else np.float64
    x = np.asarray(x).astype(wide)
    keep = np.ones(x.shape, bool) if mask is None else np.broadcast_to(mask, x.shape)
    n = keep.sum(axes, keepdims=True)
    some = np.maximum(n, 1)
    mean = np.where(keep, x, 0).sum(axes, keepdims=True) / some
    var = np.where(keep, np.abs(x - mean) ** 2, 0).sum(axes, keepdims=True) / some
    axes = tuple(np.atleast_1d(axes))
    return tuple(np.squeeze(v, axes) for v in (mean, var, n))


def batch_norm(x, gamma=None, beta=None, *, eps, axes=0, mask=None, mean=None, var=None):
    """Algorithm 1 of the batch norm paper; given statistics are used in place of the batch's."""
    x = np.asarray(x, np.float64)
    if mean is None:
        mean, var, _ = moments(x, axes, mask)
        mean, var = np.expand_dims(mean, axes), np.expand_dims(var, axes)
    y = (np.where(mask, x, mean) if mask is not None else x) - mean
    y = y / np.sqrt(var + eps)
    y = y if gamma is None else y * gamma
    return y if beta is None else y + beta


def sigmoid(z):
    """Logistic function, in the form that does not overflow."""
    return 0.5 * (1 + np.tanh(0.5 * z))


class StepNorm:
    """Batch norm of one place, statistics of each step recorded or given."""

    def __init__(self, gamma=None, beta=None, *, eps=1e-5, given=None):
        self.gamma, self.beta, self.eps, self.given = gamma, beta, eps, given
        self.seen = []

    def __call__(self, z, t, live):
        """Normalize one step; `live` says which rows are not padding."""
        mean, var, n = moments(z, 0, None if live is None else live[:, None])
        self.seen.append((mean, var, n))
        if self.given is not None:
            last = min(t, len(self.given) - 1)
            mean, var = self.given[last]
        y = (z - mean) / np.sqrt(var + self.eps)
        y = y if self.gamma is None else y * self.gamma
        return y if self.beta is None else y + self.beta


def none(z, t, live):
    """No norm."""
    return z


def lstm(p, x, *, norms=None, lengths=None, h=None, c=None):
    """LSTM with norms by place (equations 6 to 8 of the recurrent paper), gate order i, f, g, o."""
    norms = norms or {}
    nx, nh, ns, nc = (norms.get(k, none) for k in ("x", "h", "sum", "c"))
    w_x, w_h, b = (np.asarray(p[k], np.float64) for k in ("w_x", "w_h", "bias"))
    batch, steps, _ = x.shape
    size = w_h.shape[0]
    h = np.zeros((batch, size)) if h is None else h
    c = np.zeros((batch, size)) if c is None else c
    out = np.zeros((batch, steps, size))
    for t in range(steps):
        live = None if lengths is None else t < np.asarray(lengths)
        zx = nx(np.asarray(x[:, t], np.float64) @ w_x, t, live)
        zh = nh(h @ w_h, t, live)
        i, f, g, o = np.split(ns(zx + zh, t, live) + b, 4, axis=1)
        c_new = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h_new = sigmoid(o) * np.tanh(nc(c_new, t, live))
        if live is not None:
            h_new, c_new = (np.where(live[:, None], n, v) for n, v in ((h_new, h), (c_new, c)))
        h, c = h_new, c_new
        out[:, t] = h if live is None else np.where(live[:, None], h, 0)
    return out, h, c


def rnn(p, x, *, activation=np.tanh, norms=None, lengths=None):
    """Plain recurrent layer with norms by place."""
    norms = norms or {}
    nx, nh, ns = (norms.get(k, none) for k in ("x", "h", "sum"))
    w_x, w_h, b = (np.asarray(p[k], np.float64) for k in ("w_x", "w_h", "bias"))
    h = np.zeros((x.shape[0], w_h.shape[0]))
    out = []
    for t in range(x.shape[1]):
        live = None if lengths is None else t < np.asarray(lengths)
        zx = nx(np.asarray(x[:, t], np.float64) @ w_x, t, live)
        new = activation(ns(zx + nh(h @ w_h, t, live), t, live) + b)
        h = new if live is None else np.where(live[:, None], new, h)
        out.append(h if live is None else np.where(live[:, None], h, 0))
    return np.stack(out, axis=1), h


def gru(p, x, *, norms=None, lengths=None):
    """GRU with the layer norm paper's four norms; reset after the recurrent weights."""
    norms = norms or {}
    nx, nh, nxn, nhn = (norms.get(k, none) for k in ("x", "h", "xn", "hn"))
    w_x, w_h, b, bn = (np.asarray(p[k], np.float64) for k in ("w_x", "w_h", "bias", "bias_hn"))
    size = w_h.shape[0]
    two = 2 * size
    h = np.zeros((x.shape[0], size))
    out = []
    for t in range(x.shape[1]):
        live = None if lengths is None else t < np.asarray(lengths)
        zx = np.asarray(x[:, t], np.float64) @ w_x
        gx, cx = nx(zx[:, :two], t, live), nxn(zx[:, two:], t, live)
        gh, ch = nh(h @ w_h[:, :two], t, live), nhn(h @ w_h[:, two:], t, live)
        r, z = np.split(sigmoid(gx + gh + b[:two]), 2, axis=1)
        n = np.tanh(cx + b[two:] + r * (ch + bn))
        new = (1 - z) * n + z * h
        h = new if live is None else np.where(live[:, None], new, h)
        out.append(h if live is None else np.where(live[:, None], h, 0))
    return np.stack(out, axis=1), h


def reverse(x, lengths):
    """Reverse each sequence within its length."""
    return np.stack([np.concatenate([v[:n][::-1], v[n:]]) for v, n in zip(x, lengths, strict=True)])
