"""Stage 1's features: causal, alike for one window and many, and honest about what is missing."""

from __future__ import annotations

import numpy as np
import pytest

from natwork_ray.domain.labelled import LabelledRun
from natwork_ray.domain.telemetry import METRICS, N_METRICS, Metric
from natwork_ray.profiling.features import FEATURES, METRIC_OF, inputs, observe
from natwork_ray.profiling.profile import CLIP, Floats, ProfileBook, deviations, log_units
from natwork_ray.profiling.windows import commissioning_book, cut

T = 10
CPU = METRICS.index(Metric.CPU)


@pytest.fixture(scope="module")
def windows(runs: tuple[LabelledRun, ...]) -> Floats:
    return cut(runs[0].values, T)[60:100].copy()


@pytest.fixture(scope="module")
def references(runs: tuple[LabelledRun, ...]) -> Floats:
    return commissioning_book(runs[:2]).references(("a",) * 40)


def _of(seen: Floats, name: str) -> Floats:
    return seen[:, FEATURES.index(name)]


def test_features_are_what_their_names_say(windows: Floats, references: Floats) -> None:
    seen = inputs(observe(windows, references))
    assert seen.shape == (40, len(FEATURES))
    logs, deviating = log_units(windows)[:, :, CPU], deviations(windows, references)[:, :, CPU]
    for name, expected in {
        "log": logs[:, -1],
        "log_mean": logs.mean(axis=1),
        "dev": deviating[:, -1],
        "dev_long_mean": deviating.mean(axis=1),
        "dev_long_min": deviating.min(axis=1),
        "dev_long_std": deviating.std(axis=1),
        "dev_long_change": deviating[:, -1] - deviating[:, 0],
        "dev_short_max": deviating[:, -4:].max(axis=1),
        "dev_short_std": deviating[:, -4:].std(axis=1),
        "dev_short_off_mean": deviating[:, -1] - deviating[:, -4:].mean(axis=1),
    }.items():
        assert _of(seen, f"{name}.{Metric.CPU}") == pytest.approx(expected, abs=1e-4), name


def test_one_window_is_seen_as_in_a_batch(windows: Floats, references: Floats) -> None:
    holed = windows.copy()
    holed[3, 5:, 7] = np.nan
    together = inputs(observe(holed, references))
    apart = [inputs(observe(holed[i : i + 1], references[i : i + 1]))[0] for i in range(len(holed))]
    np.testing.assert_allclose(together, apart, atol=1e-4)


def test_missing_is_as_usual_and_told(windows: Floats, references: Floats) -> None:
    hidden = windows.copy()
    hidden[:, -2:, CPU] = np.nan
    observed = observe(hidden, references)
    seen = inputs(observed)
    assert np.isfinite(seen).all()
    assert (_of(seen, f"dev.{Metric.CPU}") == 0).all()
    assert np.isnan(observed.newest[:, CPU]).all()
    assert _of(seen, "missing.newest") == pytest.approx(1 / N_METRICS)
    assert _of(seen, "missing.short") == pytest.approx(2 / 4 / N_METRICS)
    assert _of(seen, "missing.long") == pytest.approx(2 / T / N_METRICS)
    assert not _of(inputs(observe(windows, references)), "missing.long").any()


def test_a_metric_without_a_profile_is_not_missed(windows: Floats) -> None:
    hidden = windows.copy()
    hidden[:, :, CPU] = np.nan
    seen = inputs(observe(hidden, ProfileBook().references(("x",) * len(hidden))))
    assert not _of(seen, "missing.newest").any()
    assert np.abs(seen[:, FEATURES.index(f"dev.{METRICS[0]}")]).max() < 1e-3


def test_wild_samples_stay_bounded(references: Floats) -> None:
    wild = np.full((40, T, N_METRICS), np.finfo(np.float32).max, dtype=np.float32)
    seen = inputs(observe(wild, references))
    assert np.isfinite(seen).all()
    assert _of(seen, f"dev_long_max.{Metric.CPU}") == pytest.approx(CLIP)


def test_every_feature_knows_its_metric() -> None:
    assert METRIC_OF[FEATURES.index(f"dev.{Metric.CPU}")] == METRIC_OF[FEATURES.index(f"log.{Metric.CPU}")] == CPU
    assert METRIC_OF[FEATURES.index("nearest.newest")] == -1
    assert (METRIC_OF == -1).sum() == 9


def test_what_was_seen_is_carried_along_with_a_choice_of_windows(references: Floats) -> None:
    wild = np.random.default_rng(0).random((40, T, N_METRICS), dtype=np.float32) * 1e6
    observed, chosen = observe(wild, references), np.arange(40) % 3 == 0
    alone = observed.of(chosen).inputs
    np.testing.assert_array_equal(alone, inputs(observe(wild, references))[chosen])
    observed.inputs  # noqa: B018 - made once, then carried
    np.testing.assert_array_equal(observed.of(chosen).inputs, alone)
