"""The report's prose and tables: HTML made from a run record, readable without JavaScript.

Everything that comes from outside (names of containers, nodes and scenarios, reasons, errors) goes through `escape`.
Times are told since the loop took charge, because the emulation's clock has no date.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from natwork_ray.domain.actions import ActionOutcome, Instruction, Migrate
from natwork_ray.domain.decisions import Decision
from natwork_ray.domain.quota import QuotaAccount
from natwork_ray.domain.runs import RunRecord
from natwork_ray.domain.values import Backend, plain

_BACKEND = {
    Backend.EMULATED: "Every figure here comes from the emulated testbed, not from a network.",
    Backend.REPLAYED: "Telemetry was recorded on real services; actions had no effect on it.",
    Backend.REAL: "Telemetry and actions are those of a real network.",
}


@dataclass(frozen=True)
class Action:
    """An outcome together with the instruction and the decision that it came from.

    `container` and `name` are known also for an outcome whose decision is not in the record; `instruction` is not.
    """

    outcome: ActionOutcome
    container: str
    name: str
    instruction: Instruction | None
    decision: Decision | None


@dataclass(frozen=True)
class Timeline:
    """The record's moments: `started_s` is zero, and each outcome knows its instruction."""

    started_s: float
    actions: tuple[Action, ...]

    @classmethod
    def of(cls, record: RunRecord) -> Timeline:
        """Join outcomes with instructions by key."""
        known = {i.key: (i, d) for d in record.decisions for i in d.instructions}
        actions = []
        for outcome in record.outcomes:
            instruction, decision = known.get(outcome.key, (None, None))
            actions.append(
                Action(
                    outcome,
                    instruction.container if instruction else "?",
                    instruction.type if instruction else outcome.key,
                    instruction,
                    decision,
                )
            )
        return cls(record.started_s, tuple(actions))

    def since(self, at_s: float) -> float:
        """Seconds since the loop took charge; negative during commissioning."""
        return at_s - self.started_s

    def clock(self, at_s: float) -> str:
        """The same as h:mm:ss."""
        return clock(self.since(at_s))


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss, with a sign when negative.

    >>> clock(3725.4), clock(-60)
    ('1:02:05', '-0:01:00')
    """
    whole = round(abs(seconds))
    return f"{'-' if seconds < 0 and whole else ''}{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def headline(record: RunRecord, timeline: Timeline) -> str:
    """Title, backend badge and the tiles."""
    score = record.score
    failed = sum(not o.done for o in record.outcomes)
    downtime = sum(o.downtime_s for o in record.outcomes)
    worst = max(record.quota, key=_used, default=None)
    detected_all = score.detected == score.injected
    moves = sum(isinstance(a.instruction, Migrate) and a.outcome.done for a in timeline.actions)
    unlabelled = "" if score.precision is None else f", precision {score.precision:.2f}"
    recall = "" if score.recall is None else f", recall {score.recall:.2f}"
    delay = "" if score.mean_delay_s is None else f", after {score.mean_delay_s:.0f} s on average"
    violations = sum(q.violations for q in record.quota)
    tiles = [
        _tile(
            "Anomalies detected",
            f"{score.detected} of {score.injected}",
            f"events of the truth{delay}",
            "good" if detected_all else "warn",
        ),
        _tile(
            "False alarms",
            f"{score.false_alarms_per_hour:.2f} /h",
            f"{score.false_alarms} in all{unlabelled}{recall}",
            "plain",
        ),
        _tile("Decisions", str(len(record.decisions)), f"{record.windows:,} windows judged", "plain"),
        _tile(
            "Actions done",
            f"{len(record.outcomes) - failed} of {len(record.outcomes)}",
            f"{moves} live migration{'' if moves == 1 else 's'}, {failed} failed",
            "bad" if failed else "good",
        ),
        _tile(
            "Downtime",
            f"{downtime:.2f} s",
            _worst_quota(worst) if worst else "no quota kept",
            "bad" if violations else "good",
        ),
        _tile(
            "Audit log",
            "verified" if record.audit_verified else "NOT verified",
            f"{record.audit_entries:,} entries",
            "good" if record.audit_verified else "bad",
        ),
    ]
    facts = [
        ("scenario", record.scenario),
        ("seed", str(record.seed)),
        ("mode", str(record.mode)),
        ("detector", record.detector),
        ("span", f"{clock(record.ended_s - record.started_s)} on the backend's clock"),
        ("wall time", f"{record.wall_s:.1f} s"),
    ]
    listed = "".join(f"<div><dt>{k}</dt><dd>{escape(v)}</dd></div>" for k, v in facts)
    return (
        f'<h1>Run report <span class="badge {record.backend}">{record.backend}</span></h1>'
        f'<p class="lead">{_BACKEND[record.backend]}</p><dl class="facts">{listed}</dl>'
        f'<div class="tiles">{"".join(tiles)}</div>'
    )


def sections(record: RunRecord, timeline: Timeline) -> dict[str, str]:
    """The sections below the headline, by place in the template."""
    return {
        "DECISIONS": _decisions(record, timeline),
        "MIGRATIONS": _migrations(timeline),
        "PLACEMENT": _placement(record),
        "QUOTA_NOTE": _quota_note(record.quota),
        "AUDIT": _audit(record),
    }


def _tile(name: str, figure: str, note: str, tone: str) -> str:
    return (
        f'<div class="tile {tone}"><div class="name">{name}</div><div class="figure">{escape(figure)}</div>'
        f'<div class="note">{escape(note)}</div></div>'
    )


def _used(account: QuotaAccount) -> float:
    return (account.spent_s + account.reserved_s) / account.budget_s if account.budget_s else 0.0


def _worst_quota(account: QuotaAccount) -> str:
    return f"most used quota: {account.container}, {100 * _used(account):.2f} % of {account.budget_s:.0f} s"


def _pill(word: str) -> str:
    return f'<span class="pill {escape(word)}">{escape(word.replace("_", " "))}</span>'


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells are HTML already."""
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    titles = "".join(f'<th scope="col">{escape(h)}</th>' for h in head)
    return f'<div class="scroll"><table><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table></div>'


