"""Profiles learnt while watching: when an hour begins and ends, and whose profile judges until then."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from natwork_ray.domain.telemetry import METRICS, Metric, TelemetryWindow
from natwork_ray.errors import UsageError
from natwork_ray.profiling.commissioning import PATIENCE, Basis, Commissioning, Learnt
from natwork_ray.profiling.profile import ProfileBook

CPU = METRICS.index(Metric.CPU)
STEP = 10.0


def window(levels: dict[str, list[float]], *, end_s: float) -> TelemetryWindow:
    """CPU of each container (named service-number) per step; NaN leaves the whole sample out."""
    values = np.full((len(levels), max(map(len, levels.values())), 12), np.nan, dtype=np.float32)
    for row, series in enumerate(levels.values()):
        values[row, :, CPU] = series
    names = tuple(levels)
    services = tuple(name.rpartition("-")[0] for name in names)
    return TelemetryWindow(containers=names, services=services, end_s=end_s, step_s=STEP, values=values)


def book(**levels: float) -> ProfileBook:
    found = ProfileBook.learn(window({f"{name}-1": [level] * 20 for name, level in levels.items()}, end_s=1e6))
    return ProfileBook(profiles=found.profiles, fleet=found.fleet)


def centre(commissioning: Commissioning, service: str) -> float:
    return float(commissioning.book.references((service,))[0, CPU])


def test_a_server_that_knows_the_hour_gives_the_profile_at_once() -> None:
    commissioning = Commissioning(wanted_s=300.0, own=book(x=0.9))
    learnt = commissioning.observe(window({"web-1": [0.1] * 30, "web-2": [0.1] * 30}, end_s=1000.0))
    assert learnt == (Learnt(service="web", measured_s=300.0, basis=Basis.OWN),)
    assert commissioning.basis("web") is Basis.OWN
    assert centre(commissioning, "web") == pytest.approx(np.log1p(10), rel=0.01)
    # What comes afterwards changes nothing.
    assert commissioning.observe(window({"web-1": [0.9] * 30}, end_s=1300.0)) == ()
    assert centre(commissioning, "web") == pytest.approx(np.log1p(10), rel=0.01)
    assert commissioning.measured_s("web") == 300.0


def test_until_then_first_the_fleet_then_a_provisional_profile_judges() -> None:
    commissioning = Commissioning(wanted_s=1000.0, own=book(x=0.9))
    told: list[tuple[int, Basis]] = []
    for step in range(1, 101):
        learnt = commissioning.observe(window({"web-1": [0.1]}, end_s=step * STEP))
        told += [(step, each.basis) for each in learnt]
        if step == 11:
            assert commissioning.basis("web") is Basis.FLEET
            assert centre(commissioning, "web") == pytest.approx(np.log1p(90), rel=0.01)
            assert commissioning.measured_s("web") == 110.0
    assert told == [(12, "provisional"), (24, "provisional"), (48, "provisional"), (96, "provisional"), (100, "own")]


def test_a_service_of_the_models_own_is_judged_by_its_profile() -> None:
    commissioning = Commissioning(wanted_s=1000.0, own=book(web=0.5))
    assert commissioning.basis("web") is Basis.MODEL
    assert commissioning.basis("other") is Basis.FLEET
    for step in range(1, 13):
        commissioning.observe(window({"web-1": [0.1]}, end_s=step * STEP))
    assert commissioning.basis("web") is Basis.PROVISIONAL


def test_each_service_has_an_hour_of_its_own() -> None:
    commissioning = Commissioning(wanted_s=200.0, own=book(x=0.9))
    nan = float("nan")
    commissioning.observe(window({"web-1": [0.1] * 20, "late-1": [nan] * 15 + [0.2] * 5}, end_s=200.0))
    assert commissioning.basis("web") is Basis.OWN
    assert commissioning.measured_s("late") == 50.0
    learnt = commissioning.observe(window({"late-1": [0.2] * 15}, end_s=350.0))
    assert learnt == (Learnt(service="late", measured_s=200.0, basis=Basis.OWN),)


def test_windows_may_overlap() -> None:
    commissioning = Commissioning(wanted_s=1000.0, own=book(x=0.9))
    for step in range(10, 21):
        commissioning.observe(window({"web-1": [0.1] * 10}, end_s=step * STEP))
    assert commissioning.measured_s("web") == 200.0


def test_an_hour_with_too_many_gaps_goes_on_and_then_begins_anew() -> None:
    commissioning = Commissioning(wanted_s=100.0, own=book(x=0.9))
    nan = float("nan")
    gappy = [0.1] + [nan] * 9
    for turn in range(1, PATIENCE + 1):
        assert commissioning.observe(window({"web-1": gappy}, end_s=turn * 100.0)) == ()
    assert commissioning.measured_s("web") == 40.0
    commissioning.observe(window({"web-1": gappy}, end_s=(PATIENCE + 1) * 100.0))
    assert commissioning.basis("web") is Basis.FLEET
    assert commissioning.measured_s("web") < 40.0


def test_a_commissioning_takes_time() -> None:
    with pytest.raises(UsageError):
        Commissioning(wanted_s=0.0, own=book(x=0.9))


@given(st.lists(st.integers(1, 30), min_size=1, max_size=12), st.integers(5, 40))
def test_however_samples_come_in_the_same_profile_is_learnt(parts: list[int], wanted: int) -> None:
    levels = [0.1 + 0.001 * (n % 7) for n in range(sum(parts))]
    whole, cut = (Commissioning(wanted_s=wanted * STEP, own=book(x=0.9)) for _ in range(2))
    whole.observe(window({"web-1": levels}, end_s=len(levels) * STEP))
    done = 0
    for part in parts:
        done += part
        cut.observe(window({"web-1": levels[done - part : done]}, end_s=done * STEP))
    assert whole.basis("web") is cut.basis("web")
    assert whole.measured_s("web") == cut.measured_s("web")
    np.testing.assert_array_equal(whole.book.references(("web",)), cut.book.references(("web",)))
