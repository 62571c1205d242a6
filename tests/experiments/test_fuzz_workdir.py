"""Workdirs damaged at random, in every file: continued to the bit, or refused with a word."""

from __future__ import annotations

import contextlib
import random
import shutil
import signal

import pytest

from experiments import evaluate
from experiments.runtime import exits, run
from experiments.usage import UsageError
from tests._support.processes import begin, command, result, rows
from tests._support.processes import compare as compare_finished
from tests.experiments.conftest import make_tiny

BUDGET = 279
SECONDS = 60  # more is a hang


# How one file, or one folder, is damaged.


def delete(path, draw):
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def truncate(path, draw):
    content = path.read_bytes()
    path.write_bytes(content[: draw.randint(0, max(len(content) - 1, 0))])


def empty(path, draw):
    path.write_bytes(b"")


def zeros_in_the_middle(path, draw):
    content = bytearray(path.read_bytes())
    at = len(content) // 3
    content[at : at + 64] = bytes(len(content[at : at + 64]))
    path.write_bytes(content)


def garbage(path, draw):
    path.write_bytes(draw.randbytes(max(path.stat().st_size, 16)))


def not_utf8(path, draw):
    path.write_bytes(b"\xff\xfe" + path.read_bytes())


def twice(path, draw):
    content = path.read_bytes()
    lines = content.splitlines(keepends=True)
    at = draw.randrange(len(lines)) if lines else 0
    path.write_bytes(b"".join([*lines[:at], *lines[at : at + 1], *lines[at:]]) if lines else b"\n")


def folder_instead(path, draw):
    delete(path, draw)
    path.mkdir()


def file_instead(path, draw):
    delete(path, draw)
    path.write_text("")


def dangling_link(path, draw):
    delete(path, draw)
    path.symlink_to(path.parent / "nowhere" / path.name)


def link_to_a_copy(path, draw):
    """As one who moved files to a larger disk; what the link leads to is whole."""
    case = next(folder for folder in path.parents if folder.name.startswith("case-"))
    away = case / f"away {path.name}"
    shutil.move(path, away)
    path.symlink_to(away)


FILES = [
    *(delete, truncate, empty, zeros_in_the_middle, garbage, not_utf8, twice),
    *(folder_instead, dangling_link, link_to_a_copy),
]
FOLDERS = [delete, file_instead, folder_instead, dangling_link, link_to_a_copy]


def swap(first, second):
    between = first.with_name("between")
    first.rename(between)
    second.rename(first)
    between.rename(second)


def cases(folders):
    """All damage: `(base, how, path in the workdir, another path)`, in an order of its own."""
    found = []
    for base, folder in folders.items():
        paths = sorted(p.relative_to(folder) for p in folder.rglob("*"))
        files = [p for p in paths if (folder / p).is_file()]
        steps = sorted(p.name for p in (folder / "checkpoints").iterdir())
        for path in paths:
            kinds = FILES if path in files else FOLDERS
            found += [(base, kind.__name__, path, None) for kind in kinds]
        found += [(base, "swap", a, b) for a in files for b in files if a < b]
        checkpoints = paths[0].parent / "checkpoints"
        for step in steps:
            for name in ("1", "15", "21", "22", "x", "-3", f"{step}.orbax-checkpoint-tmp-0"):
                if name not in steps:
                    found.append((base, "rename", checkpoints / step, checkpoints / name))
        found.append((base, "swap", *(checkpoints / step for step in steps)))
    return found


def sampled(found, draw):
    """A fixed number of cases, with a share for each damage to each kind of file."""
    groups = {}
    for case in found:
        base, how, path, _ = case
        kind = "/".join("*" if len(part) > 30 or part.isdigit() else part for part in path.parts)
        groups.setdefault((base, how, "" if how == "swap" else kind), []).append(case)
    for group in groups.values():
        draw.shuffle(group)
    order = list(groups.values())
    draw.shuffle(order)
    taken = []
    while len(taken) < BUDGET:
        order = [group for group in order if group]
        taken += [group.pop() for group in order]
    return taken[:BUDGET]


