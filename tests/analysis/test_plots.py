"""Protocol: each tool returns a named tuple of arrays and has a picture; each picture is drawn."""

from __future__ import annotations

import inspect
import subprocess
import sys
import typing

import jax
import jax.numpy as jnp
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest

import normjax as nj
from normjax import analysis, recurrent
from normjax.analysis import plots

TOOLS = [n for n in analysis.__all__ if inspect.isfunction(getattr(analysis, n))]


def _result(name):
    """A small result of each tool, from the tool itself."""
    x = jax.random.normal(jax.random.key(0), (6, 5, 3))
    flat, w = x[:, 0], jax.random.normal(jax.random.key(1), (3, 4))
    layer = recurrent.bn_lstm(4, max_steps=5)
    params, state = layer.init(jax.random.key(2), 3)
    linear = lambda ws: jnp.sum((flat @ ws[0] @ ws[1]) ** 2)  # noqa: E731
    layers = [w, w.T]
    moved = [1.1 * w, w.T]
    make = {
        "activation_histogram": lambda: analysis.activation_histogram(x),
        "covariate_shift": lambda: analysis.covariate_shift([flat, flat], [flat, flat + 1]),
        "gate_saturation": lambda: analysis.gate_saturation(layer, params, state, x),
        "gradient_predictiveness": lambda: analysis.gradient_predictiveness(
            linear, layers, jnp.array([0.001, 0.01])
        ),
        "gradient_shift": lambda: analysis.gradient_shift(linear, layers, moved),
        "gradient_through_time": lambda: analysis.gradient_through_time(
            layer, params, state, x, lambda y, carry: y[:, -1].sum()
        ),
        "hessian_spectrum": lambda: analysis.hessian_spectrum(linear, layers, iterations=6),
        "invariance": lambda: analysis.invariance(nj.batch_norm(), flat, w),
        "jacobian_through_time": lambda: analysis.jacobian_through_time(layer, params, state, x),
        "norm_identities": lambda: analysis.norm_identities(nj.batch_norm(), flat),
        "stationarity": lambda: analysis.stationarity(
            layer.info(params, state, x, stats="batch").moments["norm_h"]
        ),
        "weight_identities": lambda: analysis.weight_identities(
            nj.weight_norm(), w, lambda w: jnp.sum(jnp.sin(w))
        ),
    }
    return make[name]()


@pytest.fixture(autouse=True)
def close_figures():
    """No figure outlives its test."""
    yield
    plt.close("all")


@pytest.mark.parametrize("name", TOOLS)
def test_a_tool_returns_a_named_tuple_and_is_drawn(name):
    tool = inspect.unwrap(getattr(analysis, name))
    kind = typing.get_type_hints(tool)["return"]
    assert issubclass(kind, tuple) and kind.__name__ in analysis.__all__
    result = _result(name)
    assert type(result) is kind
    leaves = jax.tree.leaves(result)
    assert leaves and all(np.isfinite(np.asarray(leaf)).all() for leaf in leaves)

    draw = getattr(plots, f"plot_{name}")
    own = draw(result, label="one")
    assert isinstance(own, matplotlib.axes.Axes)
    own.figure.canvas.draw()  # warnings are errors: what does not fit would say so
    ticks = [t.get_text() for t in (*own.get_xticklabels(), *own.get_yticklabels())]
    named = any(len(t) > 6 and t[0].isalpha() for t in ticks)  # an axis of words names itself
    assert (own.get_xlabel() or named) and (own.get_ylabel() or named)
    assert own.figure.patch.get_alpha() == 0 and own.patch.get_alpha() == 0

    # On axes that are there, and a second time in another colour.
    _, ax = plt.subplots()
    assert draw(result, ax) is ax
    before = {line.get_color() for line in ax.get_lines() if line.get_gid()}
    draw(result, ax, label="two")
    after = {line.get_color() for line in ax.get_lines() if line.get_gid()}
    if before:
        assert after > before
    with pytest.raises(TypeError, match=kind.__name__):
        inspect.unwrap(draw)((1, 2))


def test_every_picture_is_of_a_tool():
    drawn = {n.removeprefix("plot_") for n in plots.__all__ if n.startswith("plot_")}
    assert drawn == set(TOOLS)


def test_predictiveness_over_training_is_a_band():
    one = _result("gradient_predictiveness")
    both = jax.tree.map(lambda *a: jnp.stack(a), one, one)
    for what in ("loss", "gradient_change", "cosine", "smoothness"):
        ax = plots.plot_gradient_predictiveness(both, what=what)
        assert len(ax.collections) == 1
        line = ax.get_lines()[0].get_ydata()
        high = np.asarray(getattr(both, what)).max(1)
        if what == "smoothness":
            np.testing.assert_allclose(line, high, rtol=1e-6)
        else:
            assert (line <= high).all()
    with pytest.raises(ValueError, match="what"):
        inspect.unwrap(plots.plot_gradient_predictiveness)(one, what="los")


def test_a_zero_gradient_ends_the_line():
    result = analysis.GradientThroughTime(
        jnp.array([0.0, 1e-3, 1.0]), jnp.ones((1, 3, 2)), jnp.zeros(())
    )
    y = plots.plot_gradient_through_time(result).get_lines()[0].get_ydata()
    assert np.isnan(y[0]) and y[1] == pytest.approx(1e-3)


def test_jacobian_band_holds_least_and_largest():
    values = jnp.array([[[4.0, 1.0, 0.25]], [[4.0, 1.0, 0.25]]])
    ax = plots.plot_jacobian_through_time(
        analysis.JacobianThroughTime(values, 2 * values), which="step"
    )
    (band,) = ax.collections
    y = band.get_paths()[0].vertices[:, 1]
    assert (y.min(), y.max()) == (0.25, 4.0)


def test_colours_are_told_apart_in_grey_by_style():
    ax = None
    for i in range(6):
        result = analysis.GradientThroughTime(
            jnp.full(3, 10.0**i), jnp.ones((1, 3, 2)), jnp.zeros(())
        )
        ax = plots.plot_gradient_through_time(result, ax, label=str(i))
    lines = ax.get_lines()
    assert [line.get_color() for line in lines] == list(plots.COLOURS)
    assert len({str(line._dash_pattern) for line in lines}) == 6


def test_matplotlib_is_imported_when_something_is_drawn_and_missed_by_name():
    code = """
import sys
sys.modules["matplotlib"] = None
import jax.numpy as jnp
from normjax import analysis
from normjax.analysis import plots
result = analysis.GradientThroughTime(jnp.ones(3), jnp.ones((1, 3, 2)), jnp.zeros(()))
try:
    plots.plot_gradient_through_time(result)
except ImportError as error:
    print(error)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'normjax[plots]'" in found.stdout
