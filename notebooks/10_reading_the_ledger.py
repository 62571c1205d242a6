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
# **Question:** which claims of tutorials and papers did the runs of this repository decide, and how clearly?
#
# Every claim is a file in `configs/`, and the results of its runs are a JSON record in `results/claims/`; `RESULTS.md` is generated from these files only. A *rule* compares a difference between arms, paired by seed, with a margin that was fixed before the runs, using Student's 95 % interval over the seeds. A claim holds if all its rules hold, and fails if one fails.

# %%
import pathlib
import sys

import matplotlib.pyplot as plt
import numpy as np

here = pathlib.Path.cwd()
root = next(folder for folder in (here, *here.parents) if (folder / "experiments").is_dir())
sys.path.insert(0, str(root))
from experiments.ledger import records
from normjax.analysis import plots

LEDGER = root / "results" / "claims"
found = []  # (number, claim, verdict, results of its rules)
for number in sorted(records.files()):
    record = records.read(number, LEDGER)
    if record is not None:
        claim = records.module(number).CLAIM
        found.append((number, claim, *records.judge(claim, record)))
print(len(found), "of", len(records.files()), "claims have a record")
for verdict in ("holds", "fails", "undecided"):
    print(f"{verdict:10s}", ", ".join(str(n) for n, _, v, _ in found if v == verdict))

# %% [markdown]
# To show all rules on one axis, whatever they measure, express the distance of the mean difference from the margin in half-widths of the interval. To the right of 1, a rule holds; to the left of −1, it fails; in between, the interval contains the margin, and the seeds decide nothing. (For "within m" rules, the distance is from the nearer edge.)


# %%
def distance(result):
    rule, mean, half = result.rule, result.mean, result.half
    away = mean - rule.margin if rule.kind == "more" else rule.margin - abs(mean)
    return away / half if half > 0 else np.sign(away) * np.inf


def squeeze(d):
    """Linear near 0, logarithmic beyond 1: some differences are a hundred intervals wide."""
    return np.sign(d) * (min(abs(d), 1) + np.log10(max(abs(d), 1)))


looks = {"holds": ("o", 0), "fails": ("X", 1), "undecided": ("d", 3)}
figure, ax = plt.subplots(figsize=(8, 0.27 * len(found) + 1.6), layout="constrained")
for row, (_, _, _, results) in enumerate(found):
    for result in results:
        marker, colour = looks[result.verdict]
        at = squeeze(min(max(distance(result), -1e3), 1e3))
        ax.plot(at, row, marker, color=plots.COLOURS[colour], markersize=8, alpha=0.75)
for name, (marker, colour) in looks.items():
    ax.plot([], [], marker, color=plots.COLOURS[colour], label=f"rule {name}")
ax.axvspan(-1, 1, color="grey", alpha=0.15, lw=0)
ax.set_yticks(
    range(len(found)), [f"{n}  {records.slug(n)[3:].replace('_', ' ')}" for n, *_ in found]
)
for label, (_, _, verdict, _) in zip(ax.get_yticklabels(), found, strict=True):
    label.set_color(plots.COLOURS[looks[verdict][1]])
ax.invert_yaxis()
ticks = [-100, -10, -1, 0, 1, 10, 100]
ax.set_xticks([squeeze(t) for t in ticks], [f"{t:+d}" if t else "margin" for t in ticks])
ax.set_xlabel("distance from the margin, in half-widths of the 95 % interval")
ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=3, frameon=False)
plt.show()

# %% [markdown]
# A record contains the numbers of every seed, so it can answer other questions too. For example, is a clear verdict due to a single seed? The figure shows claim 4, which compares population statistics of each step with statistics shared over time.

# %%
record = records.read(4, LEDGER)
figure, ax = plt.subplots(figsize=(5, 3.4), layout="constrained")
arms = ("bn_shared", "bn_lstm")
values = np.array([record["arms"][arm]["metrics"]["test.population.accuracy"] for arm in arms])
ax.plot([0, 1], 100 * values, "o-", color=plots.COLOURS[0], alpha=0.7)
ax.set_xticks([0, 1], ["shared over time", "of each step"])
ax.set_xlim(-0.3, 1.3)
ax.set_ylabel("test accuracy (%), one line a seed")
ax.set_xlabel(f"population statistics of a BN-LSTM; {record['command']}")
plt.show()
print("the smallest paired difference:", f"{100 * np.min(values[1] - values[0]):.1f} points")

# %% [markdown]
# **Answer.** The mechanisms (26 to 29, 36) are decided by tens of intervals, and so are gross failures, such as statistics shared over time (4) or batch norm at batch size 1 (21). Differences between sound methods are small compared with the spread of five seeds: they remain undecided, although a paper's curve with one seed would have suggested a conclusion. A claim that "fails" was not confirmed *here*: at this scale, on these data. The verdict column of `RESULTS.md`, the line "Smaller" of the config and the record show the limits of that statement.
