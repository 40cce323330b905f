"""A small data set from the closed equations with noise: quicker than the laboratory, and no less honest for a test."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from natwork_ray.domain.migrations import ContainerLoad, LoadClass, MigrationRecord, MigrationState
from natwork_ray.domain.phases import MigrationMethod
from natwork_ray.domain.values import Backend
from natwork_ray.limi.collection import CollectionPlan, MigrationLaboratory, class_names, collect_run
from natwork_ray.limi.dataset import MigrationRow
from natwork_ray.limi.durations import MigrationInputs, predict
from natwork_ray.limi.selection import MethodSelector
from natwork_ray.limi.selector_card import SelectorSettings
from natwork_ray.limi.selector_file import loads
from natwork_ray.limi.selector_training import train_selector

QUICK = SelectorSettings(trees=12, margin_trees=5, learning_rate=0.3, folds=2, leaf_rows=20)


def noisy_equations(
    load_class: LoadClass, load: ContainerLoad, method: MigrationMethod, rng: np.random.Generator
) -> MigrationRecord:
    """A laboratory that takes no time."""
    usual = predict(method, MigrationInputs.of(load))
    z = rng.standard_normal(len(MigrationMethod))[list(MigrationMethod).index(method)]
    factor = math.exp(0.08 * z)
    return MigrationRecord(
        key=f"{load_class.name}/{method}",
        container="c",
        source="a",
        target="b",
        method=method,
        backend=Backend.EMULATED,
        state=MigrationState.MIGRATED,
        started_at_s=0.0,
        total_s=usual.total_s * factor,
        downtime_s=usual.downtime_s * factor,
        runs_on="b",
        phases=tuple(
            replace(p, starts_s=p.starts_s * factor, duration_s=p.duration_s * factor, size_bytes=p.transferred_bytes)
            for p in usual.phases
        ),
        load=load,
    )


def data_set(*, seed: int, repetitions: int) -> tuple[MigrationRow, ...]:
    plan = CollectionPlan(backend=Backend.EMULATED, seed=seed, repetitions=repetitions, classes=class_names())
    return tuple(row for key in plan.keys() for row in collect_run(plan, key, noisy_equations))  # noqa: SIM118


@pytest.fixture(scope="session")
def laboratory() -> MigrationLaboratory:
    return noisy_equations


@pytest.fixture(scope="session")
def quick() -> SelectorSettings:
    """Settings of `model`."""
    return QUICK


@pytest.fixture(scope="session")
def rows() -> tuple[MigrationRow, ...]:
    """34 classes, 6 repetitions, 4 methods."""
    return data_set(seed=3, repetitions=6)


@pytest.fixture(scope="session")
def model(rows: tuple[MigrationRow, ...]) -> bytes:
    """A selector trained on them."""
    return train_selector(rows, QUICK)


@pytest.fixture(scope="session")
def selector(model: bytes) -> MethodSelector:
    return loads(model)
