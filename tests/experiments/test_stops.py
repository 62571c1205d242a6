"""How runs end and go on: signals, kills, damage, a full disk, and numbers that are not finite."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from experiments import nonfinite, parallel, report, step, stops, train, workdir
from experiments.checkpoints import Checkpoints
from experiments.config import UsageError, check
from tests.multidevice import models

CONFIG = "--config=configs/recurrent_bn/digits.py:bn_lstm"
SHORT = {"model.hidden": 4, "data.side": 2, "batch_size": 17, "eval_batch_size": 90, "devices": 1}


def rows(folder):
    read = report.read_rows(epath.Path(folder) / "metrics.jsonl")
    return [{k: v for k, v in row.items() if k != "seconds"} for row in read]


def result(folder):
    final = json.loads((epath.Path(folder) / "final.json").read_text())
    return {k: final[k] for k in ("valid", "test", "best_step", "steps", "steps_to_target")}


def command(folder, *words, **keys):
    """Give the words of a run of four steps a sequence."""
    keys = {k.replace("__", "."): v for k, v in keys.items()}
    given = [f"--config.{k}={v}" for k, v in (SHORT | keys).items()]
    return [
        sys.executable,
        "-m",
        "experiments.train",
        CONFIG,
        f"--workdir={folder}",
        *given,
        *words,
    ]


def begin(words, devices=1, **kwargs):
    settings = {"JAX_NUM_CPU_DEVICES": str(devices), "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(words, env={**os.environ, **settings}, **pipes | kwargs)


def until(condition, seconds=200.0):
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds
        time.sleep(0.01)


# ------------------------------------------------------------------------------------- checkpoints


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of 24 steps with checkpoints at 10, 20 and 24."""
    from tests.experiments.conftest import make_tiny

    folder = tmp_path_factory.mktemp("whole") / "run"
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        train.train(make_tiny(), folder)
    return folder


