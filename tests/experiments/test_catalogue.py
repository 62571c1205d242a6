"""`python -m experiments`: commands, tasks, models, configs, and the data sets of this machine."""

from __future__ import annotations

import pathlib

import pytest

from configs.recurrent_bn import digits
from experiments import __main__ as listing
from experiments import tasks
from experiments.data import found
from tests._support import tfds_sets as sets

ROOT = pathlib.Path(__file__).parents[2]


def test_every_command_task_and_config_has_its_first_line(tmp_path):
    text = listing.catalogue(str(tmp_path))
    lines = [line.split() for line in text.splitlines()]
    named = {words[0] for words in lines if words}
    assert {*tasks.TASKS, "cell=lstm", "arch=lenet", "digits"} <= named
    assert "python -m experiments.train" in text and "experiments.usage" not in text
    (line,) = [line for line in text.splitlines() if "recurrent_bn/digits.py" in line]
    assert line.endswith((digits.__doc__ or "").splitlines()[0])
    files = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "configs").rglob("*.py")
        if "def get_config(" in path.read_text() and not path.name.startswith("_")
    }
    assert files <= named and len(files) > 30
    assert all(len(words) > 1 for words in lines if words)


def test_the_readme_of_the_configs_is_made_of_their_headers():
    written = (ROOT / "configs" / "README.md").read_text()
    assert written == listing.readme(), "run: python -m experiments --readme"
    assert written.count("\n- [") == len(list((ROOT / "configs").glob("*/[!_]*.py"))) > 30
    assert "  - Numbers: test accuracy LSTM 98.9 %, BN-LSTM 99.0 %.\n" in written


def test_sets_are_listed_with_what_they_are(tmp_path, monkeypatch):
    monkeypatch.delenv("NORMJAX_DATA_DIR", raising=False)
    given = {"train": sets.images(9), "test": sets.images(5)}
    sets.write_set(tmp_path, given)
    sets.write_set(
        tmp_path,
        given,
        name="deep",
        config="one",
        features={"image": sets.image_feature(dtype="uint16"), "label": sets.label_feature()},
    )
    (tmp_path / "mnist" / "3.0.1").mkdir(parents=True)
    (tmp_path / "mnist" / "3.0.1" / "dataset_info.json").write_text("{}")
    lines = dict(found.lines(str(tmp_path)))
    assert lines["patches"] == "8 x 8 x 3, 3 classes: train 9, test 5"
    assert lines["deep/one"].startswith("no images to classify: its images are 16-bit")
    assert lines["mnist"] == lines["pmnist"] == f"in {tmp_path}"
    assert set(lines) == {"digits", "mnist", "pmnist", "patches", "deep/one"}


def test_texts_are_listed_by_name(tmp_path, monkeypatch):
    (tmp_path / "text" / "tale").mkdir(parents=True)
    (tmp_path / "text" / "tale" / "a.txt").write_text("once upon a time")
    (tmp_path / "text" / "empty").mkdir()
    monkeypatch.setenv("NORMJAX_DATA_DIR", str(tmp_path))
    assert found.lines()[1:] == [("text, --config.data.text=tale", "a.txt")]


def test_a_folder_that_is_not_there_is_an_empty_list(tmp_path, monkeypatch):
    monkeypatch.delenv("NORMJAX_DATA_DIR", raising=False)
    assert [name for name, _ in found.lines(str(tmp_path / "none"))] == ["digits"]


@pytest.mark.parametrize("word", ["nothing", "--nothing=1"])
def test_words_that_it_does_not_take_are_told(word, capsys):
    with pytest.raises(SystemExit) as error:
        listing.main(["experiments", word]) if word[0] != "-" else listing.command_line.parse_flags(
            ["experiments", word]
        )
    assert error.value.code == 2
    assert capsys.readouterr().err.startswith("error: ")
