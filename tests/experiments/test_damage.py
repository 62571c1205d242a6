"""Workdirs that lost something, that two processes share, or that are being written: each is told.

The run of every test is a copy of one that stopped at step 20 of 24, after a checkpoint.
"""

from __future__ import annotations

import json
import os
import pathlib
import shutil

import numpy as np
import pytest

from experiments import evaluate, report
from experiments.runtime import distributed, members, metrics, run, workdir
from experiments.usage import UsageError
from tests._support.few import few


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """One tiny run, interrupted at step 20, and one that finished."""
    from tests.experiments.conftest import make_tiny

    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        import jax

        from experiments.runtime import parallel

        patch.setattr(parallel, "available", lambda: jax.devices()[:1])
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            run.train(make_tiny(), folder / "whole")
            run.train(make_tiny(steps=20), folder / "stopped")
    (folder / "stopped" / "final.json").unlink()
    return folder


@pytest.fixture
def folder(stopped, tmp_path):
    return shutil.copytree(stopped / "stopped", tmp_path / "run")


def lines(path):
    return path.read_text().splitlines(keepends=True)


DAMAGE = {
    "a row is gone": lambda rows: rows[:2] + rows[3:],
    "the first row is gone": lambda rows: rows[1:],
    "the end is gone": lambda rows: rows[:3],
    "all rows are gone": lambda rows: [],
    "a row is there twice": lambda rows: [*rows[:3], rows[2], *rows[3:]],
    "the first row is torn": lambda rows: [rows[0][:20] + "\n", *rows[1:]],
    "the last row is torn": lambda rows: [*rows[:-1], rows[-1][:20]],
    "a line is blank": lambda rows: [*rows[:3], "\n", *rows[3:]],
    "a number changed": lambda rows: [rows[0].replace('"loss": ', '"loss": 1'), *rows[1:]],
    "a row lost a key": lambda rows: ['{"split": "train"}\n', *rows[1:]],
}


@pytest.mark.parametrize("change", few(DAMAGE, "a row is gone", "a number changed"))
def test_a_run_does_not_continue_metrics_that_lost_rows(folder, tiny, change):
    path = folder / "metrics.jsonl"
    path.write_text("".join(change(lines(path))))
    damaged = path.read_text()
    with pytest.raises(UsageError, match=r"metrics.jsonl .*restore it from a copy"):
        run.train(tiny(), folder)
    assert path.read_text() == damaged  # nothing was repaired silently


def test_metrics_that_are_no_text_are_told(folder, tiny):
    (folder / "metrics.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match=r"metrics.jsonl cannot be read"):
        run.train(tiny(), folder)


def test_a_whole_run_continues_and_its_numbers_are_those_of_one_that_never_stopped(
    folder, stopped, tiny
):
    run.train(tiny(), folder)
    plain = [metrics.read_rows(f / "metrics.jsonl") for f in (folder, stopped / "whole")]
    # The shorter run logged and validated at its own last step, 20, as the longer one did.
    for row in plain[0] + plain[1]:
        row.pop("seconds")
    assert plain[0] == plain[1]


@pytest.mark.parametrize("change", DAMAGE.values(), ids=DAMAGE)
def test_a_result_is_not_read_beside_metrics_that_lost_rows(stopped, tmp_path, change):
    whole = shutil.copytree(stopped / "whole", tmp_path / "whole")
    path = whole / "metrics.jsonl"
    final = json.loads((whole / "final.json").read_text())
    members.run_metrics(final, whole)
    path.write_text("".join(change(lines(path))))
    with pytest.raises(UsageError, match=r"metrics.jsonl"):
        members.run_metrics(final, whole)


def test_a_checkpoint_under_another_step_is_damaged(folder, tiny, capsys):
    checkpoints = folder / "checkpoints"
    (checkpoints / "20").rename(checkpoints / "22")
    run.train(tiny(), folder)
    printed = capsys.readouterr().out
    assert "step 22" in printed and "it was written at step 20" in printed
    assert "from step 10 of" in printed


def test_an_iterator_position_that_was_changed_is_damage(folder, tiny, capsys):
    data = folder / "checkpoints" / "20" / "data" / "metadata"
    content = json.loads(data.read_text())
    assert content["step"] == 20
    content["place_crc"] += 1
    data.write_text(json.dumps(content))
    run.train(tiny(), folder)
    assert "the data iterator's position is wrong" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["config.json", "final.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"\xff\xfe", b"3", None])
def test_a_damaged_file_of_a_run_is_named(stopped, tmp_path, tiny, name, content):
    whole = shutil.copytree(stopped / "whole", tmp_path / "whole")
    (whole / name).unlink()
    if content is None:
        (whole / name).mkdir()
    else:
        (whole / name).write_bytes(content)
    with pytest.raises(UsageError, match=rf"{name} is damaged"):
        run.train(tiny(), whole)
    with pytest.raises(UsageError, match=rf"{name} is damaged"):
        report.report([whole])


def test_checkpoints_that_are_a_file_are_named(folder, tiny):
    shutil.rmtree(folder / "checkpoints")
    (folder / "checkpoints").write_text("")
    with pytest.raises(UsageError, match="is a file and must be a folder"):
        run.train(tiny(), folder)


def test_a_reader_changes_nothing(folder, capsys):
    """Evaluation of a run that is still training must not move what it cannot read."""
    for file in (folder / "checkpoints" / "20").rglob("*"):
        if file.is_file() and "ocdbt" in str(file):
            file.write_bytes(b"damage")
    before = sorted(str(p) for p in folder.rglob("*"))
    scores = evaluate.evaluate(folder, split="valid", stats="batch")
    printed = capsys.readouterr().out
    assert "step 10 is used instead" in printed and "The damaged one is now" not in printed
    assert scores["step"] == 10
    assert sorted(str(p) for p in folder.rglob("*")) == before
    with pytest.raises(UsageError, match="no checkpoint yet"):
        other = shutil.copytree(folder, folder.parent / "b", ignore=_no_checkpoints)
        evaluate.evaluate(other, split="valid", stats="batch")


def _no_checkpoints(_, names):
    return [name for name in names if name == "checkpoints"]


def test_resuming_another_run_changes_nothing_in_it(folder, tiny, tmp_path):
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}
    run.train(tiny(resume=str(folder)), tmp_path / "new")
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()} == before


