"""Holds the state of runs that are trained side by side, and trains them to their last step.

`experiments.runtime.together` decides which runs these are. The step is that of a run alone,
mapped over a leading axis of members.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from experiments import tasks
from experiments.data import batches, splits
from experiments.runtime import measures, metrics, nonfinite, parallel
from experiments.runtime.checkpoints import Checkpoints, Restored
from experiments.runtime.exits import Diverged, Stop
from experiments.runtime.loop import Loop, Window, divergence, parameters, result
from experiments.runtime.metrics import Metrics, Progress
from experiments.runtime.step import (
    better,
    compiled_step,
    evaluate_members,
    final_scores_members,
    optimizer,
    scored,
    start,
    static,
)
from experiments.runtime.workdir import GROUP, write_json
from experiments.usage import UsageError

Tree = Any


def has_checkpoint(folder: epath.Path) -> bool:
    """Whether a workdir, or a group's folder, has a complete checkpoint."""
    checkpoints = folder / "checkpoints"
    return checkpoints.is_dir() and any(path.name.isdigit() for path in checkpoints.iterdir())


@dataclasses.dataclass
class Member:
    """A run of a group; one that has finished or left it is computed, and writes nothing.

    Its name is the path of its workdir from the folder that the group's folder is in. `task` is
    the same for all members, `own_task` the run's own, which makes its initial parameters.
    """

    config: dict[str, Any]
    name: str
    workdir: epath.Path
    task: tasks.Task
    own_task: tasks.Task
    dataset: splits.Dataset
    writes: bool = True
    metrics: Metrics | None = None
    message: str = ""  # why it diverged

    def trains(self) -> bool:
        """Whether its metrics and its result are wanted."""
        return self.writes and not self.message


@jax.jit  # of the whole tree: leaf by leaf each shape would be a program of its own
def _stack(trees: Sequence[Tree]) -> Tree:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


@jax.jit
def _at(tree: Tree, i: Any) -> Tree:
    return jax.tree.map(lambda x: x[i], tree)


def stacked(states: Sequence[Tree]) -> Tree:
    """Make the state of a group of the states of its members: arrays `[members, ...]`."""
    now, best = ([state[k] for state in states] for k in ("now", "best"))
    models = [{k: b[k] for k in ("params", "norm")} for b in best]
    scores = [{k: b[k] for k in ("step", "accuracy", "loss")} for b in best]
    seconds = sum(float(state["seconds"]) for state in states)
    return {"now": _stack(now), "best": {**_stack(models), "scores": scores}, "seconds": seconds}


def member_state(state: Tree, i: int) -> Tree:
    """Take the state of a member, as a run alone has it, out of that of its group."""
    best = state["best"]
    own = {k: _at(best[k], i) for k in ("params", "norm")}
    return {
        "now": _at(state["now"], i),
        "best": {**own, **best["scores"][i]},
        "seconds": float(state["seconds"]) / len(best["scores"]),
    }


@jax.jit
def _chosen(which: jax.Array, new: Tree, old: Tree) -> Tree:
    """Take some members, `which [members]`, from `new` and the others from `old`."""

    def one(new: jax.Array, old: jax.Array) -> jax.Array:
        return jnp.where(which.reshape(-1, *[1] * (new.ndim - 1)), new, old)

    return jax.tree.map(one, new, old)


