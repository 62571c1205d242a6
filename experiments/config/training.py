"""Checks how a config trains: the optimizer, the schedule of its rate, decay, microbatches."""

from __future__ import annotations

from typing import Any

from experiments.config.defaults import default
from experiments.usage import UsageError

ADAM = ("adam", "adamw", "lamb")
DECOUPLED = ("adamw", "lamb")


def check(plain: dict[str, Any]) -> None:
    """Check `config.optim`, and write the length of its schedule into it."""
    optim = plain["optim"]
    for key in ("nesterov", "decay_norms"):
        if not isinstance(optim[key], bool):
            raise UsageError(f"config.optim.{key}={optim[key]!r} must be True or False.")
    _check_taken(optim)
    _check_schedule(plain)
    count = optim["accumulate"]
    if plain["batch_size"] % count:
        raise UsageError(
            f"config.optim.accumulate={count} must divide config.batch_size, which is "
            f"{plain['batch_size']}."
        )
    if count > 1 and plain["batch_stats"] == "device":
        raise UsageError(
            "config.optim.accumulate is for statistics of the whole batch; write "
            "config.batch_stats='global', or accumulate=1."
        )


def _check_taken(optim: dict[str, Any]) -> None:
    """Refuse keys that the optimizer does not take."""
    name = optim["name"]
    if optim["weight_decay"] and name not in DECOUPLED:
        raise UsageError(
            f"config.optim.weight_decay is for {' and '.join(DECOUPLED)}, and the optimizer is "
            f"{name}; write config.optim.l2={optim['weight_decay']:g}, which is what other "
            "libraries call the weight decay of sgd."
        )
    if optim["decay_norms"] and not optim["weight_decay"]:
        raise UsageError("config.optim.decay_norms=True needs config.optim.weight_decay=0.01.")
    if optim["nesterov"] and (name != "sgd" or not optim["momentum"]):
        raise UsageError(
            "config.optim.nesterov=True is for name='sgd' with momentum; write "
            "config.optim.momentum=0.9."
        )
    usual = default().optim
    if optim["b2"] != usual.b2 and name not in ADAM:
        raise UsageError(f"config.optim.b2 is for {', '.join(ADAM)}, not for {name}.")


def _check_schedule(plain: dict[str, Any]) -> None:
    """Check the schedule; its length is config.steps unless it is given."""
    optim = plain["optim"]
    kind, steps = optim["schedule"], optim["schedule_steps"]
    if kind == "constant":
        if steps:
            raise UsageError(
                "config.optim.schedule_steps is the length of a schedule; write "
                "config.optim.schedule='cosine', for instance."
            )
        return
    optim["schedule_steps"] = steps or plain["steps"]
    if optim["warmup"] >= optim["schedule_steps"]:
        raise UsageError(
            f"config.optim.warmup={optim['warmup']} must be less than the schedule's "
            f"{optim['schedule_steps']} steps."
        )
    if kind == "step":
        _check_drops(optim)


def _check_drops(optim: dict[str, Any]) -> None:
    """Require parts of the schedule, in order and after the warm-up."""
    try:
        parts = [float(word) for word in optim["drops"].split(",")]
        good = all(0 < a < 1 for a in parts) and parts == sorted(set(parts))
    except ValueError:
        good = False
    if not good:
        raise UsageError(
            f"config.optim.drops={optim['drops']!r} must be growing parts of the schedule between "
            "0 and 1; write config.optim.drops=0.5,0.75."
        )
    if parts[0] * optim["schedule_steps"] <= optim["warmup"]:
        raise UsageError(
            f"config.optim.drops={optim['drops']!r} begins within the warm-up of "
            f"{optim['warmup']} steps."
        )
