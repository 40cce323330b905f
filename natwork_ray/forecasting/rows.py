"""Recordings cut into rows for training: causal windows, what came after them, and which recording they are from.

A window looks backwards only and never across two recordings; what came after is taken from the same recording. Where
the container restarted in between, what came after is left out: no load tells when a process will be killed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from natwork_ray.domain.labelled import LabelledRun
from natwork_ray.errors import InputError
from natwork_ray.forecasting.card import ForecastSettings
from natwork_ray.forecasting.features import inputs
from natwork_ray.forecasting.frames import Floats, framed, restarts, sliding
from natwork_ray.forecasting.references import Doubles, References

MAX_SAMPLES = 5_000_000


@dataclass(frozen=True, eq=False)
class Rows:
    """M windows of recordings.

    Attributes:
        columns: K tables float32 (M, F), see `features.inputs`.
        newest: float64 (M, K), the newest sample of each target; NaN where it is missing.
        change: float64 (M, K, H), change until each horizon; NaN where it was not measured or the container restarted.
        reach: float64 (M, K, H), the unit of changes.
        service: (M,) place of the service in `services`.
        recording: (M,) place of the recording in the sequence that was given.
        normal: (M,) true where the newest sample is labelled normal.
        services: names.
        runs: run name of each recording.
    """

    columns: tuple[Floats, ...]
    newest: Doubles
    change: Doubles
    reach: Doubles
    service: NDArray[np.intp]
    recording: NDArray[np.intp]
    normal: NDArray[np.bool_]
    services: tuple[str, ...]
    runs: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.service)

    def relative(self, k: int, j: int) -> Doubles:
        """Change (M,) of target k until horizon j, in units of reach."""
        return np.asarray(self.change[:, k, j] / self.reach[:, k, j])


def check_runs(runs: Sequence[LabelledRun]) -> None:
    """Refuse what cannot be trained on.

    Raises:
        InputError: nothing, too much, or recordings of different steps.
    """
    samples = sum(len(run.kinds) for run in runs)
    if not samples:
        raise InputError(f"{len(runs)} recordings without a sample", hint="give recordings that hold samples")
    if samples > MAX_SAMPLES:
        raise InputError(f"{samples} samples to train on", hint=f"at most {MAX_SAMPLES}: leave recordings out")
    steps = sorted({run.step_s for run in runs})
    if len(steps) > 1:
        raise InputError(
            f"recordings with a sample every {steps[0]:g} s and every {steps[-1]:g} s",
            hint="horizons count steps: train one forecaster per step",
        )


def rows_of(runs: Sequence[LabelledRun], references: References, settings: ForecastSettings) -> Rows:
    """All windows of these recordings that have at least one sample of a target."""
    targets, horizons = settings.targets, settings.horizons
    columns: list[list[Floats]] = [[] for _ in targets]
    newest, change, reach, service, recording, normal = [], [], [], [], [], []
    places = references.rows([run.service for run in runs])
    names = tuple(dict.fromkeys(run.service for run in runs))
    for number, run in enumerate(runs):
        if not len(run.kinds):
            continue
        frame = framed(sliding(run.values, settings.window))
        table, unit = references.of(np.full(len(run.kinds), places[number]), frame, targets)
        for k, metric in enumerate(targets):
            columns[k].append(inputs(frame, metric, table))
        values = run.values[:, list(targets)].astype(np.float64)
        newest.append(values)
        change.append(_changes(values, restarts(run.values[None])[0], horizons))
        reach.append(unit)
        service.append(np.full(len(run.kinds), names.index(run.service)))
        recording.append(np.full(len(run.kinds), number))
        normal.append(run.kinds == 0)
    return Rows(
        columns=tuple(np.concatenate(parts) for parts in columns),
        newest=np.concatenate(newest),
        change=np.concatenate(change),
        reach=np.concatenate(reach),
        service=np.concatenate(service).astype(np.intp),
        recording=np.concatenate(recording).astype(np.intp),
        normal=np.concatenate(normal),
        services=names,
        runs=tuple(run.run for run in runs),
    )


def folds_of(rows: Rows, most: int) -> NDArray[np.intp]:
    """(M,) fold of each row: by run where every service was recorded in two runs or more, else by recording.

    A service that was recorded once only is in one fold and never judged by a model that knows it.
    """
    pairs = sorted({(int(s), int(r)) for s, r in zip(rows.service, rows.recording, strict=True)})
    names = sorted(set(rows.runs))
    runs_of = [{rows.runs[r] for s, r in pairs if s == number} for number in range(len(rows.services))]
    fold = np.zeros(len(rows.runs), dtype=np.intp)
    if all(len(found) > 1 for found in runs_of):
        for number, run in enumerate(rows.runs):
            fold[number] = names.index(run) % min(most, len(names))
    else:
        for own in range(len(rows.services)):
            for turn, number in enumerate(r for s, r in pairs if s == own):
                # Shifted from service to service: recordings of one kind, in the same order for each service, must not
                # all be left out at once.
                fold[number] = (turn + own) % most
    return fold[rows.recording]


def data_digest(runs: Sequence[LabelledRun]) -> str:
    """SHA-256 over names, samples and labels of all recordings, hex."""
    sha = hashlib.sha256()
    for run in runs:
        sha.update(f"{run.service}\0{run.run}\0{run.step_s!r}\0{len(run.kinds)}\0".encode())
        sha.update(np.ascontiguousarray(run.values, dtype="<f4").tobytes())
        sha.update(np.ascontiguousarray(run.kinds).tobytes())
    return sha.hexdigest()


def _changes(values: Doubles, born: NDArray[np.bool_], horizons: Sequence[int]) -> Doubles:
    """(T, K, H) changes of (T, K) until each horizon; NaN across a restart."""
    out = np.full((*values.shape, len(horizons)), np.nan)
    lives = np.cumsum(born)
    for j, h in enumerate(horizons):
        if len(values) > h:
            out[:-h, :, j] = np.where((lives[h:] == lives[:-h])[:, None], values[h:] - values[:-h], np.nan)
    return out
