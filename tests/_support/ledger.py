"""A made-up ledger, built by the real code from made-up numbers: every verdict, hard names."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import sys
import textwrap

import numpy as np

import configs
from experiments.ledger import records, registry, summary

# What HTML, Markdown, formulas and tables could trip over.
HARD = "a < b & c > d, $x$ costs 5 $, |w|, *no* `code`, β → Ω “q” <script>alert(1)</script>"

GROUPS = {
    "claim_01_hard.py": '''
        """Trains nothing.

        A note with <b>tags</b> and `code`.

            a   table   of < lines
        """

        from experiments.ledger.claims import Claim, Control, Group, Scale, less, more, same

        HARD = {hard!r}
        PAYS = more("_bn & $c$", "none", "train.accuracy")

        GROUP = Group(
            number=1,
            title="Hard < names & $x$",
            topic="letters | & <more>",
            source="Ba, Kiros, Hinton, 2016, arXiv:1607.06450, table <1>; Luo et al. 2017",
            axis="length in steps",
            scales=(
                Scale("short", 49, "few steps <b>", minutes=3),
                Scale("middle", 196, HARD, minutes=12.5),
                Scale("long", 784, "as published", device="gpu", of_source=True),
            ),
            arms=("ln_<a>", "none", "_bn & $c$"),
            claims=(
                Claim(
                    letter="a",
                    title="Layer norm < $1$ is better & <faster>",
                    statement=HARD,
                    rule=more("ln_<a>", "none", "test.population.accuracy"),
                    delta=0.02,
                    why="half of " + HARD,
                    expect=HARD,
                    published=0.04,
                    controls=(Control("depth <pays>", PAYS, 0.01),),
                    change=HARD,
                    methods=("layer norm", "β & <norm>"),
                ),
                Claim(
                    letter="b",
                    title="The loss falls faster",
                    statement="The loss of one is below that of the other",
                    rule=less("ln_<a>", "none", "area.train"),
                    delta=0.05,
                    why="a tenth of the loss",
                    expect="a curve",
                    controls=(),
                    change="more data",
                    methods=("layer norm",),
                    source="Luo et al. 2017, figure 2",
                ),
                Claim(
                    letter="c",
                    title="The two end the same",
                    statement="They end the same",
                    rule=same("_bn & $c$", "none", "test.population.accuracy"),
                    delta=0.02,
                    why="a point",
                    expect="nothing",
                    controls=(),
                    change="more data",
                    methods=("batch norm",),
                ),
            ),
            rates=(0.001, 0.003, 0.01),
        )


        def measure(arm, n, scale):
            """Measure nothing."""
    ''',
    "claim_02_many.py": '''
        """Trains more arms than there are colours."""

        from experiments.ledger.claims import Claim, Group, Scale, more

        ARMS = tuple(f"gamma_{{i}}" for i in range(8))
        GROUP = Group(
            number=2,
            title="Many arms",
            topic="gamma",
            source="Cooijmans et al., ICLR 2017, arXiv:1603.09025, appendix B",
            axis="images",
            scales=(Scale("all", 5000, "digits"),),
            arms=ARMS,
            claims=tuple(
                Claim(
                    letter="abcdefg"[i],
                    title=f"gamma 0 is better than gamma {{i + 1}}",
                    statement="Smaller is better",
                    rule=more("gamma_0", f"gamma_{{i + 1}}", "test.population.accuracy"),
                    delta=0.02,
                    why="half of it",
                    expect="0.04",
                    published=0.04,
                    controls=(),
                    change="more",
                    methods=("batch norm",),
                )
                for i in range(7)
            ),
            rates=(0.01, 0.1),
        )


        def measure(arm, n, scale):
            """Measure nothing."""
    ''',
    "claim_24_not_run.py": '''
        """Was not run."""

        from experiments.ledger.claims import Claim, Group, Scale, more

        GROUP = Group(
            number=24,
            title="Nobody ran this",
            topic="gamma",
            source="a tutorial on the web, lesson 3",
            axis="depth",
            scales=(Scale("one", 1, "a layer"), Scale("two", 2, "two layers")),
            arms=("a", "b"),
            claims=(
                Claim(
                    letter="",
                    title="a is more than b",
                    statement="It is more",
                    rule=more("a", "b", "m"),
                    delta=1.0,
                    why="one",
                    expect="two",
                ),
            ),
        )


        def measure(arm, n, scale):
            """Measure nothing."""
    ''',
}  # fmt: skip


@contextlib.contextmanager
def declared(folder: pathlib.Path):
    """Let the registry see the claims in a folder of studies, and no others."""
    before = list(configs.__path__)
    configs.__path__[:] = [str(folder), *before]
    registry.files.cache_clear()
    try:
        yield
    finally:
        configs.__path__[:] = before
        registry.files.cache_clear()
        studies = {path.name for path in folder.iterdir() if path.is_dir()}
        for name in [n for n in sys.modules if n.startswith("configs.")]:
            if name.split(".")[1] in studies - set(os.listdir(before[0])):
                del sys.modules[name]


def build(root: pathlib.Path, *, run: bool = True) -> pathlib.Path:
    """Write claims, records and ledger.json below a folder, and return its `results`."""
    study = root / "studies" / "made_up"
    study.mkdir(parents=True)
    (study / "__init__.py").write_text("")
    for name, text in GROUPS.items():
        (study / name).write_text(textwrap.dedent(text).format(hard=HARD).lstrip())
    (root / "results").mkdir()
    claims = pathlib.Path("results/claims")  # so that the ledger's paths are those of a checkout
    with declared(root / "studies"), contextlib.chdir(root):
        if run:
            _run(1, "short", claims, {"ln_<a>": 0.05, "_bn & $c$": 0.03, "none": 0.0}, seed=1)
            _run(1, "middle", claims, {"ln_<a>": -0.05, "_bn & $c$": 0.0, "none": 0.0}, seed=2)
            apart = [0.0, 0.001, -0.08, -0.05, 0.3, -0.012, 0.018, -0.03]
            _run(2, "all", claims, {f"gamma_{i}": v for i, v in enumerate(apart)}, seed=3)
        gathered = summary.ledger(claims)
        (root / "results" / "ledger.json").write_text(json.dumps(gathered, indent=1))
    return root / "results"


def _run(number: int, name: str, results: pathlib.Path, shifts: dict[str, float], seed: int):
    """Write a record with made-up numbers: arms differ by `shifts`, the middle rate is best."""
    study = registry.module(number)
    group, scale, rng = study.GROUP, study.GROUP.scale(name), np.random.default_rng(seed)
    n, steps = 16, list(range(50, 1001, 50))
    arms = {}
    for arm in group.arms:
        shift = shifts[arm]
        score = np.array([0.8 - 0.05 * abs(i - 1) for i in range(len(group.rates))])[:, None]
        score = score + shift + rng.normal(0, 0.012, (len(group.rates), n))
        curve = [[2.3 * 0.99**s + 0.2 - shift + 0.01 * i for s in steps] for i in range(len(score))]
        arms[arm] = {
            "rates": list(group.rates),
            "metrics": {
                "test.population.accuracy": score.tolist(),
                "train.accuracy": (score + 0.1).tolist(),
                "area.train": (1.2 - score).tolist(),
                "diverged": [[0.0] * n] * (len(score) - 1) + [[1.0, *[0.0] * (n - 1)]],
            },
            "curves": {
                "train.step": [steps] * len(score),
                "valid.step": [steps] * len(score),
                "train.loss": curve,
                "valid.loss": [[v + 0.1 for v in row] for row in curve],
                "valid.accuracy": [[1 - v / 3 for v in row] for row in curve],
            },
            "seconds": 1234.5,
        }
    record = {
        "group": number,
        "scale": name,
        "registered": {"commit": "0123456789abcdef" * 2 + "01234567", "files": {}},
        "claims": {group.id(c): registry.claim_hash(group, c) for c in group.claims},
        "config_hash": registry.config_hash(study, scale),
        "date": "2026-01-02",
        "replicates": n,
        "seconds": 1234.5 * len(arms),
        "hardware": {"device": "cpu", "platform": "cpu", "devices": 1, "cpus": 2},
        "arms": arms,
    }
    records.write(records.path_of(number, name, results), record, {})
