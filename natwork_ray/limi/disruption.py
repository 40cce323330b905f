"""What moving a service costs its users, in seconds: one definition for every way of doing it.

A service of interdependent containers serves its users when all of its containers do. So, while a service moves:

    unavailable   at least one of its containers is down: the union of their downtimes, not the sum
    split         nobody is down, but calls take a longer way than before the move and than after it, because one end
                  has moved and the other has not; each moment counts with the share of calls that do
    total         unavailable + split weight x split

A call takes a longer way when the round trip between the nodes where its ends are now exceeds both that between their
sources and that between their targets: a service that is spread over two sites afterwards is not charged for that.
The weight (0.25) is an assumption: a second on the long way costs a quarter of a second of downtime, as a second of
migration does elsewhere in this package. Degradation by lazy pages is reported beside it: it is the price of the
method, not of the schedule.

    >>> m = Move(container="a", down=((1.0, 2.0),), moved_s=2.0)
    >>> n = Move(container="b", down=((1.5, 3.0),), moved_s=3.0)
    >>> measure((m, n), members=(), rtt_s=lambda a, b: 0.0, split_weight=0.25).unavailable_s
    2.0

Left out: requests that queue while a container is down, and the weight of one call against another.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence

from natwork_ray.domain.values import value
from natwork_ray.limi.service_plan import Disruption, Member

Span = tuple[float, float]


@value
class Move:
    """What became of one container. `moved_s` None: it stays where it was. Spans are (from, to), in seconds."""

    container: str
    down: tuple[Span, ...]
    moved_s: float | None
    degraded: tuple[Span, ...] = ()


def measure(
    moves: Sequence[Move],
    *,
    members: Sequence[Member],
    rtt_s: Callable[[str, str], float],
    split_weight: float,
) -> Disruption:
    """The disruption of `moves`. `members` say who calls whom and where they come from and go to."""
    by_name = {move.container: move for move in moves}
    placed = {m.container: m for m in members if m.container in by_name}
    calls = [(m, placed[other]) for m in placed.values() for other in m.calls if other in placed]
    down = _union(span for move in moves for span in move.down)
    ends = [end for move in moves for _, end in move.down] + [m.moved_s for m in moves if m.moved_s is not None]
    moments = sorted({0.0, *ends, *(begin for begin, _ in down)})
    split_s = 0.0
    for begin, end in itertools.pairwise(moments):
        middle = (begin + end) / 2
        if calls and not any(a <= middle < b for a, b in down):
            long_way = sum(_takes_long_way(a, b, by_name, middle, rtt_s) for a, b in calls)
            split_s += (end - begin) * long_way / len(calls)
    unavailable_s = sum(b - a for a, b in down)
    return Disruption(
        unavailable_s=unavailable_s,
        split_s=split_s,
        degraded_s=sum(b - a for a, b in _union(span for move in moves for span in move.degraded)),
        total_s=unavailable_s + split_weight * split_s,
    )


def _takes_long_way(
    a: Member, b: Member, moves: dict[str, Move], at_s: float, rtt_s: Callable[[str, str], float]
) -> bool:
    where = [m.target if _has_moved(moves[m.container], at_s) else m.source for m in (a, b)]
    return rtt_s(where[0], where[1]) > max(rtt_s(a.source, b.source), rtt_s(a.target, b.target))


def _has_moved(move: Move, at_s: float) -> bool:
    return move.moved_s is not None and move.moved_s <= at_s


def _union(spans: Iterable[Span]) -> list[Span]:
    joined: list[Span] = []
    for begin, end in sorted(span for span in spans if span[1] > span[0]):
        if joined and begin <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], end))
        else:
            joined.append((begin, end))
    return joined
