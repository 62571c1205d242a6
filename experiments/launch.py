"""Run a training command on a TPU slice: create, copy, install, run, restart, delete.

    python -m experiments.launch tpu --name=bn --zone=us-east5-b --accelerator=v5litepod-8 \
        [--spot] [--queued] [--keep] [--dry-run] -- --config=… --workdir=gs://BUCKET/runs/bn

What stands after `--` is given to `python -m experiments.train` on every worker. `--dry-run` prints
the `gcloud` calls and makes none. A slice that is preempted is made again and the same command goes
on from its last checkpoint. docs/tpu.md tells it from the start.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

from experiments.usage import UsageError, usage

ROOT = pathlib.Path(__file__).parent.parent
PARTS = ("normjax", "experiments", "configs", "pyproject.toml", "README.md", "LICENSE")
# What each generation of TPU calls its machine image.
IMAGES = {
    "v5litepod": "v2-alpha-tpuv5-lite",
    "v5p": "v2-alpha-tpuv5",
    "v6e": "v2-alpha-tpuv6e",
}
IMAGE = "tpu-ubuntu2204-base"  # of v2, v3 and v4
RESTART = (
    3,
    143,
)  # see experiments.runtime.exits: the surroundings broke, or a signal came
LOST = 255  # the connection, while the run went on
TRIES = 4  # of a call, before it counts: a new slice does not answer at once


@dataclasses.dataclass(frozen=True)
class Slice:
    """A TPU slice and the calls about it, as argument lists."""

    name: str
    zone: str
    accelerator: str = "v5litepod-8"
    image: str = ""
    project: str = ""
    spot: bool = False
    queued: bool = False
    patience: str = "24h"

    def _call(self, group: str, verb: str, *rest: str) -> list[str]:
        project = [f"--project={self.project}"] if self.project else []
        words = ["gcloud", "compute", "tpus", group, verb, *rest, f"--zone={self.zone}"]
        return [*words, *project, "--quiet"]

    def create(self) -> list[str]:
        """Make the slice, or queue for it."""
        kind = self.accelerator.partition("-")[0]
        image = self.image or IMAGES.get(kind, IMAGE)
        common = [f"--accelerator-type={self.accelerator}", *["--spot"] * self.spot]
        if not self.queued:
            return self._call("tpu-vm", "create", self.name, *common, f"--version={image}")
        wait = [f"--node-id={self.name}", f"--valid-until-duration={self.patience}"]
        return self._call(
            "queued-resources", "create", self.name, *common, f"--runtime-version={image}", *wait
        )

    def state(self) -> list[str]:
        """Ask how the slice is."""
        return self._call("tpu-vm", "describe", self.name, "--format=value(state)")

    def place_in_queue(self) -> list[str]:
        """Ask how the queued request is."""
        return self._call("queued-resources", "describe", self.name, "--format=value(state.state)")

    def copy(self, source: pathlib.Path) -> list[str]:
        """Copy the source to every worker."""
        return self._call("tpu-vm", "scp", str(source), f"{self.name}:normjax.tar.gz", *_ALL)

    def ssh(self, command: str) -> list[str]:
        """Run a command on every worker."""
        return self._call("tpu-vm", "ssh", self.name, *_ALL, f"--command={command}")

    def status(self) -> list[str]:
        """Read the exit status of the last run; nothing while it goes on."""
        read = "--command=cat normjax/run.status 2>/dev/null || true"
        return self._call("tpu-vm", "ssh", self.name, "--worker=0", read)

    def delete(self) -> list[list[str]]:
        """Give the slice back, and the request for it."""
        if self.queued:
            return [self._call("queued-resources", "delete", self.name, "--force")]
        return [self._call("tpu-vm", "delete", self.name)]


_ALL = ("--worker=all",)

# A run that is still there is told to stop, and saves. The images' own Python is older than the
# project's; uv brings one.
INSTALL = (
    "if [ -f normjax/run.pid ]; then group=$(cat normjax/run.pid); "
    "kill -TERM -- -$group 2>/dev/null; "
    "for i in $(seq 60); do kill -0 -- -$group 2>/dev/null || break; sleep 1; done; fi; "
    "set -e; rm -rf normjax && mkdir normjax && tar -xzf normjax.tar.gz -C normjax && cd normjax; "
    "python3 -m pip install --quiet --user uv; "
    "PATH=$HOME/.local/bin:$PATH; "
    "uv venv --quiet --python 3.12 .venv; "
    "uv pip install --quiet --python .venv/bin/python -e '.[experiments,tpu,gcs]' "
    "-f https://storage.googleapis.com/jax-releases/libtpu_releases.html"
)


def training(words: Sequence[str]) -> str:
    """The command of a worker: train, or go on watching a run that a lost connection left there."""
    command = shlex.join([".venv/bin/python", "-m", "experiments.train", "--distributed", *words])
    kept = shlex.quote(f"{command}; echo $? > run.status")
    return (
        "cd normjax; if ! kill -0 $(cat run.pid 2>/dev/null) 2>/dev/null; then rm -f run.status; "
        # The log is there before tail looks for it, however late the training starts.
        f": > run.log; setsid sh -c {kept} >> run.log 2>&1 < /dev/null & echo $! > run.pid; fi; "
        "tail -n +1 -f --pid=$(cat run.pid) run.log; exit $(cat run.status)"
    )


def archive(folder: pathlib.Path) -> pathlib.Path:
    """The source that a worker needs, as a tar file."""
    target = folder / "normjax.tar.gz"
    subprocess.run(
        ["tar", "-czf", str(target), "--exclude=__pycache__", "-C", str(ROOT), *PARTS], check=True
    )
    return target


def check(slice_: Slice, source: pathlib.Path) -> list[str]:
    """Compare the flags of every call with the installed `gcloud`'s own help."""
    calls = [
        slice_.create(),
        slice_.state(),
        slice_.copy(source),
        slice_.ssh("true"),
        *slice_.delete(),
    ]
    if slice_.queued:
        calls.append(slice_.place_in_queue())
    wrong = []
    for call in calls:
        verb = call[:5]
        told = subprocess.run([*verb, "--help"], capture_output=True, text=True)
        if told.returncode:
            wrong.append(f"{shlex.join(verb)} is no command of this gcloud")
            continue
        known = set(re.findall(r"--[a-z][a-z-]*", re.sub(r"\x1b\[[0-9;]*m", "", told.stdout)))
        given = [word.partition("=")[0] for word in call[5:] if word.startswith("--")]
        wrong += [f"{shlex.join(verb)} has no {flag}" for flag in given if flag not in known]
    return wrong


