"""What a collection of the data set has to do, and the seed of each part of it (D3.3 section 2.1).

34 load classes x 4 methods x 45 repetitions = 6,120 migrations: D3.3 says "over 6000", uniformly over classes and
methods. The unit of work is a run: one container, moved by every method from the same state. Each draw has a stream of
its own, named by seed, class and repetition, so the rows do not depend on who makes them, when and in which
order, and a collection that was cut off goes on as if nothing had happened.

    >>> plan = CollectionPlan(backend=Backend.EMULATED, seed=7, repetitions=45, classes=class_names())
    >>> len(plan.keys()) * len(plan.methods)
    6120
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np

from natwork_ray.domain.actions import MigrationMethod
from natwork_ray.domain.migrations import ContainerLoad, LoadClass, MigrationRecord
from natwork_ray.domain.values import Backend, value
from natwork_ray.errors import UsageError
from natwork_ray.limi.dataset import MigrationRow, row_of
from natwork_ray.limi.load_classes import ALL_CLASSES, FEASIBLE_CLASSES, draw_load, load_class

REPETITIONS = 45
MAX_REPETITIONS = 10_000
METHODS = tuple(MigrationMethod)
_CLASS_NUMBER = {c.name: number for number, c in enumerate(ALL_CLASSES)}


def class_names() -> tuple[str, ...]:
    """Names of the 34 feasible classes."""
    return tuple(c.name for c in FEASIBLE_CLASSES)


@value
class RunKey:
    """One run: a class and the number of its repetition."""

    load_class: str
    repetition: int


@value
class CollectionPlan:
    """Everything that decides what a collection holds. Two collections of equal plans are the same (emulated).

    Raises:
        UsageError: no class, a class twice, no method, or a number out of range.
        InputError: a class that does not exist or is not feasible.
    """

    backend: Backend
    seed: int
    repetitions: int
    classes: tuple[str, ...]
    methods: tuple[MigrationMethod, ...] = METHODS

    def __post_init__(self) -> None:
        if not 1 <= self.repetitions <= MAX_REPETITIONS:
            raise UsageError(f"{self.repetitions} repetitions", hint=f"use 1 to {MAX_REPETITIONS}")
        if not 0 <= self.seed < 2**32:
            raise UsageError(f"seed {self.seed}", hint="use 0 to 4294967295")
        for what, given in (("class", self.classes), ("method", self.methods)):
            if not given or len(set(given)) != len(given):
                raise UsageError(f"no {what}, or one twice", hint=f"name each {what} once")
        for name in self.classes:
            load_class(name)

    @property
    def migrations(self) -> int:
        """How many rows the collection will hold."""
        return len(self.classes) * self.repetitions * len(self.methods)

    def keys(self) -> tuple[RunKey, ...]:
        """Runs, class by class within a repetition: a part of a collection covers all classes."""
        return tuple(
            RunKey(load_class=name, repetition=number) for number in range(self.repetitions) for name in self.classes
        )


class MigrationLaboratory(Protocol):
    """Where the migrations of a run happen."""

    def __call__(
        self, load_class: LoadClass, load: ContainerLoad, method: MigrationMethod, rng: np.random.Generator
    ) -> MigrationRecord:
        """One migration of a container so loaded. `rng` is the same for all methods of a run: see `streams`."""
        ...


def streams(seed: int, key: RunKey) -> tuple[np.random.Generator, np.random.SeedSequence]:
    """The generator of a run's load, and the seed of what its laboratory draws.

    All methods of a run share the second: the container is measured alike whatever is done to it afterwards. What a
    migration draws beyond that is named by its method, so that the methods do not share their luck.
    """
    root = np.random.SeedSequence(seed, spawn_key=(_CLASS_NUMBER[key.load_class], key.repetition))
    load, laboratory = root.spawn(2)
    return np.random.default_rng(load), laboratory


def true_load(seed: int, key: RunKey) -> ContainerLoad:
    """The container of a run as it really is; the data set holds what was measured of it."""
    return draw_load(load_class(key.load_class), streams(seed, key)[0])


def collect_run(plan: CollectionPlan, key: RunKey, laboratory: MigrationLaboratory) -> tuple[MigrationRow, ...]:
    """The rows of one run, in the order of the plan's methods.

    Raises:
        InputError: a migration did not end on the target.
    """
    kind, load = load_class(key.load_class), true_load(plan.seed, key)
    seeds = streams(plan.seed, key)[1]
    return tuple(
        row_of(
            laboratory(kind, load, method, np.random.default_rng(seeds)),
            load_class=kind, repetition=key.repetition, seed=plan.seed,
        )
        for method in plan.methods
    )  # fmt: skip


def in_order(plan: CollectionPlan, rows: Iterable[MigrationRow]) -> Sequence[MigrationRow]:
    """Rows by repetition, class and method, as the plan has them."""
    classes = {name: place for place, name in enumerate(plan.classes)}
    return sorted(rows, key=lambda r: (r.repetition, classes[r.load_class], METHODS.index(r.method)))
