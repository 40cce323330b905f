"""Which steps a migration takes on its way forward, and which have to be done before each (D3.3 section 2.1, phases).

All four methods are one plan with parts left out:

    check source, check target
    -> open path, prepare                                           in parallel
    -> rounds of (pre-dump -> its transfer), volume pre-transfer    pre-copy, hybrid; the volume beside the first round
    -> freeze
    -> dump -> dump transfer (-> page tunnel beside it)             page tunnel: post-copy, hybrid
       volume transfer, address detach                              beside the dump: D3.3's parallel transfer
    -> restore -> address move
    -> lazy pages, lazy pages served                                post-copy, hybrid

Rounds of pre-copy end when another one would not pay: see `another_round`. Hybrid makes one round: what is dirtied
after it is fetched lazily anyway.

    >>> forward(MigrationMethod.COLD, max_rounds=5, residuals=(), writable=False)[Task(Verb.RESTORE)] == {
    ...     Task(Verb.DUMP_TRANSFER), Task(Verb.ADDRESS_DETACH)}
    True
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from natwork_ray.domain.actions import MigrationMethod
from natwork_ray.limi.steps import StepReport, Verb

SHRINKS_BELOW = 0.8  # of the round before; above it, the container dirties pages about as fast as they travel
TINY_BYTES = float(2**20)  # carried in a few milliseconds: less than a round costs

LAZY = frozenset({MigrationMethod.POST_COPY, MigrationMethod.HYBRID})
ROUNDS = frozenset({MigrationMethod.PRE_COPY, MigrationMethod.HYBRID})


class Task(NamedTuple):
    """A step as the plan sees it, however often it is asked for. `round` is 0 outside the rounds of pre-copy."""

    verb: Verb
    round: int = 0


def residual_bytes(dump: StepReport, transfer: StepReport) -> float:
    """What a round had to carry: the smaller of pages written and bytes sent.

    With dirty tracking both shrink; without it the dump stays whole, and only the difference on the link does.
    """
    return min(dump.pages_bytes, transfer.sent_bytes) if dump.pages_bytes > 0 else transfer.sent_bytes


def another_round(method: MigrationMethod, *, max_rounds: int, residuals: tuple[float, ...]) -> bool:
    """Whether a further round follows those of which `residuals` tell, in order.

    At least one is made and at most `max_rounds` (hybrid: one). From the second on, the residual has to have shrunk
    below `SHRINKS_BELOW` of the one before; a residual of `TINY_BYTES` or less ends the rounds at once.
    """
    if method not in ROUNDS:
        return False
    if not residuals:
        return True
    if method is MigrationMethod.HYBRID or len(residuals) >= max_rounds or residuals[-1] <= TINY_BYTES:
        return False
    return len(residuals) == 1 or residuals[-1] <= SHRINKS_BELOW * residuals[-2]


def forward(
    method: MigrationMethod, *, max_rounds: int, residuals: tuple[float, ...], writable: bool
) -> dict[Task, frozenset[Task]]:
    """Every task known so far with the tasks that have to be done before it, in the order in which they are asked for.

    While another round of pre-copy follows, the plan ends with that round. `writable`: the container has a writable
    root file system, which travels with it.
    """
    checks = frozenset({Task(Verb.CHECK_SOURCE), Task(Verb.CHECK_TARGET)})
    plan: dict[Task, frozenset[Task]] = dict.fromkeys(sorted(checks), frozenset())
    plan[Task(Verb.OPEN_PATH)] = plan[Task(Verb.PREPARE)] = checks
    ready = frozenset({Task(Verb.OPEN_PATH), Task(Verb.PREPARE)})
    more = another_round(method, max_rounds=max_rounds, residuals=residuals)
    for number in range(1, len(residuals) + more + 1):
        dump, transfer = Task(Verb.PRE_DUMP, number), Task(Verb.PRE_DUMP_TRANSFER, number)
        plan[dump], plan[transfer] = ready, frozenset({dump})
        if number == 1 and writable:
            plan[Task(Verb.VOLUME_PRE_TRANSFER)] = ready
            ready = frozenset({transfer, Task(Verb.VOLUME_PRE_TRANSFER)})
        else:
            ready = frozenset({transfer})
    if more:
        return plan
    frozen, dumped = frozenset({Task(Verb.FREEZE)}), frozenset({Task(Verb.DUMP)})
    plan[Task(Verb.FREEZE)] = ready
    plan[Task(Verb.DUMP)] = plan[Task(Verb.ADDRESS_DETACH)] = frozen
    arrived = [Task(Verb.DUMP_TRANSFER), Task(Verb.ADDRESS_DETACH)]
    if writable:
        plan[Task(Verb.VOLUME_TRANSFER)] = frozen
        arrived.append(Task(Verb.VOLUME_TRANSFER))
    plan[Task(Verb.DUMP_TRANSFER)] = dumped
    if method in LAZY:
        plan[Task(Verb.PAGE_TUNNEL)] = dumped
        arrived.append(Task(Verb.PAGE_TUNNEL))
    plan[Task(Verb.RESTORE)] = frozenset(arrived)
    plan[Task(Verb.ADDRESS_MOVE)] = frozenset({Task(Verb.RESTORE)})
    if method in LAZY:
        moved = frozenset({Task(Verb.ADDRESS_MOVE)})
        plan[Task(Verb.PAGES_FETCHED)] = plan[Task(Verb.PAGES_SERVED)] = moved
    return plan


def residuals_of(done: Mapping[Task, StepReport]) -> tuple[float, ...]:
    """Residuals of the rounds that are complete, in order."""
    found: list[float] = []
    while (transfer := done.get(Task(Verb.PRE_DUMP_TRANSFER, len(found) + 1))) is not None:
        found.append(residual_bytes(done[Task(Verb.PRE_DUMP, len(found) + 1)], transfer))
    return tuple(found)
