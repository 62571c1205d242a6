"""What the command line may and may not do: flags of a command are its own."""

from __future__ import annotations

import ast
import os
import pathlib
import subprocess
import sys

import pytest

from experiments import prepare
from experiments.usage import UsageError

ROOT = pathlib.Path(__file__).parents[2]
FOLDER = ROOT / "experiments"
NO_COMMANDS = {"__init__", "__main__", "usage"}
COMMANDS = {path.stem for path in FOLDER.glob("*.py")} - NO_COMMANDS


def imports(path):
    """Yield the modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_no_module_imports_a_command():
    """A command's flags would come along, to be accepted and ignored."""
    assert {"train", "report", "sweep", "claim"} <= COMMANDS
    commands = {f"experiments.{name}" for name in COMMANDS}
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sorted(FOLDER.rglob("*.py"))
        for name in imports(path)
        if name in commands
    ]
    assert not wrong


def test_training_imports_no_matplotlib():
    code = "import experiments.train, sys; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


OTHERS_FLAGS = {
    "report's": ("train", ["--config=configs/recurrent_bn/digits.py:lstm", "--results"], "results"),
    "device's": ("train", ["--config=configs/recurrent_bn/digits.py:lstm", "--out=x"], "out"),
    "sweep's": ("claim", ["1", "--seeds=3"], "seeds"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("command", "words", "unknown"), OTHERS_FLAGS.values(), ids=OTHERS_FLAGS)
def test_a_flag_of_another_command_is_refused(command, words, unknown, tmp_path):
    program = [sys.executable, "-m", f"experiments.{command}", *words]
    done = subprocess.run(
        [*program, f"--workdir={tmp_path / 'run'}"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ") and repr(unknown) in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_tilde_is_the_home_and_spoken_digits_say_where_they_are(tmp_path):
    environment = {**os.environ, "HOME": str(tmp_path)}
    command = [sys.executable, "-m", "experiments.evaluate", "--workdir=~/nothing"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=100)
    assert done.returncode == 2 and f"{tmp_path}/nothing holds no run" in done.stderr
    with pytest.raises(UsageError, match=r"github\.com/Jakobovski/free-spoken-digit-dataset"):
        prepare.prepare("fsdd", str(tmp_path))
