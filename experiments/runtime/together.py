"""Trains runs that differ in seed, learning rate and initial scale side by side, as one program.

`train_together` is `experiments.runtime.run.train` for several runs at once: the same step, mapped
with `jax.vmap` over a leading axis of members. Each member has its own key, data order, learning
rate and initial parameters, and its own workdir with the files of a run alone. While they train
there is one checkpoint, of all members, in a folder together-… beside the workdirs, or beside the
folders that these are in; at the end each workdir gets a checkpoint of its own and the folder goes.

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

import normjax
from experiments import tasks
from experiments.config import validate
from experiments.config.defaults import FREE_KEYS, flatten
from experiments.config.models import factories
from experiments.data import datasets, splits
from experiments.runtime import exits, parallel, run
from experiments.runtime.checkpoints import Checkpoints, local
from experiments.runtime.exits import Diverged
from experiments.runtime.group import Group, Member, has_checkpoint
from experiments.runtime.workdir import (
    check_workdir,
    group_of,
    join_group,
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
# This key of a norm enters the initial parameters alone: `Norm.init` fills an array with it that is
# trained from there on, and no step reads it. "gamma" sets it in all norms of a variant.
SCALE = "scale_init"
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
        configs: one a member, equal but for "seed", "optim.learning_rate" and "name", for the
            initial scales of norms (`initial`), and for "permutation", "permutation_seed" and
            "data.draw", with which each member has a data set of its own in memory. `plan` divides
            any configs into such groups.
        workdirs: one a member, all in one folder, or in folders of one folder.

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
    folders = [_absolute(workdir) for workdir in workdirs]
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
    """Divide runs into groups for `train_together`, of so many members at most; return indices.

    Runs of a group that was begun, and not finished, stay together, however many these are.
    """
    wholes: dict[tuple[str, ...], list[int]] = {}
    for i, workdir in enumerate(workdirs):
        folder = _absolute(workdir)
        if group := begun(folder):
            key: tuple[str, ...] = (os.fspath(group),)
        else:
            common = json.dumps(_common(validate.check(configs[i])), sort_keys=True)
            key = (os.fspath(folder.parent.parent), common)
        wholes.setdefault(key, []).append(i)
    groups = []
    for key, whole in wholes.items():
        size = len(whole) if len(key) == 1 else most
        groups += [whole[at : at + size] for at in range(0, len(whole), size)]
    return groups


def initial(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of a config that enter the initial parameters alone, with their values.

    The user's own model may read at any step what it was given, so it has none.
    """
    model = config["model"]
    if "module" in model:
        return {}
    norms = factories(normjax, "Norm")
    found = {
        f"model.{place}.{SCALE}": norm[SCALE]
        for place, norm in model.items()
        if isinstance(norm, Mapping) and norm.get("name") in norms and SCALE in norm
    }
    return found | ({"gamma": config["gamma"]} if "gamma" in config else {})


