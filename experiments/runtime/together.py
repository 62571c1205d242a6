"""Trains runs that differ only in seed and learning rate side by side, as one program.

`train_together` is `experiments.runtime.run.train` for several runs at once: the same step, mapped
with `jax.vmap` over a leading axis of members. Each member has its own key, data order and learning
rate, and its own workdir with the files of a run alone. While they train there is one checkpoint,
of all members, in a folder together-… beside the workdirs; at the end each workdir gets a
checkpoint of its own and the folder goes.

A killed group continues with the same members, whatever a command asks for: `group.json` in a
workdir names its group, `members.json` in the group's folder its members.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from etils import epath

from experiments import tasks
from experiments.config import validate
from experiments.config.defaults import FREE_KEYS, flatten
from experiments.data import datasets, splits
from experiments.runtime import exits, parallel, run
from experiments.runtime.checkpoints import Checkpoints
from experiments.runtime.exits import Diverged
from experiments.runtime.group import Group, Member, has_checkpoint
from experiments.runtime.workdir import (
    GROUP,
    check_workdir,
    make_workdir,
    read_json,
    removed_if_refused,
    write_json,
    writer_lock,
)
from experiments.usage import UsageError, short

# What members may differ in: values that enter the program as arrays, and the run's name.
OWN_KEYS = ("seed", "optim.learning_rate", "name")
# These change what is in the data set, and not its shapes; then each member has its own.
DATA_KEYS = ("permutation", "permutation_seed", "data.draw")
MEMBERS = "members.json"


def train_together(
    configs: Sequence[Mapping[str, Any]], workdirs: Sequence[str | os.PathLike]
) -> list[dict[str, Any] | Diverged]:
    """Train runs side by side in one program, each in its workdir, resuming if possible.

    A member's numbers are those of `run.train` alone but for rounding (the compiler orders sums
    in another way). Called again after a kill, it continues to the bit. A member that diverges
    leaves the others alone. `seconds`, in its rows and its result, are its share of the time:
    that of all members over their number.

    Args:
        configs: one a member, equal but for "seed", "optim.learning_rate" and "name", and for
            "permutation", "permutation_seed" and "data.draw", with which each member has a data
            set of its own in memory. `plan` divides any configs into such groups.
        workdirs: one a member, all in one folder.

    Returns:
        A list in the order of `configs`: the contents of final.json, which also say how many were
        trained `together`, or the `Diverged` that `run.train` would have raised.

    Raises:
        UsageError: the configs differ in another key; several devices or processes; and whatever
            `run.train` refuses.
        Interrupted: a signal stopped the group, after its checkpoint was written.

    Example::

        arm = digits.get_config("lstm")
        configs = [members.with_changes(arm, {"seed": seed}) for seed in range(8)]
        finals = train_together(configs, [folder / str(seed) for seed in range(8)])
    """
    plain = [validate.check(config) for config in configs]
    folders = [epath.Path(workdir) for workdir in workdirs]
    _check_together(plain, folders)
    datasets.require(plain[0])  # before a workdir is made
    layout = parallel.DeviceLayout(plain[0]["parallel"], plain[0]["devices"])
    _check_layout(plain[0], layout)
    for config, folder in zip(plain, folders, strict=True):
        check_workdir(folder, config, layout.count)
    results: dict[int, dict[str, Any] | Diverged] = {}
    sources: dict[Any, list[int]] = {}
    for i, folder in enumerate(folders):
        if (final := run.finished(folder, plain[i]["steps"])) is not None:
            results[i] = final
        else:
            sources.setdefault(_source(folder), []).append(i)
    for source, members in sources.items():
        some, where = [plain[i] for i in members], [folders[i] for i in members]
        if isinstance(source, int) and len(members) == 1:
            ends = [_alone(some[0], where[0])]
        else:
            ends = _train_group(some, where, source, layout)
        results |= dict(zip(members, ends, strict=True))
    return [results[i] for i in range(len(plain))]


def plan(
    configs: Sequence[Mapping[str, Any]], workdirs: Sequence[str | os.PathLike], most: int
) -> list[list[int]]:
    """Divide runs into groups for `train_together`, of so many members at most; return indices."""
    groups: dict[str, list[int]] = {}
    for i, config in enumerate(configs):
        place = os.fspath(epath.Path(workdirs[i]).parent)
        groups.setdefault(json.dumps([place, _common(config)], sort_keys=True), []).append(i)
    return [whole[at : at + most] for whole in groups.values() for at in range(0, len(whole), most)]


def _common(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what all members have in common, by key."""
    own = (*OWN_KEYS, *DATA_KEYS)
    return {k: v for k, v in flatten(validate.check(config)).items() if k not in own}


def _check_together(configs: Sequence[dict], folders: Sequence[epath.Path]) -> None:
    """Refuse runs that one program cannot train."""
    if not configs or len(configs) != len(folders):
        raise UsageError(f"{len(configs)} configs for {len(folders)} workdirs; name one for each.")
    if len({os.fspath(folder) for folder in folders}) < len(folders):
        raise UsageError("two members have one workdir; name one for each.")
    if len({os.fspath(folder.parent) for folder in folders}) > 1:
        raise UsageError(
            "the workdirs of runs that are trained together must be folders of one folder, where "
            f"their checkpoint goes; there are {folders[0]} and {folders[-1]}."
        )
    first = _common(configs[0])
    for other in map(_common, configs[1:]):
        for key in sorted(first.keys() | other.keys()):
            a, b = first.get(key, "(absent)"), other.get(key, "(absent)")
            if a != b:
                raise UsageError(
                    f"config.{key} is {short(a)} for one member and {short(b)} for another: runs "
                    "that are trained together may differ in seed, optim.learning_rate, data.draw "
                    f"and permutation_seed alone. Train the runs of each {key} in a call of their "
                    f"own, or write --grid={key}=VALUE,VALUE for experiments.sweep, which does."
                )
    if configs[0]["resume"]:
        raise UsageError(
            "config.resume is for a run alone; write --together=1, or --config.resume=''."
        )


