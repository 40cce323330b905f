"""The gate and the rejection: stated rates hold, strangers are rejected, files are checked."""

from __future__ import annotations

import numpy as np
import pytest

from natwork_ray.domain.anomaly import STAGE_2_CLASSES, AnomalyKind
from natwork_ray.domain.telemetry import METRICS, N_METRICS, Metric
from natwork_ray.errors import InputError
from natwork_ray.profiling.unknown import (
    ALPHA,
    BINS,
    GATE_RATE,
    N_SIGNATURES,
    KnownKinds,
    NoveltyGate,
    approaches,
    fit_gate,
    fit_known_kinds,
    signatures,
)

CPU, MEMORY, SPIKE, STEP = (
    STAGE_2_CLASSES.index(k)
    for k in (AnomalyKind.HIGH_CPU, AnomalyKind.HIGH_MEMORY, AnomalyKind.TRAFFIC_SPIKE, AnomalyKind.STEP_LOAD)
)


def _normal(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 3, N_METRICS)).astype(np.float32)


@pytest.fixture(scope="module")
def gate() -> NoveltyGate:
    return fit_gate(signatures(_normal(1, 3000)), np.repeat(np.arange(6), 500))


def test_the_gate_keeps_its_rate_on_samples_it_never_saw(gate: NoveltyGate) -> None:
    assert gate.novel(_normal(2, 20_000)).mean() == pytest.approx(GATE_RATE, abs=0.004)


def test_the_gate_sees_what_no_label_tells_of(gate: NoveltyGate) -> None:
    odd = _normal(3, 500)
    odd[:, :, METRICS.index(Metric.CPU)] += 9.0
    odd[:, :, METRICS.index(Metric.MEMORY_VSIZE)] += 9.0
    assert gate.novel(odd).mean() > 0.8


def test_a_missing_sample_is_as_usual(gate: NoveltyGate) -> None:
    assert not gate.novel(np.full((1, 3, N_METRICS), np.nan, dtype=np.float32)).any()


def test_scores_are_the_rarest_side_of_every_signature() -> None:
    # Four normal samples per signature: 0, 0, 1, 2. Rarity of z counts how many lie at least as far out, plus one.
    normal = np.tile(np.array([[0], [0], [1], [2]], dtype=np.float32), (1, N_SIGNATURES))
    gate = fit_gate(normal, np.zeros(4, dtype=np.intp))
    for z, beyond in ((-1.0, 0), (0.0, 2), (1.0, 2), (1.5, 1), (2.0, 1), (3.0, 0), (99.0, 0)):
        expected = -N_SIGNATURES * np.log((beyond + 1) / 5)
        assert gate.scores(np.full((1, N_SIGNATURES), z, dtype=np.float32)) == pytest.approx(expected, rel=1e-5)


def test_a_drifting_run_raises_the_threshold() -> None:
    seen = signatures(_normal(1, 3000))
    groups = np.repeat(np.arange(6), 500)
    drifted = seen.copy()
    drifted[groups == 3] += 2.0
    assert fit_gate(drifted, groups).threshold > fit_gate(seen, groups).threshold + 5


def test_one_group_is_judged_by_itself_and_none_is_refused() -> None:
    seen = signatures(_normal(1, 400))
    assert np.isfinite(fit_gate(seen, np.zeros(400, dtype=np.intp)).threshold)
    with pytest.raises(InputError, match="no normal samples"):
        fit_gate(seen[:0], np.zeros(0, dtype=np.intp))


