from __future__ import annotations

import json
import shutil

import pytest

from configs.recurrent_bn import digits
from experiments.config import validate
from experiments.runtime import curves, measures
from experiments.usage import UsageError


@pytest.fixture
def two_runs(tmp_path, tiny):
    """A finished BN-LSTM and an unfinished LSTM, as train would leave them."""
    for variant, finished in (("bn_lstm", True), ("lstm", False)):
        folder = tmp_path / variant
        folder.mkdir()
        config = validate.check(tiny(variant))
        (folder / "config.json").write_text(json.dumps({"config": config}))
        rows = [
            {"step": s, "split": k, "loss": 2.0 / s, "accuracy": s / 50, "seconds": 0.1 * s}
            for s in (10, 20, 46)
            for k in ("train", "valid")
        ]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "metrics.jsonl").write_text(lines + '{"step": 50, "spl')
        if finished:
            kinds = {k: {"loss": 0.1, "accuracy": 0.9} for k in ("batch", "population", "running")}
            final = {"steps": 46, "valid": kinds, "test": kinds, "seconds": 4.6}
            (folder / "final.json").write_text(json.dumps(final))
    return tmp_path


def test_report_draws_and_tells(two_runs):
    shown = curves.report([two_runs])
    assert (two_runs / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert (two_runs / "table.md").read_text().startswith("| run ")
    lines = shown.splitlines()
    assert lines[2].startswith("| lstm ") and "46 (unfinished)" in lines[2]
    cells = [cell.strip() for cell in lines[3].strip("|").split("|")]
    assert cells == ["bn_lstm", "46", "90.00 %", "90.00 %", "90.00 %", "90.00 %", "46", "5"]


def test_report_takes_several_folders_and_an_output(two_runs, tmp_path):
    out = tmp_path / "elsewhere" / "figures"
    curves.report([two_runs / "lstm", two_runs / "bn_lstm", two_runs / "lstm"], out)
    assert sorted(p.name for p in out.iterdir()) == ["curves.png", "table.md"]
    assert len(curves.find([two_runs, two_runs / "lstm"])) == 2


def test_runs_of_one_name_are_told_apart(two_runs):
    (two_runs / "lstm").rename(two_runs / "first")
    (two_runs / "bn_lstm").rename(two_runs / "second")
    path = two_runs / "second" / "config.json"
    path.write_text(path.read_text().replace('"bn_lstm"', '"lstm"'))
    assert [r.label for r in curves.find([two_runs])] == ["lstm (first)", "lstm (second)"]


def config_with(**changes):
    config = digits.get_config("lstm")
    config.update_from_flattened_dict(changes)
    return config.to_dict()


@pytest.mark.parametrize(
    ("changes", "title"),
    [
        ({}, "digits: 64 steps, one pixel per step"),
        ({"data.side": 4}, "digits: 16 steps, one pixel per step"),
        (
            {"dataset": "mnist", "data.layout": "rows"},
            "mnist: 28 steps, one row of 28 pixels per step",
        ),
        ({"dataset": "mnist", "data.layout": "images"}, "mnist: images of 28 x 28"),
        ({"dataset": "text", "data.length": 50}, "text ptb: 50 steps, one character per step"),
        (
            {"dataset": "imdb_reviews", "data.length": 9},
            "imdb_reviews: at most 9 steps, one word per step",
        ),
    ],
)
def test_the_title_says_what_a_step_is(changes, title):
    assert curves.title([config_with(**changes)] * 2) == title


def test_labels_are_no_formulas_and_are_in_the_legend(two_runs):
    path = two_runs / "lstm" / "config.json"
    path.write_text(path.read_text().replace('"lstm"', '"_a $x$_ $y"'))
    runs = curves.find([two_runs])
    labels = [curves.label_of([run], measures.ACCURACY) for run in runs]
    assert labels == [r" _a \$x\$_ \$y", "bn_lstm (test 90.0 %)"]
    curves.draw(runs, two_runs / "drawn.png")
    assert (two_runs / "drawn.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("data", "changes", "line"),
    [
        (("images", 3, [32, 32, 3]), {"data.layout": "images"}, "images of 32 x 32 x 3, 3 classes"),
        (("images", 3, [32, 16, 1]), {"data.layout": "rows"}, "32 steps, one row of 16 pixels per"),
        (("images", 3, [4, 5, 3]), {}, "20 steps, one pixel per step"),
        (("sequences", 2, [7, 3]), {"dataset": "npz"}, "at most 7 steps of 3 numbers, 2 classes"),
    ],
)
def test_the_title_of_own_data_is_what_the_run_kept(data, changes, line):
    known = dict(zip(("kind", "classes", "shape"), data, strict=True))
    config = config_with(**{"dataset": "mine", **changes})
    assert curves.title([config], [known]).startswith(f"{config['dataset']}: {line}")
    assert curves.title([config], [{}]) == config["dataset"]


def as_text(folder, unit):
    """Make a run one of a language model."""
    path = folder / "config.json"
    described = json.loads(path.read_text())
    described["config"]["task"], described["config"]["dataset"] = "language", "text"
    described["config"]["data"]["unit"] = unit
    path.write_text(json.dumps(described))


@pytest.mark.parametrize(
    ("unit", "name", "score"),
    [("chars", "bits per character", "0.1443"), ("words", "perplexity", "1.11")],
)
def test_a_language_model_is_read_in_the_words_of_its_task(two_runs, unit, name, score):
    """A loss of 0.1 nats: 0.1 / log 2 bits, and a perplexity of exp(0.1)."""
    for variant in ("lstm", "bn_lstm"):
        as_text(two_runs / variant, unit)
    lines = curves.report([two_runs]).splitlines()
    header = [cell.strip() for cell in lines[0].strip("|").split("|")]
    assert header == [
        *("run", "steps", f"valid {name} batch", f"valid {name} pop.", f"test {name} batch"),
        *(f"test {name} pop.", "seconds"),
    ]
    assert f" {score} " in lines[3] and "steps to" not in lines[0]
    assert f"{name[0].upper()}{name[1:]} of the parameters with the best validation" in lines[5]
    (run,) = [r for r in curves.find([two_runs]) if r.final]
    assert f"valid {name} by statistics: {score} batch" in "".join(
        measures.lines({**run.final, "config": run.config})
    )


def test_tasks_of_unlike_measures_share_a_table(two_runs):
    as_text(two_runs / "bn_lstm", "chars")
    lines = curves.report([two_runs]).splitlines()
    assert "valid batch" in lines[0] and "0.1443 bits per character" in lines[3]


def test_top_five_have_a_column_where_they_are_known(two_runs):
    path = two_runs / "bn_lstm" / "final.json"
    path.write_text(path.read_text().replace('"accuracy": 0.9', '"accuracy": 0.9, "top5": 0.975'))
    lines = curves.report([two_runs]).splitlines()
    assert "test top-5" in lines[0] and "97.50 %" in lines[3] and lines[2].count(" - ") == 5


def test_axes_are_named_in_the_words_of_the_task(two_runs, monkeypatch):
    drawn = []
    monkeypatch.setattr("matplotlib.pyplot.close", drawn.append)
    curves.draw(curves.find([two_runs]), two_runs / "a.png")
    for variant in ("lstm", "bn_lstm"):
        as_text(two_runs / variant, "chars")
    curves.draw(curves.find([two_runs]), two_runs / "b.png")
    named = [[axis.get_ylabel() for axis in figure.axes] for figure in drawn]
    assert named[0][:3:2] == ["training loss (nats)", "validation accuracy"]
    assert named[1][:3:2] == ["training bits per character", "validation bits per character"]
    first = figure_line(drawn[1].axes[0])
    assert first[0] == pytest.approx(0.2 / 0.6931472, rel=1e-6)


def figure_line(axis):
    return list(axis.lines[0].get_ydata())


def test_a_folder_without_runs_is_told(tmp_path):
    with pytest.raises(UsageError, match="there is no run in"):
        curves.find([tmp_path])


def test_seeds_are_one_curve_with_a_band_and_the_legend_is_inside(two_runs, monkeypatch):
    """Fourteen curves, of which one is three seeds: nothing leaves the figure or covers an axis."""
    for i in range(12):
        folder = shutil.copytree(two_runs / "lstm", two_runs / f"other{i}")
        path = folder / "config.json"
        path.write_text(path.read_text().replace('"lstm"', f'"a run of a long name {i}"'))
    for seed in (1, 2):
        folder = shutil.copytree(two_runs / "lstm", two_runs / f"seed{seed}")
        config = json.loads((folder / "config.json").read_text())
        config["config"]["seed"] = seed
        (folder / "config.json").write_text(json.dumps(config))
    drawn = []
    monkeypatch.setattr("matplotlib.pyplot.close", drawn.append)
    runs = curves.find([two_runs])
    assert sorted(map(len, curves.by_seed(runs)))[-2:] == [1, 3]
    curves.draw(runs, two_runs / "drawn.png")
    figure = drawn[0]
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert len(names) == 14 and sum(name == "lstm, 3 seeds" for name in names) == 1
    assert len(figure.axes[0].collections) == 1  # the band
    legend = figure.legends[0].get_window_extent()
    assert figure.bbox.x0 <= legend.x0 and legend.x1 <= figure.bbox.x1
    assert legend.y1 <= figure._suptitle.get_window_extent().y0 + 1
    assert all(legend.y0 >= axis.get_window_extent().y1 for axis in figure.axes)
    looks = {(line.get_color(), line.get_linestyle()) for line in figure.axes[0].lines}
    assert len(looks) == 14 and len({colour for colour, _ in looks}) == 6
