"""Making the record of a run from what its actors know."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from natwork_ray.adapters.sqlite_journal import SqliteJournal
from natwork_ray.audit.verify import AuditReport, verify_export
from natwork_ray.backends import WorldFacts, alarm_settings, model_card
from natwork_ray.config import AlarmConfig, Config
from natwork_ray.control.alarms import AlarmVote
from natwork_ray.control.cycle import Turn
from natwork_ray.domain.anomaly import AnomalyKind, AnomalyVerdict
from natwork_ray.domain.runs import DetectionScore, RunRecord
from natwork_ray.domain.telemetry import NodeUsage
from natwork_ray.domain.topology import Topology
from natwork_ray.domain.values import Backend
from natwork_ray.profiling.evaluation import score_events

if TYPE_CHECKING:
    from agents.supervisor import Supervisor

GRACE_S = 120.0  # so long after its end an event still stands in the detector's windows and in the vote
USAGE_EVERY = 6  # node usage is drawn at one point a minute


@dataclass
class Chronicle:
    """What happened, turn by turn."""

    windows: int = 0
    verdicts: list[AnomalyVerdict] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)

    def add(self, turn: Turn) -> None:
        """Take a turn in."""
        self.windows += turn.scanned
        self.verdicts += turn.judgement.verdicts
        self.turns.append(turn)

    def alarms(self, settings: AlarmConfig) -> list[AnomalyVerdict]:
        """Verdicts that made an alarm, by the same vote as the loop's; one alarm per container and cool-down."""
        votes: dict[str, AlarmVote] = {}
        quiet_until_s: dict[str, float] = {}
        raised: list[AnomalyVerdict] = []
        for number, turn in enumerate(self.turns):
            for verdict in turn.judgement.verdicts:
                kind = votes.setdefault(verdict.container, AlarmVote()).add(number, verdict, settings)
                if kind is not None and verdict.at_s >= quiet_until_s.get(verdict.container, 0.0):
                    raised.append(verdict)
                    quiet_until_s[verdict.container] = verdict.at_s + settings.cooldown_s
        return raised


def score(facts: WorldFacts, alarms: list[AnomalyVerdict], *, hours: float) -> DetectionScore:
    """Alarms against the truth. An alarm on a direct neighbour during an event is due to that event, not false."""
    due = {
        id(alarm)
        for event, neighbours in zip(facts.truth, facts.affected, strict=True)
        for alarm in alarms
        if alarm.container in neighbours
        and alarm.container != event.container
        and event.start_s <= alarm.at_s <= event.end_s + GRACE_S
    }
    own = {
        id(alarm)
        for event in facts.truth
        for alarm in alarms
        if alarm.container == event.container and event.start_s <= alarm.at_s <= event.end_s + GRACE_S
    }
    return score_events([a for a in alarms if id(a) in own or id(a) not in due], facts.truth, hours, GRACE_S)


def with_labels(score: DetectionScore, facts: WorldFacts, turns: Sequence[Turn]) -> DetectionScore:
    """The score with precision, recall and F1 per judged sample: what the two stages said against the real label.

    A sample that stage 1 flagged and stage 2 called a false positive counts as called normal.
    """
    hits = misses = false = 0
    for turn in turns:
        named = {v.container for v in turn.judgement.verdicts if v.kind is not AnomalyKind.FALSE_POSITIVE}
        labelled = {e.container for e in facts.truth if e.start_s <= turn.at_s < e.end_s}
        judged = {c.name for c in turn.topology.containers} - set(turn.judgement.degraded)
        hits += len(judged & named & labelled)
        false += len((judged & named) - labelled)
        misses += len((judged & labelled) - named)
    precision = hits / (hits + false) if hits + false else None
    recall = hits / (hits + misses) if hits + misses else None
    f1 = 2 * hits / (2 * hits + false + misses) if hits + false + misses else None
    return replace(score, precision=precision, recall=recall, f1=f1)


def verify_log(state_dir: Path, audit_file: Path) -> AuditReport:
    """Export the audit log and verify the file, with the key pinned from the state directory."""
    journal = SqliteJournal.open_read_only(state_dir)
    try:
        with audit_file.open("wb") as stream:
            journal.export(stream)
        with audit_file.open("rb") as stream:
            return verify_export(stream, pinned_key=journal.verifier_key)
    finally:
        journal.close()


async def make_record(
    supervisor: Supervisor, config: Config, chronicle: Chronicle, before: Topology, *, audit_file: Path
) -> RunRecord:
    """Ask everyone, once the run is over."""
    world, control = supervisor.crew.world, supervisor.crew.control
    facts = await world.facts()
    status = await control.status()
    ended_s = chronicle.turns[-1].at_s if chronicle.turns else facts.begins_s
    usage: list[NodeUsage] = []
    for turn in chronicle.turns[::USAGE_EVERY]:
        usage += await world.node_usage(at_s=turn.at_s)
    report = verify_log(config.state_dir, audit_file)
    hours = max(ended_s - facts.begins_s, facts.step_s) / 3600
    detector = model_card(config).settings.detector
    detection = score(facts, chronicle.alarms(alarm_settings(config)), hours=hours)
    if facts.backend is Backend.REPLAYED:  # recordings carry a label for each sample
        detection = with_labels(detection, facts, chronicle.turns)
    return RunRecord(
        scenario=facts.scenario,
        seed=facts.seed,
        backend=facts.backend,
        mode=config.loop.mode,
        detector=detector if config.model is None else f"{detector}, trained as {config.model.name}",
        started_s=facts.begins_s,
        ended_s=ended_s,
        windows=chronicle.windows,
        topology_before=before,
        topology_after=status.topology,
        telemetry=await world.window(end_s=ended_s, length=round(ended_s / facts.step_s)),
        node_usage=tuple(usage),
        truth=facts.truth,
        verdicts=tuple(chronicle.verdicts),
        decisions=await control.decisions(),
        outcomes=await control.outcomes(),
        quota=status.quota,
        score=detection,
        audit_entries=report.entries,
        audit_root=report.root,
        audit_verified=True,
        wall_s=0.0,
    )