def _decisions(record: RunRecord, timeline: Timeline) -> str:
    if not record.decisions:
        return '<p class="empty">No decision was taken in this run.</p>'
    outcomes: dict[str, list[Action]] = {}
    for action in timeline.actions:
        if action.decision is not None:
            outcomes.setdefault(action.decision.id, []).append(action)
    return "".join(_decision(d, outcomes.get(d.id, []), timeline) for d in record.decisions)


def _decision(decision: Decision, actions: Sequence[Action], timeline: Timeline) -> str:
    kind = f"{decision.kind} → " if decision.kind else ""
    verdict = ""
    if decision.verdict is not None:
        v = decision.verdict
        drivers = ", ".join(f"{escape(d.metric)} {d.deviation:+.1f} sd" for d in v.drivers) or "none"
        flows = "; ".join(
            f"{escape(f.source)}: {100 * f.request_share:.0f} % of requests, {100 * f.failed_share:.0f} % of failed"
            for f in v.flows
        )
        verdict = (
            f"<h4>What was seen</h4><p>Stage 1 score {v.score:.2f}; stage 2 {escape(str(v.kind))} with "
            f"{v.confidence:.2f}. Driven by {drivers}.{f' Traffic by source: {flows}.' if flows else ''}</p>"
        )
    planned = "".join(f"<li><code>{escape(_words(i))}</code></li>" for i in decision.instructions)
    came = "".join(
        f"<li>{_pill('done' if a.outcome.done else 'failed')} {escape(a.outcome.detail)}"
        f"{f': {escape(a.outcome.error)}' if a.outcome.error else ''} "
        f"<small>({a.outcome.downtime_s:.2f} s of downtime)</small></li>"
        for a in actions
    )
    rejected = _table(
        ["Alternative", "Feasible", "Utility", "Downtime p95", "Why not"],
        (
            (
                escape(str(a.mitigation).replace("_", " ")),
                "yes" if a.feasible else "no",
                f"{a.utility:.2f}" if a.feasible else "–",
                f"{a.predicted_downtime_s:.2f} s",
                escape(a.reason),
            )
            for a in decision.rejected
        ),
    )
    return (
        f'<details class="decision" id="{escape(decision.id, quote=True)}"><summary>'
        f'<span class="when">{timeline.clock(decision.at_s)}</span>{_pill(decision.status)}'
        f"<b>{escape(decision.container)}</b>"
        f'<span class="what">{escape((kind + decision.mitigation).replace("_", " "))}</span>'
        f'<span class="why">{escape(decision.reason)}</span></summary><div class="body">{verdict}'
        + (f"<h4>Instructions</h4><ul>{planned}</ul>" if planned else "")
        + (f"<h4>Outcome</h4><ul>{came}</ul>" if came else "")
        + f"<h4>Rejected alternatives</h4>{rejected if decision.rejected else '<p>None was weighed.</p>'}"
        + f'<p class="fine">{escape(decision.id)}, mode {escape(str(decision.mode))}, predicted downtime (p95) '
        f"{decision.predicted_downtime_s:.2f} s</p></div></details>"
    )