def _anomalies(seed: int, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """CPU and memory anomalies in four recordings each, the latter called spike in one recording and step elsewhere."""
    rng = np.random.default_rng(seed)
    deviating = 0.3 * rng.standard_normal((2 * count, 3, N_METRICS)).astype(np.float32)
    deviating[:count, :, METRICS.index(Metric.CPU)] += 8.0
    deviating[count:, :, METRICS.index(Metric.LATENCY_P99)] += 8.0
    recordings = np.arange(2 * count) % 4
    kinds = np.where(np.arange(2 * count) < count, CPU, np.where(recordings == 0, SPIKE, STEP)).astype(np.int8)
    return approaches(deviating), kinds, recordings


@pytest.fixture(scope="module")
def known() -> KnownKinds:
    return fit_known_kinds(*_anomalies(1, 200), seed=1)


def test_known_anomalies_are_rarely_rejected_and_strangers_are(known: KnownKinds) -> None:
    places, _, _ = _anomalies(2, 2000)
    assert (known.p_values(places) < ALPHA).mean() == pytest.approx(ALPHA, abs=0.03)
    stranger = np.zeros((1, 3, N_METRICS), dtype=np.float32)
    stranger[0, :, METRICS.index(Metric.MEMORY_VSIZE)] = 8.0
    assert known.p_values(approaches(stranger))[0] < ALPHA


def test_spike_and_step_are_one_kind(known: KnownKinds) -> None:
    assert set(known.kinds) == {CPU, SPIKE}


def test_rows_of_one_recording_do_not_vouch_for_each_other() -> None:
    places, kinds, recordings = _anomalies(1, 50)
    shifted = places + 0.5 * recordings[:, None].astype(np.float32)
    apart = fit_known_kinds(shifted, kinds, recordings, seed=1)
    together = fit_known_kinds(shifted, kinds, np.arange(len(kinds)), seed=1)
    assert (apart.usual >= together.usual).all()
    assert (apart.usual > together.usual).any()


def test_a_kind_recorded_once_is_compared_with_itself() -> None:
    places, kinds, _ = _anomalies(1, 50)
    assert (fit_known_kinds(places, kinds, np.zeros(100, dtype=np.intp), seed=1).usual > 0).all()


def test_a_metric_that_never_moved_does_not_count(known: KnownKinds) -> None:
    places, kinds, recordings = _anomalies(1, 50)
    errors = METRICS.index(Metric.ERRORS)
    places[:, errors] = 0.0
    still = fit_known_kinds(places, kinds, recordings, seed=1)
    moved = places.copy()
    moved[:, errors] = 3.0
    np.testing.assert_array_equal(still.p_values(moved), still.p_values(places))


def test_rows_per_kind_are_bounded() -> None:
    known = fit_known_kinds(*_anomalies(1, 900), seed=1)
    assert np.bincount(known.kinds).max() == 500


def test_no_anomalies_are_refused() -> None:
    places, kinds, recordings = _anomalies(1, 5)
    with pytest.raises(InputError, match="no labelled anomalies"):
        fit_known_kinds(places[:0], kinds[:0], recordings[:0], seed=1)


def test_files_give_back_the_same(gate: NoveltyGate, known: KnownKinds) -> None:
    recent = _normal(3, 50)
    np.testing.assert_array_equal(NoveltyGate.from_tensors(gate.tensors()).novel(recent), gate.novel(recent))
    places, _, _ = _anomalies(4, 20)
    np.testing.assert_array_equal(KnownKinds.from_tensors(known.tensors()).p_values(places), known.p_values(places))


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("rarity", None),
        ("rarity", np.zeros((N_SIGNATURES, BINS))),
        ("rarity", np.zeros((2, BINS), dtype=np.float32)),
        ("rarity", np.full((N_SIGNATURES, BINS), np.nan, dtype=np.float32)),
        ("rarity", np.full((N_SIGNATURES, BINS), -1, dtype=np.float32)),
        ("threshold", np.zeros(2, dtype=np.float32)),
    ],
)
def test_a_damaged_gate_is_refused(gate: NoveltyGate, name: str, array: np.ndarray | None) -> None:
    tensors = dict(gate.tensors())
    if array is None:
        del tensors[name]
    else:
        tensors[name] = array
    with pytest.raises(InputError):
        NoveltyGate.from_tensors(tensors)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("kinds", lambda a: a.astype(np.int16)),
        ("kinds", lambda a: a[:-1]),
        ("kinds", lambda a: a * 0),
        ("kinds", lambda a: a * 0 + 99),
        ("rows", lambda a: a[:, :4]),
        ("whitening", lambda a: a[:4]),
        ("usual", lambda a: -1 - a),
        ("usual", lambda a: a * np.float32(np.inf)),
    ],
)
def test_damaged_kinds_are_refused(known: KnownKinds, name: str, change: object) -> None:
    tensors = dict(known.tensors())
    with pytest.raises(InputError):
        KnownKinds.from_tensors({**tensors, name: change(tensors[name])})  # type: ignore[operator]