def test_a_second_writer_is_refused(folder, tiny):
    refused = pytest.raises(UsageError, match="another process is training in")
    with workdir.writer_lock(folder), refused:
        run.train(tiny(), folder)
    run.train(tiny(), folder)


def test_a_link_in_a_workdir_is_not_followed(folder, tmp_path):
    target = tmp_path / "precious"
    target.write_text("mine")
    (folder / "final.json.partial").symlink_to(target)
    workdir.write_json(folder / "final.json", {"steps": 1})
    assert target.read_text() == "mine"
    assert json.loads((folder / "final.json").read_text()) == {"steps": 1}
    assert not os.path.lexists(folder / "final.json.partial")


def test_processes_of_one_run_have_one_config(monkeypatch):
    """As `process_allgather` sees three processes, of which one was given another rate."""
    configs = [{"optim": {"learning_rate": rate}, "data_dir": "a"} for rate in (0.1, 0.1, 0.2)]

    def as_process(own, others):
        encoded = [
            json.dumps({k: v for k, v in c.items() if k != "data_dir"}, sort_keys=True).encode()
            for c in others
        ]
        longest = max(map(len, encoded))

        def gather(value):
            value = np.asarray(value)
            if value.ndim == 0:
                return np.array([len(text) for text in encoded])
            return np.stack(
                [np.frombuffer(text.ljust(longest, b"\0"), np.uint8) for text in encoded]
            )

        monkeypatch.setattr(distributed.multihost_utils, "process_allgather", gather)
        distributed.require_one_config(own)

    for own in configs:
        with pytest.raises(UsageError, match=r"process 2 .*learning_rate is 0.2 there and 0.1 in"):
            as_process(own, configs)
    as_process(configs[0], [configs[0], {**configs[1], "data_dir": "b"}])


def test_the_digest_of_rows_is_that_of_their_text(tmp_path):
    path = pathlib.Path(tmp_path) / "metrics.jsonl"
    rows = [{"step": 1, "split": "train", "loss": 0.1 + 0.2}, {"step": 2, "split": "valid"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert metrics.digest(metrics.read_rows(path)) == metrics.digest(rows)
    assert metrics.digest(rows[:1]) != metrics.digest(rows)


@pytest.mark.parametrize("change", DAMAGE.values(), ids=DAMAGE)
def test_a_finished_run_is_not_finished_without_its_metrics(stopped, tmp_path, tiny, change):
    whole = shutil.copytree(stopped / "whole", tmp_path / "whole")
    path = whole / "metrics.jsonl"
    path.write_text("".join(change(lines(path))))
    with pytest.raises(UsageError, match=r"metrics.jsonl .*restore it from a copy"):
        run.train(tiny(), whole)


@pytest.mark.parametrize("name", ["checkpoints", "tensorboard"])
def test_a_link_to_nothing_is_named(folder, tiny, name):
    shutil.rmtree(folder / name)
    (folder / name).symlink_to(folder / "nowhere")
    with pytest.raises(UsageError, match=rf"{name} is a link to .*nowhere, which does not exist"):
        run.train(tiny(), folder)


def test_a_checkpoint_that_is_a_link_is_named(folder, tiny, tmp_path):
    checkpoint = folder / "checkpoints" / "10"
    shutil.move(checkpoint, tmp_path / "away")
    checkpoint.symlink_to(tmp_path / "away")
    with pytest.raises(UsageError, match=r"checkpoints/10 is a link, .* move .*away to its place"):
        run.train(tiny(), folder)


def test_a_lock_that_is_no_file_is_named_and_a_link_is_not_followed(folder, tiny, tmp_path):
    lock = folder / "lock"
    lock.unlink()
    lock.mkdir()
    with pytest.raises(UsageError, match=r"lock is not the file that a run locks; remove it"):
        run.train(tiny(), folder)
    lock.rmdir()
    lock.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match=r"lock is not the file that a run locks; remove it"):
        run.train(tiny(), folder)
    assert not (tmp_path / "elsewhere").exists()


def test_a_tensorboard_that_is_a_file_is_named(folder, tiny):
    shutil.rmtree(folder / "tensorboard")
    (folder / "tensorboard").write_text("")
    with pytest.raises(UsageError, match=r"tensorboard is a file and must be a folder"):
        run.train(tiny(), folder)