def _words(instruction: Instruction) -> str:
    fields = plain(instruction)
    return ", ".join(f"{k}={v}" for k, v in fields.items() if v is not None)


def _migrations(timeline: Timeline) -> str:
    rows = []
    for action in timeline.actions:
        move, outcome = action.instruction, action.outcome
        if not isinstance(move, Migrate):
            continue
        total = outcome.finished_at_s - outcome.started_at_s
        phases = " ".join(
            f'<span class="phase"><i style="width:{_width(p.duration_s, total)}%"></i>{escape(p.name)} '
            f"{p.duration_s:.2f} s{f', {p.transferred_bytes / 2**20:.1f} MiB' if p.transferred_bytes else ''}</span>"
            for p in outcome.phases
        )
        rows.append(
            (
                timeline.clock(outcome.started_at_s),
                f"<b>{escape(move.container)}</b>",
                f"{escape(move.source)} → {escape(move.target)}",
                escape(str(move.method)),
                _pill("done" if outcome.done else "failed"),
                f"{total:.2f} s",
                f"{outcome.downtime_s:.3f} s",
                f'<div class="phases">{phases}</div>' if outcome.done else escape(outcome.error),
            )
        )
    if not rows:
        return '<p class="empty">No container was moved in this run.</p>'
    return _table(["Start", "Container", "From → to", "Method", "Outcome", "Total", "Downtime", "Phases"], rows)


def _width(part_s: float, total_s: float) -> str:
    return f"{min(100.0, max(1.0, 100 * part_s / total_s)) if total_s > 0 else 1.0:.1f}"


def _placement(record: RunRecord) -> str:
    def changed(before: str, after: str) -> str:
        return escape(after) if before == after else f"{escape(before)} → <b>{escape(after)}</b>"

    rows = []
    for now in record.topology_after.containers:
        old = record.topology_before.container(now.name) or now
        rows.append(
            (
                escape(now.name),
                escape(now.slice),
                changed(old.node, now.node),
                changed(str(old.replicas), str(now.replicas)),
                changed(f"{old.cpu_limit_cores:g}", f"{now.cpu_limit_cores:g}"),
                changed(f"{old.memory_limit_bytes / 2**20:.0f} MiB", f"{now.memory_limit_bytes / 2**20:.0f} MiB"),
            )
        )
    return _table(["Container", "Slice", "Node", "Replicas", "CPU limit (cores)", "Memory limit"], rows)


def _quota_note(accounts: Sequence[QuotaAccount]) -> str:
    if not accounts:
        return '<p class="empty">No quota was kept in this run.</p>'
    violations = sum(a.violations for a in accounts)
    days = accounts[0].window_s / 86_400
    return (
        f"<p>Each CNF may lose {accounts[0].budget_s:.1f} s in a window of {days:g} days. Spent so far by all: "
        f"{sum(a.spent_s for a in accounts):.2f} s; promised to actions under way: "
        f"{sum(a.reserved_s for a in accounts):.2f} s; violations: {violations}.</p>"
    )


def _audit(record: RunRecord) -> str:
    state = (
        "The log was verified when this report was written."
        if record.audit_verified
        else "<strong>The log did not verify when this report was written. Do not rely on this report.</strong>"
    )
    return (
        f"<p>{state} It holds {record.audit_entries:,} entries: each verdict, decision, instruction and outcome, "
        "chained by hash, under the Merkle tree root below, signed with Ed25519.</p>"
        f'<p class="root"><code>{escape(record.audit_root) or "no entries"}</code></p>'
        "<p>This page proves nothing by itself. Check the log that the run left behind, and compare the root that "
        "is printed with the one above:</p><pre><code>natwork audit verify</code></pre>"
    )
