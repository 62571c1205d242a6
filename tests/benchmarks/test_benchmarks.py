"""The harness measures what it says; nothing here depends on how fast the machine is."""

from __future__ import annotations

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import (
    _device_programs,
    _layers,
    _measure,
    device,
    device_table,
    early,
    loop,
    models,
    newton,
    norms,
    together,
)
from benchmarks.compilers import __main__ as compilers

EVERY = [(lib, case.method) for lib in norms.LIBRARIES for case in norms.CASES]


def _run(module, tmp_path, *flags):
    path = tmp_path / "out.json"
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{module}", "--quick", f"--json={path}", *flags],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout, json.loads(path.read_text())


def _want(method, x):
    """The norm with no affine, in float64."""
    x = np.asarray(x, np.float64)
    if method == "rms":
        return x / np.sqrt((x**2).mean(-1, keepdims=True))
    shape = x.shape
    if method == "group":
        x = x.reshape(shape[0], -1, norms.GROUPS, shape[-1] // norms.GROUPS)
    axes = {"layer": (-1,), "batch": tuple(range(x.ndim - 1)), "group": (1, 3)}[method]
    d = x - x.mean(axes, keepdims=True)
    return (d / np.sqrt((d**2).mean(axes, keepdims=True))).reshape(shape)


@pytest.mark.standard_numerics
@pytest.mark.parametrize(("library", "method"), EVERY)
def test_every_library_is_given_the_same_norm(library, method):
    x = jnp.asarray(norms.draw(next(c.small for c in norms.CASES if c.method == method), 0))
    try:
        apply, params, state = norms.LIBRARIES[library](method, x)
    except ImportError:
        pytest.skip(f"{library} is not installed")
    y, state, (dparams, dx) = jax.jit(_measure.forward_backward(apply))(params, state, x, x)
    np.testing.assert_allclose(y, _want(method, x), atol=2e-4)
    jax.tree.map(lambda p, d: np.testing.assert_equal(p.shape, d.shape), params, dparams)
    assert dx.shape == x.shape and jax.tree.leaves(dparams)


def test_torch_runs_every_norm():
    pytest.importorskip("torch")
    from benchmarks import _torch

    for case in norms.CASES:
        made = _torch.norm(case.method, list(case.small), norms.GROUPS, backward=True)
        assert made.call().wall > 0


@pytest.mark.standard_numerics
@pytest.mark.slow
@pytest.mark.parametrize("library", _layers.LAYERS)
def test_recurrent_layers_return_every_output(library):
    steps, batch, features, hidden = _layers.SMALL[0]
    x = jnp.asarray(norms.draw((batch, steps, features), 0))
    apply, params, state = _layers.LAYERS[library](x, hidden)
    y, again = apply(params, state, x)
    assert y.shape == (batch, steps, hidden) and np.isfinite(y).all()
    jax.tree.map(lambda a, b: np.testing.assert_equal(a.shape, b.shape), state, again)


@pytest.mark.standard_numerics
def test_flax_bn_under_scan_is_our_bn_lstm():
    steps, batch, features, hidden = 5, 4, 3, 8
    x = jnp.asarray(norms.draw((batch, steps, features), 0))
    apply, params, state = _layers.LAYERS["flax bn in nn.scan"](x, hidden)
    theirs = params["ScanCell_0"]
    ours, start, ready = _layers.LAYERS["normjax bn_lstm"](x, hidden)
    # Gates in Flax's order; the bias holds nothing but our forget gate's start.
    start = {**start, "bias": jnp.zeros_like(start["bias"])}
    start["w_x"], start["w_h"] = theirs["x"]["kernel"], theirs["h"]["kernel"]
    np.testing.assert_allclose(
        ours(start, ready, x)[0], apply(params, state, x)[0], rtol=1e-4, atol=1e-5
    )


def _fake(library, *walls):
    costs = iter([_measure.Cost(9.0, 9.0, 9)] + [_measure.Cost(w, w, 0) for w in walls])
    seen = []

    def call():
        # Every other call is the one that is not timed.
        seen.append(None)
        return _measure.Cost(9.0, 9.0, 9) if len(seen) % 2 else next(costs)

    next(costs)
    return _measure.Contender(library, call)


def test_medians_ratios_and_bars():
    records = _measure.summary(
        "case", [_fake("a", 1.0, 2.0, 3.0), _fake("b", 4.0, 9.0, 4.0), _fake("copy", 1, 1, 1)], 3
    )
    a, b, copy = records
    assert (a["median_ms"], a["min_ms"], b["median_ms"]) == (2e3, 1e3, 4e3)
    assert (a["times_first"], b["times_first"], a["copies"], copy["copies"]) == (1, 2, 2, 1)
    table = _measure.bars_of(records, [_measure.Bar("case", "b", "a", 1.5)])
    assert table.splitlines()[-1] == "| case | b / a | 1.50 | **2.00** | 2.00 |"
    assert not _measure.bars_of(records, [_measure.Bar("other", "b", "a", 1.5)])
    assert "| case | a | 2000.00 |" in _measure.markdown(records)


def test_what_is_carried_is_carried_and_given_arrays_stay():
    x = jnp.zeros(3)
    made = _measure.of_jax("a", lambda n, step: (n + step, n), (x, jnp.ones(3)), carried=1)
    assert made.call().wall > 0 and made.call().faults >= 0
    assert x.tolist() == [0, 0, 0] and made.temporary is not None and made.compile > 0


def test_models_are_held_to_an_aim_by_the_share_of_their_norms():
    def records(case, ours, flax, none):
        walls = dict(zip(models.LIBRARIES, (ours, flax, none), strict=True))
        return [
            {"case": case, "library": k, "wall_ms": v, "median_ms": sorted(v)[1]}
            for k, v in walls.items()
        ]

    # In the second round something else took half of the machine.
    small = records("small", [10.0, 20.0, 10.0], [10.5, 21.0, 10.5], [10.0, 20.0, 10.0])
    large = records("large", [10.0, 20.0, 10.0], [10.5, 21.0, 10.5], [8.0, 16.0, 8.0])
    lines = models.compared(small + large).splitlines()
    assert lines[2] == "| small | 10.5 | 10.0 | 10.0 | 5% | 1.0 | **1.05** |"
    assert lines[3] == "| large | 10.5 | 10.0 | 8.0 | 24% | 1.1 | 1.05 |"


@pytest.mark.standard_numerics
@pytest.mark.slow
@pytest.mark.parametrize("case", models.CASES)
def test_models_differ_in_their_norms_alone(case):
    states, losses = {}, {}
    for library in models.LIBRARIES:
        step, carried, batch = models.training(models.CASES[case], library, quick=True)
        states[library] = carried
        losses[library] = jax.jit(step)(*carried, *batch)[-1]
    ours, flax = states[models.OURS], states[models.FLAX]
    jax.tree.map(np.testing.assert_array_equal, ours, flax)
    np.testing.assert_allclose(losses[models.OURS], losses[models.FLAX], rtol=1e-5)
    assert abs(losses[models.NONE] - losses[models.FLAX]) > 1e-4


@pytest.mark.slow
def test_norms_run_and_write(tmp_path):
    flags = ("--only=rms forward 8", "--libraries=flax.linen")
    table, written = _run("norms", tmp_path, *flags)
    found = [r["library"] for r in written["records"]]
    assert found == ["normjax", "flax.linen", "copy"] and "| flax.linen |" in table
    assert all(len(r["wall_ms"]) == 2 and r["median_ms"] > 0 for r in written["records"])
    assert written["versions"]["jax"] == jax.__version__ and written["hardware"]["cpus"]


@pytest.mark.slow
@pytest.mark.parametrize("module", ["recurrent", "train_step", "compile"])
def test_the_others_run(module, tmp_path):
    table, written = _run(module, tmp_path, "--only=T5", "--libraries=flax lstm")
    found = [r["library"] for r in written["records"]]
    assert "normjax bn_lstm" in found and "flax lstm" in found and "normjax lstm" in table


@pytest.mark.slow
def test_scaling_splits_a_step_over_devices_and_draws(tmp_path):
    picture = tmp_path / "s.png"
    flags = ("--only=N", "--libraries=none", f"--plot={picture}")
    _, written = _run("scaling", tmp_path, *flags)
    found = [(r["case"], r["library"]) for r in written["records"]]
    cells = ("lstm", "bn_lstm", "ln_lstm")
    assert found == [(n, f"normjax {cell}") for n in ("N1", "N2") for cell in cells]
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.standard_numerics
def test_runs_side_by_side_are_held_against_one_alone():
    for members in (1, 2):
        clock, processor = together.stepper(together.settings("mlp"), members)()
        assert clock > 0 and processor > 0


@pytest.mark.slow
def test_newton_is_held_against_the_scan():
    records = newton.case("case", "bn_lstm", 6, 2, 2)
    assert 1 <= records[1]["sweeps"] <= 6 and records[1]["difference"] < 1e-5
    assert newton.table(records).splitlines()[-1].startswith("| case | ")


def test_the_table_of_early_statistics_has_mean_and_range():
    found = [
        {"order": "rows", "updates": 2, "accuracy": dict.fromkeys(("population", *early.ARMS), a)}
        for a in (50.0, 60.0)
    ]
    line = early.table(found).splitlines()[-1]
    assert line == "| rows, 2 updates |" + " 55.0 (50.0 to 60.0) |" * (1 + len(early.ARMS))


@pytest.mark.slow
@pytest.mark.standard_numerics
def test_the_loop_is_held_against_its_steps(monkeypatch):
    monkeypatch.setattr(loop, "LOG", 4)
    config = loop.settings("lstm", 1, 3 * loop.LOG)
    assert loop.steps(config) > 0 and loop.loop(config) > 0


@pytest.mark.standard_numerics
def test_a_devices_figures_are_kept_whatever_breaks(tmp_path):
    path = tmp_path / "device.json"
    run = device.Run(str(path), minutes=1)
    run.copy(quick=True)
    x = jax.ShapeDtypeStruct((2,), jnp.float32)
    broken = _device_programs.Program("broken", "nobody", lambda x: x + jnp.ones(3), (x,))
    found = [
        p for p in _device_programs.norms(("rms",), quick=True) if p.case == "rms float32 forward"
    ]
    run.part("norms", [broken, *found], compile_for=50.0)
    written = json.loads(path.read_text())
    assert [note.partition(", nobody")[0] for note in written["notes"]] == ["norms: broken"]
    rows = [r for r in written["records"] if r["part"] == "norms"]
    assert [r["library"] for r in rows] == ["normjax", "normjax kernel", "flax.linen"]
    for row in rows:
        moved = 2 * 4 * 16 * 64  # bytes: x and y of float32
        assert row["us"] == np.median(row["rounds_us"]) and len(row["rounds_us"]) == device.ROUNDS
        np.testing.assert_allclose(row["gbps"], moved / row["us"] / 1e3)
        np.testing.assert_allclose(row["copies"], written["copy_gbps"] / row["gbps"])


@pytest.mark.parametrize("main, flag", [(device.main, "--only"), (compilers.main, "--parts")])
def test_a_part_that_there_is_not_is_refused(main, flag, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["measure", f"{flag}=norms,norm"])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "there is no 'norm'; known: norms, " in capsys.readouterr().err


@pytest.mark.slow
def test_a_devices_benchmark_runs_and_says_what_it_left_out(tmp_path):
    table, written = _run("device", tmp_path, "--only=recurrent,profile", "--minutes=5")
    found = {r["library"] for r in written["records"] if r["part"] == "recurrent"}
    assert found == {*_device_programs.EVERY} and "µs a step" in table
    assert written["versions"]["jax"] == jax.__version__ and not written["notes"]
    _, written = _run("device", tmp_path, "--only=wide", "--minutes=0")
    assert written["notes"] and not [r for r in written["records"] if r["part"] == "wide"]


def test_the_tables_of_an_h100_are_those_of_the_records():
    readme = device_table.README.read_text()
    days = device_table.folders()
    assert days
    for folder in days:
        assert f"<!-- h100 {folder.name} -->" in readme
        assert device_table.replaced(readme, folder) == readme, "python -m benchmarks.device_table"
