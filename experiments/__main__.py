"""List commands, tasks, models, configs, and the data sets on this machine.

python -m experiments [--data_dir=DIR]
python -m experiments --readme  # write configs/README.md from the headers of the configs
"""

from __future__ import annotations

import ast
import importlib
import pathlib
import re
from collections.abc import Iterator, Sequence

from absl import app, flags, logging

from experiments import models as networks
from experiments import tasks
from experiments.config import command_line, models
from experiments.data import found
from experiments.tasks import image, network
from experiments.usage import usage

ROOT = pathlib.Path(__file__).parents[1]
NO_COMMANDS = ("__init__", "__main__", "usage")

README = """# Configs

One folder a study, one file an experiment. `python -m experiments --readme` writes this page from
the headers of the files. Files named `claim_…` are groups of claims:
`python -m experiments.claim NUMBER` shows one with its verdicts. A file with variants trains by

```sh
python -m experiments.train --config=configs/STUDY/FILE.py:VARIANT --workdir=DIR
```
"""

_DATA_DIR = flags.DEFINE_string("data_dir", "", "TFDS folder.", allow_override=True)
_README = flags.DEFINE_bool("readme", False, "Write configs/README.md.", allow_override=True)


def header(path: pathlib.Path) -> str:
    """Return a module's docstring."""
    return ast.get_docstring(ast.parse(path.read_text())) or ""


def first_line(path: pathlib.Path) -> str:
    """Return the first line of a module's docstring."""
    return header(path).partition("\n")[0]


def commands() -> Iterator[tuple[str, str]]:
    """Yield every command with what it does."""
    for path in sorted((ROOT / "experiments").glob("*.py")):
        if path.stem not in NO_COMMANDS:
            yield f"python -m experiments.{path.stem}", first_line(path)


def all_tasks() -> Iterator[tuple[str, str]]:
    """Yield every task with what it does."""
    for name in tasks.TASKS:
        yield name, first_line(ROOT / "experiments" / "tasks" / f"{name}.py")


def all_models() -> Iterator[tuple[str, str]]:
    """Yield the models of each task, and where they take a norm."""
    for name in models.CELLS:
        yield f"cell={name}", f"sequence, language: norms {', '.join(models.places(name))}"
    for name in image.ARCHITECTURES:
        yield f"arch={name}", f"image: norms {', '.join(image.PLACES)}"
    for name in networks.MODELS:
        module = importlib.import_module(f"experiments.models.{name}")
        kinds = ", ".join(network.NAMES[kind] for kind in module.KINDS)
        yield f"arch={name}", f"{kinds}: norms {', '.join(module.NORMS)}"
    yield "module=package.module:Model", "your own Linen or NNX module: its arguments norm…"


def configs() -> Iterator[tuple[str, str]]:
    """Yield every file that --config takes, with its first line."""
    for path in sorted((ROOT / "configs").rglob("*.py")):
        tree = ast.parse(path.read_text())
        made = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
        if "get_config" in made and not path.stem.startswith("_"):
            yield path.relative_to(ROOT).as_posix(), first_line(path)


def readme() -> str:
    """Lay out configs/README.md: a section for each study, an entry for each file."""
    parts = [README.rstrip()]
    for study in sorted((ROOT / "configs").glob("*/__init__.py")):
        parts += [f"## {study.parent.name}", header(study)]
        files = sorted(study.parent.glob("[!_]*.py"))
        parts.append("\n".join(line for path in files for line in _entry(path)))
    return "\n\n".join(parts) + "\n"


def _entry(path: pathlib.Path) -> Iterator[str]:
    """Yield the lines of a config: what it trains, and what its header says in labelled parts."""
    yield f"- [{path.name}]({path.parent.name}/{path.name}): {first_line(path)}"
    labelled = r"^(Claim|Numbers|Cost|Variants): +(.+?)(?=^\w+: |\n\n|\Z)"
    for label, words in re.findall(labelled, header(path), re.M | re.S):
        yield f"  - {label}: {' '.join(words.split())}"


def catalogue(data_dir: str = "") -> str:
    """Lay the lists out, a title and lines of name and content each."""
    sections = {
        "Commands (--help shows their flags)": list(commands()),
        "Tasks (--config.task)": list(all_tasks()),
        "Models (--config.model)": list(all_models()),
        "Data sets on this machine (--config.dataset)": found.lines(data_dir),
        "Configs (--config=FILE:VARIANT)": list(configs()),
    }
    text = []
    for title, pairs in sections.items():
        width = max(len(name) for name, _ in pairs)
        text += [title, *(f"  {name.ljust(width)}  {words}" for name, words in pairs), ""]
    return "\n".join(text).rstrip()


def main(argv: Sequence[str]) -> None:
    """Run ``python -m experiments``."""
    logging.set_verbosity(logging.WARNING)
    with usage():
        command_line.no_arguments(argv)
        if _README.value:
            (ROOT / "configs" / "README.md").write_text(readme())
            return
        print(catalogue(_DATA_DIR.value))


if __name__ == "__main__":
    app.run(main, flags_parser=command_line.parse_flags)