def _own(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a member may have for itself, by key."""
    flat = flatten(config)
    return {k: flat[k] for k in (*OWN_KEYS, *DATA_KEYS)} | initial(config)


def _common(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what all members have in common, by key: of initial scales, that there are some."""
    there = dict.fromkeys(initial(config), "its own")
    own = (*OWN_KEYS, *DATA_KEYS)
    return {k: v for k, v in flatten(config).items() if k not in own} | there


def _absolute(workdir: str | os.PathLike) -> epath.Path:
    """Return a path whose parents are folders above it."""
    return epath.Path(os.path.abspath(workdir) if local(workdir) else workdir)


def _place(folders: Sequence[epath.Path]) -> epath.Path:
    """Return the folder in which the runs in these folders have their group's."""
    for places in ([f.parent for f in folders], [f.parent.parent for f in folders]):
        if len({os.fspath(place) for place in places}) == 1:
            return places[0]
    raise UsageError(
        "the workdirs of runs that are trained together must be folders of one folder, where "
        "their checkpoint goes, or be in such folders, ARM/RUN; there are "
        f"{folders[0]} and {folders[-1]}."
    )


def _check_together(configs: Sequence[dict], folders: Sequence[epath.Path]) -> None:
    """Refuse runs that one program cannot train."""
    if not configs or len(configs) != len(folders):
        raise UsageError(f"{len(configs)} configs for {len(folders)} workdirs; name one for each.")
    if len({os.fspath(folder) for folder in folders}) < len(folders):
        raise UsageError("two members have one workdir; name one for each.")
    _place(folders)
    first = _common(configs[0])
    for config in configs[1:]:
        other = _common(config)
        for key in sorted(first.keys() | other.keys()):
            if first.get(key) != other.get(key):
                a, b = (flatten(c).get(key, "(absent)") for c in (configs[0], config))
                raise UsageError(
                    f"config.{key} is {short(a)} for one member and {short(b)} for another: runs "
                    "that are trained together may differ in seed, optim.learning_rate, data.draw, "
                    "permutation_seed and the initial scales of norms alone. Train the runs of "
                    f"each {key} in a call of their own, or write --grid={key}=VALUE,VALUE for "
                    "experiments.sweep, which does."
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


def begun(folder: str | os.PathLike) -> epath.Path | None:
    """Return the folder of a run's group, if there is a checkpoint to continue from."""
    group = group_of(_absolute(folder))
    return group if group is not None and has_checkpoint(group) else None


def _source(folder: epath.Path) -> str | int:
    """Return where a run continues: its group's folder, or the step of its own checkpoint."""
    if group := begun(folder):
        return os.fspath(group)
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
    common = configs[0]
    place = epath.Path(source).parent if isinstance(source, str) else _place(folders)
    asked = [os.fspath(folder.relative_to(place)) for folder in folders]
    if isinstance(source, str):
        group = epath.Path(source)
        lines = read_json(group / MEMBERS, "members")["members"]
    else:
        lines = listed(configs, asked)
        fixed = {k: v for k, v in _common(common).items() if k not in FREE_KEYS}
        words = json.dumps([lines, fixed], sort_keys=True)
        group = place / f"together-{hashlib.sha256(words.encode()).hexdigest()[:10]}"
    members = load_members(common, place, lines)
    with contextlib.ExitStack() as stack:
        for member in members:
            is_ours = group_of(member.workdir) == group
            member.writes = member.name in asked or (
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
                join_group(member.workdir, group)
        try:
            ends = Group(members, group, layout).finish()
        except UsageError:
            if not has_checkpoint(group):
                group.rmtree()
            raise
        return [ends[name] for name in asked]


def listed(configs: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[dict[str, Any]]:
    """Return a line for each member, as members.json has them: its folder and its own values."""
    pairs = zip(names, configs, strict=True)
    return [{"workdir": name, "values": _own(config)} for name, config in pairs]


def _with_values(config: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Copy a plain config and set some keys, each written as a path."""
    changed = json.loads(json.dumps(config))
    for key, value in values.items():
        *path, last = key.split(".")
        at = changed
        for part in path:
            at = at[part]
        at[last] = value
    return changed


def load_members(
    common: Mapping[str, Any], place: epath.Path, lines: Sequence[Mapping[str, Any]]
) -> list[Member]:
    """Load the data of each member and build its task; `lines` are those of `listed`.

    The step's task has initial scales of 1, so that one program serves all that differ in these.
    """
    loaded: dict[str, tuple[tasks.Task, splits.Dataset]] = {}
    own_tasks: dict[str, tasks.Task] = {}
    members = []
    for line in lines:
        config = _with_values(common, line["values"])
        scales = initial(config)
        key = json.dumps([flatten(config)[k] for k in DATA_KEYS])
        if key not in loaded:
            dataset = datasets.load_config_data(config)
            if isinstance(dataset.train, splits.Streamed):
                raise UsageError(
                    "the data set is larger than config.data.memory, and runs that are trained "
                    "together have it in memory; write --together=1, or more GB there."
                )
            task = tasks.build(_with_values(config, dict.fromkeys(scales, 1.0)), dataset)
            loaded[key] = (task, dataset.on_device())
        task, dataset = loaded[key]
        own = json.dumps([key, scales])
        if own not in own_tasks:
            own_tasks[own] = tasks.build(config, dataset)
            jax.eval_shape(own_tasks[own].init, jax.random.key(0))
        name = line["workdir"]
        members.append(Member(config, name, place / name, task, own_tasks[own], dataset))
    if any(member.task != members[0].task for member in members):
        raise UsageError(
            f"config.{' and config.'.join(DATA_KEYS)} give the members unlike models; write "
            "--together=1."
        )
    return members
