"""Run a training command on a TPU slice: create, copy, install, run, restart, delete.

    python -m experiments.launch tpu --name=bn --zone=us-east5-b --accelerator=v5litepod-8 \
        [--spot] [--queued] [--keep] [--dry-run] -- --config=… --workdir=gs://BUCKET/runs/bn

The words after `--` are passed to `python -m experiments.train` on every worker. `--dry-run` prints
the `gcloud` calls and makes none. A preempted slice is created again, and the same command
continues from its last checkpoint. docs/tpu.md is the guide.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence

from experiments.usage import UsageError, usage

ROOT = pathlib.Path(__file__).parent.parent
PARTS = ("normjax", "experiments", "configs", "pyproject.toml", "README.md", "LICENSE")
# The machine image of each generation of TPU.
IMAGES = {
    "v2": "tpu-ubuntu2204-base",
    "v3": "tpu-ubuntu2204-base",
    "v4": "tpu-ubuntu2204-base",
    "v5litepod": "v2-alpha-tpuv5-lite",
    "v5p": "v2-alpha-tpuv5",
    "v6e": "v2-alpha-tpuv6e",
}
# The service's own rules: for the name of a node, and for the name of a bucket.
NAME = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
BUCKET = re.compile(r"gs://[a-z0-9][-_.a-z0-9]{1,61}[a-z0-9]/[^/\s].*")
RESTART = (3, 143)  # see experiments.runtime.exits: something around it broke, or a signal
LOST = 255  # the connection was lost while the run continued
TRIES = 4  # of a call, before it counts: a new slice does not answer at once


@dataclasses.dataclass(frozen=True)
class Slice:
    """A TPU slice, and the gcloud calls for it as argument lists."""

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
        """Create the slice, or queue for it."""
        image = self.image or IMAGES[self.accelerator.partition("-")[0]]
        common = [f"--accelerator-type={self.accelerator}", *["--spot"] * self.spot]
        if not self.queued:
            return self._call("tpu-vm", "create", self.name, *common, f"--version={image}")
        wait = [f"--node-id={self.name}", f"--valid-until-duration={self.patience}"]
        return self._call(
            "queued-resources", "create", self.name, *common, f"--runtime-version={image}", *wait
        )

    def state(self) -> list[str]:
        """Ask for the state of the slice."""
        return self._call("tpu-vm", "describe", self.name, "--format=value(state)")

    def place_in_queue(self) -> list[str]:
        """Ask for the state of the queued request."""
        return self._call("queued-resources", "describe", self.name, "--format=value(state.state)")

    def copy(self, source: pathlib.Path) -> list[str]:
        """Copy the source to every worker."""
        return self._call("tpu-vm", "scp", str(source), f"{self.name}:normjax.tar.gz", *_ALL)

    def ssh(self, command: str) -> list[str]:
        """Run a command on every worker."""
        return self._call("tpu-vm", "ssh", self.name, *_ALL, f"--command={command}")

    def status(self) -> list[str]:
        """Read the exit status of the last run; nothing while it is running."""
        read = "--command=cat normjax/run.status 2>/dev/null || true"
        return self._call("tpu-vm", "ssh", self.name, "--worker=0", read)

    def delete(self) -> list[list[str]]:
        """Delete the slice, and the queued request for it."""
        if self.queued:
            return [self._call("queued-resources", "delete", self.name, "--force")]
        return [self._call("tpu-vm", "delete", self.name)]


_ALL = ("--worker=all",)

# A run that is still there is stopped, and saves. The images' Python is older than the project's:
# uv installs one.
INSTALL = (
    "if [ -f normjax/run.pid ]; then group=$(cat normjax/run.pid); "
    "kill -TERM -- -$group 2>/dev/null; "
    "for i in $(seq 60); do kill -0 -- -$group 2>/dev/null || break; sleep 1; done; fi; "
    "set -e; rm -rf normjax && mkdir normjax && tar -xzf normjax.tar.gz -C normjax && cd normjax; "
    "python3 -m pip install --quiet --user uv; "
    "PATH=$HOME/.local/bin:$PATH; "
    "uv venv --quiet --python 3.12 .venv; "
    "uv pip install --quiet --python .venv/bin/python -e '.[tpu]' --group experiments --group gcs "
    "-f https://storage.googleapis.com/jax-releases/libtpu_releases.html"
)


def training(words: Sequence[str]) -> str:
    """Return a worker's command: train, or watch the run that a lost connection left behind."""
    command = shlex.join([".venv/bin/python", "-m", "experiments.train", "--distributed", *words])
    script = shlex.quote(f"{command}; echo $? > run.status")
    return (
        "cd normjax; if ! kill -0 $(cat run.pid 2>/dev/null) 2>/dev/null; then rm -f run.status; "
        # Create the log before tail looks for it, however late the training starts.
        f": > run.log; setsid sh -c {script} >> run.log 2>&1 < /dev/null & echo $! > run.pid; fi; "
        "tail -n +1 -f --pid=$(cat run.pid) run.log; exit $(cat run.status)"
    )


