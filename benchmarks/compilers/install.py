"""Install a target's compiler: `python -m benchmarks.compilers.install tpu` (or h100).

It gets an environment of its own on top of this interpreter's, in `.accelerators/`: everything else
(JAX, Flax, NumPy) is found here, so the versions are the same, and nothing here changes.
"""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
import sysconfig

from benchmarks.compilers import targets


def packages(name: str) -> list[str]:
    """What a compiler needs of this version of JAX; no cuDNN or cuBLAS, since nothing runs."""
    jax = importlib.metadata.version("jax")
    if name == "h100":
        cuda = [f"jax-cuda13-plugin=={jax}", f"jax-cuda13-pjrt=={jax}"]
        return [
            *cuda,
            *(f"nvidia-{p}" for p in ("cuda-nvcc", "nvvm", "cuda-runtime", "cuda-cupti")),
        ]
    required = importlib.metadata.requires("jax") or []
    return [r.partition(";")[0].strip() for r in required if re.match("libtpu", r)]


def main() -> None:
    (name,) = sys.argv[1:]
    python = targets.python(name)
    root = python.parents[1]
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", root], check=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages_at = root / "lib" / version / "site-packages"
    (packages_at / "base.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps"]
    quiet = ["--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, *quiet, *packages(name)], check=True)


if __name__ == "__main__":
    main()
