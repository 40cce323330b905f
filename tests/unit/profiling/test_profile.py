"""Profiles: laws of the deviations, missing samples, cold start, JSON."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from natwork_ray.domain.telemetry import METRICS, N_METRICS, TelemetryWindow
from natwork_ray.errors import InputError
from natwork_ray.profiling.profile import (
    CLIP,
    MIN_SAMPLES,
    SCALE_FLOOR,
    UNITS,
    UNPROFILED_SCALE,
    ProfileBook,
    ServiceProfile,
    check_references,
    deviations,
)

_SAMPLES = arrays(
    np.float32, (1, 24, N_METRICS), elements=st.floats(0, 1e9, width=32, allow_nan=False, allow_infinity=False)
)


def _window(values: np.ndarray, services: tuple[str, ...] | None = None) -> TelemetryWindow:
    names = tuple(f"c{i}" for i in range(len(values)))
    return TelemetryWindow(
        containers=names,
        services=services or names,
        end_s=0.0,
        step_s=10.0,
        values=np.asarray(values, dtype=np.float32),
    )


@given(_SAMPLES)
def test_the_median_is_usual_and_scales_have_a_floor(values: np.ndarray) -> None:
    book = ProfileBook.learn(_window(values))
    references = book.references(("c0",))
    check_references(references, 1)
    own = deviations(values, references)
    assert np.isfinite(own).all()
    assert (np.abs(own) <= CLIP).all()
    assert np.abs(np.median(own, axis=1)).max() < 1e-3


@given(_SAMPLES, st.integers(0, N_METRICS - 1), st.floats(0, 1e8), st.floats(1e-3, 1e8))
def test_deviation_grows_with_the_metric(values: np.ndarray, metric: int, low: float, more: float) -> None:
    references = ProfileBook.learn(_window(values)).references(("c0", "c0"))
    pair = np.repeat(values[:, -1:], 2, axis=0)
    pair[0, 0, metric], pair[1, 0, metric] = low, low + more
    below, above = deviations(pair.astype(np.float32), references)[:, 0, metric]
    assert below <= above


@given(st.floats(1.5, 100.0), st.integers(0, 2**16))
def test_a_busier_copy_of_a_service_deviates_alike(factor: float, seed: int) -> None:
    # log1p(x / unit) of large x turns a factor into a shift, and a profile takes shifts out.
    rng = np.random.default_rng(seed)
    values = (UNITS * 1e4 * np.exp(rng.standard_normal((1, 50, N_METRICS)))).astype(np.float32)
    busier = (values * factor).astype(np.float32)
    ours, theirs = (deviations(v, ProfileBook.learn(_window(v)).references(("c0",))) for v in (values, busier))
    assert np.allclose(ours, theirs, atol=0.02)


@given(_SAMPLES, arrays(np.bool_, (1, 24, N_METRICS)))
def test_missing_stays_missing_and_changes_nothing_else(values: np.ndarray, hidden: np.ndarray) -> None:
    references = ProfileBook.learn(_window(values)).references(("c0",))
    masked = np.where(hidden, np.float32(np.nan), values)
    full, part = deviations(values, references), deviations(masked, references)
    assert (np.isnan(part) == hidden).all()
    assert (part[~hidden] == full[~hidden]).all()


def test_a_few_wild_samples_do_not_move_a_profile() -> None:
    rng = np.random.default_rng(0)
    calm = (UNITS * 100 * np.exp(0.3 * rng.standard_normal((1, 200, N_METRICS)))).astype(np.float32)
    wild = calm.copy()
    wild[:, :4] *= 1000
    a, b = (ProfileBook.learn(_window(v)).profiles[0] for v in (calm, wild))
    # Latencies and errors may widen with their tails, up to the 95 % quantile.
    assert np.allclose(a.scale, b.scale, rtol=0.5)
    assert np.allclose(a.centre, b.centre, atol=0.1)
    assert np.allclose(a.scale[:7], b.scale[:7], rtol=0.2)


def test_replicas_of_a_service_are_pooled() -> None:
    values = np.stack([np.full((MIN_SAMPLES, N_METRICS), v) for v in (1.0, 3.0, 3.0)])
    book = ProfileBook.learn(_window(values, services=("s", "s", "t")))
    assert [p.service for p in book.profiles] == ["s", "t"]
    assert book.profiles[0].samples == (2 * MIN_SAMPLES,) * N_METRICS


def test_a_metric_never_measured_has_no_deviations() -> None:
    values = np.ones((1, 50, N_METRICS), dtype=np.float32)
    values[:, :, 8] = np.nan
    book = ProfileBook.learn(_window(values))
    assert book.profiles[0].unprofiled == (str(METRICS[8]),)
    assert book.profiles[0].scale[8] == UNPROFILED_SCALE
    values[:, :, 8] = 1e6
    assert np.abs(deviations(values, book.references(("c0",)))[..., 8]).max() < 1e-3


def test_cold_start_takes_the_fleet_profile_and_says_so() -> None:
    rng = np.random.default_rng(1)
    values = rng.uniform(1, 1e6, (2, 100, N_METRICS)).astype(np.float32)
    book = ProfileBook.learn(_window(values, services=("a", "b")))
    assert book.known(("a", "new", "b")).tolist() == [True, False, True]
    references = book.references(("a", "new"))
    assert book.fleet is not None
    assert np.allclose(references[1], book.fleet.reference)
    assert np.allclose(references[0], book.profiles[0].reference)


def test_an_empty_book_has_nothing_to_deviate_from() -> None:
    references = ProfileBook().references(("x",))
    wild = np.full((1, 4, N_METRICS), 1e12, dtype=np.float32)
    assert np.abs(deviations(wild, references)).max() < 1e-3


def test_joined_prefers_the_newer_book() -> None:
    old = ProfileBook.learn(_window(np.ones((2, 20, N_METRICS)), services=("a", "b")))
    new = ProfileBook.learn(_window(np.full((1, 20, N_METRICS), 9.0), services=("a",)))
    joined = old.joined(new)
    assert {p.service for p in joined.profiles} == {"a", "b"}
    assert next(p for p in joined.profiles if p.service == "a") == new.profiles[0]
    assert joined.fleet == new.fleet
    assert new.joined(ProfileBook()).fleet == new.fleet


@given(_SAMPLES)
def test_json_round_trip(values: np.ndarray) -> None:
    book = ProfileBook.learn(_window(values))
    assert ProfileBook.from_json(book.to_json()) == book


@given(st.binary(max_size=300))
def test_hostile_json_is_an_input_error(data: bytes) -> None:
    with pytest.raises(InputError):
        ProfileBook.from_json(b"{." + data)


def test_json_out_of_range() -> None:
    book = ProfileBook.learn(_window(np.ones((1, 20, N_METRICS))))
    text = book.to_json().decode()
    for broken in (text.replace(str(SCALE_FLOOR), "0.0"), text.replace("[20,", "[-20,", 1), text.replace("[20,", "[")):
        with pytest.raises(InputError):
            ProfileBook.from_json(broken.encode())
    with pytest.raises(InputError, match="exceeds"):
        ProfileBook.from_json(b" " * (17 * 2**20))


def test_one_profile_per_service() -> None:
    profile = ProfileBook.learn(_window(np.ones((1, 20, N_METRICS)))).profiles[0]
    with pytest.raises(InputError, match="two profiles"):
        ProfileBook(profiles=(profile, profile))
    with pytest.raises(InputError, match="12 metrics"):
        ServiceProfile(service="s", samples=(1,), centre=(0.0,), scale=(1.0,))


@pytest.mark.parametrize("bad", [np.inf, -np.inf, -1.0])
def test_impossible_samples_name_their_place(bad: float) -> None:
    values = np.ones((1, 20, N_METRICS))
    values[0, 7, 4] = bad
    with pytest.raises(InputError, match=r"\(0, 7\) of cpu_utilization"):
        ProfileBook.learn(_window(values))


def test_a_metric_that_rests_and_bursts_has_a_scale_of_its_bursts() -> None:
    values = np.ones((1, 200, N_METRICS), dtype=np.float32)
    values[:, ::10, 11] = 20.0
    profile = ProfileBook.learn(_window(values)).profiles[0]
    assert profile.scale[11] > 1.0
    assert profile.scale[10] == SCALE_FLOOR
