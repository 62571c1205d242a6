"""Whitening against float64 eigenvalues from NumPy, and its derivatives where they are hard."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import normjax as nj
from normjax.norms._inverse_root import inverse_root

RNG = np.random.default_rng(2)
MIX = np.array([[2.0, 0.3, 0, 0], [0, 1.0, 0.5, 0], [0, 0, 0.7, 0.2], [0.4, 0, 0, 1.5]])
X = (RNG.normal(size=(40, 4)) @ MIX + 3).astype(np.float32)
EPS = 1e-5


def close(got, want, rtol=1e-4, atol=1e-4):
    np.testing.assert_allclose(np.asarray(got), np.asarray(want), rtol=rtol, atol=atol)


def covariance(rows):
    rows = np.asarray(rows, np.float64)
    d = rows - rows.mean(0)
    return rows.mean(0), d.T @ d / len(rows)


def root(cov, eps=EPS):
    values, u = np.linalg.eigh(cov + eps * np.eye(len(cov)))
    return u @ np.diag(values**-0.5) @ u.T


def newton(cov, steps, eps=EPS):
    """Algorithm 1 of the iterative normalization paper, in float64."""
    cov = cov + eps * np.eye(len(cov))
    s, p = cov / np.trace(cov), np.eye(len(cov))
    for _ in range(steps):
        p = (3 * p - p @ p @ p @ s) / 2
    return p / np.sqrt(np.trace(cov))


def test_zca():
    mean, cov = covariance(X)
    fit = nj.zca_whitening(nj.second_moments(X), EPS)
    close(fit.matrix, root(cov)), close(fit.mean, mean)
    y = nj.whiten(X, fit)
    close(y, (np.asarray(X, np.float64) - mean) @ root(cov).T)
    close(covariance(y)[1], np.eye(4), atol=1e-3)
    # Of all whitenings the one closest to x: the correlation with x is symmetric.
    cross = np.asarray(y, np.float64).T @ (X - mean) / len(X)
    close(cross, cross.T)


def test_pca():
    _, cov = covariance(X)
    fit = nj.pca_whitening(nj.second_moments(X), EPS)
    y = np.asarray(nj.whiten(X, fit), np.float64)
    close(covariance(y)[1], np.eye(4), atol=1e-3)
    values, u = np.linalg.eigh(cov)
    values, u = values[::-1], u[:, ::-1]
    u = u * np.sign(u[np.abs(u).argmax(0), range(4)])
    close(fit.matrix, (u / np.sqrt(values + EPS)).T, 1e-3, 1e-3)
    grad = jax.grad(lambda x: jnp.sum(nj.pca_whitening(nj.second_moments(x), EPS).matrix))(X)
    np.testing.assert_array_equal(grad, 0)


@pytest.mark.parametrize("outputs", [1, 2, 3])
def test_a_projection_on_the_first_axes_is_that_of_scikit_learn(outputs):
    decomposition = pytest.importorskip("sklearn.decomposition", reason="scikit-learn is absent")
    fit = nj.pca_whitening(nj.second_moments(X), 1e-9)
    fit = fit._replace(matrix=fit.matrix[:outputs])
    theirs = decomposition.PCA(outputs, whiten=True, svd_solver="full").fit(X.astype(np.float64))
    want = theirs.transform(X.astype(np.float64))
    want *= np.sqrt(len(X) / (len(X) - 1))  # their variance is the unbiased one
    got = np.asarray(nj.whiten(X, fit))
    assert got.shape == (40, outputs)
    close(got * np.sign((got * want).sum(0)), want, 1e-3, 1e-3)
    # [batch, space, features] and one whitening for each position in space
    rows = X.reshape(10, 4, 4)
    np.testing.assert_allclose(
        nj.whiten(rows, fit).reshape(40, outputs), nj.whiten(X, fit), rtol=1e-5, atol=1e-5
    )
    each = nj.pca_whitening(nj.second_moments(rows, (0,)), EPS)
    each = each._replace(matrix=each.matrix[:, :outputs])
    y = nj.whiten(rows, each, axes=(0,))
    d = rows.astype(np.float64) - np.asarray(each.mean, np.float64)
    close(y, np.einsum("bsi,soi->bso", d, np.asarray(each.matrix, np.float64)), 1e-3, 1e-3)


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0, 0), (3, 0, 4), (0, 3, 4)])
@pytest.mark.parametrize("make", [nj.decorrelated_batch_norm, nj.iterative_norm])
def test_an_empty_axis_gives_an_empty_output_and_moves_nothing(make, shape):
    norm = make()
    params, state = norm.init(shape)
    for stats in ("batch", "running"):
        y, after = norm.apply(params, state, jnp.zeros(shape), stats=stats)
        assert y.shape == shape
        jax.tree.map(np.testing.assert_array_equal, after, state)


@pytest.mark.parametrize("kind", [nj.zca_whitening, nj.pca_whitening])
def test_streamed_statistics_fit_the_same(kind):
    whole = kind(nj.second_moments(X), EPS)
    parts = nj.merge(nj.second_moments(X[:7]), nj.second_moments(X[7:]))
    for a, b in zip(kind(parts, EPS), whole, strict=True):
        close(a, b, 1e-4, 1e-4)


def test_complex_vectors():
    z = X[:, :2] + 1j * X[:, 2:] * 0.5 + X[:, ::3] * 0.2j
    z = z.astype(np.complex64)
    for kind in (nj.zca_whitening, nj.pca_whitening):
        y = np.asarray(nj.whiten(z, kind(nj.second_moments(z), EPS)), np.complex128)
        close(y.T @ y.conj() / len(y), np.eye(2), atol=1e-3)


def test_whiten_takes_masks_and_half_precision():
    mask = np.arange(40)[:, None] < 30
    dirty = np.where(mask, X, np.nan)
    fit = nj.zca_whitening(nj.second_moments(dirty, mask=mask), EPS)
    close(fit.matrix, root(covariance(X[:30])[1]))
    y = nj.whiten(dirty, fit, mask=mask)
    assert np.isfinite(y).all()
    half = nj.whiten(jnp.asarray(X, jnp.bfloat16), fit)
    assert half.dtype == jnp.bfloat16


@pytest.mark.parametrize(
    "norm, matrix",
    [
        (nj.decorrelated_batch_norm(group_size=2, decay=0.75), root),
        (nj.decorrelated_batch_norm(decay=0.75), root),
        (nj.iterative_norm(decay=0.75), lambda c: newton(c, 5)),
        (nj.iterative_norm(group_size=2, iterations=2, decay=0.75), lambda c: newton(c, 2)),
    ],
    ids=lambda v: repr(v) if isinstance(v, nj.Norm) else "",
)
def test_norms(norm, matrix):
    x = X.reshape(8, 5, 4)
    params, state = norm.init(x.shape)
    if params.scale is not None:
        scale, bias = RNG.normal(size=4).astype(np.float32), np.float32([1, 2, 3, 4])
        params = nj.Affine(jnp.asarray(scale), jnp.asarray(bias))
    else:
        scale, bias = 1.0, 0.0
    y, new = norm.apply(params, state, x, stats="batch")
    size = norm.group_size or 4

    def expected(given=None):
        out = []
        for g, start in enumerate(range(0, 4, size)):
            rows = X[:, start : start + size]
            fit = covariance(rows) if given is None else (given.mean[g], given.cov[g])
            mean, cov = (np.asarray(v, np.float64) for v in fit)
            out.append((rows - mean) @ matrix(cov).T)
        return np.concatenate(out, 1).reshape(x.shape) * scale + bias

    close(y, expected(), 3e-4, 3e-4)
    for g, start in enumerate(range(0, 4, size)):
        mean, cov = covariance(X[:, start : start + size])
        close(new.mean[g], 0.25 * mean)
        close(new.cov[g], 0.75 * np.eye(size) + 0.25 * cov)
    y, _ = norm.apply(params, new, x, stats="running")
    close(y, expected(new), 3e-4, 3e-4)


def test_groups_of_one_are_batch_norm():
    """With one feature a group, whitening is standardization."""
    norm = nj.decorrelated_batch_norm(group_size=1)
    y, _ = norm.apply(*norm.init(X.shape), X, stats="batch")
    plain = nj.batch_norm()
    close(y, plain.apply(*plain.init(X.shape), X, stats="batch")[0], 1e-5, 1e-5)


def test_positions_apart():
    """Axes that stay have a covariance each."""
    x = RNG.normal(size=(9, 3, 4)).astype(np.float32)
    norm = nj.decorrelated_batch_norm(axes=0, group_size=2)
    params, state = norm.init(x.shape)
    assert state.cov.shape == (3, 2, 2, 2) and params.scale.shape == (3, 4)
    y, _ = norm.apply(params, state, x, stats="batch")
    for t in range(3):
        for start in (0, 2):
            rows = x[:, t, start : start + 2].astype(np.float64)
            mean, cov = covariance(rows)
            close(y[:, t, start : start + 2], (rows - mean) @ root(cov), 1e-3, 1e-3)


@pytest.mark.parametrize("how", ["pooled", "unbiased", "mean"])
def test_population_statistics(how):
    norm = nj.decorrelated_batch_norm()
    params, state = norm.init((1, 4))
    parts = [X[:7], X[7:20], X[20:]]
    got = nj.population_statistics(norm, params, state, parts, how=how)
    if how == "pooled":
        mean, cov = covariance(X)
    else:
        each = [covariance(p) for p in parts]
        factors = [len(p) / (len(p) - 1) if how == "unbiased" else 1 for p in parts]
        mean = np.mean([m for m, _ in each], 0)
        cov = np.mean([c * f for (_, c), f in zip(each, factors, strict=True)], 0)
    close(got.mean[0], mean), close(got.cov[0], cov)


def test_an_exact_mean_of_covariances_is_not_the_pooled_one():
    _, cov = covariance(X)
    parts = np.mean([covariance(p)[1] for p in (X[:7], X[7:20], X[20:])], 0)
    assert np.abs(cov - parts).max() > 1e-2


# Derivatives ---------------------------------------------------------------------------------

HARD = {
    "identity": np.eye(3),
    "constant": 1e-5 * np.eye(3),
    "a pair": np.diag([2.0, 2.0, 0.5]),
    "easy": covariance(X[:, :3])[1],
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n == "a pair" else pytest.mark.slow) for n in HARD]
)
def test_derivatives_of_the_inverse_root(name, x64):
    a = jnp.asarray(HARD[name])
    scale = float(a.max())
    weights, v, w = (jnp.asarray(m + m.T) for m in RNG.normal(size=(3, 3, 3)))
    v, w = v * scale, w * scale

    def f(a):
        return jnp.sum(weights * inverse_root(a, 1e-12))

    def exact(a):
        return np.sum(np.asarray(weights) * root(np.asarray(a), 0))

    step = 1e-4
    first = (exact(a + step * v) - exact(a - step * v)) / (2 * step)
    grad = jax.grad(f)
    size = abs(first)
    close(jnp.sum(grad(a) * v), first, 1e-5, 1e-6 * size)
    close(jax.jvp(f, (a,), (v,))[1], first, 1e-5, 1e-6 * size)
    corners = {(i, j): exact(a + step * (i * v + j * w)) for i in (1, -1) for j in (1, -1)}
    second = sum(i * j * value for (i, j), value in corners.items()) / (4 * step**2)
    for got in (
        jnp.sum(jax.jvp(grad, (a,), (w,))[1] * v),  # forward over reverse
        jax.grad(lambda a: jnp.sum(grad(a) * v))(a).ravel() @ w.ravel(),  # reverse over reverse
        jax.jvp(lambda a: jax.jvp(f, (a,), (v,))[1], (a,), (w,))[1],  # forward over forward
    ):
        close(got, second, 1e-3, 1e-4 * abs(second))

    def hessian_product(a):
        return jax.jvp(grad, (a,), (w,))[1]

    third = jax.jvp(hessian_product, (a,), (v,))[1]
    want = (hessian_product(a + step * v) - hessian_product(a - step * v)) / (2 * step)
    close(third, want, 1e-4, 1e-5 * np.abs(want).max())
    back = jax.grad(lambda a: jnp.sum(hessian_product(a) * v))(a)  # reverse in place of forward
    close(jnp.sum(back * v), jnp.sum(third * v), 1e-9, 1e-9 * np.abs(want).max())


def test_complex_derivative(x64):
    """The solve is transposed, not conjugated: reverse mode must know the difference."""
    m = jnp.asarray(RNG.normal(size=(3, 3)) + 1j * RNG.normal(size=(3, 3)))
    v = jnp.asarray(RNG.normal(size=(3, 3)) + 1j * RNG.normal(size=(3, 3)))
    weights = jnp.asarray(RNG.normal(size=(3, 3)) + 1j * RNG.normal(size=(3, 3)))

    def f(m):
        return jnp.sum(
            (weights * inverse_root(m @ m.conj().T + jnp.eye(3, dtype=m.dtype), 1e-12)).real
        )

    step = 1e-6
    want = (f(m + step * v) - f(m - step * v)) / (2 * step)
    close(jax.jvp(f, (m,), (v,))[1], want, 1e-6, 1e-7)
    close(jnp.sum((jax.grad(f)(m) * v).real), want, 1e-6, 1e-7)

    def slope(m):
        return jnp.sum((jax.grad(f)(m) * v).real)

    want = (slope(m + step * v) - slope(m - step * v)) / (2 * step)
    close(jax.jvp(slope, (m,), (v,))[1], want, 1e-5, 1e-7)
    close(jnp.sum((jax.grad(slope)(m) * v).real), want, 1e-5, 1e-7)


@pytest.mark.parametrize(
    "norm",
    [
        pytest.param(nj.decorrelated_batch_norm(), marks=pytest.mark.slow),
        nj.iterative_norm(),
    ],
    ids=repr,
)
def test_equal_eigenvalues_in_a_batch(norm):
    """Constant channels, and data whose covariance is a multiple of the identity exactly."""
    corners = np.array([[i, j, k] for i in (1, -1) for j in (1, -1) for k in (1, -1)], np.float32)
    still = np.concatenate([corners[:, :1], np.full((8, 2), 7.5, np.float32)], 1)
    for x in (corners, still, np.full((8, 3), 7.5, np.float32)):
        params, state = norm.init(x.shape)
        w = RNG.normal(size=x.shape).astype(np.float32)

        def loss(x, params=params, state=state, w=w):
            return jnp.sum(w * norm.apply(params, state, x, stats="batch")[0])

        grad = jax.grad(loss)(jnp.asarray(x))
        hvp = jax.jvp(jax.grad(loss), (jnp.asarray(x),), (jnp.asarray(w),))[1]
        assert np.isfinite(grad).all() and np.isfinite(hvp).all()
    # What is asked of the rule: the eigenvectors' own derivative has poles there.
    naive = jax.grad(lambda a: jnp.sum(jnp.linalg.eigh(a)[1]))(jnp.eye(3))
    assert not np.isfinite(naive).all()


def test_rank_deficient_batches_in_float32():
    """Fewer samples than features, far from 0: rounding makes eigenvalues negative, not NaN."""
    x = (RNG.normal(size=(3, 8)) * 1e3 + 1e4).astype(np.float32)
    norm = nj.decorrelated_batch_norm()
    params, state = norm.init(x.shape)
    y, new = norm.apply(params, state, x, stats="batch")
    assert np.isfinite(y).all() and np.isfinite(new.cov).all()
    grad = jax.grad(lambda x: jnp.sum(norm.apply(params, state, x, stats="batch")[0] ** 2))(x)
    assert np.isfinite(grad).all()


def in_double(f, *args):
    """Return `f` of the same numbers, computed in float64."""
    with jax.enable_x64(True):
        out = jax.jit(f)(*(jnp.asarray(np.asarray(a, np.float32), jnp.float64) for a in args))
        return jax.tree.map(np.asarray, out)


def error(got, want):
    """Return the distance as a fraction of the size of `want`."""
    got = np.asarray(got, np.float64)
    assert got.shape == want.shape
    return np.linalg.norm(got - want) / np.linalg.norm(want)


def batch_output(norm):
    """Return y as a function of x, in the precision of x."""

    def y(x):
        params, state = norm.init((1, x.shape[-1]), x.dtype)
        return norm.apply(params, state, x, stats="batch")[0]

    return y


def zca_output(x):
    return nj.whiten(x, nj.zca_whitening(nj.second_moments(x), EPS))


GRADIENT_CASES = {
    "3 samples": ((3, 8), nj.decorrelated_batch_norm()),
    "as many as features": ((8, 8), nj.decorrelated_batch_norm()),
    "32 of 64": ((32, 64), nj.decorrelated_batch_norm()),
    "groups": ((3, 8), nj.decorrelated_batch_norm(group_size=4)),
    "positions apart": ((3, 2, 4), nj.decorrelated_batch_norm(axes=0)),
    "zca": ((3, 8), None),
}


@pytest.mark.parametrize("name", GRADIENT_CASES)
def test_gradients_in_float32_of_few_samples(name):
    """The root is 1 / sqrt(eps) where the data has no variance, and rounding must stay there."""
    shape, norm = GRADIENT_CASES[name]
    rng = np.random.default_rng(0)
    x, weights = rng.normal(size=(2, *shape)).astype(np.float32)

    def y(x):
        if norm is None:
            return zca_output(x)
        params, state = norm.init((1, *shape[1:]), x.dtype)
        return norm.apply(params, state, x, stats="batch")[0]

    def grad(x, weights):
        return jax.grad(lambda x: jnp.sum(weights * y(x)))(x)

    # The covariance is rounded by 1e-7 of itself, and the root multiplies that by 1 / sqrt(eps).
    assert error(jax.jit(grad)(x, weights), in_double(grad, x, weights)) < 2e-3


@pytest.mark.parametrize("kind", ["collinear", "one channel twice", "a constant channel"])
def test_gradients_in_float32_of_dependent_features(kind):
    rng = np.random.default_rng(0)
    x, weights = rng.normal(size=(2, 128, 8))
    if kind == "collinear":
        x = x[:, :6] @ rng.normal(size=(6, 8))
    elif kind == "one channel twice":
        x[:, 7] = x[:, 6]
    else:
        x[:, 3] = 1.5
    x, weights = x.astype(np.float32), weights.astype(np.float32)
    y = batch_output(nj.decorrelated_batch_norm())

    def grads(x, weights):
        # Along x the output hardly moves, as in training; across it by 1 / sqrt(eps).
        along = jax.jvp(y, (x,), (x * x[:, :1],))[1]
        return along, jax.grad(lambda x: jnp.sum(weights * y(x)))(x)

    along, grad = jax.jit(grads)(x, weights)
    want_along, want_grad = in_double(grads, x, weights)
    # Eigenvalues are rounded by 1e-7 of the largest, which is a few percent of eps.
    assert error(grad, want_grad) < 0.1
    assert error(along, want_along) < 0.1


@pytest.mark.parametrize("shape", [(3, 8), (8, 8)])
def test_second_derivatives_in_float32_of_few_samples(shape):
    rng = np.random.default_rng(0)
    x, weights, v = rng.normal(size=(3, *shape)).astype(np.float32)
    inside = (rng.normal(size=(shape[0],) * 2) @ (x - x.mean(0))).astype(np.float32)
    y = batch_output(nj.decorrelated_batch_norm())

    def products(x, weights, v, inside):
        grad = jax.grad(lambda x: jnp.sum(weights * y(x) + 0.1 * y(x) ** 3))
        return {
            "output, forward": jax.jvp(y, (x,), (v,))[1],
            "forward over reverse": jax.jvp(grad, (x,), (v,))[1],
            # Along directions in which the batch varies; see `inverse_root` for the others.
            "reverse over reverse": jax.grad(lambda x: jnp.sum(grad(x) * inside))(x),
        }

    got = jax.jit(products)(x, weights, v, inside)
    want = in_double(products, x, weights, v, inside)
    for name in want:
        assert error(got[name], want[name]) < 5e-3, name


def test_gradients_of_few_samples_over_devices_and_in_half_precision():
    rng = np.random.default_rng(0)
    x, weights = rng.normal(size=(2, 4, 8)).astype(np.float32)
    norm = nj.decorrelated_batch_norm()
    y = batch_output(norm)

    def grad(x, weights):
        return jax.grad(lambda x: jnp.sum(weights * y(x).astype(weights.dtype)))(x)

    want = in_double(grad, x, weights)
    params, state = norm.init((1, 8))

    def split(x):
        one = lambda x: norm.apply(params, state, x, stats="batch", axis_name="d")[0]  # noqa: E731
        return jax.vmap(one, axis_name="d")(x.reshape(2, 2, 8)).reshape(4, 8)

    got = jax.jit(jax.grad(lambda x: jnp.sum(weights * split(x))))(x)
    assert error(got, want) < 2e-3
    both = jax.vmap(grad)(jnp.stack([x, 2 * x]), jnp.stack([weights, weights]))
    assert error(both[0], want) < 2e-3
    half = x.astype(jnp.bfloat16)
    want = in_double(grad, half, weights)
    assert error(grad(half, weights), want) < 1e-2


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: nj.decorrelated_batch_norm(group_size=3).init((1, 4)), "group_size=2"),
        (lambda: nj.iterative_norm(axes=-1).init((1, 4)), "features last"),
        (lambda: nj.iterative_norm(iterations=0), "iterations=0"),
        (lambda: nj.decorrelated_batch_norm(group_size=0), "group_size=0"),
        (lambda: nj.zca_whitening(nj.second_moments(X), 0.0), "eps"),
        (
            lambda: nj.whiten(X, nj.zca_whitening(nj.second_moments(X[:, :2]), EPS)),
            "fit",
        ),
    ],
)
def test_errors_say_what_to_write(make, message):
    with pytest.raises(ValueError, match=message):
        make()