def damage(folder, step, how):
    files = [p for p in (folder / "checkpoints" / str(step)).rglob("*") if p.is_file()]
    largest = max(files, key=lambda p: p.stat().st_size)
    held = bytearray(largest.read_bytes())
    if how == "flipped":
        held[len(held) // 2] ^= 0x55
        largest.write_bytes(held)
    elif how == "truncated":
        largest.write_bytes(held[: len(held) // 2])
    else:
        largest.unlink()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
@pytest.mark.parametrize("how", ["flipped", "truncated", "gone"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(how, whole, tiny, tmp_path, capsys):
    folder = tmp_path / "run"
    train.train(tiny(steps=20), folder)
    damage(folder, 20, how)
    train.train(tiny(), folder)
    told = capsys.readouterr().out
    assert "the checkpoint of step 20" in told and "is damaged" in told
    assert "step 10 is used instead" in told and "from step 10 of" in told
    assert (folder / "damaged" / "20").is_dir()
    assert rows(folder) == rows(whole) and result(folder) == result(whole)


def test_a_half_written_checkpoint_is_not_seen(whole, tiny, tmp_path):
    folder = tmp_path / "run"
    train.train(tiny(steps=10), folder)
    half = folder / "checkpoints" / "20.orbax-checkpoint-tmp-1"
    (half / "run").mkdir(parents=True)
    (half / "run" / "manifest.ocdbt").write_bytes(b"\0" * 10)
    train.train(tiny(), folder)
    assert result(folder) == result(whole)


def test_nothing_sound_is_told_and_not_started_over(tiny, tmp_path):
    folder = tmp_path / "run"
    train.train(tiny(steps=10), folder)
    damage(folder, 10, "flipped")
    with pytest.raises(UsageError, match=r"no checkpoint in .* remove that folder to start over"):
        train.train(tiny(), folder)


def test_the_newest_few_are_kept_and_the_best_is_in_each(tiny, tmp_path):
    folder = tmp_path / "run"
    config = tiny(keep_checkpoints=1, checkpoint_every=5)
    final = train.train(config, folder)
    assert [p.name for p in (folder / "checkpoints").iterdir()] == ["24"]
    from experiments import data, tasks

    plain = check(config)
    like = step.start(tasks.build(plain, data.of(plain)), step.optimizer(plain["optim"]), plain)
    checkpoints = Checkpoints(folder)
    best = checkpoints.restore(like)[0]["best"]
    checkpoints.close()
    assert best["step"] == final["best_step"]


@pytest.mark.slow
def test_another_device_count_goes_on_and_says_so(tiny, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"
    train.train(tiny(steps=10), folder)
    monkeypatch.setattr(parallel, "available", jax.devices)
    for changes in ({"devices": 2}, {"devices": 2, "parallel": "shard_map", "steps": 22}):
        train.train(tiny(**{"steps": 20, **changes}), folder)
        assert "from step" in capsys.readouterr().out
    with pytest.raises(UsageError, match=r"config.batch_stats: 'global' there, 'device' asked for"):
        train.train(tiny(batch_stats="device"), folder)
    other = tmp_path / "other"
    train.train(tiny(steps=2, batch_stats="device", devices=2), other)
    with pytest.raises(UsageError, match=r"begun on 2 devices with config.batch_stats=device"):
        train.train(tiny(steps=4, batch_stats="device"), other)


def test_another_version_goes_on_and_says_so(tiny, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"
    train.train(tiny(steps=5), folder)
    monkeypatch.setattr(workdir, "code", lambda: "another")
    train.train(tiny(steps=6), folder)
    assert "begun with other versions (code " in capsys.readouterr().out


def test_other_noise_is_said(tiny, tmp_path, capsys):
    """One device draws what jit draws, whatever the way; and several draw alike in two ways."""
    config = tiny()
    config.model.h0_noise = 0.1
    plain = check(config)
    for changes, devices, told in (
        ({}, 1, False),
        ({"parallel": "shard_map"}, 1, False),
        ({"parallel": "pmap"}, 2, True),
        ({"parallel": "shard_map"}, 2, False),
        ({"parallel": "jit"}, 2, True),
        ({"parallel": "shard_map", "model": {"h0_noise": 0.0}}, 2, False),
    ):
        now = {**plain, **changes, "model": {**plain["model"], **changes.get("model", {})}}
        folder = tmp_path / ("run" if now["model"]["h0_noise"] else "still")
        workdir.open_workdir(folder, now, devices)
        assert ("other noise" in capsys.readouterr().out) == told
    workdir.open_workdir(folder, {**now, "parallel": "jit"}, 2)
    assert "other noise" not in capsys.readouterr().out


def test_several_steps_a_call_are_the_same_steps(whole, tiny, tmp_path):
    """To the bit; the last call is shorter, and a stopped run comes back into step."""
    folder = tmp_path / "run"
    train.train(tiny(steps=7), folder)
    train.train(tiny(steps_per_call=5), folder)
    kept = [r for r in rows(folder) if r["step"] != 7]
    assert kept == rows(whole) and result(folder) == result(whole)
    with pytest.raises(UsageError, match=r"steps_per_call=4 must divide config.log_every"):
        train.train(tiny(steps_per_call=4), tmp_path / "other")


# -------------------------------------------------------------------------------------- not finite


def poisoned():
    """The small CNN with one image that is not a number."""
    split = jax.tree.map(jnp.asarray, models.rows())
    image = split["image"].astype(jnp.float32)
    return {**split, "image": image.at[3].set(jnp.nan), "mask": split["mask"].at[3].set(True)}


OPTIM = {"name": "sgd", "learning_rate": 0.1, "decay": 0.9, "momentum": 0.5, "eps": 1e-8}
OPTIM |= {"clip_norm": 1.0, "l2": 0.0, "l1": 0.0}


@pytest.mark.parametrize("mode", ["jit", "shard_map", "pmap"])
def test_skipping_leaves_everything_as_it_was(mode, monkeypatch):
    monkeypatch.setattr(parallel, "available", jax.devices)
    task, split = models.MODELS["cnn"], poisoned()
    optim, rate = step.static(OPTIM)
    config = {"seed": 0, "log_every": 3, "optim": OPTIM}
    spread = parallel.Spread(mode, 2)
    take = step.compiled_step(spread, task, optim, True, False)
    now = spread.replicate(step.start(task, step.optimizer(OPTIM), config)["now"])
    split = spread.replicate(split)
    good, bad = np.arange(4, 16, dtype=np.int32), np.arange(12, dtype=np.int32)
    now = take(now, split, *spread.split(spread.pad(good)), rate)
    before = jax.device_get({k: now[k] for k in ("params", "norm", "opt")})
    now = take(now, split, *spread.split(spread.pad(bad)), rate)
    after = jax.device_get({k: now[k] for k in before})
    jax.tree.map(np.testing.assert_array_equal, after, before)
    assert int(now["skipped"]) == 1 and int(now["step"]) == 2
    now = take(now, split, *spread.split(spread.pad(good)), rate)
    assert int(now["skipped"]) == 1 and np.isfinite(now["window"]["loss"][2])


def test_running_statistics_never_take_a_batch_that_is_not_finite():
    """Whatever the policy: the parameters go, what the norms keep stays."""
    task, split = models.MODELS["cnn"], poisoned()
    optim, rate = step.static(OPTIM)
    config = {"seed": 0, "log_every": 3, "optim": OPTIM}
    now = step.start(task, step.optimizer(OPTIM), config)["now"]
    new = jax.jit(step.update, static_argnames=("task", "optim"))(
        now, split, jnp.arange(12), rate, task=task, optim=optim
    )
    jax.tree.map(np.testing.assert_array_equal, new["norm"], now["norm"])
    assert not np.isfinite(new["params"]["head"]).all()


def test_a_report_names_what_went_first():
    task, split = models.MODELS["cnn"], poisoned()
    config = {"seed": 0, "log_every": 3, "optim": OPTIM}
    now = step.start(task, step.optimizer(OPTIM), config)["now"]
    told = nonfinite.report(task, now, split, np.arange(12), None)
    assert told.startswith("Not finite first: the batch's image. Then the loss; then the gradients")
    assert "conv1" in told
    affine = now["params"]["norm2"]
    now["params"]["norm2"] = affine._replace(scale=affine.scale.at[0].set(jnp.inf))
    told = nonfinite.report(task, now, split, np.arange(4, 16), None)
    assert told.startswith("Not finite first: the parameters before it: norm2/scale. Then")
    assert "Taken again" in nonfinite.report(
        task, {**now, "params": task.init(jax.random.key(0))[0]}, split, np.arange(4, 9), None
    )


@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_a_run_that_diverges_says_where_and_in_what(policy, tiny, tmp_path):
    config = tiny("lstm", checkpoint_every=2, log_every=4, nonfinite=policy, nonfinite_limit=3)
    config.optim.update(name="sgd", clip_norm=0.0, learning_rate=1e38)
    with pytest.raises(train.Diverged) as told:
        train.train(config, tmp_path / "run")
    text = str(told.value)
    assert "not finite at step" in text and "Not finite first: the loss" in text
    assert "--config.nonfinite=skip" in text
    assert ("more than config.nonfinite_limit" in text) == (policy == "skip")


# -------------------------------------------------------------------------------- the table of ends


def mounted(folder, options, words):
    """Give the words of a command that has a file system of its own on a folder."""
    folder.mkdir()
    script = 'mount -t tmpfs -o "$1" none "$0" && shift && exec "$@"'
    return ["unshare", "-rm", "sh", "-c", script, str(folder), options, *words]


@pytest.mark.slow
def test_what_goes_wrong_around_a_run_has_a_message_and_a_status(tmp_path):
    """Started together; each with its message, its exit status and what it leaves behind."""
    taken = socket.socket()
    taken.bind(("", 0))
    taken.listen()
    port = taken.getsockname()[1]
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        free = closed.getsockname()[1]
    two = ["--distributed", "--processes=2", "--patience=2"]
    (tmp_path / "file").write_text("")
    quick = {"steps": 4, "log_every": 2, "eval_every": 4, "checkpoint_every": 2}
    full = command(tmp_path / "full", **quick)  # no file may exceed 4 kB: a checkpoint does
    cases = {
        "full": (
            ["bash", "-c", 'ulimit -f 4; exec "$@"', "-", *full],
            3,
            "a file may not grow further",
        ),
        "port": (
            command(tmp_path / "port", *two, f"--coordinator=127.0.0.1:{port}", "--process=0"),
            2,
            f"port {port} is in use on this host",
        ),
        "coordinator": (
            command(tmp_path / "nobody", *two, f"--coordinator=127.0.0.1:{free}", "--process=1"),
            3,
            f"no coordinator answers at 127.0.0.1:{free}",
        ),
        "file": (command(tmp_path / "file" / "run"), 2, "cannot be written"),
        # File systems of the child's own, for whoever runs the tests: root passes every chmod.
        "readonly": (
            mounted(tmp_path / "readonly", "ro", command(tmp_path / "readonly" / "run")),
            2,
            "cannot be written (Read-only file system)",
        ),
        "disk": (
            mounted(tmp_path / "disk", "size=32k", command(tmp_path / "disk" / "run", **quick)),
            3,
            "the disk is full",
        ),
        "alone": (command(tmp_path / "alone", "--processes=2"), 2, "need --distributed"),
    }
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        del cases["readonly"], cases["disk"]  # namespaces are not permitted here
    started = {k: begin(words) for k, (words, *_) in cases.items()}
    try:
        for name, (_, status, message) in cases.items():
            _, errors = started[name].communicate(timeout=300)
            assert started[name].returncode == status, (name, errors)
            assert errors.splitlines()[-1].startswith("error: ") and message in errors, name
    finally:
        taken.close()
        for child in started.values():
            child.kill()
    assert (tmp_path / "full" / "config.json").is_file()
    assert not (tmp_path / "port").exists() and not (tmp_path / "nobody").exists()


@pytest.mark.parametrize(
    ("number", "words"), [(errno.EROFS, "Read-only file system"), (errno.EACCES, "Permission")]
)
def test_a_workdir_that_cannot_be_written_is_told(number, words, tiny, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(workdir, "write_json", refuse)
    with pytest.raises(UsageError, match=f"cannot be written .*{words}"):
        train.train(tiny(), tmp_path / "run")


def test_a_full_disk_is_told_from_other_errors():
    for error, told in (
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
        (ValueError("RESOURCE_EXHAUSTED: write failed [No space left on device]"), "disk is full"),
    ):
        with pytest.raises(stops.Broken, match=told), stops.around("step 3 is kept."):
            raise error
    with pytest.raises(KeyError), stops.around("nothing"):
        raise KeyError("a mistake in the program")


def test_a_term_saves_and_a_second_one_does_not_wait(tmp_path):
    """Status 143; the second signal comes while the run would still save."""
    long = {"steps": 100000, "log_every": 5, "eval_every": 1000, "checkpoint_every": 50000}
    first, second = tmp_path / "first", tmp_path / "second"
    one, two = begin(command(first, **long)), begin(command(second, **long))
    try:
        until(lambda: rows(first) and rows(second))
        one.send_signal(signal.SIGTERM)
        _, errors = one.communicate(timeout=100)
        assert one.returncode == 128 + signal.SIGTERM
        assert "checkpoint written; the same command goes on" in errors
        (kept,) = (first / "checkpoints").iterdir()
        assert kept.name.isdigit()
        two.send_signal(signal.SIGSTOP)  # both signals wait for it
        two.send_signal(signal.SIGTERM)
        two.send_signal(signal.SIGINT)
        two.send_signal(signal.SIGCONT)
        two.communicate(timeout=100)
        assert two.returncode in (128 + signal.SIGTERM, 128 + signal.SIGINT)
    finally:
        for child in (one, two):
            child.kill()


def test_a_second_signal_is_final():
    with pytest.raises(KeyboardInterrupt), stops.Stop() as stop:
        stop._note(signal.SIGTERM, None)
        stop._note(signal.SIGTERM, None)  # a scheduler that tells every process: the same one
        assert stop.number == signal.SIGTERM
        stop.when -= 1
        stop._note(signal.SIGTERM, None)


# ------------------------------------------------------------------------------------------- kills


def compare(folder, whole):
    assert rows(folder) == rows(whole)
    assert result(folder) == result(whole)
    last = str(json.loads((whole / "final.json").read_text())["steps"])
    kept = [
        json.loads((f / "checkpoints" / last / "data" / "metadata").read_text())
        for f in (folder, whole)
    ]
    sums = [{k: v for k, v in k["checksums"].items() if k != "seconds"} for k in kept]
    assert sums[0] == sums[1] and any(k.startswith("now/params") for k in sums[0])


KILLED = {"steps": 600, "log_every": 5, "eval_every": 25, "checkpoint_every": 5}


@pytest.mark.slow
def test_twenty_kills_leave_no_trace(tmp_path):
    """SIGKILL at 20 random moments, during saves too; rows and parameters equal to the bit."""
    folder, whole = tmp_path / "killed", tmp_path / "whole"
    straight = begin(command(whole, **KILLED))
    draw, saving = random.Random(0), 0

    def reached():
        return max((row["step"] for row in rows(folder)), default=0)

    for kill in range(20):  # spread over the run, each at a moment of its own
        child, mark = begin(command(folder, **KILLED)), 5 + 28 * kill
        try:
            until(lambda m=mark, c=child: reached() >= m or c.poll() is not None)
            assert child.poll() is None
            time.sleep(draw.uniform(0, 0.1))
        finally:
            child.kill()
            child.communicate()
        saving += any("tmp" in p.name for p in (folder / "checkpoints").iterdir())
    last = begin(command(folder, **KILLED))
    for child in (last, straight):
        _, errors = child.communicate(timeout=500)
        assert child.returncode == 0, errors
    assert saving  # some of them hit a save
    compare(folder, whole)


@pytest.mark.slow
def test_a_killed_sweep_leaves_no_trace(tmp_path):
    """SIGKILL within three of its four runs; table, rows and parameters equal to the bit."""
    folder, whole, steps = tmp_path / "killed", tmp_path / "whole", 60
    keys = {**KILLED, "steps": steps, "eval_every": 20}
    grid = ["--seeds=2", "--grid=optim.learning_rate=0.01,0.001"]

    def sweep(where):
        words = command(where, *grid, **keys)
        return begin(["experiments.sweep" if w == "experiments.train" else w for w in words])

    def reached():
        return sum(max((r["step"] for r in rows(p)), default=0) for p in folder.glob("*=*"))

    straight, draw, at = sweep(whole), random.Random(1), []
    for kill in (0, 1, 3):
        child, mark = sweep(folder), (kill + draw.uniform(0.1, 0.9)) * steps
        try:
            until(lambda m=mark, c=child: reached() >= m or c.poll() is not None)
            assert child.poll() is None
            time.sleep(draw.uniform(0, 0.05))
        finally:
            child.kill()
            child.communicate()
        at.append(reached())
    assert at == sorted(set(at))
    for child in (sweep(folder), straight):
        _, errors = child.communicate(timeout=300)
        assert child.returncode == 0, errors
    told = [json.loads((where / "sweep.json").read_text()) for where in (folder, whole)]
    assert [{**m, "seconds": 0} for m in told[0]] == [{**m, "seconds": 0} for m in told[1]]
    members = sorted(p.name for p in whole.glob("*=*"))
    assert len(members) == len(told[0]) == 4
    for member in members:
        compare(folder / member, whole / member)


@pytest.mark.slow
def test_losing_one_of_two_processes_ends_the_other_and_leaves_no_trace(tmp_path):
    """Whichever is killed, the other says so within a minute; both then go on to the bit."""
    folder, whole = tmp_path / "killed", tmp_path / "whole"

    def pair(where):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"--coordinator=127.0.0.1:{probe.getsockname()[1]}"
        keys = {**KILLED, "steps": 60, "eval_every": 30, "devices": 0}
        common = ["--distributed", address, "--processes=2"]
        return [begin(command(where, *common, f"--process={i}", **keys), 2) for i in (0, 1)]

    for victim in (1, 0):
        both = pair(folder)
        try:
            before = len(rows(folder))
            until(lambda b=before: len(rows(folder)) > b)
            both[victim].kill()
            began = time.monotonic()
            _, errors = both[1 - victim].communicate(timeout=120)
            assert time.monotonic() - began < 60
            assert both[1 - victim].returncode == stops.BROKEN
            assert "another process of this run ended" in errors or "lost the others" in errors
        finally:
            for child in both:
                child.kill()
                child.communicate()
    for where in (folder, whole):
        for child in pair(where):
            _, errors = child.communicate(timeout=300)
            assert child.returncode == 0, errors[-2000:]
    assert rows(folder) == rows(whole) and result(folder) == result(whole)
