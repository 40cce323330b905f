"""The emulated data set: every run in a laboratory of its own, moved by the LiMi agents' own code in virtual time.

A run is one container, as `natwork_ray.limi.load_classes` draws it for its class, between two nodes that it has to
itself. What a row holds as known before the migration was measured, with the laboratory's errors of measurement; what
the container really is stays with the seed, and gives the expected costs against which a choice is judged.

Left out: concurrent migrations, which the schedule's benchmark looks at; failures, which are no rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from natwork_ray.domain.migrations import ContainerLoad, LoadClass, MigrationRecord
from natwork_ray.domain.phases import MigrationMethod
from natwork_ray.emulation.migration_nodes import lab_of, run_migration
from natwork_ray.limi.collection import CollectionPlan, RunKey, collect_run, true_load
from natwork_ray.limi.dataset import MigrationRow
from natwork_ray.limi.load_classes import OBSERVED_S
from natwork_ray.limi.phase_times import DEFAULT_PARAMETERS, DurationParameters
from natwork_ray.limi.reproduce import ExpectedCosts
from natwork_ray.limi.run_table import METHODS, RunTable

NOISE_FREE = replace(DEFAULT_PARAMETERS, noise_sigma=0.0)


def laboratory(
    load_class: LoadClass,
    load: ContainerLoad,
    method: MigrationMethod,
    rng: np.random.Generator,
    *,
    parameters: DurationParameters = DEFAULT_PARAMETERS,
) -> MigrationRecord:
    """See `MigrationLaboratory`. The container is measured for as long as `load` says, then moved."""
    lab = lab_of(load, seed=int(rng.integers(2**63)), parameters=parameters)
    key = f"{load_class.name}/{method}"
    return run_migration(lab, "container", "target", method, key=key, observe_s=load.observed_s or OBSERVED_S)


def collect_emulated(plan: CollectionPlan, keys: Sequence[RunKey]) -> tuple[MigrationRow, ...]:
    """The rows of these runs."""
    return tuple(row for key in keys for row in collect_run(plan, key, laboratory))


def expected_costs(table: RunTable) -> ExpectedCosts:
    """What each run costs on average under each method: the same container, the same path, no noise.

    The laboratory's noise has median 1 on every phase, and phases add up: a migration without it lies within a per cent
    or two of the mean over many with it, alike for all methods (tests/unit/emulation/test_collecting.py).
    """
    total, down = (np.empty((len(table.runs), len(METHODS))) for _ in range(2))
    for i, (key, seed) in enumerate(zip(table.keys, table.seeds, strict=True)):
        total[i], down[i] = expected_of(true_load(seed, key))
    return ExpectedCosts(total, down)


def expected_of(load: ContainerLoad) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Noise-free total times and downtimes of a container under every method, seconds."""
    found = []
    for method in METHODS:
        lab = lab_of(load, seed=0, parameters=NOISE_FREE)
        record = run_migration(lab, "container", "target", method, observe_s=load.observed_s or OBSERVED_S)
        found.append((record.total_s, record.downtime_s))
    return tuple(f[0] for f in found), tuple(f[1] for f in found)
