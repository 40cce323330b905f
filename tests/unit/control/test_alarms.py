"""The vote against brute force, against the rule that evaluation applies, and where its numbers come from."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from natwork_ray.config import AlarmConfig
from natwork_ray.control.alarms import Alarm, AlarmVote, beyond_doubt, calibrated
from natwork_ray.domain.anomaly import AnomalyKind, AnomalyVerdict, Driver
from natwork_ray.profiling.alarming import AlarmRule, raise_alarms

K = AnomalyKind


def verdict(kind: AnomalyKind = K.HIGH_CPU, score: float = 0.6, deviation: float = 4.0) -> AnomalyVerdict:
    drivers = (Driver(metric="cpu_utilization", deviation=deviation),)
    return AnomalyVerdict(container="amf", at_s=0.0, score=score, kind=kind, confidence=0.9, drivers=drivers)


@st.composite
def configs(draw: st.DrawFn) -> AlarmConfig:
    of = draw(st.integers(1, 6))
    return AlarmConfig(
        votes_needed=draw(st.integers(1, of)),
        votes_of=of,
        fast_score=0.9,
        fast_deviation=8.0,
        hold=draw(st.integers(1, 5)),
    )


# One entry per turn: None is a turn without a flag.
TURNS = st.lists(
    st.none() | st.tuples(st.sampled_from(list(K)), st.sampled_from([0.6, 0.95]), st.sampled_from([1.0, -20.0])),
    max_size=25,
)


@given(configs(), TURNS)
def test_vote_is_k_of_n_by_brute_force(
    config: AlarmConfig, turns: list[tuple[AnomalyKind, float, float] | None]
) -> None:
    vote = AlarmVote()
    last: int | None = None  # the newest flag of an open alarm
    for turn, entry in enumerate(turns):
        window = turns[max(0, turn - config.votes_of + 1) : turn + 1]
        kinds = [e[0] for e in window if e is not None and e[0] is not K.FALSE_POSITIVE]
        if last is not None and turn - last > config.hold:
            last = None
        if entry is not None:
            kind, score, deviation = entry
            expected: AnomalyKind | None = None
            if kind is not K.FALSE_POSITIVE:
                if len(kinds) >= config.votes_needed or last is not None:
                    most = max(kinds.count(k) for k in kinds)
                    expected = next(k for k in reversed(kinds) if kinds.count(k) == most)
                elif score >= 0.9 and abs(deviation) >= 8.0:
                    expected = kind
                last = last if expected is None else turn
            assert vote.add(turn, verdict(kind, score, deviation), config) is expected
        assert vote.idle(turn, config) is (not kinds and last is None)


@given(configs(), st.lists(st.none() | st.sampled_from([0.6, 0.95]), max_size=25))
def test_the_loop_alarms_where_the_evaluated_rule_fires(config: AlarmConfig, scores: list[float | None]) -> None:
    rule = AlarmRule(high=0.9, needed=config.votes_needed, of=config.votes_of, hold=config.hold)
    settings = calibrated(AlarmConfig(), rule)
    vote = AlarmVote()
    ours = []
    for turn, score in enumerate(scores):
        ours.append(score is not None and vote.add(turn, verdict(score=score), settings) is not None)
        vote.idle(turn, settings)
    flagged = np.array([score is not None for score in scores], dtype=bool)
    theirs = raise_alarms(rule, flagged, np.array([s or 0.0 for s in scores]), np.zeros(len(scores), dtype=np.intp))
    assert ours == theirs.fires.tolist()


def test_a_spike_that_lasts_becomes_a_step() -> None:
    config = AlarmConfig(votes_needed=2, votes_of=3, fast_score=0.9, fast_deviation=0.0)
    vote = AlarmVote()
    said = [K.TRAFFIC_SPIKE, K.TRAFFIC_SPIKE, K.STEP_LOAD, K.STEP_LOAD, K.STEP_LOAD]
    names = [vote.add(turn, verdict(kind, 0.95), config) for turn, kind in enumerate(said)]
    assert names == [K.TRAFFIC_SPIKE, K.TRAFFIC_SPIKE, K.TRAFFIC_SPIKE, K.STEP_LOAD, K.STEP_LOAD]


def test_what_the_operator_left_open_comes_from_the_model() -> None:
    rule = AlarmRule(high=0.75, needed=2, of=2, hold=4)
    taken = calibrated(AlarmConfig(cooldown_s=60.0), rule)
    assert (taken.fast_score, taken.fast_deviation, taken.hold) == (0.75, 0.0, 4)
    assert (taken.votes_needed, taken.votes_of, taken.cooldown_s) == (2, 2, 60.0)
    assert calibrated(AlarmConfig(), AlarmRule(high=2.0, needed=1, of=1, hold=1)).fast_score == 1.0


def test_what_the_operator_set_stays() -> None:
    rule = AlarmRule(high=0.75, needed=2, of=2, hold=4)
    voting = calibrated(AlarmConfig(votes_of=5), rule)
    assert (voting.votes_needed, voting.votes_of, voting.fast_score) == (2, 5, 0.75)
    fast = calibrated(AlarmConfig(fast_deviation=3.0, hold=2), rule)
    assert (fast.fast_score, fast.fast_deviation, fast.hold) == (AlarmConfig().fast_score, 3.0, 2)
    assert calibrated(AlarmConfig(votes_needed=1), None) == AlarmConfig(votes_needed=1)


def test_false_positives_never_count_however_sure_stage_1_is() -> None:
    vote = AlarmVote()
    config = AlarmConfig(votes_needed=1, votes_of=1)
    assert vote.add(1, verdict(K.FALSE_POSITIVE, 1.0, 99.0), config) is None
    assert vote.idle(1, config)


def test_the_fast_path_needs_both_and_speaks_for_itself() -> None:
    config = AlarmConfig(votes_needed=3, votes_of=5)
    assert not beyond_doubt(verdict(score=1.0, deviation=7.9), config)
    assert not beyond_doubt(verdict(score=0.97, deviation=99.0), config)
    assert not beyond_doubt(AnomalyVerdict(container="a", at_s=0, score=1.0, kind=K.UNKNOWN, confidence=1.0), config)
    vote = AlarmVote()
    assert vote.add(1, verdict(K.HIGH_MEMORY), config) is None
    assert vote.add(2, verdict(K.TRAFFIC_SPIKE, 0.99, -9.0), config) is K.TRAFFIC_SPIKE


def test_an_alarm_says_what_stands_behind_it() -> None:
    text = str(Alarm(K.HIGH_CPU, verdict()))
    assert "high_cpu on amf" in text
    assert "cpu_utilization +4.0 sd" in text
    bare = AnomalyVerdict(container="amf", at_s=0.0, score=0.5, kind=K.UNKNOWN, confidence=0.4)
    assert "no single metric" in str(Alarm(K.UNKNOWN, bare))
