"""Population statistics of finished runs, of each step or shared over all steps in some places."""

import copy

import jax

from experiments import tasks
from experiments.runtime import step


def population(finished, shared=(), batch_size=0):
    """Estimate population statistics over the training set, shared over time in some places.

    Returns the task that reads them, and the state that holds them. In training every step is
    normalized by its own batch either way, so the parameters are those of one run. `batch_size` is
    that of the batches they are measured in; 0: the config's.
    """
    config = copy.deepcopy(finished.config)
    for place in shared:
        norm = {k: v for k, v in config["model"][place].items() if k != "max_steps"}
        config["model"][place] = {**norm, "lift": "shared"}
    task, how = tasks.build(config, finished.dataset), config["population"]
    _, start = task.init(jax.random.key(0))
    train, size = finished.dataset.train, batch_size or how["batch_size"]
    exact = step.population(
        finished.params, start, train, task=task, how=how["how"], batch_size=size
    )
    return task, exact


def score(finished, task, norm, split, stats="running", batch_size=500):
    """Score a split with the best parameters of a finished run."""
    return step.evaluate(
        finished.params, norm, split, task=task, stats=stats, batch_size=batch_size
    )