class Group(Loop):
    """The state of runs that are trained side by side; arrays have a leading axis of members."""

    def __init__(
        self, members: Sequence[Member], folder: epath.Path, layout: parallel.DeviceLayout
    ):
        self.members, self.folder, self.layout = members, folder, layout
        self.config, self.task = members[0].config, members[0].task
        self.skip = self.config["nonfinite"] == "skip"
        self.optim = static(self.config["optim"])[0]
        self.rates = np.stack([static(m.config["optim"])[1] for m in members])
        first = members[0].dataset
        self.data = parallel.Members(any(m.dataset is not first for m in members))
        self.train = self._split("train")
        self.valid, self.valid_size = self._split("valid"), splits.size(first.valid)
        self.checkpoints = Checkpoints(folder, self.config["keep_checkpoints"])
        try:
            self.state, self.iterators, self.origin, known = self.begin()
            self.step = int(self.state["now"]["step"][0])
            if self.step > self.config["steps"]:
                raise UsageError(
                    f"{self.origin} is beyond config.steps={self.config['steps']}; "
                    f"write --config.steps={self.step} or more."
                )
            for member, digest in zip(members, known["digests"], strict=True):
                member.message = known["diverged"].get(member.name, "")
                if member.trains():
                    member.metrics = Metrics(member.workdir, self.step, digest)
        except BaseException:
            self.close()
            raise
        names = dict.fromkeys(member.config["name"] for member in members)
        self.label = f"{', '.join(names)}, {len(members)} together"
        measure = measures.main(self.config)
        self.progress = Progress(self.label, self.config["steps"], self.step, measure)
        self.start_clock()

    def _split(self, name: str) -> Tree:
        """Return a split of the data: the shared one, or those of the members `[members, ...]`."""
        each = [getattr(member.dataset, name) for member in self.members]
        return _stack(each) if self.data.own_data else each[0]

    def begin(self) -> tuple[Tree, dict[int, Any], str, dict[str, Any]]:
        """Return where to start: state, data iterators by seed, the origin, what else is known.

        The last has "iterators" (positions), "digests" (of the rows of metrics) and "diverged"
        (messages by member's name), as a group's checkpoint has them.
        """
        members, config = self.members, self.config
        states = [start(m.own_task, optimizer(m.config["optim"]), m.config) for m in members]
        if self.checkpoints.latest() is not None:
            state, known, _ = self.checkpoints.restore(stacked(states))
            origin = f"step {int(state['now']['step'][0])} of {self.folder}"
        else:
            own = [self._own(m, state) for m, state in zip(members, states, strict=True)]
            if len(steps := {int(o.run["now"]["step"]) for o in own}) > 1:
                raise UsageError(
                    f"the runs in {self.folder.parent} are at unlike steps "
                    f"({', '.join(map(str, sorted(steps)))}); write --together=1."
                )
            state = stacked([o.run for o in own])
            known = {"iterators": [o.position for o in own], "digests": [o.metrics for o in own]}
            known["diverged"] = {}
            step = steps.pop()
            origin = f"their checkpoints at step {step}" if step else "scratch"
        size, shuffle = splits.size(members[0].dataset.train), config["data"]["shuffle"]
        iterators: dict[int, Any] = {}  # members of one seed have one order
        for member, position in zip(members, known["iterators"], strict=True):
            seed = member.config["seed"]
            if seed not in iterators:
                iterators[seed] = batches.batches(size, config["batch_size"], seed, shuffle)
                if position:
                    iterators[seed].set_state(position)
        return state, iterators, origin, known

    def _own(self, member: Member, state: Tree) -> Restored:
        """Return the state in a member's own checkpoint, if it has one, else that at the start."""
        if not has_checkpoint(member.workdir):
            return Restored(state, {}, None)
        own = Checkpoints(member.workdir, write=False)
        try:
            return own.restore(state)
        finally:
            own.close()

    def index(self, iterators: Mapping[int, Any], steps: int = 0) -> np.ndarray:
        """Return the examples of the next step, `[members, rows]`, or `[steps, members, rows]`."""
        if steps:
            return np.stack([self.index(iterators) for _ in range(steps)])
        rows = {seed: np.asarray(next(order), np.int32) for seed, order in iterators.items()}
        return np.stack([rows[member.config["seed"]] for member in self.members])

    def position(self, member: Member) -> dict:
        """Return the position in a member's order."""
        return self.iterators[member.config["seed"]].get_state()

    def compiled(self, several: bool) -> Any:
        """Return the compiled step."""
        return compiled_step(self.layout, self.task, self.optim, self.skip, several, self.data)

    def advance(self, steps: int) -> None:
        """Take some steps."""
        several = self.config["steps_per_call"] > 1
        index = self.index(self.iterators, steps if several else 0)
        step = self.compiled(several)
        self.state["now"] = step(self.state["now"], self.train, index, None, self.rates)

    def ended(self) -> bool:
        """Whether there is nothing left to train."""
        return super().ended() or not any(member.trains() for member in self.members)

    def share(self) -> float:
        """Return each member's share of the time."""
        return self.seconds() / len(self.members)

    def check_window(self, log: bool) -> None:
        """Fetch the last steps' metrics, end members that are not finite, and log their means."""
        fetched, skipped = jax.device_get([self.state["now"][k] for k in ("window", "skipped")])
        losses, windows, ended = [], [], {}
        for i, member in enumerate(self.members):
            own = {name: values[i] for name, values in fetched.items()}
            windows.append(Window(own, self.step, self.config["log_every"]))
            at = windows[i].diverged_at(self.config, int(skipped[i]))
            if at is not None and member.trains():
                ended[i] = at
        if ended:
            self.end_diverged(ended, skipped)
        for i, (member, window) in enumerate(zip(self.members, windows, strict=True)):
            if log and member.trains() and member.metrics is not None:
                values = window.means()
                counts = {"skipped": int(skipped[i])} if self.skip else {}
                member.metrics.write(self.step, "train", self.share(), **values, **counts)
                losses.append(values["loss"])
        if losses:
            self.progress.loss(*losses)

    def end_diverged(self, ended: Mapping[int, int], skipped: Sequence[int]) -> None:
        """Keep members' last checkpoint, say why each diverged, and leave them out from here on.

        `ended` has the step at which each of them did, by its number.
        """
        self.checkpoints.wait()
        state, iterators, _, known = self.begin()
        taken = int(state["now"]["step"][0])
        if taken:
            for i in ended:
                self._save_own(self.members[i], member_state(state, i), known["iterators"][i])
        latest, now, step = taken, state["now"], self.compiled(False)
        index = self.index(iterators)  # of the step after those taken
        for i, at in sorted(ended.items(), key=lambda item: item[1]):
            member = self.members[i]
            while taken < at - 1:
                now = step(now, self.train, index, None, self.rates)
                taken, index = taken + 1, self.index(iterators)
            first = nonfinite.report(member.task, _at(now, i), member.dataset.train, index[i], None)
            kept = f"step {latest} is kept in {member.workdir}"
            where = kept if latest else "there is no checkpoint yet"
            member.message = divergence(at, int(skipped[i]), where, first)
            print(f"{member.name} diverged at step {at}; the others go on.", flush=True)

    def _save_own(self, member: Member, state: Tree, position: Any) -> None:
        """Write a checkpoint of one member into its workdir."""
        rows = member.metrics.rows if member.metrics is not None else []
        step = int(state["now"]["step"])
        checkpoints = Checkpoints(member.workdir, self.config["keep_checkpoints"])
        try:
            digest = metrics.digest([row for row in rows if row["step"] <= step])
            checkpoints.save(step, state, position, digest)
            checkpoints.wait()
        finally:
            checkpoints.close()

    def validate(self) -> None:
        """Score the validation set with batch statistics and keep the best parameters."""
        now, best = scored(self.state["now"]), self.state["best"]
        each = evaluate_members(
            now["params"],
            now["norm"],
            self.valid,
            task=self.task,
            stats="batch",
            batch_size=self.config["eval_batch_size"],
            examples=self.valid_size,
            members=self.data,
        )
        shown = []
        for member, own in zip(self.members, each, strict=True):
            if member.trains() and member.metrics is not None:
                member.metrics.write(self.step, "valid", self.share(), **own)
                shown.append(own)
        if shown:
            self.progress.valid(self.step, shown, self.seconds())
        select = self.config["select"]
        improved = [better(*pair, select) for pair in zip(each, best["scores"], strict=True)]
        if any(improved):
            new, old = ({k: model[k] for k in ("params", "norm")} for model in (now, best))
            scores = [
                {"step": self.step, **{k: each[i][k] for k in ("accuracy", "loss")}}
                if improved[i]
                else best["scores"][i]
                for i in range(len(each))
            ]
            self.state["best"] = {**_chosen(np.array(improved), new, old), "scores": scores}

    def save(self) -> None:
        """Write the group's checkpoint in the background, after the metrics up to it."""
        self.state["seconds"] = self.seconds()
        digests: list[dict[str, int] | None] = [None] * len(self.members)
        for i, member in enumerate(self.members):
            if member.metrics is not None:
                member.metrics.flush()
                digests[i] = metrics.digest(member.metrics.rows)
        known = {
            "iterators": [self.position(member) for member in self.members],
            "digests": digests,
            "diverged": {m.name: m.message for m in self.members if m.message},
        }
        self.checkpoints.save(self.step, self.state, known)

    def finish(self) -> dict[str, dict[str, Any] | Diverged]:
        """Run to the end and return each member's final.json or its divergence, by its name."""
        count = parameters(self.state["now"]) // len(self.members)
        print(
            f"{self.label}: {count:,} parameters each, from {self.origin}, workdirs "
            f"{', '.join(member.name for member in self.members)} in {self.folder.parent}",
            flush=True,
        )
        try:
            with Stop() as stop:
                self.loop(stop)
            self.checkpoints.wait()
            self.progress.close()
            ends: dict[str, dict[str, Any] | Diverged] = {}
            scores = self.final_scores()
            for i, member in enumerate(self.members):
                if member.writes:
                    said = member.message
                    ended = Diverged(said) if said else self.write_result(i, scores[i])
                    ends[member.name] = ended
        except KeyboardInterrupt:
            self.finish_writing = False  # a second signal
            raise
        finally:
            self.close()
        self.folder.rmtree()  # each has its own checkpoint now
        for name in ends:
            (self.folder.parent / name / GROUP).unlink(missing_ok=True)
        return ends

    def final_scores(self) -> list[dict[str, Any]]:
        """Score the best parameters of every member; none, if no result is wanted."""
        if not any(member.trains() for member in self.members):
            return [{} for _ in self.members]
        names = ("train", "valid", "test")
        first = self.members[0].dataset
        return final_scores_members(
            self.state["best"],
            {"train": self.train, "valid": self.valid, "test": self._split("test")},
            {name: splits.size(getattr(first, name)) for name in names},
            task=self.task,
            config=self.config,
            members=self.data,
        )

    def write_result(self, i: int, scores: dict[str, Any]) -> dict[str, Any]:
        """Write a member's checkpoint, and with the scores of its best parameters final.json."""
        member, state = self.members[i], member_state(self.state, i)
        assert member.metrics is not None
        self._save_own(member, state, self.position(member))
        final = result(member.config, state, member.metrics.rows, scores, self.layout.count)
        final["together"] = len(self.members)
        write_json(member.workdir / "final.json", final)
        return final

    def close(self) -> None:
        """Close the progress bar, the metrics and the checkpoints."""
        if hasattr(self, "progress"):
            self.progress.close()
        if not self.finish_writing:
            return
        for member in self.members:
            if member.metrics is not None:
                member.metrics.close()
        self.checkpoints.close()
