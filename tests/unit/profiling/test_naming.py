"""Stage 2 on synthetic services: it names what it knows, rejects what it does not, and survives a file."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from natwork_ray.domain.anomaly import STAGE_2_CLASSES, AnomalyKind
from natwork_ray.domain.labelled import LabelledRun
from natwork_ray.domain.telemetry import N_METRICS
from natwork_ray.errors import InputError
from natwork_ray.profiling.histories import HISTORY
from natwork_ray.profiling.naming import Namer, fit_namer
from natwork_ray.profiling.windows import by_own_commissioning, cut

UNKNOWN = STAGE_2_CLASSES.index(AnomalyKind.UNKNOWN)
CPU = STAGE_2_CLASSES.index(AnomalyKind.HIGH_CPU)
LATENCY = STAGE_2_CLASSES.index(AnomalyKind.NETWORK_LATENCY)


def _seen(runs: tuple[LabelledRun, ...]) -> tuple[np.ndarray, np.ndarray]:
    normalise = by_own_commissioning(runs)
    return np.concatenate([cut(normalise(run), HISTORY) for run in runs]), np.concatenate([run.kinds for run in runs])


def _without(runs: tuple[LabelledRun, ...], kind: int) -> tuple[LabelledRun, ...]:
    return tuple(replace(run, kinds=np.where(run.kinds == kind, -1, run.kinds).astype(np.int8)) for run in runs)


@pytest.fixture(scope="module")
def namer(runs: tuple[LabelledRun, ...]) -> Namer:
    known = tuple(run for run in runs if run.run != "r2")
    return fit_namer(known, by_own_commissioning(known), seed=3)


@pytest.fixture(scope="module")
def unseen(runs: tuple[LabelledRun, ...]) -> tuple[np.ndarray, np.ndarray]:
    return _seen(tuple(run for run in runs if run.run == "r2"))


def test_known_kinds_are_named_in_a_run_never_seen(namer: Namer, unseen: tuple[np.ndarray, np.ndarray]) -> None:
    deviating, kinds = unseen
    anomalous = kinds > 0
    named, confidence = namer.name(deviating[anomalous])
    assert (named == kinds[anomalous]).mean() > 0.9
    assert named.dtype == np.int8
    assert ((confidence >= 0) & (confidence <= 1)).all()
    assert (namer.shares(deviating).argmax(axis=1) == kinds).mean() > 0.9


def test_a_kind_that_was_held_out_is_unknown(
    runs: tuple[LabelledRun, ...], namer: Namer, unseen: tuple[np.ndarray, np.ndarray]
) -> None:
    known = _without(tuple(run for run in runs if run.run != "r2"), LATENCY)
    ignorant = fit_namer(known, by_own_commissioning(known), seed=3)
    deviating, kinds = unseen
    strange = deviating[kinds == LATENCY]
    assert (ignorant.name(strange)[0] == UNKNOWN).all()
    assert ignorant.novel(strange).mean() > 10 * ignorant.novel(deviating[kinds == 0]).mean()
    assert (namer.name(strange)[0] == LATENCY).mean() > 0.8
    assert ignorant.shares(strange)[:, LATENCY].max() == 0


def test_normal_operation_is_not_novel(namer: Namer, unseen: tuple[np.ndarray, np.ndarray]) -> None:
    deviating, kinds = unseen
    assert namer.novel(deviating[kinds == 0]).mean() < 0.1


def test_another_day_of_a_known_service_is_not_novel_once_drift_was_expected(
    runs: tuple[LabelledRun, ...], namer: Namer, unseen: tuple[np.ndarray, np.ndarray]
) -> None:
    known = tuple(run for run in runs if run.run != "r2")
    wide = fit_namer(known, by_own_commissioning(known), seed=3, drift=1.0)
    deviating, kinds = unseen
    rng = np.random.default_rng(5)
    other_days = deviating + rng.normal(0.0, 1.0, (len(deviating), 1, N_METRICS)).astype(np.float32)
    normal, known_anomaly = other_days[kinds == 0], other_days[kinds > 0]
    assert namer.novel(normal).mean() > 0.1
    assert wide.novel(normal).mean() < 0.05
    assert (wide.name(known_anomaly)[0] == UNKNOWN).mean() < (namer.name(known_anomaly)[0] == UNKNOWN).mean()
    for name, array in namer.forest.tensors().items():
        np.testing.assert_array_equal(wide.forest.tensors()[name], array)


def test_the_same_seed_gives_the_same_namer(runs: tuple[LabelledRun, ...], namer: Namer) -> None:
    known = tuple(run for run in runs if run.run != "r2")
    again = fit_namer(known, by_own_commissioning(known), seed=3).tensors()
    for name, array in namer.tensors().items():
        np.testing.assert_array_equal(array, again[name])


def test_a_file_gives_back_the_same_namer(namer: Namer, unseen: tuple[np.ndarray, np.ndarray]) -> None:
    again = Namer.from_tensors(namer.tensors())
    for ours, theirs in zip(namer.name(unseen[0]), again.name(unseen[0]), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert again.history == HISTORY


def test_a_forest_on_other_features_is_refused(namer: Namer) -> None:
    tensors = namer.tensors()
    tensors["forest.width"] = np.array([namer.forest.n_features + 1], dtype=np.int32)
    with pytest.raises(InputError, match="made for"):
        Namer.from_tensors(tensors)
    with pytest.raises(InputError, match="missing"):
        Namer.from_tensors({})


def test_nobody_asked_nobody_named(namer: Namer) -> None:
    kinds, confidence = namer.name(np.zeros((0, HISTORY, N_METRICS), dtype=np.float32))
    assert kinds.shape == confidence.shape == (0,)


def test_what_an_emulation_calls_unknown_stays_unknown(runs: tuple[LabelledRun, ...]) -> None:
    attacked = tuple(replace(run, kinds=np.where(run.kinds == CPU, UNKNOWN, run.kinds).astype(np.int8)) for run in runs)
    namer = fit_namer(attacked, by_own_commissioning(attacked), seed=3)
    assert UNKNOWN not in namer.known.kinds
    deviating, kinds = _seen(attacked)
    assert (namer.name(deviating[kinds == UNKNOWN])[0] == UNKNOWN).mean() > 0.95


def test_too_little_to_learn_from(runs: tuple[LabelledRun, ...]) -> None:
    one = runs[0]
    normalise = by_own_commissioning(runs)
    calm = replace(one, kinds=np.zeros_like(one.kinds))
    with pytest.raises(InputError, match="0 rows of labelled type"):
        fit_namer([calm], normalise, seed=1)
    with pytest.raises(InputError, match="without a sample"):
        fit_namer([], normalise, seed=1)