def damage(folder, how, path, other, draw):
    if how == "swap":
        swap(folder / path, folder / other)
    elif how == "rename":
        (folder / path).rename(folder / other)
    else:
        globals()[how](folder / path, draw)


@contextlib.contextmanager
def no_hang():
    def late(*_):
        raise TimeoutError(f"still running after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def runs(finished, stopped, tmp_path_factory):
    """One that finished, one stopped at step 20 of 24, one killed after it logged past step 20."""
    killed = tmp_path_factory.mktemp("killed") / "run"
    shutil.copytree(stopped, killed)
    with open(killed / "metrics.jsonl", "a") as file:
        file.write((finished / "metrics.jsonl").read_text().splitlines(True)[-1])
    return {"finished": finished, "stopped": stopped, "killed": killed}


def outcome(folder, base, whole, scores, capsys):
    """What continuing a workdir comes to; raises what a command would not explain."""
    note = ""
    try:
        with no_hang(), exits.reraise_as_broken("nothing was changed."):
            run.train(make_tiny(), folder)
    except (UsageError, exits.Broken) as error:
        message = str(error)
        assert str(folder) in message and "\n" not in message, message
        return "refused"
    finally:
        note = capsys.readouterr().out
    assert result(folder) == result(whole)
    assert rows(folder) == rows(whole)
    if base != "finished":
        compare_finished(folder, whole)
        return "noted" if "note: " in note else "equal"
    # A finished run is not trained again: what reads it must see the damage.
    try:
        with no_hang():
            found = evaluate.evaluate(folder, split="valid", stats="batch")
    except UsageError as error:
        assert str(folder) in str(error), error
        return "refused"
    note += capsys.readouterr().out
    if found == scores:
        return "noted" if "note: " in note else "equal"
    assert "is used instead" in note, (found, scores)
    return "noted"


# What Orbax's threads leave behind when they read damaged files.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
@pytest.mark.slow
@pytest.mark.parametrize("part", range(3))
def test_a_damaged_workdir_continues_to_the_bit_or_is_refused_with_a_word(
    runs, tmp_path, capsys, part
):
    draw = random.Random(279)
    chosen = sampled(cases(runs), draw)
    whole = runs["finished"]
    scores = evaluate.evaluate(whole, split="valid", stats="batch")
    ends, failures = {"equal": 0, "noted": 0, "refused": 0}, []
    for number, (base, how, path, other) in enumerate(chosen):
        if number % 3 != part:
            continue
        folder = tmp_path / f"case-{number}" / "run"
        shutil.copytree(runs[base], folder)
        damage(folder, how, path, other, random.Random(number))
        try:
            ends[outcome(folder, base, whole, scores, capsys)] += 1
        except Exception as error:
            failures.append(f"{base}, {how} {path} {other or ''}: {type(error).__name__}: {error}")
        shutil.rmtree(folder.parent)
    assert not failures, "\n".join(failures)
    assert min(ends.values()) >= 5, ends


@pytest.mark.slow
def test_the_command_ends_with_a_documented_status_and_no_traceback(tmp_path):
    keys = {"checkpoint_every": 5, "eval_every": 5, "log_every": 5}
    whole = tmp_path / "whole"
    first = begin(command(whole, steps=10, **keys))
    _, errors = first.communicate(timeout=300)
    assert first.returncode == 0, errors

    def torn(folder):
        path = folder / "metrics.jsonl"
        path.write_bytes(path.read_bytes()[:100])

    def locked(folder):
        (folder / "lock").unlink()
        (folder / "lock").mkdir()

    def garbage_in_the_newest(folder):
        for file in (folder / "checkpoints" / "10" / "run").rglob("*"):
            if file.is_file():
                file.write_bytes(random.Random(0).randbytes(100))

    for change, status, word in (
        (torn, 2, "error: "),
        (locked, 2, "error: "),
        (garbage_in_the_newest, 0, "note: the checkpoint of step 10"),
    ):
        folder = shutil.copytree(whole, tmp_path / change.__name__)
        change(folder)
        child = begin(command(folder, steps=15, **keys))
        printed, errors = child.communicate(timeout=300)
        assert child.returncode == status, errors
        assert word in printed + errors
        assert "Traceback" not in printed + errors
