"""What the terminal says of a run: the story while it goes, a table at its end, and the same as one JSON object.

The JSON object is the command line's contract (`natwork demo --json`). For one scenario, seed, mode and detector it is
the same each time, apart from `wall_s`.

Texts are built as rich `Text`, never as markup, so that brackets in a container's name are brackets on the screen.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from natwork_ray.cli.report_sections import clock
from natwork_ray.control.cycle import Turn
from natwork_ray.domain.actions import (
    ActionOutcome,
    AddNode,
    BlockSource,
    FlowAlert,
    Instruction,
    MeshRetry,
    Migrate,
    Restart,
    Scale,
    SetLimits,
)
from natwork_ray.domain.anomaly import AnomalyKind, AnomalyVerdict
from natwork_ray.domain.decisions import Decision, DecisionStatus
from natwork_ray.domain.quota import QuotaAccount
from natwork_ray.domain.runs import RunRecord

_STATUS_STYLE = {
    DecisionStatus.DONE: "green",
    DecisionStatus.FAILED: "red",
    DecisionStatus.AWAITING_APPROVAL: "yellow",
    DecisionStatus.LAPSED: "yellow",
    DecisionStatus.REFUSED: "yellow",
}


def summary_json(record: RunRecord) -> dict[str, Any]:
    """The run in one JSON object; seconds on the backend's clock, rounded to a tenth of a millisecond."""
    score = record.score
    labels = {"precision": score.precision, "recall": score.recall, "f1": score.f1}
    return {
        "backend": str(record.backend),
        "scenario": record.scenario,
        "seed": record.seed,
        "mode": str(record.mode),
        "detector": record.detector,
        "windows": record.windows,
        "anomalies": {
            "injected": score.injected,
            "detected": score.detected,
            "false_alarms": score.false_alarms,
            "false_alarms_per_hour": _rounded(score.false_alarms_per_hour),
            "mean_delay_s": None if score.mean_delay_s is None else _rounded(score.mean_delay_s),
        },
        "labels": {name: _rounded(x) for name, x in labels.items() if x is not None} or None,
        "decisions": [_compact(d) for d in record.decisions],
        "actions": {
            "done": sum(o.done for o in record.outcomes),
            "failed": sum(not o.done for o in record.outcomes),
        },
        "downtime_s": _rounded(sum(o.downtime_s for o in record.outcomes)),
        "quota": {
            "violations": sum(q.violations for q in record.quota),
            "spent_s": _rounded(sum(q.spent_s for q in record.quota)),
            "budget_s": _rounded(max((q.budget_s for q in record.quota), default=0.0)),
        },
        "audit": {
            "entries": record.audit_entries,
            "verified": record.audit_verified,
            "root": record.audit_root,
        },
        "wall_s": round(record.wall_s, 3),
    }


def _compact(decision: Decision) -> dict[str, Any]:
    return {
        "id": decision.id,
        "at_s": _rounded(decision.at_s),
        "container": decision.container,
        "anomaly": None if decision.kind is None else str(decision.kind),
        "mitigation": str(decision.mitigation),
        "status": str(decision.status),
        "reason": decision.reason,
    }


def _rounded(x: float) -> float:
    return round(x, 4)


def summary_table(record: RunRecord) -> Table:
    """The run as a table of name and figure."""
    score, totals = record.score, summary_json(record)
    failed, violations = totals["actions"]["failed"], totals["quota"]["violations"]
    moves = {i.key for d in record.decisions for i in d.instructions if isinstance(i, Migrate)}
    moved = sum(o.done and o.key in moves for o in record.outcomes)
    table = Table(title=Text(f"{record.scenario}, seed {record.seed}"), show_header=False, title_justify="left")
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")

    def row(name: str, figure: str, style: str = "") -> None:
        table.add_row(name, Text(figure, style=style))

    row("backend", str(record.backend), "bold")
    row("mode, detector", f"{record.mode}, {record.detector}")
    span = clock(record.ended_s - record.started_s)
    row("windows judged", f"{record.windows:,} in {span} on the backend's clock")
    delay = "" if score.mean_delay_s is None else f", after {score.mean_delay_s:.0f} s on average"
    found_all = score.detected == score.injected
    row(
        "anomalies detected",
        f"{score.detected} of {score.injected}{delay}",
        "green" if found_all else "yellow",
    )
    row("false alarms", f"{score.false_alarms} ({score.false_alarms_per_hour:.2f} per hour)")
    if totals["labels"]:
        row("against labels", ", ".join(f"{name} {x:.3f}" for name, x in totals["labels"].items()))
    row("decisions", str(len(record.decisions)))
    row(
        "actions",
        f"{totals['actions']['done']} done ({moved} live migrations), {failed} failed",
        "red" if failed else "green",
    )
    row("downtime", f"{totals['downtime_s']:.2f} s in all")
    row(
        "quota",
        f"{totals['quota']['spent_s']:.2f} s spent by all; each CNF has {totals['quota']['budget_s']:.1f} s; "
        f"{violations} violations",
        "red" if violations else "green",
    )
    row(
        "audit log",
        f"{record.audit_entries:,} entries, {'verified' if record.audit_verified else 'NOT verified'}, "
        f"root {record.audit_root[:16]}…",
        "green" if record.audit_verified else "bold red",
    )
    row("wall time", f"{record.wall_s:.1f} s")
    return table


