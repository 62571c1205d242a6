"""The launcher against a `gcloud` that keeps a slice in a folder, and against the installed one."""

from __future__ import annotations

import os
import pathlib
import shutil
import signal
import stat
import subprocess
import sys
import time

import pytest

from experiments import launch
from experiments.runtime import distributed

RUN = ["--", "--config=configs/recurrent_bn/digits.py:bn_lstm", "--workdir=gs://bucket/run"]
ASK = ["tpu", "--name=bn", "--zone=us-east5-b"]

# A slice is a folder with a state and a home; a worker's commands run in that home.
GCLOUD = r"""#!/bin/bash
echo "$@" >> $FAKE/calls
group=$3 verb=$4
if [[ "$*" == *--help* ]]; then
  echo "--zone --accelerator-type --version --runtime-version --node-id --valid-until-duration"
  echo "--spot --project --quiet --format --worker --command --force $EXTRA"; exit 0
fi
case $group.$verb in
  tpu-vm.create|queued-resources.create) mkdir -p $FAKE/home; echo READY > $FAKE/state ;;
  tpu-vm.describe) cat $FAKE/state ;;
  queued-resources.describe) echo x >> $FAKE/asked
    [ $(wc -l < $FAKE/asked) -gt 1 ] && echo ACTIVE || echo WAITING_FOR_RESOURCES ;;
  *.delete) rm -rf $FAKE/home $FAKE/state ;;
  tpu-vm.scp) cp $5 $FAKE/home/normjax.tar.gz ;;
  tpu-vm.ssh) for word in "$@"; do [[ $word == --command=* ]] && run="${word#--command=}"; done
    cd $FAKE/home && HOME=$FAKE/home bash -c "$run"; status=$?
    [ $status -ne 0 ] && [ -f $FAKE/take ] && rm $FAKE/take && echo PREEMPTED > $FAKE/state
    exit $status ;;
esac
"""
# uv makes a python that trains for the tests: it notes its words and ends as $FAKE/ends says.
UV = r"""#!/bin/bash
if [ $1 = venv ]; then mkdir -p .venv/bin; cat > .venv/bin/python <<'END'
#!/bin/bash
echo "$@" >> $FAKE/trained
echo training
status=$(head -1 $FAKE/ends); sed -i 1d $FAKE/ends; exit ${status:-0}
END
chmod +x .venv/bin/python; fi
"""


@pytest.fixture
def cloud(tmp_path, monkeypatch):
    """The fake cloud's folder; no machine's real `gcloud` can be reached."""
    tools, fake = tmp_path / "bin", tmp_path / "fake"
    tools.mkdir()
    fake.mkdir()
    for name, text in {"gcloud": GCLOUD, "uv": UV, "python3": "#!/bin/bash\n"}.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    (fake / "ends").write_text("")
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FAKE", str(fake))
    return fake


def verbs(fake: pathlib.Path) -> list[str]:
    calls = [c for c in (fake / "calls").read_text().splitlines() if "--help" not in c]
    return [" ".join(c.split()[2:4]) for c in calls]


def test_a_run_is_created_copied_installed_run_and_deleted(cloud):
    assert launch.main([*ASK, *RUN], pause=0) == 0
    run = ["tpu-vm scp", "tpu-vm ssh", "tpu-vm ssh"]
    assert verbs(cloud) == ["tpu-vm describe", "tpu-vm create", *run, "tpu-vm delete"]
    words = (cloud / "trained").read_text().split()
    assert words[:3] == ["-m", "experiments.train", "--distributed"]
    assert words[3:] == RUN[1:]
    assert not (cloud / "home").exists()


def test_a_preempted_slice_is_made_again(cloud):
    (cloud / "ends").write_text("143\n0\n")
    (cloud / "take").touch()
    assert launch.main([*ASK, "--spot", *RUN], pause=0) == 0
    calls = [v for v in verbs(cloud) if v in ("tpu-vm create", "tpu-vm delete")]
    assert calls == ["tpu-vm create", "tpu-vm delete"] * 2
    assert len((cloud / "trained").read_text().splitlines()) == 2
    assert "--spot" in (cloud / "calls").read_text()


def test_a_run_that_something_broke_goes_on_in_the_same_slice(cloud):
    (cloud / "ends").write_text("3\n0\n")
    assert launch.main([*ASK, *RUN], pause=0) == 0
    assert verbs(cloud).count("tpu-vm create") == 1
    assert len((cloud / "trained").read_text().splitlines()) == 2


