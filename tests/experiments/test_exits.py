"""How runs end and go on: signals, damage, a full disk, other machines."""

from __future__ import annotations

import asyncio
import datetime
import errno
import json
import os
import signal
import socket
import subprocess
import sys

import jax
import pytest

from experiments import train
from experiments.config.validate import check
from experiments.runtime import exits, parallel, step, workdir
from experiments.runtime.checkpoints import Checkpoints
from experiments.usage import UsageError
from tests._support.few import few
from tests._support.processes import begin, command, result, rows, until

# ------------------------------------------------------------------------------------- checkpoints


def damage(folder, step, kind):
    files = [p for p in (folder / "checkpoints" / str(step)).rglob("*") if p.is_file()]
    largest = max(files, key=lambda p: p.stat().st_size)
    data = bytearray(largest.read_bytes())
    if kind == "flipped":
        data[len(data) // 2] ^= 0x55
        largest.write_bytes(data)
    elif kind == "truncated":
        largest.write_bytes(data[: len(data) // 2])
    else:
        largest.unlink()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
@pytest.mark.parametrize("kind", few(["flipped", "truncated", "gone"], "flipped"))
def test_a_damaged_checkpoint_gives_way_to_the_one_before(kind, finished, tiny, tmp_path, capsys):
    folder = tmp_path / "run"
    train.train(tiny(steps=20), folder)
    damage(folder, 20, kind)
    train.train(tiny(), folder)
    output = capsys.readouterr().out
    assert "the checkpoint of step 20" in output and "is damaged" in output
    assert "step 10 is used instead" in output and "from step 10 of" in output
    assert (folder / "damaged" / "20").is_dir()
    assert rows(folder) == rows(finished) and result(folder) == result(finished)


def test_a_half_written_checkpoint_is_not_seen(finished, tiny, tmp_path):
    folder = tmp_path / "run"
    train.train(tiny(steps=10), folder)
    half = folder / "checkpoints" / "20.orbax-checkpoint-tmp-1"
    (half / "run").mkdir(parents=True)
    (half / "run" / "manifest.ocdbt").write_bytes(b"\0" * 10)
    train.train(tiny(), folder)
    assert result(folder) == result(finished)


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
    from experiments import tasks
    from experiments.data import datasets

    plain = check(config)
    like = step.start(
        tasks.build(plain, datasets.load_config_data(plain)), step.optimizer(plain["optim"]), plain
    )
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
    for changes, devices, noted in (
        ({}, 1, False),
        ({"parallel": "shard_map"}, 1, False),
        ({"parallel": "pmap"}, 2, True),
        ({"parallel": "shard_map"}, 2, False),
        ({"parallel": "jit"}, 2, True),
        ({"parallel": "shard_map", "model": {"h0_noise": 0.0}}, 2, False),
    ):
        now = {**plain, **changes, "model": {**plain["model"], **changes.get("model", {})}}
        folder = tmp_path / ("run" if now["model"]["h0_noise"] else "still")
        workdir.check_workdir(folder, now, devices)
        workdir.make_workdir(folder, now, devices)
        assert ("other noise" in capsys.readouterr().out) == noted
    workdir.check_workdir(folder, {**now, "parallel": "jit"}, 2)
    assert "other noise" not in capsys.readouterr().out


def test_a_continued_run_began_when_it_was_begun(tmp_path, tiny):
    config = tiny()
    path = tmp_path / "run" / "config.json"
    workdir.make_workdir(path.parent, check(config), 1)
    described = json.loads(path.read_text())
    began = datetime.datetime.fromisoformat(described["began"])
    assert abs(datetime.datetime.now(datetime.UTC) - began) < datetime.timedelta(minutes=5)
    path.write_text(json.dumps({**described, "began": "2001-01-01T00:00:00Z"}))
    workdir.make_workdir(path.parent, check(config), 2)
    assert json.loads(path.read_text())["began"] == "2001-01-01T00:00:00Z"


@pytest.mark.slow
def test_several_steps_a_call_are_the_same_steps(finished, tiny, tmp_path):
    """To the bit; the last call is shorter, and a stopped run comes back into step."""
    folder = tmp_path / "run"
    train.train(tiny(steps=7), folder)
    train.train(tiny(steps_per_call=5), folder)
    others = [r for r in rows(folder) if r["step"] != 7]
    assert others == rows(finished) and result(folder) == result(finished)
    with pytest.raises(UsageError, match=r"steps_per_call=4 must divide config.log_every"):
        train.train(tiny(steps_per_call=4), tmp_path / "other")


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
    silent = socket.socket()  # bound, so that nobody else answers there, and not listening
    silent.bind(("127.0.0.1", 0))
    free = silent.getsockname()[1]
    two = ["--distributed", "--processes=2", "--patience=2"]
    (tmp_path / "file").write_text("")
    quick = {"steps": 4, "log_every": 2, "eval_every": 4, "checkpoint_every": 2}
    full = command(tmp_path / "full", **quick)  # no file may exceed 4 kB: a checkpoint does
    cases = {
        "full": (
            ["bash", "-c", 'ulimit -f 4; exec env -u JAX_COMPILATION_CACHE_DIR "$@"', "-", *full],
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
            # One message, and after it at most what libraries log while the process ends.
            (told,) = [line for line in errors.splitlines() if line.startswith("error: ")]
            assert message in told, (name, errors)
            assert "Traceback" not in errors, (name, errors)
    finally:
        taken.close()
        silent.close()
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
    for error, message in (
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
        (ValueError("RESOURCE_EXHAUSTED: write failed [No space left on device]"), "disk is full"),
    ):
        with pytest.raises(exits.Broken, match=message), exits.reraise_as_broken("step 3 is kept."):
            raise error
    with pytest.raises(KeyError), exits.reraise_as_broken("nothing"):
        raise KeyError("a mistake in the program")


@pytest.mark.slow
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
        assert "checkpoint written; the same command continues" in errors
        (checkpoint,) = (first / "checkpoints").iterdir()
        assert checkpoint.name.isdigit()
        two.send_signal(signal.SIGSTOP)  # both signals wait for it
        two.send_signal(signal.SIGTERM)
        two.send_signal(signal.SIGINT)
        two.send_signal(signal.SIGCONT)
        two.communicate(timeout=100)
        assert two.returncode in (128 + signal.SIGTERM, 128 + signal.SIGINT)
    finally:
        for child in (one, two):
            child.kill()


def test_a_reader_that_goes_away_ends_a_command_as_a_signal_would():
    """As `python -m experiments.claim 47 | head -1` does."""
    program = (
        "from experiments.runtime import exits\n"
        "with exits.statuses():\n"
        "    for _ in range(20_000): print('a line', flush=True)\n"
    )
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", program], **pipes) as child:
        assert child.stdout.readline() == "a line\n"
        child.stdout.close()
        assert child.stderr.read() == ""
    assert child.returncode == 128 + signal.SIGPIPE


def test_a_second_signal_is_final():
    with pytest.raises(KeyboardInterrupt), exits.Stop() as stop:
        stop._note(signal.SIGTERM, None)
        stop._note(signal.SIGTERM, None)  # a scheduler that tells every process: the same one
        assert stop.number == signal.SIGTERM
        stop.when -= 1
        stop._note(signal.SIGTERM, None)


def test_reads_and_writes_that_end_after_the_failed_one_print_nothing(monkeypatch):
    printed = []
    monkeypatch.setattr(sys, "unraisablehook", lambda late: printed.append(str(late.exc_value)))
    exits.hide_late_callbacks()

    class Ends:
        def __init__(self, error):
            self.error = error

        def __del__(self):
            raise self.error

    for error in (RuntimeError("Event loop is closed"), RuntimeError("other"), OSError("closed")):
        Ends(error)
    assert printed == ["other", "closed"]

    async def read():
        try:
            await asyncio.sleep(0)
        except BaseException as error:
            raise RuntimeError("cannot read") from error

    one = read()
    one.send(None)
    del one  # as a read that waits when its event loop is thrown away
    assert printed == ["other", "closed"]
