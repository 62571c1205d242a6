"""A repository of its own, for the pages whose commands are run as they stand."""

from __future__ import annotations

import os
import pathlib
import shlex
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def shell(tmp_path):
    """Run a line of commands in a fresh clone without claims, and return what it printed."""
    for folder in ("configs", "experiments", "normjax"):
        skip = shutil.ignore_patterns("__pycache__", "claim_*")  # no other claim is to be read
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=skip)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    for who in ("AUTHOR", "COMMITTER"):
        environment |= {f"GIT_{who}_NAME": "n", f"GIT_{who}_EMAIL": "e@x"}

    def run(line, status=0):
        for command in line.split(" && "):
            words = shlex.split(command)
            words[0] = sys.executable if words[0] == "python" else words[0]
            ran = subprocess.run(
                words, cwd=tmp_path, env=environment, capture_output=True, text=True
            )
            assert ran.returncode == status, command + ran.stdout + ran.stderr
        return ran.stdout + ran.stderr

    run("git init -q && git add . && git commit -qm before")
    return run
