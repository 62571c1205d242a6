"""The Makefile, with a Python that does nothing in the place of the real one."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[2]
# Answers the check of its version; `-m venv` makes an environment whose Python does nothing.
PYTHON = """#!/bin/sh
test "$1" = -c && exit 0
mkdir -p .venv/bin
printf '#!/bin/sh\\n' > .venv/bin/python
chmod +x .venv/bin/python
"""


@pytest.mark.skipif(shutil.which("make") is None, reason="make is absent")
def test_only_the_first_demo_says_that_it_makes_the_environment(tmp_path):
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    python = tmp_path / "python"
    python.write_text(PYTHON)
    python.chmod(0o755)
    command = ["make", "--no-print-directory", "demo", f"PYTHON={python}"]
    # The suite itself is run by make, whose flags are not meant for this one.
    env = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    first, second = (
        subprocess.run(
            command, cwd=tmp_path, env=env, capture_output=True, text=True, check=True
        ).stdout
        for _ in range(2)
    )
    assert first.startswith("Making .venv (1 to 3 minutes) ...\n")
    assert "Making" not in second and "experiments.demo" in second
