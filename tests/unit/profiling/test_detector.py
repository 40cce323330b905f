"""The two stages: verdicts, missing samples, evidence, hostile input."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from natwork_ray.domain.anomaly import STAGE_2_CLASSES, AnomalyKind
from natwork_ray.domain.labelled import LabelledRun
from natwork_ray.domain.telemetry import METRICS, N_METRICS, Metric, TelemetryWindow
from natwork_ray.errors import InputError
from natwork_ray.profiling.detector import TwoStageDetector, named, network_input
from natwork_ray.profiling.profile import REFERENCE_WIDTH, ProfileBook, unprofiled_fleet
from natwork_ray.profiling.verdicts import MIN_EVIDENCE, drivers, reach_verdicts
from natwork_ray.profiling.windows import commissioning_book


@pytest.fixture
def book(runs: tuple[LabelledRun, ...]) -> ProfileBook:
    return commissioning_book(runs[:2])


def _window(run: LabelledRun, end: int, length: int = 8) -> TelemetryWindow:
    return TelemetryWindow(
        containers=("box",),
        services=(run.service,),
        end_s=10.0 * end,
        step_s=10.0,
        values=run.values[None, end - length : end].copy(),
    )


def test_finds_the_anomaly_and_says_which_and_why(
    runs: tuple[LabelledRun, ...], detector: TwoStageDetector, book: ProfileBook
) -> None:
    assessment = detector.assess(_window(runs[0], 80), book)
    (verdict,) = assessment.verdicts
    assert assessment.degraded == ()
    assert (verdict.container, verdict.at_s, verdict.kind) == ("box", 800.0, AnomalyKind.HIGH_CPU)
    assert verdict.score >= detector.card.threshold
    assert verdict.drivers[0].metric == Metric.CPU
    assert verdict.drivers[0].deviation > 5


def test_normal_operation_gives_no_verdict(
    runs: tuple[LabelledRun, ...], detector: TwoStageDetector, book: ProfileBook
) -> None:
    flagged = [detector.assess(_window(runs[0], end), book).verdicts for end in range(10, 60)]
    assert sum(bool(v) for v in flagged) <= 1


def test_only_the_last_samples_count(
    runs: tuple[LabelledRun, ...], detector: TwoStageDetector, book: ProfileBook
) -> None:
    references = book.references(("a",))
    long, short = (detector.score(_window(runs[0], 80, n).values, references) for n in (30, detector.window))
    assert long.p_anomalous == short.p_anomalous


def test_unflagged_windows_are_normal_with_the_rest_of_the_probability(
    runs: tuple[LabelledRun, ...], detector: TwoStageDetector, book: ProfileBook
) -> None:
    scores = detector.score(_window(runs[0], 40).values, book.references(("a",)))
    assert STAGE_2_CLASSES[scores.kinds[0]] is AnomalyKind.FALSE_POSITIVE
    assert scores.confidence[0] == pytest.approx(1 - scores.p_anomalous[0])


def test_a_missing_newest_sample_is_degraded_not_normal(
    runs: tuple[LabelledRun, ...], detector: TwoStageDetector, book: ProfileBook
) -> None:
    window = _window(runs[0], 80)
    window.values[:, -1] = np.nan
    scores = detector.score(window.values, book.references(window.services))
    assert not scores.scored[0]
    assert scores.p_anomalous[0] == 0
    assessment = detector.assess(window, book)
    assert assessment == ((), ("box",))


def test_cold_start_is_degraded(runs: tuple[LabelledRun, ...], detector: TwoStageDetector, book: ProfileBook) -> None:
    window = replace(_window(runs[0], 80), services=("never seen",))
    assert detector.assess(window, book).degraded == ("box",)
    # An empty book falls back on the fleet that the model was trained on.
    assert detector.assess(window, ProfileBook()).degraded == ("box",)


@settings(max_examples=30)
@given(st.data())
def test_missing_samples_never_make_a_verdict(
    runs: tuple[LabelledRun, ...], detector: TwoStageDetector, draw: st.DataObject
) -> None:
    """Whatever is missing: a flag needs a metric that was measured now and is unusual now."""
    references = commissioning_book(runs[:2]).references(("a",))
    window = _window(runs[0], draw.draw(st.integers(20, 200)))
    hidden = np.array(draw.draw(st.lists(st.booleans(), min_size=96, max_size=96))).reshape(8, 12)
    window.values[0][hidden] = np.nan
    scores = detector.score(window.values, references)
    newest = np.nan_to_num(scores.deviations[0], nan=0.0)
    if scores.flagged[0]:
        assert np.abs(newest).max() >= MIN_EVIDENCE
        assert drivers(scores.deviations[0], scores.contributions[0])
    window.values[:] = np.nan
    assert not detector.score(window.values, references).flagged[0]


def test_what_is_only_remembered_is_no_verdict(detector: TwoStageDetector) -> None:
    always = TwoStageDetector(detector.stage_1, detector.stage_2, replace(detector.card, threshold=0.0))
    references = _rows()
    values = np.zeros((1, 8, 12), np.float32)
    values[0, :-1, 4] = 5.0
    assert not always.score(values, references).flagged[0]
    values[0, -1, 4] = 5.0
    assert always.score(values, references).flagged[0]


def test_batches_are_scored_as_single_windows(
    runs: tuple[LabelledRun, ...], detector: TwoStageDetector, book: ProfileBook
) -> None:
    ends = range(20, 200, 7)
    values = np.concatenate([_window(runs[0], end).values for end in ends])
    references = book.references(("a",) * len(values))
    together = detector.score(values, references)
    apart = [detector.score(values[i : i + 1], references[i : i + 1]) for i in range(len(values))]
    assert np.allclose(together.p_anomalous, [s.p_anomalous[0] for s in apart], atol=1e-5)
    assert together.kinds.tolist() == [int(s.kinds[0]) for s in apart]


def test_nothing_to_score(detector: TwoStageDetector) -> None:
    empty = np.zeros((0, REFERENCE_WIDTH), np.float32)
    assert len(detector.score(np.zeros((0, 8, 12), np.float32), empty).flagged) == 0


def _rows(count: int = 1, *, centre: float = 0.0, scale: float = 1.0) -> np.ndarray:
    profile = unprofiled_fleet()
    return np.array([(centre,) * 12 + (scale,) * 12 + profile.joint] * count, dtype=np.float32)


@pytest.mark.parametrize(
    ("values", "references", "said"),
    [
        (np.ones((1, 8, 12)), None, "float64"),
        (np.ones((1, 8, 11), np.float32), None, "shape"),
        (np.ones((8, 12), np.float32), None, "shape"),
        (np.ones((1, 5, 12), np.float32), None, "at least 6"),
        (np.full((1, 8, 12), np.inf, np.float32), None, "inf"),
        (np.full((1, 8, 12), -1, np.float32), None, "not negative"),
        (None, _rows(2), "references have shape"),
        (None, _rows()[:, :12], "references have shape"),
        (None, _rows(centre=np.nan), "centre .* nan"),
        (None, _rows(scale=np.inf), "scale .* inf"),
        (None, _rows(scale=0.0), "scale lies between"),
    ],
)
def test_hostile_input(
    detector: TwoStageDetector, values: np.ndarray | None, references: np.ndarray | None, said: str
) -> None:
    with pytest.raises(InputError, match=said):
        detector.score(
            np.ones((1, 8, 12), np.float32) if values is None else values,
            _rows() if references is None else references,
        )


def test_unknown_where_no_class_is_probable() -> None:
    p = np.zeros((3, 7), np.float32)
    p[0, :4] = (0.1, 0.4, 0.3, 0.2)
    p[1, 2] = 1.0
    p[2, 6], p[2, 5] = 0.4, 0.3
    kinds, confidence = named(p, 0.5)
    assert [STAGE_2_CLASSES[k] for k in kinds] == [AnomalyKind.UNKNOWN, AnomalyKind.HIGH_MEMORY, AnomalyKind.UNKNOWN]
    assert confidence == pytest.approx([0.6, 1.0, 0.4])


def test_drivers_are_the_farthest_three() -> None:
    deviating = np.zeros(N_METRICS, np.float32)
    deviating[[1, 4, 6, 8]] = (2, -9, 3, 1.5)
    deviating[0] = np.nan
    silent = np.zeros(N_METRICS, np.float32)
    assert [(d.metric, d.deviation) for d in drivers(deviating, silent)] == [
        (METRICS[4], -9.0),
        (METRICS[6], 3.0),
        (METRICS[1], 2.0),
    ]
    assert drivers(np.full(N_METRICS, 0.9, np.float32), silent) == ()


def test_drivers_that_pushed_come_first() -> None:
    deviating = np.zeros(N_METRICS, np.float32)
    deviating[[1, 4, 6, 8]] = (2, -9, 3, 0.5)
    pushes = np.zeros(N_METRICS, np.float32)
    pushes[[1, 4, 8]] = (1.5, -2.0, 7.0)
    # What spoke for "normal" comes after what said nothing nearer only by its distance; what is usual now is no driver.
    assert [(d.metric, d.contribution) for d in drivers(deviating, pushes)] == [
        (METRICS[1], 1.5),
        (METRICS[4], -2.0),
        (METRICS[6], 0.0),
    ]


def test_contributions_name_the_metric_that_broke(
    runs: tuple[LabelledRun, ...], detector: TwoStageDetector, book: ProfileBook
) -> None:
    scores = detector.score(_window(runs[0], 80).values, book.references(("a",)))
    assert METRICS[int(scores.contributions[0].argmax())] == Metric.CPU
    calm = detector.score(_window(runs[0], 40).values, book.references(("a",)))
    assert not calm.contributions.any()


def test_network_input_is_bounded_and_without_gaps() -> None:
    assert network_input(np.array([np.nan, 16, -16, 2], np.float32)).tolist() == [0.0, 4.0, -4.0, 1.0]


def test_verdicts_of_several_containers_keep_their_names(
    runs: tuple[LabelledRun, ...], detector: TwoStageDetector, book: ProfileBook
) -> None:
    window = TelemetryWindow(
        containers=("calm", "hot", "dark"),
        services=("a", "a", "a"),
        end_s=1.0,
        step_s=10.0,
        values=np.stack([runs[0].values[40:48], runs[0].values[72:80], np.full((8, 12), np.nan, np.float32)]),
    )
    verdicts, degraded = reach_verdicts(window, detector.score(window.values, book.references(window.services)))
    assert [v.container for v in verdicts] == ["hot"]
    assert degraded == ("dark",)


@pytest.mark.parametrize("which", ["detector", "best"])
def test_without_any_profile_nothing_is_scored(
    runs: tuple[LabelledRun, ...], which: str, request: pytest.FixtureRequest
) -> None:
    judge: TwoStageDetector = request.getfixturevalue(which)
    window = _window(runs[0], 80)
    scores = judge.score(window.values, ProfileBook().references(window.services))
    assert (scores.scored.tolist(), scores.flagged.tolist(), scores.p_anomalous.tolist()) == ([False], [False], [0.0])
    found, degraded = reach_verdicts(window, scores)
    assert (found, degraded) == ((), window.containers)
