"""Drift of profiles: hours that moved for good, and everything that must not be taken for that."""

from __future__ import annotations

import numpy as np
import pytest

from natwork_ray.domain.telemetry import METRICS, N_METRICS, Metric, TelemetryWindow
from natwork_ray.errors import InputError
from natwork_ray.profiling.drift import BLOCKS, MIN_BLOCK, DriftCheck, summaries
from natwork_ray.profiling.profile import ProfileBook

CPU, P99 = METRICS.index(Metric.CPU), METRICS.index(Metric.LATENCY_P99)
LENGTH = BLOCKS * MIN_BLOCK * 3


def window(length: int, seed: int, *, services: tuple[str, ...] = ("a", "b")) -> TelemetryWindow:
    rng = np.random.default_rng(seed)
    values = (50.0 * np.exp(0.2 * rng.standard_normal((len(services), length, N_METRICS)))).astype(np.float32)
    values[:, :, CPU] /= 250
    return TelemetryWindow(
        containers=tuple(f"{s}-0" for s in services), services=services, end_s=3600.0, step_s=10.0, values=values
    )


@pytest.fixture(scope="module")
def check() -> DriftCheck:
    hour = window(360, 1)
    return DriftCheck.learn(hour, ProfileBook.learn(hour))


def test_the_same_operation_is_no_drift(check: DriftCheck) -> None:
    for seed in range(2, 12):
        assert check.drifts(window(LENGTH, seed), drifted_before=frozenset()) == ()


def test_a_level_that_moved_for_good_is_one_and_says_which_metric_moved(check: DriftCheck) -> None:
    recent = window(LENGTH, 2)
    recent.values[0, :, CPU] *= 2.5
    (drift,) = check.drifts(recent, drifted_before=frozenset())
    assert (drift.service, drift.at_s) == ("a", 3600.0)
    (metric,) = drift.metrics
    assert metric.metric == Metric.CPU
    assert metric.shift > 2
    assert metric.psi > 0.25
    assert 0 <= metric.outside <= 1


def test_the_other_direction_is_drift_as_well(check: DriftCheck) -> None:
    recent = window(LENGTH, 2)
    recent.values[1, :, CPU] /= 3
    (drift,) = check.drifts(recent, drifted_before=frozenset())
    assert drift.service == "b"
    assert drift.metrics[0].shift < -2


def test_an_incident_of_a_part_of_the_time_is_no_drift(check: DriftCheck) -> None:
    recent = window(LENGTH, 2)
    recent.values[0, : LENGTH // 2 - 5, :] *= 20
    assert check.drifts(recent, drifted_before=frozenset()) == ()


def test_swinging_to_and_fro_is_no_drift(check: DriftCheck) -> None:
    recent = window(LENGTH, 2)
    for block in range(BLOCKS):
        part = slice(block * LENGTH // BLOCKS, (block + 1) * LENGTH // BLOCKS)
        recent.values[0, part, CPU] *= 4 if block % 2 else 0.25
    assert check.drifts(recent, drifted_before=frozenset()) == ()


def test_what_has_drifted_comes_back_only_when_it_really_does(check: DriftCheck) -> None:
    halfway = window(LENGTH, 2)
    halfway.values[0, :, CPU] *= 1.45  # beyond the smaller distance, not the larger
    assert check.drifts(halfway, drifted_before=frozenset()) == ()
    assert [d.service for d in check.drifts(halfway, drifted_before=frozenset({"a"}))] == ["a"]
    assert check.drifts(window(LENGTH, 3), drifted_before=frozenset({"a"})) == ()


def test_what_was_not_measured_proves_nothing(check: DriftCheck) -> None:
    recent = window(LENGTH, 2)
    recent.values[0, :, CPU] *= 3
    recent.values[0, : LENGTH - MIN_BLOCK, CPU] = np.nan
    assert check.drifts(recent, drifted_before=frozenset()) == ()


def test_a_metric_without_a_profile_cannot_drift() -> None:
    hour = window(360, 1)
    hour.values[:, :, P99] = np.nan
    check = DriftCheck.learn(hour, ProfileBook.learn(hour))
    assert check.drifts(window(LENGTH, 2), drifted_before=frozenset()) == ()


def test_unknown_and_absent_services_are_left_out(check: DriftCheck) -> None:
    recent = window(LENGTH, 2, services=("b", "new"))
    recent.values[:, :, CPU] *= 3
    assert [d.service for d in check.drifts(recent, drifted_before=frozenset())] == ["b"]


def test_learning_anew_ends_the_drift(check: DriftCheck) -> None:
    moved = window(360, 5, services=("a",))
    moved.values[0, :, CPU] *= 2.5
    fresh = check.with_book(moved, check.book.joined(ProfileBook(profiles=ProfileBook.learn(moved).profiles)))
    recent = window(LENGTH, 2)
    recent.values[0, :, CPU] *= 2.5
    assert fresh.drifts(recent, drifted_before=frozenset({"a"})) == ()
    assert sorted(fresh.services) == ["a", "b"]


def test_too_little_time_is_an_error(check: DriftCheck) -> None:
    with pytest.raises(InputError, match="too few to see a drift"):
        check.drifts(window(BLOCKS * MIN_BLOCK - 1, 2), drifted_before=frozenset())


def test_a_summary_is_in_si_units_and_names_what_was_not_measured() -> None:
    hour = window(360, 1, services=("a",))
    hour.values[:, :, P99] = np.nan
    (summary,) = summaries(ProfileBook.learn(hour), from_s=0.0, to_s=3600.0)
    assert (summary.service, summary.from_s, summary.to_s) == ("a", 0.0, 3600.0)
    assert summary.unprofiled == (str(Metric.LATENCY_P99),)
    cpu = next(r for r in summary.ranges if r.metric == Metric.CPU)
    assert cpu.centre == pytest.approx(float(np.median(hour.values[0, :, CPU])), rel=0.02)
    assert cpu.low < cpu.centre < cpu.high
    assert cpu.samples == 360
    assert len(summary.digest) == 64
    assert (
        summaries(ProfileBook.learn(window(360, 2, services=("a",))), from_s=0.0, to_s=3600.0)[0].digest
        != summary.digest
    )
