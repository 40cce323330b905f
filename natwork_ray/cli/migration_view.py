"""Migrations on the terminal: one JSON object each, a text Gantt of the phases, bars while they run."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any

from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from natwork_ray.cli.output import talk
from natwork_ray.cli.schedule_view import plan_lines
from natwork_ray.control.desk import Consideration, Migration
from natwork_ray.domain.decisions import DecisionStatus
from natwork_ray.domain.migrations import MigrationForecast, MigrationOutlook, MigrationState
from natwork_ray.domain.phases import Phase
from natwork_ray.domain.values import plain

LEFT_OPEN = "left open, nobody carries it on: `natwork migration recover`"
_WIDTH = 40
_PENDING = {
    DecisionStatus.RECOMMENDED: "recommended",
    DecisionStatus.AWAITING_APPROVAL: "awaiting_approval",
    DecisionStatus.LAPSED: "lapsed",
    DecisionStatus.REFUSED: MigrationState.REFUSED.value,
}


def state_of(migration: Migration) -> str:
    """Where it stands: a `MigrationState`, or how far its decision has come."""
    outcome = migration.outcome
    if outcome is None:
        return _PENDING.get(migration.status, MigrationState.RUNNING.value)
    if outcome.record is not None:
        return outcome.record.state.value
    # An agent that could not even begin has no record: the container is where it was.
    return (MigrationState.MIGRATED if outcome.done else MigrationState.REFUSED).value


def told(migration: Migration, *, left_open: bool = False) -> dict[str, Any]:
    """The migration as one flat JSON object, with its whole record where there is one.

    `left_open`: whoever drove it is dead, and nobody carries it on.
    """
    i, outcome = migration.instruction, migration.outcome
    record = outcome.record if outcome else None
    method = record.method if record else i.method
    return {
        "key": i.key,
        "decision": migration.decision,
        "at_s": migration.at_s,
        "container": i.container,
        "source": i.source,
        "target": i.target,
        "method": method.value if method else None,
        "backend": outcome.backend.value if outcome else None,
        "state": "left_open" if left_open else state_of(migration),
        "total_s": (record.total_s if record else outcome.finished_at_s - outcome.started_at_s) if outcome else None,
        "downtime_s": outcome.downtime_s if outcome else None,
        "error": outcome.error if outcome else "",
        "phases": [plain(p) for p in (record.phases if record else outcome.phases)] if outcome else [],
        "record": plain(record) if record else None,
        "progress": plain(migration.progress) if migration.progress else None,
    }


def gantt(migration: Migration, *, left_open: bool = False) -> list[str]:
    """The migration in lines: what became of it, then a bar for each phase on one scale of time."""
    document, outcome = told(migration, left_open=left_open), migration.outcome
    i = migration.instruction
    lines = [f"{i.key}  {i.container}: {i.source} -> {i.target} by {document['method'] or 'auto'}, {document['state']}"]
    if outcome is None:
        if left_open:
            lines.append(f"  {LEFT_OPEN}")
        if migration.progress:
            now = migration.progress
            lines.append(f"  {', '.join(now.under_way) or 'between two phases'}, after {now.elapsed_s:.2f} s")
            lines += [f"  {p.name}: {p.duration_s:.3f} s{_sizes(p)}" for p in now.phases]
        return lines
    lines[0] += f" ({outcome.backend})"
    record = outcome.record
    total_s = float(document["total_s"])
    facts = [f"{total_s:.3f} s in all", f"{outcome.downtime_s:.3f} s of downtime"]
    if record and record.client_downtime_s is not None:
        facts.append(f"{record.client_downtime_s:.3f} s as clients saw it")
    if record and record.pre_copy_rounds:
        facts.append(f"{record.pre_copy_rounds} pre-copy rounds")
    lines.append(f"  {', '.join(facts)}")
    if record:
        lines.append(f"  runs on {record.runs_on}; method chosen by {record.chosen_by}{_foretold(record.forecast)}")
    phases: Sequence[Phase] = record.phases if record else outcome.phases
    name_width = max((len(p.name) for p in phases), default=0)
    scale = _WIDTH / max([total_s, *(p.starts_s + p.duration_s for p in phases), 1e-9])
    for p in phases:
        begin = min(round(p.starts_s * scale), _WIDTH - 1)
        length = max(1, min(round(p.duration_s * scale), _WIDTH - begin))
        bar = f"{'.' * begin}{'#' * length}".ljust(_WIDTH, ".")
        lines.append(f"  {p.name.ljust(name_width)} {bar} {p.starts_s:8.3f} s + {p.duration_s:7.3f} s{_sizes(p)}")
    if outcome.error:
        lines.append(f"  {outcome.error}")
    return lines


def _sizes(phase: Phase) -> str:
    if not phase.size_bytes and not phase.transferred_bytes:
        return ""
    return f"  {phase.size_bytes / 2**20:.1f} MiB, {phase.transferred_bytes / 2**20:.1f} sent"


def _foretold(forecast: MigrationForecast | None) -> str:
    if forecast is None:
        return ""
    return (
        f"; forecast {forecast.total_p50_s:.2f} s in all, {forecast.downtime_p50_s:.2f} s of downtime "
        f"(95 %: {forecast.downtime_p95_s:.2f} s)"
    )


def consideration_lines(considered: Consideration) -> list[str]:
    """A dry run in words."""
    decision = considered.decision
    word = "would be refused" if decision.status is DecisionStatus.REFUSED else "would be carried out"
    lines = [f"{word}: {decision.reason}"]
    # Where the plan is conducted, its own lines say when each begins.
    starts = {} if considered.schedule else {s.container: s.starts_s for s in considered.starts}
    if considered.schedule is not None:
        lines += plan_lines(considered.schedule.request, considered.schedule.plan)
    for outlook in considered.outlooks:
        lines += _outlook_lines(outlook, starts.get(outlook.container))
    for account in considered.quota:
        lines.append(
            f"quota of {account.container}: {account.left_s:.2f} s of {account.budget_s:.0f} s of downtime left"
        )
    return lines


def _outlook_lines(outlook: MigrationOutlook, starts_s: float | None) -> list[str]:
    when = "" if starts_s is None else f", beginning after {starts_s:.2f} s"
    lines = [f"{outlook.container}: {outlook.source} -> {outlook.target} ({outlook.backend}){when}"]
    load = outlook.load
    if load is not None:
        lines.append(
            f"  {load.memory_bytes / 2**20:.0f} MiB of memory, {load.dirty_bytes_per_s / 2**20:.1f} MiB/s dirtied, "
            f"path {load.bandwidth_bytes_per_s / 2**20:.0f} MiB/s"
        )
    lines.append("  method      total p50    p95   downtime p50    p95")
    for f in outlook.forecasts:
        mark = "*" if f.method is outlook.chosen else " "
        lines.append(
            f" {mark}{f.method:<10} {f.total_p50_s:8.2f} s {f.total_p95_s:6.2f} s {f.downtime_p50_s:9.2f} s "
            f"{f.downtime_p95_s:6.2f} s"
        )
    lines += [f"  not {r.method}: {r.reason}" for r in outlook.impossible]
    if outlook.chosen is not None:
        lines.append(f"  chosen by {outlook.chosen_by}: {outlook.reason}")
    return lines


class PhaseBars:
    """One bar for each phase of each migration, on stderr, gone when all is over."""

    def __init__(self, *, quiet: bool) -> None:
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TimeElapsedColumn(),
            console=talk,
            transient=True,
            disable=quiet,
        )
        self._bars: dict[tuple[str, str], TaskID] = {}

    def __enter__(self) -> PhaseBars:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def show(self, migrations: Sequence[Migration]) -> None:
        """The migrations as they stand now."""
        for migration in migrations:
            key, name = migration.instruction.key, migration.instruction.container
            outcome, progress = migration.outcome, migration.progress
            if outcome is not None:
                phases = outcome.record.phases if outcome.record else outcome.phases
                done, under_way = {p.name for p in phases}, set[str]()
            elif progress is not None:
                done, under_way = {p.name for p in progress.phases}, set(progress.under_way)
            else:
                done, under_way = set[str](), {"waiting for its agent"}
            for (owner, phase), bar in self._bars.items():
                if owner == key and phase not in under_way:
                    self._progress.update(bar, total=1.0, completed=1.0)
            for phase in sorted(done | under_way):
                self._bar(key, name, phase, over=phase not in under_way)

    def _bar(self, key: str, name: str, phase: str, *, over: bool) -> None:
        bar = self._bars.get((key, phase))
        if bar is None:
            # Nobody knows how long a phase takes, so its bar pulses until it is over.
            bar = self._bars[key, phase] = self._progress.add_task(f"{name}: {phase}", total=None)
        if over:
            self._progress.update(bar, total=1.0, completed=1.0)
