"""Each tool of `analysis` returns a named tuple, which has a picture; each picture is drawn."""

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

from normjax import analysis
from normjax.analysis import plots

TOOLS = [n for n in analysis.__all__ if inspect.isfunction(getattr(analysis, n))]

# By hand, in the shapes that the tools' docstrings state. That a tool returns what its annotation
# says is checked by beartype in its own tests, and the examples of `plots` draw results of tools.
TIME, UNITS = 5, 3
CURVE = jnp.geomspace(0.01, 0.5, TIME)
ZERO = jnp.zeros(())
CHANGE = analysis.Change(jnp.array(0.1), jnp.array(1e-9), jnp.array(0.5))
RESULTS = {
    "activation_histogram": analysis.ActivationHistogram(
        share=jnp.full((TIME, 4), 0.2),
        edges=jnp.linspace(-1, 1, 5),
        below=jnp.full(TIME, 0.15),
        above=jnp.full(TIME, 0.05),
    ),
    "covariate_shift": analysis.CovariateShift(mean=CURVE[:2], spread=CURVE[2:4]),
    "gate_saturation": analysis.GateSaturation(
        saturated={"forget": CURVE, "input": CURVE[::-1]},
        mean={"forget": 1 - CURVE, "input": CURVE},
        hidden_norm=CURVE,
    ),
    "gradient_predictiveness": analysis.GradientPredictiveness(
        step_sizes=jnp.array([0.001, 0.01]),
        loss=jnp.array([3.0, 2.0]),
        gradient_change=jnp.array([0.1, 1.5]),
        cosine=jnp.array([0.99, 0.8]),
        smoothness=jnp.array([20.0, 30.0]),
        beta=jnp.array(30.0),
        start_loss=jnp.array(3.2),
        gradient_norm=jnp.array(5.0),
    ),
    "gradient_shift": analysis.GradientShift(
        l2=CURVE[:2], cosine=jnp.array([1.0, 0.7]), relative=CURVE[2:4]
    ),
    "gradient_through_time": analysis.GradientThroughTime(
        norm=CURVE, gradient=jnp.ones((2, TIME, UNITS)), loss=ZERO
    ),
    "hessian_spectrum": analysis.HessianSpectrum(
        values=jnp.array([4.0, 1.0, 0.1, -0.5]), bound=jnp.full(4, 0.05), vector=[jnp.ones(UNITS)]
    ),
    "invariance": analysis.Invariance(*[CHANGE] * 9),
    "jacobian_through_time": analysis.JacobianThroughTime(
        step=jnp.ones((2, TIME - 1, UNITS)) / jnp.arange(1, UNITS + 1),
        product=jnp.ones((2, TIME - 1, UNITS)) / jnp.arange(1, UNITS + 1) ** 2,
    ),
    "norm_identities": analysis.NormIdentities(
        mean=CURVE * 1e-7, orthogonal=CURVE * 1e-6, projection=CURVE * 1e-7, damping=CURVE
    ),
    "stationarity": analysis.Stationarity(
        mean=CURVE[::-1],
        spread=CURVE[::-1] / 2,
        steps=jnp.array(3),
        feature_steps=jnp.array([2, 3]),
        tolerance=jnp.array(0.1),
    ),
    "weight_identities": analysis.WeightIdentities(
        orthogonal=CURVE * 1e-7,
        projection=jnp.array(1e-7),
        growth=1 + CURVE,
        predicted_growth=1 + CURVE,
    ),
}


@pytest.fixture(autouse=True)
def close_figures():
    """No figure outlives its test."""
    yield
    plt.close("all")


@pytest.mark.parametrize("name", TOOLS)
def test_result_of_each_tool_is_a_named_tuple_and_is_drawn(name):
    tool = inspect.unwrap(getattr(analysis, name))
    kind = typing.get_type_hints(tool)["return"]
    assert issubclass(kind, tuple) and kind.__name__ in analysis.__all__
    result = RESULTS[name]
    assert type(result) is kind

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
    one = RESULTS["gradient_predictiveness"]
    both = jax.tree.map(lambda a: jnp.stack([a, a / 2]), one)
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


def test_zero_gradient_is_nan_and_ends_the_line():
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
