"""The record of a run: alarms by the loop's own vote, scores against the truth, the verified log."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from natwork_ray.backends import alarm_settings
from natwork_ray.cli.run_record import GRACE_S, Chronicle, score, verify_log
from natwork_ray.config import AlarmConfig
from natwork_ray.control.cycle import Judgement, Turn
from natwork_ray.domain.anomaly import AnomalyKind, AnomalyVerdict
from natwork_ray.domain.labelled import LabelledEvent
from natwork_ray.domain.topology import Topology


@pytest.fixture(scope="session")
def chronicle(small_run: Any) -> Chronicle:
    told = Chronicle()
    for turn in small_run.turns:
        told.add(turn)
    return told


def _verdict(container: str, at_s: float, kind: AnomalyKind = AnomalyKind.HIGH_CPU, score: float = 0.8) -> Any:
    return AnomalyVerdict(container=container, at_s=at_s, score=score, kind=kind, confidence=0.9, drivers=())


def test_everything_is_counted(chronicle: Chronicle, small_run: Any) -> None:
    # A container that is being moved has no window to judge.
    blind = sum(len(t.judgement.degraded) for t in small_run.turns)
    assert len(small_run.turns) == 90
    assert chronicle.windows == 900 - blind
    assert 0 < blind < 20
    assert len(chronicle.verdicts) == sum(len(t.judgement.verdicts) for t in small_run.turns)


def test_the_first_alarm_of_each_container_is_the_loops_first_decision(chronicle: Chronicle, small_run: Any) -> None:
    alarms: dict[str, float] = {}
    for alarm in chronicle.alarms(alarm_settings(small_run.config)):
        alarms.setdefault(alarm.container, alarm.at_s)
    decisions: dict[str, float] = {}
    for decision in small_run.ending.decisions:
        if decision.verdict is not None:
            decisions.setdefault(decision.container, decision.at_s)
    assert decisions
    assert alarms == decisions


@given(st.lists(st.sampled_from(["", "a", "b", "ab"]), max_size=60), st.integers(1, 4), st.integers(0, 3))
def test_alarms_keep_the_cool_down_and_the_vote(flags: list[str], needed: int, more: int) -> None:
    nothing = Topology(nodes=(), links=(), slices=(), containers=())
    settings = AlarmConfig(votes_needed=needed, votes_of=needed + more, cooldown_s=40.0)
    told = Chronicle()
    for number, names in enumerate(flags):
        at_s = 10.0 * (number + 1)
        verdicts = tuple(_verdict(name, at_s) for name in names)
        told.add(Turn(at_s, 2, Judgement(verdicts, ()), (), (), nothing))
    alarms = told.alarms(settings)
    for name in "ab":
        times = [a.at_s for a in alarms if a.container == name]
        assert all(later - earlier >= 40.0 for earlier, later in itertools.pairwise(times))
        for at_s in times:
            number = round(at_s / 10) - 1
            recent = flags[max(0, number - needed - more + 1) : number + 1]
            assert sum(name in names for names in recent) >= needed


def test_score_against_the_truth(small_run: Any) -> None:
    event = LabelledEvent(container="a", kind="high_cpu", start_s=100.0, end_s=200.0)
    facts = replace(small_run.facts, truth=(event,), affected=(("b",),))
    found = _verdict("a", 120.0)
    late = _verdict("a", 200.0 + GRACE_S)
    after = _verdict("a", 201.0 + GRACE_S)
    neighbour = _verdict("b", 150.0)
    stranger = _verdict("c", 150.0)

    def of(*alarms: Any) -> tuple[int, int]:
        reached = score(facts, list(alarms), hours=2.0)
        assert reached.injected == 1
        assert reached.false_alarms_per_hour == reached.false_alarms / 2
        return reached.detected, reached.false_alarms

    assert of() == (0, 0)
    assert of(found) == of(late) == (1, 0)
    assert of(after) == (0, 1)
    assert of(neighbour) == (0, 0)
    assert of(stranger) == (0, 1)
    assert of(found, neighbour, stranger) == (1, 1)
    assert score(facts, [found], hours=2.0).mean_delay_s == pytest.approx(20.0)


def test_a_neighbour_that_has_an_event_of_its_own_still_counts(small_run: Any) -> None:
    events = tuple(LabelledEvent(container=c, kind="high_cpu", start_s=100.0, end_s=200.0) for c in "ab")
    facts = replace(small_run.facts, truth=events, affected=(("b",), ("a",)))
    assert score(facts, [_verdict("a", 120.0), _verdict("b", 130.0)], hours=1.0).detected == 2


def test_the_log_of_the_run_verifies(small_run: Any, tmp_path: Path) -> None:
    report = verify_log(small_run.state_dir, tmp_path / "audit.log")
    assert report.pinned
    assert report.root == small_run.ending.audit_root
    assert report.bytes == (tmp_path / "audit.log").stat().st_size
