"""Whether a service arrived together, as the records of its migrations tell (docs/schedule.md has the definitions).

The moments come from the agents of the sources, each by its own clock: on machines of their own, the spread is only as
good as those clocks agree.

    >>> arrivals_of([record_of_web, record_of_db]).spread_pct    # doctest: +SKIP
    0.4

Left out: calls that took a longer way meanwhile; for those one has to know who calls whom (`limi.disruption`).
"""

from __future__ import annotations

from collections.abc import Sequence

from natwork_ray.domain.migrations import MigrationRecord, MigrationState
from natwork_ray.domain.phases import Phase
from natwork_ray.domain.values import value
from natwork_ray.limi.chronicle import hold_name
from natwork_ray.limi.disruption import Move, measure
from natwork_ray.limi.steps import Verb

_HOLDS = frozenset(hold_name(verb) for verb in Verb)


@value
class Arrivals:
    """What became of a service's move, in seconds from the start of its first migration.

    Attributes:
        arrived, stayed: containers that serve on their targets, and those that do not.
        first_s, last_s: the first and the last arrival; None when nobody arrived.
        longest_s: the longest migration, without the time in which it was held; spread_pct is relative to it.
        unavailable_s: time in which at least one container was down; degraded_s: in which one waited for pages.
    """

    arrived: tuple[str, ...]
    stayed: tuple[str, ...]
    first_s: float | None
    last_s: float | None
    longest_s: float
    unavailable_s: float
    degraded_s: float

    @property
    def spread_s(self) -> float | None:
        """Between the first and the last arrival."""
        return None if self.first_s is None or self.last_s is None else self.last_s - self.first_s

    @property
    def spread_pct(self) -> float | None:
        """The spread as a share of the longest migration."""
        return None if self.spread_s is None or self.longest_s <= 0 else 100 * self.spread_s / self.longest_s


def arrivals_of(records: Sequence[MigrationRecord]) -> Arrivals:
    """From the records of one service's migrations."""
    began_s = min((r.started_at_s for r in records), default=0.0)
    moves, arrivals = [], {}
    for record in records:
        offset_s = record.started_at_s - began_s
        frozen_s = [offset_s + p.starts_s for p in record.phases if p.name == Verb.FREEZE]
        down: tuple[tuple[float, float], ...] = ()
        degraded: tuple[tuple[float, float], ...] = ()
        if frozen_s:
            down = ((frozen_s[0], frozen_s[0] + record.downtime_s),)
        arrived_s = _last_end_s(record.phases, Verb.ADDRESS_MOVE)
        if record.state is MigrationState.MIGRATED and arrived_s is not None:
            arrivals[record.container] = offset_s + arrived_s
            whole_s = _last_end_s(record.phases, Verb.PAGES_FETCHED)
            if whole_s is not None:
                degraded = ((offset_s + arrived_s, offset_s + whole_s),)
        moves.append(
            Move(container=record.container, down=down, moved_s=arrivals.get(record.container), degraded=degraded)
        )
    cost = measure(moves, members=(), rtt_s=lambda _a, _b: 0.0, split_weight=0.0)
    return Arrivals(
        arrived=tuple(arrivals),
        stayed=tuple(r.container for r in records if r.container not in arrivals),
        first_s=min(arrivals.values(), default=None),
        last_s=max(arrivals.values(), default=None),
        longest_s=max((_unheld_s(r) for r in records), default=0.0),
        unavailable_s=cost.unavailable_s,
        degraded_s=cost.degraded_s,
    )


def _last_end_s(phases: Sequence[Phase], verb: Verb) -> float | None:
    return max((p.starts_s + p.duration_s for p in phases if p.name == verb), default=None)


def _unheld_s(record: MigrationRecord) -> float:
    """Its total without holds, overlapping ones counted once."""
    held_s, until_s = 0.0, 0.0
    for p in sorted((p for p in record.phases if p.name in _HOLDS), key=lambda p: p.starts_s):
        end_s = min(p.starts_s + p.duration_s, record.total_s)
        held_s += max(0.0, end_s - max(p.starts_s, until_s))
        until_s = max(until_s, end_s)
    return record.total_s - held_s