class Story:
    """Turns the loop's turns into lines.

    A container that stays flagged is told of once, and again only when it was quiet for a turn or its class changed.
    `origin_s` is the moment that the told times count from.

        story = Story(origin_s=3600.0)
        for line in story.tell(turn, quota={a.container: a for a in status.quota}):
            console.print(line)
    """

    def __init__(self, *, origin_s: float) -> None:
        self._origin_s = origin_s
        self._flagged: dict[str, AnomalyKind] = {}
        self._degraded: frozenset[str] = frozenset()
        self._instructions: dict[str, Instruction] = {}

    def tell(self, turn: Turn, *, quota: Mapping[str, QuotaAccount] | None = None) -> tuple[Text, ...]:
        """The lines of one turn; empty for a turn without news. `quota` is the state after the turn."""
        verdicts = turn.judgement.verdicts
        news = [v for v in verdicts if self._flagged.get(v.container) is not v.kind]
        lines = [self._line(turn.at_s, "seen", "yellow", *_seen(v)) for v in news]
        self._flagged = {v.container: v.kind for v in verdicts}
        degraded = frozenset(turn.judgement.degraded)
        lines += [
            self._line(turn.at_s, "blind", "magenta", (name, "bold"), (": no sample, no verdict", ""))
            for name in sorted(degraded - self._degraded)
        ]
        self._degraded = degraded
        for decision in turn.decisions:
            self._instructions.update({i.key: i for i in decision.instructions})
        lines += [self._line(turn.at_s, "decided", "cyan", *_decided(d)) for d in turn.decisions]
        lines += [self._outcome(o, quota or {}) for o in turn.outcomes]
        return tuple(lines)

    def _outcome(self, outcome: ActionOutcome, quota: Mapping[str, QuotaAccount]) -> Text:
        instruction = self._instructions.get(outcome.key)
        if not outcome.done:
            tried = f"{instruction.type.replace('_', ' ')} of {instruction.container}" if instruction else outcome.key
            told = (f"{tried}: {outcome.error}; {outcome.detail}", "")
            return self._line(outcome.finished_at_s, "failed", "red", told)
        what = _did(instruction) if instruction else f"{outcome.key}: {outcome.detail},"
        took = outcome.finished_at_s - outcome.started_at_s
        cost = f" took {took:.1f} s, downtime {outcome.downtime_s:.2f} s"
        account = quota.get(instruction.container) if instruction else None
        if account is not None and outcome.downtime_s > 0:
            cost += f", quota {account.spent_s:.2f} of {account.budget_s:.0f} s used"
        return self._line(outcome.finished_at_s, "done", "green", (what, ""), (cost, "dim"))

    def _line(self, at_s: float, word: str, style: str, *parts: tuple[str, str]) -> Text:
        return Text.assemble((f"{clock(at_s - self._origin_s):>8} ", "dim"), (f"{word:<8}", style), *parts)


def _seen(verdict: AnomalyVerdict) -> list[tuple[str, str]]:
    drivers = ", ".join(f"{d.metric} {d.deviation:+.1f} sd" for d in verdict.drivers[:2])
    if verdict.kind is AnomalyKind.FALSE_POSITIVE:
        stage_2 = f"stage 2 calls it normal ({verdict.confidence:.2f})"
    else:
        stage_2 = f"stage 2 {verdict.kind.replace('_', ' ')} ({verdict.confidence:.2f})"
    told = f": stage 1 {verdict.score:.2f}, {stage_2}"
    return [(verdict.container, "bold"), (told, ""), (f"; {drivers}" if drivers else "", "dim")]


def _decided(decision: Decision) -> list[tuple[str, str]]:
    style = _STATUS_STYLE.get(decision.status, "")
    rejected = f" ({len(decision.rejected)} alternatives rejected)" if decision.rejected else ""
    return [
        (f"{decision.id} ", "dim"),
        (decision.status.replace("_", " "), style),
        (f" {decision.mitigation.replace('_', ' ')} for ", ""),
        (decision.container, "bold"),
        (f": {decision.reason}", ""),
        (rejected, "dim"),
    ]


def _did(instruction: Instruction) -> str:
    name = instruction.container
    match instruction:
        case Migrate():
            return f"{name} moved {instruction.source} -> {instruction.target} ({instruction.method}),"
        case Scale():
            return f"{name} scaled to {instruction.replicas} replicas,"
        case SetLimits():
            limits = [
                f"{instruction.cpu_limit_cores:g} cores" if instruction.cpu_limit_cores else "",
                f"{instruction.memory_limit_bytes / 2**20:.0f} MiB" if instruction.memory_limit_bytes else "",
            ]
            return f"{name} limited to {' and '.join(x for x in limits if x)},"
        case Restart():
            return f"{name} restarted,"
        case AddNode():
            return f"spare node brought in for {name},"
        case MeshRetry():
            return f"mesh retries for {name} switched {'on' if instruction.enabled else 'off'},"
        case BlockSource():
            return f"{instruction.source} blocked from {name},"
        case FlowAlert():
            sources = ", ".join(s.source for s in instruction.sources)
            return f"the network was told of {sources} on the way to {name} ({instruction.advice}),"