def archive(folder: pathlib.Path) -> pathlib.Path:
    """Pack the source that a worker needs into a tar file."""
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
        text = subprocess.run([*verb, "--help"], capture_output=True, text=True)
        if text.returncode:
            wrong.append(f"{shlex.join(verb)} is no command of this gcloud")
            continue
        known = set(re.findall(r"--[a-z][a-z-]*", re.sub(r"\x1b\[[0-9;]*m", "", text.stdout)))
        flags = [word.partition("=")[0] for word in call[5:] if word.startswith("--")]
        wrong += [f"{shlex.join(verb)} has no {flag}" for flag in flags if flag not in known]
    return wrong


class Launcher:
    """Makes the calls, or prints them."""

    def __init__(self, slice_: Slice, words: Sequence[str], *, dry: bool, pause: float = 30.0):
        self.slice, self.words, self.dry, self.pause = slice_, list(words), dry, pause
        self.exists = False  # whether there is a slice, or a queued request, that costs
        self.training = False  # whether a run may be going on in it

    def call(self, words: list[str], *, read: bool = False) -> tuple[int, str]:
        """Make one call; `read` its output instead of showing it."""
        print(f"+ {shlex.join(words)}", flush=True)
        if self.dry:
            return 0, "READY" if "tpu-vm" in words else "ACTIVE"
        done = subprocess.run(words, stdout=subprocess.PIPE if read else None, text=True)
        return done.returncode, (done.stdout or "").strip()

    def must(self, words: list[str], tries: int = 1) -> None:
        """Make a call that must succeed."""
        for left in range(tries - 1, -1, -1):
            status = self.call(words)[0]
            if not status:
                return
            if left:
                time.sleep(self.pause)
        raise UsageError(f"{shlex.join(words[:5])} ended with status {status}, see above.")

    def state(self) -> str:
        """The state of the slice, "" where there is none."""
        status, output = self.call(self.slice.state(), read=True)
        return "" if status else output

    def prepare(self, source: pathlib.Path) -> None:
        """Get a slice ready, with the source installed on every worker."""
        if self.dry or self.state() != "READY":
            self.must(self.slice.create())
            self.exists = True
            while self.slice.queued:
                status, state = self.call(self.slice.place_in_queue(), read=True)
                if status or state in ("FAILED", "SUSPENDED"):
                    raise UsageError(f"the queued request ended as {state or 'an error'}.")
                if state == "ACTIVE":
                    break
                time.sleep(self.pause)
        self.exists = True
        self.must(self.slice.copy(source), TRIES)
        self.must(self.slice.ssh(INSTALL), TRIES)

    def run(self, restarts: int, keep: bool) -> int:
        """Create the slice, run the training, delete the slice; return the run's exit status."""
        with tempfile.TemporaryDirectory() as folder, self.cleanup(keep):
            source = pathlib.Path("normjax.tar.gz") if self.dry else archive(pathlib.Path(folder))
            self.prepare(source)
            for left in range(restarts, -1, -1):
                # gcloud's own status says little, and nothing when the connection is lost.
                self.training = True
                status = self.call(self.slice.ssh(training(self.words)))[0]
                self.training = False
                if status == 0:
                    break
                gone = self.state() != "READY"
                if not gone:
                    output = self.call(self.slice.status(), read=True)[1]
                    status = int(output) if output.isdigit() else LOST
                if not left or not (gone or status in (*RESTART, LOST)):
                    break
                if gone:
                    print(f"the slice is gone; creating it again, {left} restarts left", flush=True)
                    self.delete()
                    self.prepare(source)
                else:
                    time.sleep(self.pause)
            if self.dry:
                print(
                    "# after a preemption: delete, create, copy, install and run again", flush=True
                )
        return status

    def delete(self) -> None:
        """Delete the slice, or say how to: it costs until it is gone."""
        for words in self.slice.delete():
            if self.call(words)[0]:
                print(
                    f"error: the slice {self.slice.name} may still exist, and costs until it is "
                    f"deleted: run {shlex.join(words)}",
                    file=sys.stderr,
                    flush=True,
                )
            else:
                self.exists = False

    @contextlib.contextmanager
    def cleanup(self, keep: bool) -> Iterator[None]:
        """Delete the slice however the work ends, but for a run that a signal leaves going on."""
        before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        try:
            yield
        finally:
            # A second signal while the deletion is going on must not leave the slice behind.
            interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            command = "; ".join(shlex.join(words) for words in self.slice.delete())
            if self.exists and self.training:
                print(
                    f"the run in the slice {self.slice.name} continues, and costs: the same launch "
                    f"command attaches to it again; {command} deletes it",
                    flush=True,
                )
            elif self.exists and keep:
                print(
                    f"the slice {self.slice.name} is kept and costs until it is deleted: {command}",
                    flush=True,
                )
            elif self.exists:
                self.delete()
            signal.signal(signal.SIGINT, interrupt)
            signal.signal(signal.SIGTERM, before)


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Split the launcher's options from the words after `--`."""
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


