"""Labelled runs cut into windows: causal, labelled by their last row, and never across two runs.

A window of T samples ends at the sample it is about and looks only backwards, as a detector in operation does. The
first samples of a run have no past of T samples: their windows repeat the first sample.

Overlapping windows share samples, so a random split of them leaks the test set into training (docs/profiling.md shows
by how much). Every window therefore remembers its run, and folds are made of run names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from natwork_ray.domain.labelled import LabelledRun
from natwork_ray.domain.telemetry import N_METRICS, TelemetryWindow
from natwork_ray.errors import InputError
from natwork_ray.profiling.bounds import MAX_WINDOW, MIN_WINDOW
from natwork_ray.profiling.profile import Floats, ProfileBook, deviations

# Turns the samples of a run, float32 (T, 12) with NaN, into the network's input of the same shape, NaN-free.
Normaliser = Callable[[LabelledRun], Floats]


@dataclass(frozen=True, eq=False)
class WindowSet:
    """M windows with their labels.

    Attributes:
        inputs: float32 (M, T, 12), normalised, without NaN.
        kinds: int8 (M,), label of the last row: index into `STAGE_2_CLASSES`, -1 anomalous of unlabelled type.
        unit: (M,) index of the `LabelledRun` that the window was cut from.
        run_names: name of each unit's run; units of one name belong to one fold.
    """

    inputs: Floats
    kinds: NDArray[np.int8]
    unit: NDArray[np.intp]
    run_names: tuple[str, ...]

    @property
    def anomalous(self) -> NDArray[np.bool_]:
        """(M,) true where the last row is labelled anomalous."""
        return np.asarray(self.kinds != 0)

    def of_runs(self, names: Sequence[str]) -> NDArray[np.bool_]:
        """(M,) true for windows cut from runs of these names."""
        chosen = np.array([name in set(names) for name in self.run_names], dtype=bool)
        return np.asarray(chosen[self.unit])


def cut(samples: Floats, length: int) -> Floats:
    """(T, length, 12): for each of T samples (T, 12) the window that ends there."""
    padded = np.concatenate([np.repeat(samples[:1], length - 1, axis=0), samples])
    view = np.lib.stride_tricks.sliding_window_view(padded, length, axis=0)
    return np.ascontiguousarray(view.transpose(0, 2, 1))


def windows_of(runs: Sequence[LabelledRun], length: int, normalise: Normaliser) -> WindowSet:
    """Cut every run into windows of `length` samples.

    Raises:
        InputError: `length` out of range, or no samples at all.
    """
    if not MIN_WINDOW <= length <= MAX_WINDOW:
        raise InputError(f"window of {length} samples", hint=f"use {MIN_WINDOW} to {MAX_WINDOW} samples")
    recorded = [(i, run) for i, run in enumerate(runs) if len(run.kinds)]
    if not recorded:
        raise InputError(f"{len(runs)} runs without a sample", hint="give runs that hold samples")
    return WindowSet(
        inputs=np.concatenate([cut(normalise(run), length) for _, run in recorded]),
        kinds=np.concatenate([run.kinds for _, run in recorded]),
        unit=np.concatenate([np.full(len(run.kinds), i, dtype=np.intp) for i, run in recorded]),
        run_names=tuple(run.run for run in runs),
    )


def commissioning_book(runs: Sequence[LabelledRun]) -> ProfileBook:
    """Profiles of all services from the commissioning parts of these runs; several runs of a service are pooled."""
    parts = [run for run in runs if run.commissioning > 0]
    if not parts:
        return ProfileBook()
    longest = max(run.commissioning for run in parts)
    values = np.full((len(parts), longest, N_METRICS), np.nan, dtype=np.float32)
    for row, run in zip(values, parts, strict=True):
        row[: run.commissioning] = run.values[: run.commissioning]
    return ProfileBook.learn(
        TelemetryWindow(
            containers=tuple(f"{run.service}/{run.run}/{i}" for i, run in enumerate(parts)),
            services=tuple(run.service for run in parts),
            end_s=0.0,
            step_s=parts[0].step_s,
            values=values,
        )
    )


def by_profile(book: ProfileBook) -> Normaliser:
    """Deviations from the service's profile in one book, missing samples as usual (0)."""

    def normalise(run: LabelledRun) -> Floats:
        references = book.references((run.service,))
        return np.asarray(np.nan_to_num(deviations(run.values[None], references)[0], nan=0.0))

    return normalise


def by_own_commissioning(runs: Sequence[LabelledRun]) -> Normaliser:
    """Deviations from the profile that each run's own commissioning part teaches: what operation does.

    Runs of one name and service share their commissioning part, wherever among them it lies.
    """
    books = {name: by_profile(commissioning_book([r for r in runs if r.run == name])) for name in {r.run for r in runs}}

    def normalise(run: LabelledRun) -> Floats:
        return books[run.run](run)

    return normalise


def by_standard_score(runs: Sequence[LabelledRun]) -> Normaliser:
    """Plain z-score of raw metrics over all samples of these runs: one scale for every service, no profile."""
    stacked = np.concatenate([run.values for run in runs]).astype(np.float64)
    measured = ~np.isnan(stacked)
    count = np.maximum(measured.sum(axis=0), 1)
    mean = np.where(measured, stacked, 0.0).sum(axis=0) / count
    variance = (np.where(measured, stacked - mean, 0.0) ** 2).sum(axis=0) / count
    # A metric that never moves (errors in iAnomaly) tells nothing: it becomes 0, not NaN.
    scale = np.where(variance > 0, np.sqrt(variance), np.inf)

    def normalise(run: LabelledRun) -> Floats:
        return np.asarray(np.nan_to_num((run.values - mean) / scale, nan=0.0), dtype=np.float32)

    return normalise
