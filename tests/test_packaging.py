"""The wheel holds the whole library, and a type checker believes what it says."""

from __future__ import annotations

import email.parser
import os
import pathlib
import re
import subprocess
import sys
import tomllib
import zipfile

import pytest

import normjax

ROOT = pathlib.Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
BUILD = "import sys; from hatchling.build import build_wheel; print(build_wheel(sys.argv[1]))"

# A user's file for `mypy --strict`. A comment is what mypy reveals, or the error it finds.
USERS = """
import jax
import jax.numpy as jnp
import normjax as nj
from normjax import linen, nnx, recurrent

norm = nj.batch_norm(decay=0.99)
reveal_type(norm)  # Norm
params, state = norm.init((1, 16))
y, state = norm.apply(params, state, jnp.ones((4, 16)), stats="batch")
reveal_type(y)  # Array
reveal_type(nj.weight_norm())  # Reparam
moments = nj.moments(jnp.ones((4, 16)), axes=0)
reveal_type(nj.merge(moments, moments))  # Moments

layer = recurrent.bn_lstm(8, max_steps=5)
reveal_type(layer)  # Recurrent
params, state = layer.init(jax.random.key(0), features=1)
(y, carry), state = layer.apply(params, state, jnp.ones((4, 5, 1)), stats="batch")
reveal_type(y)  # Array
reveal_type(linen.BatchNorm(use_running_average=True))  # BatchNorm
reveal_type(nnx.BatchNorm)  # def (num_features: int

nj.batch_norm(decay="fast")  # [arg-type]
nj.batch_norm(dekay=0.9)  # [call-arg]
norm.apply(params, state, y)  # [call-arg]
norm.apply(params, state, y, stats="train")  # [arg-type]
recurrent.bn_lstm(8)  # [call-arg]
linen.BatchNorm(momentun=0.9)  # [call-arg]
nj.layernorm()  # [attr-defined]
"""


def run(*command: object, cwd: pathlib.Path = ROOT, check=True, **env: str):
    ran = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        env=os.environ | env,
        capture_output=True,
        text=True,
    )
    assert not check or ran.returncode == 0, ran.stderr
    return ran


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from this checkout as pip would, without a network."""
    for module in ("hatchling", "hatch_fancy_pypi_readme"):
        pytest.importorskip(module, reason=f"{module} is absent: make .venv/.installed")
    folder = tmp_path_factory.mktemp("dist")
    name = run("-c", BUILD, folder).stdout.split()[-1]
    with zipfile.ZipFile(folder / name) as opened:
        yield opened


@pytest.fixture(scope="module")
def metadata(wheel):
    (name,) = (n for n in wheel.namelist() if n.endswith(".dist-info/METADATA"))
    return email.parser.Parser().parsestr(wheel.read(name).decode())


def test_the_wheel_holds_the_library_and_nothing_else(wheel):
    held = {n for n in wheel.namelist() if ".dist-info/" not in n}
    source = {p.relative_to(ROOT).as_posix() for p in (ROOT / "normjax").rglob("*.py")}
    assert held == source | {"normjax/py.typed"}
    for package in ("", "recurrent/", "linen/", "nnx/", "kernels/", "analysis/", "analysis/plots/"):
        assert f"normjax/{package}__init__.py" in held


def test_the_metadata_says_what_it_needs(metadata):
    assert metadata["Version"] == normjax.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    needs = [need for need in metadata.get_all("Requires-Dist") if "extra ==" not in need]
    names = {re.match(r"[\w-]+", need)[0] for need in needs}
    assert names == {"flax", "jax", "jaxlib", "jaxtyping"}
    # What an extra installs is for code of the wheel; the rest are groups of a checkout.
    assert set(metadata.get_all("Provides-Extra")) == {"cuda12", "cuda13", "plots", "tpu"}
    assert "Typing :: Typed" in metadata.get_all("Classifier")


def test_links_of_the_readme_work_on_pypi(metadata):
    text = metadata.get_payload()
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert len(links) > 5
    home = PROJECT["project"]["urls"]["Source"]
    for link in links:
        assert re.match("https?://|#", link), link
        in_repository = re.match(rf"{home}/blob/v{re.escape(normjax.__version__)}/([^#]+)", link)
        if link.startswith(home):
            assert in_repository and (ROOT / in_repository[1]).exists(), link
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text)
    assert pictures and all("github.com" not in picture for picture in pictures)


@pytest.mark.slow
def test_a_users_file_type_checks(wheel, tmp_path, request):
    """Against the installed wheel, since `py.typed` counts only there."""
    pytest.importorskip("mypy", reason="mypy is absent: make .venv/.installed")
    wheel.extractall(tmp_path / "site")
    (tmp_path / "user.py").write_text(USERS)
    cache = request.config.cache.mkdir("mypy")
    command = ["-m", "mypy", "--strict", "--config-file=", "--cache-dir", cache, "user.py"]
    output = run(*command, cwd=tmp_path, check=False, PYTHONPATH=str(tmp_path / "site")).stdout
    found: dict[int, str] = {}
    for line, kind, message in re.findall(r"^user\.py:(\d+): (\w+): (.*)$", output, re.M):
        revealed = re.match(r'Revealed type is "(.*)"', message)
        if revealed or kind == "error":
            # normjax.base.Norm and [arg-type] alike come down to their last word.
            found[int(line)] = revealed[1] if revealed else message.split()[-1]
    expected = {
        number: line.split("  # ")[1]
        for number, line in enumerate(USERS.splitlines(), 1)
        if "  # " in line
    }
    assert found.keys() == expected.keys(), output
    for number, short in expected.items():
        assert re.fullmatch(rf"(tuple\[.*=)?([\w.]+\.)?{re.escape(short)}.*", found[number]), output


def test_each_extra_and_group_in_a_text_exists():
    """What commands and messages tell people to install."""
    extras, groups = PROJECT["project"]["optional-dependencies"], PROJECT["dependency-groups"]
    paths = [p for p in ROOT.iterdir() if p.is_file()]
    for folder in (".ci", ".github", "docs", "experiments", "launch", "normjax", "tests"):
        paths += [p for p in (ROOT / folder).rglob("*") if p.is_file() and "_build" not in p.parts]
    found, wrong = 0, []
    for path in paths:
        if path.suffix in {".ipynb", ".pyc"} or path == pathlib.Path(__file__):
            continue
        text = path.read_text()
        for of_an_install in re.findall(r"(?:normjax|['\"]\.)\[([a-z0-9,]+)\]['\"]", text):
            names = set(of_an_install.split(","))
            found += 1
            wrong += [f"{path}: extra {name}" for name in names - extras.keys()]
        for name in re.findall(r"--group[ =]([a-z]+)", text):
            found += 1
            wrong += [f"{path}: group {name}"] * (name not in groups)
    assert not wrong, "\n".join(wrong)
    assert found > 10
