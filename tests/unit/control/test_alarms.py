"""The vote against brute force: every prefix is judged anew from the whole history."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from natwork_ray.config import AlarmConfig
from natwork_ray.control.alarms import Alarm, AlarmVote, beyond_doubt
from natwork_ray.domain.anomaly import AnomalyKind, AnomalyVerdict, Driver

K = AnomalyKind


def verdict(kind: AnomalyKind = K.HIGH_CPU, score: float = 0.6, deviation: float = 4.0) -> AnomalyVerdict:
    drivers = (Driver(metric="cpu_utilization", deviation=deviation),)
    return AnomalyVerdict(container="amf", at_s=0.0, score=score, kind=kind, confidence=0.9, drivers=drivers)


@st.composite
def configs(draw: st.DrawFn) -> AlarmConfig:
    of = draw(st.integers(1, 6))
    return AlarmConfig(votes_needed=draw(st.integers(1, of)), votes_of=of, fast_score=0.9, fast_deviation=8.0)


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
    for turn, entry in enumerate(turns):
        window = turns[max(0, turn - config.votes_of + 1) : turn + 1]
        kinds = [e[0] for e in window if e is not None and e[0] is not K.FALSE_POSITIVE]
        if entry is not None:
            kind, score, deviation = entry
            expected: set[AnomalyKind | None] = {None}
            if kind is not K.FALSE_POSITIVE:
                if len(kinds) >= config.votes_needed:
                    most = max(kinds.count(k) for k in kinds)
                    expected = {next(k for k in reversed(kinds) if kinds.count(k) == most)}
                elif score >= 0.9 and abs(deviation) >= 8.0:
                    expected = {kind}
            assert vote.add(turn, verdict(kind, score, deviation), config) in expected
        assert vote.idle(turn, config) is (not kinds)


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
