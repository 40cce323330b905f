"""Recordings that the detector never saw: whose profile judges them, what counts, what is said of missing samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from natwork_ray.domain.labelled import LabelledRun
from natwork_ray.domain.telemetry import METRICS, Metric
from natwork_ray.domain.values import Backend
from natwork_ray.profiling.detecting import Detector
from natwork_ray.profiling.inspection import ProfileSource, Recorded, figures_of, inspect, types_found
from natwork_ray.profiling.model_card import TrainingSettings
from natwork_ray.profiling.recorded import judge_recording, not_measured
from natwork_ray.profiling.training import train
from natwork_ray.profiling.windows import commissioning_book, cut

MakeRun = Callable[..., LabelledRun]
CPU, P50, THROUGHPUT = (METRICS.index(m) for m in (Metric.CPU, Metric.LATENCY_P50, Metric.THROUGHPUT))


@pytest.fixture(scope="module")
def taught(runs: tuple[LabelledRun, ...]) -> Detector:
    """Trained on recordings of the services a and b, so that it keeps their profiles."""
    replayed = [replace(run, backend=Backend.REPLAYED) for run in runs]
    return train(replayed, TrainingSettings(epochs=5, batch=64, folds=2, window=6, detector="annex-a"))


def _recorded(run: LabelledRun, *, labels: bool = True, name: str = "f") -> Recorded:
    return Recorded(name, run, labels)


def test_a_recording_is_judged_row_by_row_whatever_the_chunks(
    taught: Detector, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run("a", "x", 5)
    reference = commissioning_book([run]).references(("a",))[0]
    whole = taught.score(cut(run.values, taught.history), np.repeat(reference[None], len(run.kinds), axis=0))
    for chunk in (7, 64, 10_000):
        monkeypatch.setattr("natwork_ray.profiling.recorded._CHUNK_ROWS", chunk)
        judged = judge_recording(taught, run.values, reference)
        np.testing.assert_allclose(judged.score, whole.p_anomalous, atol=1e-6)
        assert (judged.flagged == whole.flagged).all()
        assert (judged.kinds == whole.kinds).all()
    for row in np.flatnonzero(judged.flagged).tolist():
        assert judged.drivers(row)
        assert judged.kind(row) is not None
    assert judged.kind(0) is None
    assert judged.drivers(0) == ()


def test_latencies_of_a_moment_without_requests_are_not_missing() -> None:
    values = np.ones((3, 12), dtype=np.float32)
    values[0, P50] = values[1, P50] = values[2, CPU] = np.nan
    values[1, THROUGHPUT] = 0
    missing = not_measured(values)
    assert [np.flatnonzero(row).tolist() for row in missing] == [[P50], [], [CPU]]


def test_known_services_use_the_models_profile_and_others_adapt(taught: Detector, make_run: MakeRun) -> None:
    runs = [make_run("a", "9", 1), make_run("z", "8", 2, size=3.0), make_run("z", "7", 3, size=3.0)]
    found = inspect(taught, [_recorded(run) for run in runs], own_profiles=True)
    assert [one.profile for one in found] == [ProfileSource.MODEL, ProfileSource.HOUR, ProfileSource.HOUR]
    # The lower run number teaches, wherever it stands.
    assert [one.commissioning for one in found] == [0, 0, runs[2].commissioning]
    adapted = inspect(taught, [_recorded(run) for run in runs], own_profiles=False)
    assert [one.profile for one in adapted] == [ProfileSource.HOUR] * 3


def test_the_hour_that_teaches_counts_in_no_figure(taught: Detector, make_run: MakeRun) -> None:
    run = make_run("z", "1", 4, size=2.0)
    (one,) = inspect(taught, [_recorded(run)], own_profiles=True)
    figures = figures_of([one])
    assert figures is not None
    assert (figures.rows, figures.commissioning) == (len(run.kinds) - run.commissioning, run.commissioning)
    assert figures.anomalous == int(run.anomalous.sum())
    assert figures.f1 is not None
    assert figures.f1 > 0.8
    assert figures.auc is not None
    assert figures.auc > 0.9
    assert figures.type_accuracy is not None
    assert figures.events.events == 4
    assert figures.events.found == 4
    assert [one.verdict(row).commissioning for row in (0, run.commissioning - 1, run.commissioning)] == [
        True,
        True,
        False,
    ]
    assert sum(types_found(one).values()) == int(one.judged.flagged.sum())


def test_a_service_without_a_normal_hour_says_so_in_every_row(taught: Detector, make_run: MakeRun) -> None:
    run = replace(make_run("z", "1", 4), commissioning=0)
    (one,) = inspect(taught, [_recorded(run)], own_profiles=True)
    assert one.profile is ProfileSource.FLEET
    assert "no normal hour of z" in one.verdict(3).degraded
    assert one.degraded_rows == len(run.kinds)
    # Not even where the model has a profile of that name, if it is not to be used.
    known = replace(make_run("a", "1", 4), commissioning=0)
    (one,) = inspect(taught, [_recorded(known)], own_profiles=False)
    assert one.profile is ProfileSource.FLEET


def test_what_is_missing_is_never_silently_normal(taught: Detector, make_run: MakeRun) -> None:
    run = make_run("a", "1", 4)
    values = run.values.copy()
    values[70] = np.nan
    values[71, CPU] = np.nan
    (one,) = inspect(taught, [_recorded(replace(run, values=values))], own_profiles=True)
    gone, partly, whole = (one.verdict(row) for row in (70, 71, 72))
    assert (gone.anomalous, gone.score, gone.type) == (None, None, None)
    assert "not judged" in gone.degraded
    assert partly.anomalous is not None
    assert partly.degraded == "not measured: cpu_utilization"
    assert whole.degraded == ""
    assert one.degraded_rows == 2
    figures = figures_of([one])
    assert figures is not None
    assert figures.not_judged == 1


def test_a_metric_that_the_hour_did_not_measure(taught: Detector, make_run: MakeRun) -> None:
    run = make_run("z", "1", 4)
    values = run.values.copy()
    values[: run.commissioning, CPU] = np.nan
    (one,) = inspect(taught, [_recorded(replace(run, values=values))], own_profiles=True)
    assert "the profile does not know cpu_utilization" in one.verdict(len(values) - 1).degraded


def test_a_short_hour_is_reported(taught: Detector, make_run: MakeRun) -> None:
    run = make_run("z", "1", 4)
    (one,) = inspect(taught, [_recorded(replace(run, commissioning=20))], own_profiles=True)
    assert "rests on 20 normal rows only" in one.verdict(30).degraded


def test_without_labels_there_are_no_figures(taught: Detector, make_run: MakeRun) -> None:
    run = make_run("a", "1", 4)
    found = inspect(taught, [_recorded(run, labels=False)], own_profiles=True)
    assert figures_of(found) is None
    assert found[0].verdict(0).label is None
    both = inspect(taught, [_recorded(run, labels=False), _recorded(run)], own_profiles=True)
    figures = figures_of(both)
    assert figures is not None
    assert (figures.rows, figures.unlabelled) == (len(run.kinds), len(run.kinds))
    healthy = replace(run, kinds=np.zeros_like(run.kinds))
    figures = figures_of(inspect(taught, [_recorded(healthy)], own_profiles=True))
    assert figures is not None
    assert (figures.auc, figures.type_accuracy, figures.events.events) == (None, None, 0)


def test_what_the_profile_knows_nothing_of_is_not_judged(taught: Detector, make_run: MakeRun) -> None:
    run = make_run("z", "1", 4)
    blank = run.values.copy()
    blank[: run.commissioning] = np.nan
    few = replace(run, commissioning=3)
    for unknown in (replace(run, values=blank), few):
        (one,) = inspect(taught, [_recorded(unknown)], own_profiles=True)
        for row in (0, unknown.commissioning, len(run.kinds) - 1):
            verdict = one.verdict(row)
            assert (verdict.anomalous, verdict.score, verdict.type, verdict.alarm) == (None, None, None, False)
            assert "nothing that the profile knows was measured: not judged" in verdict.degraded


def test_a_row_of_metrics_that_the_profile_does_not_know(taught: Detector, make_run: MakeRun) -> None:
    run = make_run("z", "1", 4)
    values = run.values.copy()
    values[: run.commissioning, CPU] = np.nan
    values[-1, np.arange(len(METRICS)) != CPU] = np.nan
    (one,) = inspect(taught, [_recorded(replace(run, values=values))], own_profiles=True)
    assert one.verdict(len(values) - 2).anomalous is not None
    assert one.verdict(len(values) - 1).anomalous is None


def test_labels_without_a_single_judged_row(taught: Detector, make_run: MakeRun) -> None:
    run = make_run("a", "1", 4)
    silent = replace(run, values=np.full_like(run.values, np.nan))
    figures = figures_of(inspect(taught, [_recorded(silent)], own_profiles=True))
    assert figures is not None
    assert (figures.rows, figures.not_judged) == (0, len(run.kinds))
    assert (figures.accuracy, figures.precision, figures.recall, figures.f1, figures.auc) == (None,) * 5
    assert (figures.events.events, figures.events.found) == (4, 0)