@pytest.mark.parametrize("status", [1, 2])
def test_a_run_that_would_meet_its_end_again_is_not_repeated(cloud, status):
    (cloud / "ends").write_text(f"{status}\n0\n")
    assert launch.main([*ASK, *RUN], pause=0) == status
    assert len((cloud / "trained").read_text().splitlines()) == 1
    assert verbs(cloud)[-1] == "tpu-vm delete"


@pytest.mark.parametrize("verb", ["scp", "ssh"])
def test_a_slice_that_cannot_be_installed_is_deleted(cloud, verb, capsys):
    """Copying or installing fails after `create`: the slice would cost until somebody looks."""
    tool = pathlib.Path(shutil.which("gcloud"))
    tool.write_text(tool.read_text().replace(f"tpu-vm.{verb})", f"tpu-vm.{verb}) exit 7;"))
    with pytest.raises(SystemExit) as ended:
        launch.main([*ASK, *RUN], pause=0)
    assert ended.value.code == 2 and "ended with status 7" in capsys.readouterr().err
    assert verbs(cloud)[-1] == "tpu-vm delete" and not (cloud / "state").exists()


def test_a_slice_that_cannot_be_deleted_is_named(cloud, capsys):
    tool = pathlib.Path(shutil.which("gcloud"))
    tool.write_text(tool.read_text().replace("*.delete)", "*.delete) exit 1;"))
    assert launch.main([*ASK, *RUN], pause=0) == 0
    assert "deleted: run gcloud compute tpus tpu-vm delete bn" in capsys.readouterr().err


def test_what_another_run_made_is_not_deleted(cloud):
    """`create` fails where the name is taken: that slice is not ours."""
    tool = pathlib.Path(shutil.which("gcloud"))
    tool.write_text(tool.read_text().replace("tpu-vm.create|", "tpu-vm.create) exit 1 ;; x|"))
    with pytest.raises(SystemExit):
        launch.main([*ASK, *RUN], pause=0)
    assert "tpu-vm delete" not in verbs(cloud)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("when", ["installing", "training"])
def test_a_signal_deletes_the_slice_or_names_it(cloud, number, when):
    """While it is being installed nothing is lost by deleting it; a run continues without us."""
    tool = pathlib.Path(shutil.which("uv"))
    text = tool.read_text()
    wait = "touch $FAKE/began; sleep 60"
    text = text.replace("echo training", wait) if when == "training" else f"#!/bin/bash\n{wait}\n"
    tool.write_text(text)
    command = [sys.executable, "-m", "experiments.launch", *ASK, *RUN]
    process = subprocess.Popen(
        command, cwd=launch.ROOT, start_new_session=True, stdout=subprocess.PIPE, text=True
    )
    while not (cloud / "began").exists():
        assert process.poll() is None
        time.sleep(0.1)
    os.killpg(process.pid, number)  # a terminal sends it to gcloud as well
    output, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    if when == "installing":
        assert verbs(cloud)[-1] == "tpu-vm delete" and not (cloud / "state").exists()
    else:
        assert "tpu-vm delete" not in verbs(cloud)
        assert "attaches to it again; gcloud compute tpus tpu-vm delete bn" in output


def test_the_queue_is_waited_for(cloud):
    assert launch.main([*ASK, "--queued", "--keep", *RUN], pause=0) == 0
    output = verbs(cloud)
    assert output.count("queued-resources describe") == 2
    assert "queued-resources create" in output and "queued-resources delete" not in output
    assert (cloud / "state").read_text() == "READY\n"


def test_a_worker_holds_the_source(cloud):
    assert launch.main([*ASK, "--keep", *RUN], pause=0) == 0
    home = cloud / "home" / "normjax"
    for name in ("normjax/__init__.py", "experiments/train.py", "pyproject.toml"):
        assert (home / name).is_file()
    assert (home / "run.status").read_text() == "0\n"


