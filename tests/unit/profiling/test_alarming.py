"""The alarm rule against a plain reading of its sentence, and the choice of its numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from natwork_ray.errors import InputError
from natwork_ray.profiling.alarming import AlarmRule, fit_rule, raise_alarms
from natwork_ray.profiling.evaluation import event_metrics


@st.composite
def rules(draw: st.DrawFn) -> AlarmRule:
    of = draw(st.integers(1, 5))
    return AlarmRule(
        high=draw(st.sampled_from([0.5, 0.9, 2.0])),
        needed=draw(st.integers(1, of)),
        of=of,
        hold=draw(st.integers(1, 4)),
    )


SAMPLES = st.lists(st.tuples(st.booleans(), st.sampled_from([0.2, 0.6, 0.95])), max_size=30)


def _read_out(rule: AlarmRule, samples: list[tuple[bool, float]]) -> tuple[list[bool], list[bool]]:
    fires, opened = [], []
    is_open, quiet = False, 0
    for t, (flagged, score) in enumerate(samples):
        lately = sum(flag for flag, _ in samples[max(0, t - rule.of + 1) : t + 1])
        quiet = 0 if flagged else quiet + 1
        if quiet >= rule.hold:
            is_open = False
        if flagged and (score >= rule.high or lately >= rule.needed):
            is_open = True
        fires.append(is_open and flagged)
        opened.append(is_open)
    return fires, opened


@given(rules(), SAMPLES, SAMPLES)
def test_the_rule_does_what_it_says_in_each_recording(
    rule: AlarmRule, first: list[tuple[bool, float]], second: list[tuple[bool, float]]
) -> None:
    both = [*first, *second]
    alarms = raise_alarms(
        rule,
        np.array([flag for flag, _ in both], dtype=bool),
        np.array([score for _, score in both]),
        np.array([0] * len(first) + [1] * len(second), dtype=np.intp),
    )
    expected = [_read_out(rule, part) for part in (first, second)]
    assert alarms.fires.tolist() == expected[0][0] + expected[1][0]
    assert alarms.opened.tolist() == expected[0][1] + expected[1][1]


def test_a_sure_spike_of_one_sample_is_kept_and_a_doubtful_one_is_not() -> None:
    rule = AlarmRule(high=0.8, needed=2, of=3, hold=3)
    flagged, unit = np.array([False, True, False, False, False]), np.zeros(5, dtype=np.intp)
    assert raise_alarms(rule, flagged, np.full(5, 0.9), unit).fires.tolist() == flagged.tolist()
    assert not raise_alarms(rule, flagged, np.full(5, 0.7), unit).opened.any()


def test_flicker_is_one_alarm() -> None:
    rule = AlarmRule(high=0.8, needed=2, of=2, hold=3)
    flagged = np.array([True, False, False] * 4 + [False] * 3)
    alarms = raise_alarms(rule, flagged, np.full(15, 0.9), np.zeros(15, dtype=np.intp))
    raw = event_metrics(np.zeros(15, dtype=bool), flagged, np.zeros(15, dtype=np.intp), step_s=240.0)
    calm = event_metrics(
        np.zeros(15, dtype=bool), alarms.fires, np.zeros(15, dtype=np.intp), step_s=240.0, opened=alarms.opened
    )
    assert (raw.false_alarms_per_hour, calm.false_alarms_per_hour) == (4.0, 1.0)


def test_being_still_open_does_not_find_the_next_block() -> None:
    rule = AlarmRule(high=0.8, needed=2, of=2, hold=3)
    truth = np.array([True, False, True, False])
    flagged = np.array([True, False, False, False])
    alarms = raise_alarms(rule, flagged, np.full(4, 0.9), np.zeros(4, dtype=np.intp))
    reached = event_metrics(truth, alarms.fires, np.zeros(4, dtype=np.intp), step_s=10.0, opened=alarms.opened)
    assert alarms.opened.tolist() == [True, True, True, False]
    assert (reached.events, reached.found, reached.false_alarms_per_hour) == (2, 1, 0.0)


def _hour(spike_score: float, noise_score: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """An hour of ten one-sample spikes and ten doubtful stray flags."""
    truth, scores = np.zeros(360, dtype=bool), np.full(360, 0.05)
    truth[np.arange(10) * 36 + 9] = True
    scores[truth] = spike_score
    scores[np.arange(10) * 36 + 27] = noise_score
    return truth, scores, np.zeros(360, dtype=np.intp)


def test_the_choice_keeps_spikes_where_scores_tell_them_from_noise() -> None:
    truth, scores, unit = _hour(0.9, 0.6)
    rule = fit_rule(truth, scores >= 0.5, scores, unit, step_s=10.0)
    assert 0.6 < rule.high <= 0.9
    alarms = raise_alarms(rule, scores >= 0.5, scores, unit)
    reached = event_metrics(truth, alarms.fires, unit, step_s=10.0, opened=alarms.opened)
    assert (reached.found, reached.false_alarms_per_hour, reached.mean_delay_samples) == (10, 0.0, 0.0)


def test_the_choice_gives_spikes_up_where_nothing_tells_them_from_noise() -> None:
    truth, scores, unit = _hour(0.7, 0.7)
    rule = fit_rule(truth, scores >= 0.5, scores, unit, step_s=10.0)
    assert rule.high > 0.7
    generous = fit_rule(truth, scores >= 0.5, scores, unit, step_s=10.0, budget_per_hour=20.0)
    assert generous.high <= 0.7


@pytest.mark.parametrize(
    "numbers",
    [
        {"high": -0.1, "needed": 1, "of": 1, "hold": 1},
        {"high": float("nan"), "needed": 1, "of": 1, "hold": 1},
        {"high": 0.5, "needed": 3, "of": 2, "hold": 1},
        {"high": 0.5, "needed": 0, "of": 2, "hold": 1},
        {"high": 0.5, "needed": 1, "of": 61, "hold": 1},
        {"high": 0.5, "needed": 1, "of": 1, "hold": 0},
    ],
)
def test_impossible_rules_are_refused(numbers: dict[str, float]) -> None:
    with pytest.raises(InputError):
        AlarmRule(**numbers)  # type: ignore[arg-type]
