# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Reading the ledger
#
# **Question:** how does a verdict of the ledger come about, and how clear is it?
#
# Every claim of a tutorial or a paper is declared in `configs/`, with one rule and the smallest effect that matters, *delta*. The numbers of its runs are a JSON record in `results/claims/`, one for each size. `results/ledger.json` has the effects and verdicts of all of them; `RESULTS.md` and the pages of the documentation are made from it.

# %%
import json
import pathlib
import sys

import matplotlib.pyplot as plt
import numpy as np

here = pathlib.Path.cwd()
root = next(folder for folder in (here, *here.parents) if (folder / "experiments").is_dir())
sys.path.insert(0, str(root))
from experiments.ledger import judge, records, registry
from normjax.analysis import plots

path = root / "results" / "ledger.json"
groups = json.loads(path.read_text())["groups"] if path.exists() else []
found = [(g, c, at) for g in groups for c in g["claims"] for at in c["at"]]
run = [(g, c, at) for g, c, at in found if at["estimate"] is not None]
print(len(found), "pairs of a claim and a size,", len(run), "of them with an effect")
for verdict in sorted({at["verdict"] for _, _, at in found}):
    print(f"{verdict:18s}", sum(at["verdict"] == verdict for _, _, at in found))

# %% [markdown]
# ## All effects on one axis
#
# An effect is positive in the claimed direction. Divided by the published effect, 1 means "as large as in the source". Where the source gives no number, or claims that there is no difference, the unit is delta (open marks).


# %%
def unit(claim):
    published = claim["published"]
    named = claim["kind"] == "more" and published is not None and published > 0
    return (published, True) if named else (claim["delta"], False)


looks = {"supported": ("o", 0), "reversed": ("s", 1), "negligible": ("D", 2)}
figure, ax = plt.subplots(figsize=(8, 0.24 * len(run) + 2), layout="constrained")
for row, (_, claim, at) in enumerate(run):
    size, named = unit(claim)
    marker, colour = looks.get(at["verdict"], ("X" if "test" in at["verdict"] else "o", None))
    ink = plots.COLOURS[colour] if colour is not None else "grey"
    middle, low, high = (np.clip((at[k] or 0.0) / size, -3, 4) for k in ("estimate", "low", "high"))
    ax.plot([low, high], [row, row], color=ink, lw=2)
    ax.plot(middle, row, marker, color=ink, markerfacecolor=ink if named else "none", markersize=7)
for verdict, (marker, colour) in looks.items():
    ax.plot([], [], marker, color=plots.COLOURS[colour], label=verdict)
ax.plot([], [], "o", color="grey", label="inconclusive")
ax.plot([], [], "X", color="grey", label="not testable here")
for at in (0, 1):
    ax.axvline(at, color="grey", lw=1, ls="--" if at else "-", zorder=0)
ax.set_xlim(-3, 4)
ax.set_yticks(range(len(run)), [f"{c['id']} at {at['at']:g}" for _, c, at in run])
ax.invert_yaxis()
ax.set_xlabel("effect, in units of the published one or of delta; cut off at −3 and 4")
ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=5, frameon=False, fontsize=8)
plt.show()

# %% [markdown]
# ## One verdict from its record
#
# A record has the number of every replicate of every arm at every learning rate, so the verdict can be computed again. Here is the first claim whose rate was tuned.

# %%
tuned = [
    (g, c, at)
    for g, c, at in run
    if any(s["name"] == at["scale"] and len(s["rates"]) > 1 for s in g["scales"])
]
if tuned:
    group, claim, at = tuned[0]
    study = registry.module(group["number"])
    scale = study.GROUP.scale(at["scale"])
    record = records.read(study, scale, root / "results" / "claims")
    declared = next(c for c in study.GROUP.claims if study.GROUP.id(c) == claim["id"])
    answers = records.read_answers(
        records.path_of(group["number"], scale.name, root / "results" / "claims")
    )
    judged = judge.judge(study.GROUP, declared, record, answers)
    low, high = judged.effect.interval()
    print(f"{claim['id']}: {claim['statement']}")
    print(f"{claim['rule']}: {judged.effect.estimate:+.4f} [{low:.4f}, {high:.4f}]")
    print(f"delta {declared.delta:g}: {judged.verdict}; rates {judged.rates}")
else:
    print("no claim with tuned rates was run yet")

# %% [markdown]
# Which rate is best is itself uncertain. If it were picked on one replicate, as is usual, the effect would depend on which replicate that is. The figure shows the effects of all such choices, each scored on the other replicates, and the interval of the ledger, which picks rates on one half of the replicates and scores them on the other, within the bootstrap.

# %%
if tuned:
    terms = declared.rule.terms
    effects = np.zeros(record["replicates"])
    for term in terms:
        sign = -1.0 if judge.small_is_good(term.metric) else 1.0
        scores = judge.scores_of(record["arms"][term.arm], term.arm, term.metric)
        for n in range(len(effects)):
            others = np.delete(scores, n, axis=1).mean(1)
            best = np.where(np.isfinite(scores[:, n]), sign * scores[:, n], -np.inf).argmax()
            effects[n] += term.weight * others[best]
    figure, ax = plt.subplots(figsize=(7, 2.6), layout="constrained")
    ax.plot(effects, np.zeros_like(effects), "o", color=plots.COLOURS[0], alpha=0.6)
    ax.errorbar(
        judged.effect.estimate,
        1,
        xerr=judged.effect.half_width(),
        marker="s",
        color=plots.COLOURS[1],
        capsize=4,
    )
    ax.axvline(0, color="grey", lw=1)
    ax.axvline(declared.delta, color="grey", lw=1, ls="--", label="delta")
    ax.set_yticks([0, 1], ["rates picked on\none replicate each", "the ledger's\n95 % interval"])
    ax.set_ylim(-0.6, 1.6)
    ax.set_xlabel(f"effect, {claim['rule']}")
    ax.legend(frameon=False)
    plt.show()

# %% [markdown]
# **Answer.** A verdict rests on an interval that contains the replicates, the choice of the learning rate and, for accuracies, the draw of the test examples, and on delta, which says what would matter. "Inconclusive" means that the interval is too wide for either answer, "negligible" that an effect as large as delta is excluded, and "not testable here" that the setup does not show what the claim presupposes. A verdict holds for the sizes at which it was found.