def check_names(options: argparse.Namespace) -> None:
    """Refuse a name or an accelerator that the service would refuse later, or read otherwise."""
    if not NAME.fullmatch(options.name):
        raise UsageError(
            f"--name={options.name!r} is no name of a slice: at most 63 lower-case letters, digits "
            "and hyphens, a letter first and no hyphen last, such as --name=bn-lstm."
        )
    kind = options.accelerator.partition("-")[0]
    if not options.image and kind not in IMAGES:
        raise UsageError(
            f"--accelerator={options.accelerator}: the runtime version of {kind!r} is not known "
            f"here (known: {', '.join(IMAGES)}); write it, --image=VERSION."
        )


def main(argv: Sequence[str], pause: float = 30.0) -> int:
    """Run ``python -m experiments.launch``."""
    options, words = parse(argv)
    with usage():
        check_names(options)
        training_flags = {name: value for name, _, value in (w.partition("=") for w in words)}
        if not training_flags.get("--config") or not training_flags.get("--workdir"):
            raise UsageError("write after -- what to train: -- --config=… --workdir=gs://…")
        workdir = training_flags["--workdir"]
        if not workdir.startswith("gs://"):
            raise UsageError(
                f"--workdir={workdir} is on a disk that a preempted slice takes with it; write "
                "--workdir=gs://BUCKET/…"
            )
        if not BUCKET.fullmatch(workdir):
            raise UsageError(
                f"--workdir={workdir} names no folder of a bucket; write --workdir=gs://BUCKET/FOLDER."
            )
        file = training_flags["--config"].partition(":")[0]
        inside = (ROOT / file).resolve().is_relative_to(ROOT / "configs")
        if not file.startswith("configs/") or not inside or not (ROOT / file).is_file():
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