def _check_layout(config: Mapping[str, Any], layout: parallel.DeviceLayout) -> None:
    if layout.processes > 1:
        raise UsageError("runs are trained together in one process; leave out --distributed.")
    if layout.count > 1:
        raise UsageError(
            f"runs that are trained together have one device, and there are {layout.count}; write "
            "--config.devices=1."
        )
    if not layout.plain:
        raise UsageError(
            f"config.parallel={config['parallel']!r} is for a run alone; write "
            "--config.parallel=jit to train runs together."
        )


def _alone(config: dict, folder: epath.Path) -> dict[str, Any] | Diverged:
    try:
        return run.train(config, folder)
    except Diverged as error:
        return error


def _source(folder: epath.Path) -> str | int:
    """Return where a run continues: the name of its group, or the step of its own checkpoint."""
    pointer = folder / GROUP
    if pointer.exists():
        name = read_json(pointer, "group")["group"]
        if has_checkpoint(folder.parent / name):
            return name
    if not has_checkpoint(folder):
        return 0
    own = Checkpoints(folder, write=False)
    try:
        return own.latest() or 0
    finally:
        own.close()


def _train_group(
    configs: Sequence[dict],
    folders: Sequence[epath.Path],
    source: str | int,
    layout: parallel.DeviceLayout,
) -> list[dict[str, Any] | Diverged]:
    """Train the group of some runs, which may have further members, and return these runs' ends."""
    parent, common = folders[0].parent, configs[0]
    if isinstance(source, str):
        group = parent / source
        lines = read_json(group / MEMBERS, "members")["members"]
    else:
        lines = listed(configs, [folder.name for folder in folders])
        fixed = {k: v for k, v in _common(common).items() if k not in FREE_KEYS}
        words = json.dumps([lines, fixed], sort_keys=True)
        group = parent / f"together-{hashlib.sha256(words.encode()).hexdigest()[:10]}"
    members = load_members(common, parent, lines)
    asked = {folder.name for folder in folders}
    with contextlib.ExitStack() as stack:
        for member in members:
            there = member.workdir / GROUP
            is_ours = there.exists() and read_json(there, "group")["group"] == group.name
            member.writes = member.workdir.name in asked or (
                is_ours and run.finished(member.workdir, common["steps"]) is None
            )
            if member.writes:
                stack.enter_context(removed_if_refused(member.workdir))
                make_workdir(member.workdir, member.config, layout.count)
                stack.enter_context(writer_lock(member.workdir))
        group.mkdir(parents=True, exist_ok=True)
        stack.enter_context(writer_lock(group))
        stack.enter_context(
            exits.reraise_as_broken(f"the newest whole checkpoint in {group}/checkpoints is kept.")
        )
        if not isinstance(source, str):
            if (group / "checkpoints").is_dir():  # of a group that its members have left
                (group / "checkpoints").rmtree()
            write_json(group / MEMBERS, {"members": lines})
            for member in members:
                write_json(member.workdir / GROUP, {"group": group.name})
        try:
            ends = Group(members, group, layout).finish()
        except UsageError:
            if not has_checkpoint(group):
                group.rmtree()
            raise
        return [ends[folder.name] for folder in folders]


def listed(configs: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[dict[str, Any]]:
    """Return a line for each member, as members.json has them: its folder and its own values."""
    own = [{k: flatten(config)[k] for k in (*OWN_KEYS, *DATA_KEYS)} for config in configs]
    return [{"workdir": n, "values": values} for n, values in zip(names, own, strict=True)]


def load_members(
    common: Mapping[str, Any], parent: epath.Path, lines: Sequence[Mapping[str, Any]]
) -> list[Member]:
    """Load the data of each member and build its task; `lines` are those of `listed`."""
    loaded: dict[str, tuple[tasks.Task, splits.Dataset]] = {}
    members = []
    for line in lines:
        config = json.loads(json.dumps(common))
        for key, value in line["values"].items():
            at, last = config, key.split(".")
            for part in last[:-1]:
                at = at[part]
            at[last[-1]] = value
        key = json.dumps([flatten(config)[k] for k in DATA_KEYS])
        if key not in loaded:
            dataset = datasets.load_config_data(config)
            if isinstance(dataset.train, splits.Streamed):
                raise UsageError(
                    "the data set is larger than config.data.memory, and runs that are trained "
                    "together have it in memory; write --together=1, or more GB there."
                )
            task = tasks.build(config, dataset)
            jax.eval_shape(lambda key, task=task: task.init(key), jax.random.key(0))
            loaded[key] = (task, dataset.on_device())
        members.append(Member(config, parent / line["workdir"], *loaded[key]))
    if any(member.task != members[0].task for member in members):
        raise UsageError(
            f"config.{' and config.'.join(DATA_KEYS)} give the members unlike models; write "
            "--together=1."
        )
    return members