class Launcher:
    """Makes the calls, or prints them."""

    def __init__(self, slice_: Slice, words: Sequence[str], *, dry: bool, pause: float = 30.0):
        self.slice, self.words, self.dry, self.pause = slice_, list(words), dry, pause

    def call(self, words: list[str], *, read: bool = False) -> tuple[int, str]:
        """Make one call; `read` its output instead of showing it."""
        print(f"+ {shlex.join(words)}", flush=True)
        if self.dry:
            return 0, "READY" if "tpu-vm" in words else "ACTIVE"
        done = subprocess.run(words, stdout=subprocess.PIPE if read else None, text=True)
        return done.returncode, (done.stdout or "").strip()

    def must(self, words: list[str], tries: int = 1) -> None:
        """Make a call that has to succeed."""
        for left in range(tries - 1, -1, -1):
            status = self.call(words)[0]
            if not status:
                return
            if left:
                time.sleep(self.pause)
        raise UsageError(f"{shlex.join(words[:5])} ended with status {status}, see above.")

    def state(self) -> str:
        """The state of the slice, "" where there is none."""
        status, told = self.call(self.slice.state(), read=True)
        return "" if status else told

    def prepare(self, source: pathlib.Path) -> None:
        """Have a slice that is ready, with the source installed on every worker."""
        if self.dry or self.state() != "READY":
            self.must(self.slice.create())
            while self.slice.queued:
                status, told = self.call(self.slice.place_in_queue(), read=True)
                if status or told in ("FAILED", "SUSPENDED"):
                    raise UsageError(f"the queued request ended as {told or 'an error'}.")
                if told == "ACTIVE":
                    break
                time.sleep(self.pause)
        self.must(self.slice.copy(source), TRIES)
        self.must(self.slice.ssh(INSTALL), TRIES)

    def run(self, restarts: int, keep: bool) -> int:
        """From nothing to the end of the run; its exit status."""
        with tempfile.TemporaryDirectory() as folder:
            source = pathlib.Path("normjax.tar.gz") if self.dry else archive(pathlib.Path(folder))
            self.prepare(source)
            for left in range(restarts, -1, -1):
                # gcloud's own status tells little, and nothing when the connection is lost.
                status = self.call(self.slice.ssh(training(self.words)))[0]
                if status == 0:
                    break
                gone = self.state() != "READY"
                if not gone:
                    told = self.call(self.slice.status(), read=True)[1]
                    status = int(told) if told.isdigit() else LOST
                if not left or not (gone or status in (*RESTART, LOST)):
                    break
                if gone:
                    print(f"the slice is gone; making it again, {left} restarts left", flush=True)
                    for words in self.slice.delete():
                        self.call(words)
                    self.prepare(source)
                else:
                    time.sleep(self.pause)
            if self.dry:
                print(
                    "# after a preemption: delete, create, copy, install and run again", flush=True
                )
            if keep:
                print(f"the slice {self.slice.name} is kept and costs until it is deleted")
            else:
                for words in self.slice.delete():
                    self.call(words)
        return status


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Options of the launcher, and the words after `--`."""
    argv = list(argv)
    at = argv.index("--") if "--" in argv else len(argv)
    parser = argparse.ArgumentParser(
        prog="python -m experiments.launch", description="Train on a TPU slice.", allow_abbrev=False
    )
    parser.add_argument("where", choices=["tpu"])
    parser.add_argument("--name", required=True, help="what the slice is called")
    parser.add_argument("--zone", required=True)
    parser.add_argument("--accelerator", default="v5litepod-8", help="gcloud's accelerator type")
    parser.add_argument("--image", default="", help="runtime version; default: the accelerator's")
    parser.add_argument("--project", default="")
    parser.add_argument("--spot", action="store_true", help="cheaper, may be taken back")
    parser.add_argument("--queued", action="store_true", help="wait in the queue for capacity")
    parser.add_argument("--patience", default="24h", help="how long to queue")
    parser.add_argument("--restarts", type=int, default=100, help="after so many give up")
    parser.add_argument("--keep", action="store_true", help="do not delete the slice at the end")
    parser.add_argument("--dry-run", action="store_true", help="print the calls, make none")
    return parser.parse_args(argv[:at]), argv[at + 1 :]


def main(argv: Sequence[str], pause: float = 30.0) -> int:
    """Entry point of ``python -m experiments.launch``."""
    options, words = parse(argv)
    with usage():
        given = {name: value for name, _, value in (w.partition("=") for w in words)}
        if not given.get("--config") or not given.get("--workdir"):
            raise UsageError("write after -- what to train: -- --config=… --workdir=gs://…")
        if not given["--workdir"].startswith("gs://"):
            raise UsageError(
                f"--workdir={given['--workdir']} is on a disk that a preempted slice takes with "
                "it; write --workdir=gs://BUCKET/…"
            )
        file = given["--config"].partition(":")[0]
        if not file.startswith("configs/") or not (ROOT / file).is_file():
            raise UsageError(
                f"--config={file} is no file of configs/, the folder of this repository that is "
                "copied to the slice."
            )
        names = [f.name for f in dataclasses.fields(Slice)]
        slice_ = Slice(**{name: getattr(options, name) for name in names})
        if shutil.which("gcloud"):
            if wrong := check(slice_, pathlib.Path("normjax.tar.gz")):
                raise UsageError("; ".join(wrong) + ". Update gcloud: gcloud components update.")
        elif not options.dry_run:
            raise UsageError("gcloud is not on PATH; docs/tpu.md says how to install it.")
        launcher = Launcher(slice_, words, dry=options.dry_run, pause=pause)
        return launcher.run(options.restarts, options.keep)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
