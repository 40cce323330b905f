"""Ways to choose a migration method without a trained selector, and a classifier beside it, to compare with.

- always one method (four of them), and one at random: the mean over the four;
- a rule of thumb, as an operator may have it: stop and copy what is small; copy beforehand what is rewritten slowly
  compared with the link; let the rest come after (`rule_of_thumb`);
- the published equations with nothing learnt (`limi.durations`), which the control loop falls back to;
- a LightGBM classifier of the winners, one for each weight (D3.3 speaks of a classifier).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from natwork_ray.domain.actions import MigrationMethod
from natwork_ray.domain.migrations import ContainerLoad
from natwork_ray.limi.durations import MigrationInputs, predict
from natwork_ray.limi.features import Floats, features
from natwork_ray.limi.run_table import METHODS, Choices, RunTable
from natwork_ray.limi.selection import cost
from natwork_ray.trees.boosters import lightgbm

MIB = float(2**20)
SMALL_BYTES = 32 * MIB  # below, moving everything takes no longer than arranging not to
SLOW_SHARE = 0.25  # dirtying below this share of the link: a pre-copy round leaves at most a quarter behind


def rule_of_thumb(load: ContainerLoad) -> MigrationMethod:
    """Cold below 32 MiB; pre-copy while dirtying takes less than a quarter of the link; else post-copy."""
    if load.memory_bytes < SMALL_BYTES:
        return MigrationMethod.COLD
    if load.dirty_bytes_per_s < SLOW_SHARE * load.bandwidth_bytes_per_s:
        return MigrationMethod.PRE_COPY
    return MigrationMethod.POST_COPY


def by_rule_of_thumb(loads: Sequence[ContainerLoad]) -> Choices:
    """(R,) indices into the methods."""
    return np.array([METHODS.index(rule_of_thumb(load)) for load in loads], dtype=np.intp)


def by_equations(loads: Sequence[ContainerLoad], weight: float) -> Choices:
    """(R,) the least cost by the equations of `limi.durations`, without any training."""
    total, down = (np.empty((len(loads), len(METHODS))) for _ in range(2))
    for i, load in enumerate(loads):
        inputs = MigrationInputs.of(load)
        for m, method in enumerate(METHODS):
            predicted = predict(method, inputs)
            total[i, m], down[i, m] = predicted.total_s, predicted.downtime_s
    return np.asarray(cost(total, down, weight).argmin(axis=1), dtype=np.intp)


def by_classifier(known: RunTable, asked: Sequence[ContainerLoad], *, weight: float, seed: int) -> Choices:
    """(R,) what a classifier trained on the winners of `known` runs says of `asked` loads."""
    package = lightgbm()
    best = known.costs(weight).argmin(axis=1)
    winners = np.unique(best)
    if len(winners) == 1:
        return np.full(len(asked), winners[0], dtype=np.intp)
    parameters = {
        "objective": "multiclass",
        "num_class": len(winners),
        "num_leaves": 8,
        "learning_rate": 0.1,
        "min_data_in_leaf": 20,
        "verbosity": -1,
        "num_threads": 1,
        "deterministic": True,
        "force_row_wise": True,
        "seed": seed,
    }
    data = package.Dataset(features(known.loads), np.searchsorted(winners, best), params=parameters)
    booster = package.train(parameters, data, num_boost_round=60)
    probabilities: Floats = booster.predict(features(asked), num_threads=1)
    return np.asarray(winners[probabilities.argmax(axis=1)], dtype=np.intp)
