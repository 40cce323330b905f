"""The schedule of a service for people: a table with a bar per container, a chart for a browser, a document for JSON;
and beside what was planned, what became of it.

--- serving on the source, copying    ### down    ~~~ serving on the target, pages still arrive
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from natwork_ray.control.desk import Migration
from natwork_ray.domain.values import plain
from natwork_ray.errors import PreconditionError
from natwork_ray.limi.arrivals import arrivals_of
from natwork_ray.limi.service_plan import MigrationPlan, PlannedMigration, ScheduleRequest

_WIDTH = 48
_LIVE, _DOWN, _LAZY = "-", "#", "~"


def plan_document(request: ScheduleRequest, plan: MigrationPlan) -> dict[str, Any]:
    """The plan as plain JSON types; every member with its method and its way."""
    document: dict[str, Any] = plain(plan)
    members = {m.container: m for m in request.members}
    for row in document["migrations"]:
        member = members[row["container"]]
        row.update(
            method=str(member.forecast.method),
            source=member.source,
            target=member.target,
            downtime_s=row["arrival_s"] - row["freeze_s"],
        )
    document["waves"] = [list(wave) for wave in plan.waves]
    return document


def plan_lines(request: ScheduleRequest, plan: MigrationPlan) -> list[str]:
    """What happens when, then why, in lines of text."""
    members = {m.container: m for m in request.members}
    rows = sorted(plan.migrations, key=lambda m: (m.wave, m.start_s, m.container))
    name_width = max((len(m.container) for m in rows), default=0)
    scale = _WIDTH / max(plan.finish_s, 1e-9)
    count = len(plan.arrivals_s)
    lines = [
        f"{plan.service}: {len(rows)} containers in {count} wave{'s' * (count != 1)}, "
        f"unavailable for {plan.disruption.unavailable_s:.2f} s, over after {plan.finish_s:.2f} s"
    ]
    for m in rows:
        member = members[m.container]
        lines.append(
            f"  {m.container.ljust(name_width)} {_bar(m, scale)} {member.forecast.method!s:9} "
            f"{member.source} -> {member.target}  starts {m.start_s:.2f} s, "
            f"down {m.freeze_s:.2f} s to {m.arrival_s:.2f} s"
        )
    lines.append(f"  {' ' * name_width} {_LIVE} copying, serves   {_DOWN} down   {_LAZY} pages still arrive, serves")
    return [*lines, *(f"  {reason}" for reason in plan.reasons)]


def _bar(m: PlannedMigration, scale: float) -> str:
    cells = ["."] * _WIDTH
    for mark, begin_s, end_s in ((_LIVE, m.start_s, m.freeze_s), (_LAZY, m.arrival_s, m.finish_s)):
        if end_s > begin_s:
            _fill(cells, mark, begin_s * scale, end_s * scale)
    _fill(cells, _DOWN, m.freeze_s * scale, m.arrival_s * scale)  # last: no downtime is too short to be seen
    return "".join(cells)


def _fill(cells: list[str], mark: str, begin: float, end: float) -> None:
    first = min(int(begin), len(cells) - 1)
    last = max(first + 1, min(round(end), len(cells)))
    cells[first:last] = [mark] * (last - first)


def service_document(migrations: Sequence[Migration]) -> dict[str, Any]:
    """Whether a service arrived together, and what had been planned, for JSON; None for what is not known."""
    together = migrations[0].instruction.together if migrations else None
    records = [m.outcome.record for m in migrations if m.outcome and m.outcome.record]
    arrivals = arrivals_of(records)
    never_begun = [m.instruction.container for m in migrations if not (m.outcome and m.outcome.record)]
    planned = {"last_arrival_s": together.arrives_s, "unavailable_s": together.unavailable_s} if together else None
    return {
        "arrived": list(arrivals.arrived),
        "stayed": [*arrivals.stayed, *never_begun],
        "arrival_spread_s": arrivals.spread_s,
        "arrival_spread_pct": arrivals.spread_pct,
        "longest_migration_s": arrivals.longest_s,
        "last_arrival_s": arrivals.last_s,
        "unavailable_s": arrivals.unavailable_s,
        "degraded_s": arrivals.degraded_s,
        "gates": [str(gate) for gate in together.gates] if together else [],
        "on_failure": str(together.on_failure) if together else None,
        "planned": planned,
    }


def service_lines(migrations: Sequence[Migration]) -> list[str]:
    """The same in words."""
    known = service_document(migrations)
    planned = known["planned"] or {}

    def as_planned(name: str) -> str:
        return f" (planned {planned[name]:.2f} s)" if name in planned else ""

    lines = [f"{len(known['arrived'])} of {len(migrations)} containers arrived"]
    if known["stayed"]:
        lines[0] += f"; not {', '.join(known['stayed'])}"
    if known["arrival_spread_s"] is not None and known["arrival_spread_pct"] is not None:
        lines.append(
            f"  {1000 * known['arrival_spread_s']:.1f} ms between the first arrival and the last, "
            f"{known['arrival_spread_pct']:.1f} % of the longest migration ({known['longest_migration_s']:.2f} s)"
        )
        lines.append(f"  last arrival after {known['last_arrival_s']:.2f} s{as_planned('last_arrival_s')}")
    lines.append(f"  unavailable for {known['unavailable_s']:.2f} s{as_planned('unavailable_s')}")
    return lines


def gantt_html(plan: MigrationPlan) -> str:
    """A chart of the plan as one HTML page that needs no network.

    Raises:
        PreconditionError: plotly is not installed.
    """
    try:
        import plotly.graph_objects as go
    except ImportError as error:
        raise PreconditionError(
            "the chart needs plotly, which is not installed", hint="pip install 'natwork-ray[plots]'"
        ) from error
    names = [m.container for m in plan.migrations]
    parts: Sequence[tuple[str, str, list[float], list[float]]] = (
        ("copying, serves", "#4c78a8", [m.start_s for m in plan.migrations], [m.freeze_s for m in plan.migrations]),
        ("down", "#e45756", [m.freeze_s for m in plan.migrations], [m.arrival_s for m in plan.migrations]),
        ("pages arrive", "#f2cf5b", [m.arrival_s for m in plan.migrations], [m.finish_s for m in plan.migrations]),
    )
    figure = go.Figure(
        [
            go.Bar(
                name=label,
                marker_color=colour,
                orientation="h",
                y=names,
                base=begins,
                x=[end - begin for begin, end in zip(begins, ends, strict=True)],
            )
            for label, colour, begins, ends in parts
        ]
    )
    figure.update_layout(
        barmode="overlay",
        title=f"{plan.service}: migration plan",
        xaxis_title="seconds from the start",
        yaxis={"autorange": "reversed"},
    )
    return str(figure.to_html(include_plotlyjs=True, full_html=True))
