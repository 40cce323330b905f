"""What the terminal says: the JSON contract, the table, and the story of the turns."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from io import StringIO

import pytest
from rich.console import Console, RenderableType

from natwork_ray.cli.summary import Story, summary_json, summary_table
from natwork_ray.control.cycle import Judgement, Turn
from natwork_ray.domain.actions import (
    ActionOutcome,
    AddNode,
    BlockSource,
    Instruction,
    MeshRetry,
    Migrate,
    MigrationMethod,
    Restart,
    Scale,
    SetLimits,
)
from natwork_ray.domain.anomaly import AnomalyKind
from natwork_ray.domain.decisions import DecisionStatus
from natwork_ray.domain.runs import RunRecord
from natwork_ray.domain.topology import Topology
from natwork_ray.domain.values import Backend

MakeRecord = Callable[..., RunRecord]

NOWHERE = Topology(nodes=(), links=(), slices=(), containers=())


def shown(what: RenderableType) -> str:
    out = StringIO()
    Console(file=out, width=200, no_color=True).print(what)
    return out.getvalue()


def test_json_has_the_shape_of_the_contract(make_record: MakeRecord) -> None:
    record = make_record()
    summary = json.loads(json.dumps(summary_json(record), allow_nan=False))
    assert summary["backend"] == "emulated"
    assert summary["seed"] == 7
    assert summary["windows"] == 6480
    assert summary["anomalies"] == {
        "injected": 6,
        "detected": 5,
        "false_alarms": 1,
        "false_alarms_per_hour": 0.6667,
        "mean_delay_s": 31.0,
    }
    assert summary["labels"] == {"precision": 0.91, "recall": 0.78, "f1": 0.84}
    assert summary["actions"] == {"done": 4, "failed": 1}
    assert summary["quota"] == {"violations": 0, "spent_s": 4.02, "budget_s": 1296.0}
    assert summary["audit"] == {"entries": 612, "verified": True, "root": "5f" * 32}
    assert summary["downtime_s"] == 4.02
    assert summary["wall_s"] == 41.5
    assert summary["decisions"][0] == {
        "id": "d-000001",
        "at_s": 4030.0,
        "container": "video-analytics",
        "anomaly": "high_cpu",
        "mitigation": "horizontal_scale",
        "status": "done",
        "reason": record.decisions[0].reason,
    }


def test_only_the_wall_time_differs_between_runs_of_one_seed(make_record: MakeRecord) -> None:
    first, second = summary_json(make_record(5, wall_s=1.0)), summary_json(make_record(5, wall_s=2.0))
    assert first.pop("wall_s") != second.pop("wall_s")
    assert first == second
    assert first["decisions"] != summary_json(make_record(6))["decisions"]


def test_without_labels_and_quota(make_record: MakeRecord) -> None:
    record = make_record(samples=20)
    score = dataclasses.replace(record.score, precision=None, recall=None, f1=None, mean_delay_s=None)
    record = dataclasses.replace(record, score=score, quota=(), audit_verified=False)
    summary = summary_json(record)
    assert summary["labels"] is None
    assert summary["anomalies"]["mean_delay_s"] is None
    assert summary["quota"]["budget_s"] == 0.0
    text = shown(summary_table(record))
    assert "NOT verified" in text
    assert "against labels" not in text


def test_table_tells_every_figure(make_record: MakeRecord) -> None:
    text = shown(summary_table(make_record()))
    for words in (
        "emulated",
        "5 of 6, after 31 s",
        "1 (0.67 per hour)",
        "4 done (1 live migrations), 1 failed",
        "4.02 s spent by all",
        "0 violations",
        "612 entries, verified",
        "precision 0.910",
    ):
        assert words in text, words


def test_story_tells_what_was_seen_decided_and_paid(make_record: MakeRecord) -> None:
    record = make_record()
    quota = {q.container: q for q in record.quota}
    decision = next(d for d in record.decisions if d.container == "upf")
    assert decision.verdict is not None
    outcome = next(o for o in record.outcomes if o.key.startswith(decision.id))
    turn = Turn(decision.at_s, 12, Judgement((decision.verdict,), ("parking",)), (decision,), (outcome,), NOWHERE)
    seen, blind, decided, done = (str(line) for line in Story(origin_s=3600.0).tell(turn, quota=quota))
    assert "0:30:30" in seen
    assert "upf: stage 1" in seen
    assert "latency_p99_s +9.3 sd" in seen
    assert "parking: no sample" in blind
    assert decision.reason in decided
    assert "2 alternatives rejected" in decided
    assert "upf moved cloud-0 -> edge-0 (pre-copy), took 14.2 s, downtime 0.62 s" in done
    assert "quota 0.62 of 1296 s used" in done


def test_story_is_told_once_until_it_changes(make_record: MakeRecord) -> None:
    verdict = make_record().verdicts[0]
    other = dataclasses.replace(verdict, kind=AnomalyKind.FALSE_POSITIVE)
    story = Story(origin_s=0.0)

    def told(*verdicts: object) -> int:
        return len(story.tell(Turn(0.0, 1, Judgement(tuple(verdicts), ("x",)), (), (), NOWHERE)))  # type: ignore[arg-type]

    assert [told(verdict), told(verdict), told(other), told(), told(verdict)] == [2, 0, 1, 0, 1]


def test_failed_and_unknown_outcomes(make_record: MakeRecord) -> None:
    record = make_record()
    decision = next(d for d in record.decisions if d.status is DecisionStatus.FAILED)
    failed = next(o for o in record.outcomes if not o.done)
    stranger = dataclasses.replace(failed, key="d-999999/0", done=True, detail="scaled", error="")
    turn = Turn(0.0, 1, Judgement((), ()), (decision,), (failed, stranger), NOWHERE)
    _, first, second = (str(line) for line in Story(origin_s=0.0).tell(turn))
    assert "migrate of traffic-control: the target node refused" in first
    assert "d-999999/0: scaled, took" in second


@pytest.mark.parametrize(
    ("instruction", "words"),
    [
        (Scale(key="k", container="c", replicas=3), "c scaled to 3 replicas"),
        (SetLimits(key="k", container="c", cpu_limit_cores=1.5), "c limited to 1.5 cores,"),
        (
            SetLimits(key="k", container="c", cpu_limit_cores=2, memory_limit_bytes=2.0**30),
            "2 cores and 1024 MiB",
        ),
        (Restart(key="k", container="c"), "c restarted"),
        (AddNode(key="k", container="c"), "spare node brought in for c"),
        (MeshRetry(key="k", container="c", enabled=True), "mesh retries for c switched on"),
        (
            BlockSource(key="k", container="c", source="203.0.113.0/24", expires_at_s=9.0),
            "203.0.113.0/24 blocked",
        ),
        (
            Migrate(key="k", container="c", source="a", target="b", method=MigrationMethod.COLD),
            "c moved a -> b (cold)",
        ),
    ],
)
def test_every_instruction_has_words(make_record: MakeRecord, instruction: Instruction, words: str) -> None:
    decision = dataclasses.replace(make_record().decisions[0], instructions=(instruction,), rejected=())
    outcome = ActionOutcome(
        key="k",
        done=True,
        started_at_s=1.0,
        finished_at_s=2.0,
        downtime_s=0.0,
        backend=Backend.EMULATED,
        detail="",
    )
    turn = Turn(1.0, 1, Judgement((), ()), (decision,), (outcome,), NOWHERE)
    assert words in str(Story(origin_s=0.0).tell(turn)[-1])


def test_names_with_brackets_are_not_markup(make_record: MakeRecord) -> None:
    verdict = dataclasses.replace(make_record().verdicts[0], container="[red]x[/red]")
    turn = Turn(0.0, 1, Judgement((verdict,), ()), (), (), NOWHERE)
    assert "[red]x[/red]" in shown(Story(origin_s=0.0).tell(turn)[0])