def test_a_dry_run_calls_nothing(cloud, capsys):
    assert launch.main([*ASK, "--queued", "--spot", "--dry-run", *RUN]) == 0
    output = capsys.readouterr().out
    assert verbs(cloud) == []
    for word in ("queued-resources create bn", "--spot", "--node-id=bn", "scp", "--worker=all"):
        assert word in output
    assert "experiments.train --distributed --config=" in output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([*ASK], "write after -- what to train"),
        ([*ASK, "--", "--config=a", "--workdir=/tmp/run"], "write --workdir=gs://BUCKET"),
        ([*ASK, "--", "--config=a", "--workdir", "gs://b/run"], "write after -- what to train"),
        ([*ASK, "--", "--config=configs/a.py:b", "--workdir=gs://b/run"], "names no folder of a"),
        ([*ASK, "--", "--config=configs/a.py:b", "--workdir=gs://bkt/run"], "no file of configs/"),
        ([*ASK, "--", "--config=configs/../setup.py", "--workdir=gs://bkt/r"], "no file of conf"),
        ([*ASK, "--", "--config=configs/../experiments/train.py", "--workdir=gs://bkt/r"], "no f"),
        ([*ASK, *RUN[:2], "--workdir=gs://"], "write --workdir=gs://BUCKET/FOLDER"),
        ([*ASK, *RUN[:2], "--workdir=gs://bucket/"], "write --workdir=gs://BUCKET/FOLDER"),
        (["tpu", "--name=", "--zone=z", *RUN], "is no name of a slice"),
        (["tpu", "--name=-rf", "--zone=z", *RUN], "is no name of a slice"),
        (["tpu", "--name=Big", "--zone=z", *RUN], "is no name of a slice"),
        (["tpu", "--name=a/b", "--zone=z", *RUN], "is no name of a slice"),
        (["tpu", "--name=a-", "--zone=z", *RUN], "is no name of a slice"),
        ([*ASK, "--accelerator=v7x-8", *RUN], "write it, --image=VERSION"),
    ],
)
def test_mistakes_are_told_before_anything_is_made(cloud, words, message, capsys):
    with pytest.raises(SystemExit) as ended:
        launch.main(words)
    assert ended.value.code == 2 and message in capsys.readouterr().err
    assert not (cloud / "calls").exists()


def test_an_older_gcloud_is_told_what_it_lacks(cloud, monkeypatch, capsys):
    tool = pathlib.Path(shutil.which("gcloud"))
    tool.write_text(tool.read_text().replace("--spot", ""))
    with pytest.raises(SystemExit):
        launch.main([*ASK, "--spot", *RUN])
    assert "gcloud compute tpus tpu-vm create has no --spot" in capsys.readouterr().err
    assert verbs(cloud) == []


def test_a_machine_without_gcloud_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit):
        launch.main([*ASK, *RUN])
    assert "gcloud is not on PATH; docs/tpu.md" in capsys.readouterr().err
    assert launch.main([*ASK, "--dry-run", *RUN]) == 0


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("gcloud"), reason="gcloud is not installed")
@pytest.mark.parametrize("queued", [False, True])
def test_the_installed_gcloud_knows_every_flag(queued):
    slice_ = launch.Slice("bn", "us-east5-b", spot=True, queued=queued, project="p")
    assert launch.check(slice_, pathlib.Path("a.tar.gz")) == []


@pytest.mark.parametrize("path", ["launch/slurm.sh", "launch/sky.yaml"])
def test_the_other_ways_run_the_same_program(path):
    text = (launch.ROOT / path).read_text()
    assert "python -m experiments.train" in text
    if path.endswith(".sh"):
        subprocess.run(["bash", "-n", str(launch.ROOT / path)], check=True)
        assert os.stat(launch.ROOT / path).st_mode & stat.S_IXUSR
        assert "--requeue" in text


@pytest.mark.parametrize(
    ("variables", "devices"),
    [
        ({"SLURM_TASKS_PER_NODE": "1(x2)", "CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7"}, 8),
        ({"SLURM_STEP_TASKS_PER_NODE": "1", "SLURM_GPUS_ON_NODE": "4"}, 4),
        ({"SLURM_STEP_TASKS_PER_NODE": "1(x2)", "SLURM_STEP_GPUS": "2,3"}, 2),
        ({"SLURM_STEP_TASKS_PER_NODE": "8(x2)", "SLURM_GPUS_ON_NODE": "8"}, 0),
        ({"SLURM_STEP_TASKS_PER_NODE": "1,2", "SLURM_GPUS_ON_NODE": "8"}, 0),
        ({"SLURM_STEP_TASKS_PER_NODE": "1"}, 0),
    ],
)
def test_one_slurm_task_a_node_uses_all_its_devices(variables, devices, monkeypatch):
    for name in [n for n in os.environ if n.startswith(("SLURM_", "CUDA_"))]:
        monkeypatch.delenv(name)
    assert distributed.slurm_devices() == {}
    for name, value in {"SLURM_LOCALID": "0", **variables}.items():
        monkeypatch.setenv(name, value)
    want = {"local_device_ids": list(range(devices))} if devices else {}
    assert distributed.slurm_devices() == want
