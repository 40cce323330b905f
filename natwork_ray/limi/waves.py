"""Who may move at the same time: waves that never ask more of a node than it has.

While a container moves, both nodes hold its share: the target from the start, the source until the last page is out.
So two full nodes that want to swap a container each can't, and a node that is being emptied can only be filled
afterwards. Members are taken in the order of their calls, so that those that talk to each other share a wave where
they can; each wave takes all that fit. A first-fit choice can block itself, so other orders are tried, in a fixed
sequence; the fewest waves win, then the fewest calls between waves.

Left out: an exact search. Where all orders block, the refusal says what was short in the best of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from natwork_ray.domain.values import value
from natwork_ray.errors import ExitCode, RefusedError
from natwork_ray.limi.service_plan import Member, ScheduleRequest

_MORE_ORDERS = 24
_SLACK = 1e-9  # of a capacity: sums of shares round


@value
class Shortage:
    """What a node lacks for one container: cores or bytes of memory, in `resource`."""

    container: str
    node: str
    resource: str
    needed: float
    free: float


class ScheduleRefusedError(RefusedError):
    """No order of waves fits the nodes. `shortages` say what was missing where."""

    exit_code = ExitCode.REFUSED

    def __init__(self, what: str, *, hint: str, shortages: tuple[Shortage, ...] = ()) -> None:
        super().__init__(what, hint=hint)
        self.shortages = shortages

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (self.what, self.hint, self.shortages))


def _rebuild(what: str, hint: str, shortages: tuple[Shortage, ...]) -> ScheduleRefusedError:
    return ScheduleRefusedError(what, hint=hint, shortages=shortages)


def waves_of(request: ScheduleRequest) -> tuple[tuple[str, ...], ...]:
    """Members wave by wave.

    Raises:
        ScheduleRefusedError: nothing fits, in any order that was tried.
    """
    members = {m.container: m for m in request.members}
    first = _by_calls(request.members)
    orders = [first, first[::-1], sorted(first, key=lambda name: (members[name].memory_bytes, name))]
    # A fixed seed: equal requests, equal waves.
    rng = np.random.default_rng(len(first))
    orders += [[first[i] for i in rng.permutation(len(first))] for _ in range(_MORE_ORDERS)]
    best: tuple[tuple[str, ...], ...] | None = None
    blocked: tuple[list[str], tuple[Shortage, ...]] | None = None
    for order in orders:
        waves, left, shortages = _fill(order, members, request)
        if left:
            if blocked is None or len(left) < len(blocked[0]):
                blocked = (left, shortages)
            continue
        if best is None or _price(waves, request.members) < _price(best, request.members):
            best = waves
        if len(best) == 1:
            break
    if best is None:
        left, shortages = blocked or ([], ())
        told = "; ".join(
            f"{s.container} needs {s.needed:g} {s.resource} on {s.node}, which has {max(0.0, s.free):g} free"
            for s in shortages[:4]
        )
        raise ScheduleRefusedError(
            f"service {request.service}: {len(left)} of {len(members)} containers cannot be placed: {told}",
            hint="free the nodes named, choose another target, or lower the limits of what runs there",
            shortages=shortages,
        )
    return best


def _by_calls(members: Sequence[Member]) -> list[str]:
    """Names so ordered that neighbours in the call graph stand near each other."""
    near: dict[str, list[str]] = {m.container: [] for m in members}
    for member in members:
        for other in member.calls:
            if other in near:
                near[member.container].append(other)
                near[other].append(member.container)
    order: list[str] = []
    seen: set[str] = set()
    for member in members:
        queue = [member.container]
        while queue:
            name = queue.pop(0)
            if name not in seen:
                seen.add(name)
                order.append(name)
                queue += near[name]
    return order


def _fill(
    order: Sequence[str], members: dict[str, Member], request: ScheduleRequest
) -> tuple[tuple[tuple[str, ...], ...], list[str], tuple[Shortage, ...]]:
    """Waves in this order, who is left when nothing fits any more, and why."""
    free = {room.node: [room.cpu_cores, room.memory_bytes] for room in request.rooms}
    slack = {room.node: [_SLACK * (1 + room.cpu_cores), _SLACK * (1 + room.memory_bytes)] for room in request.rooms}
    left = list(order)
    waves: list[tuple[str, ...]] = []
    while left:
        wave: list[str] = []
        shortages: list[Shortage] = []
        for name in left:
            member = members[name]
            if member.target in free:
                room, spare = free[member.target], slack[member.target]
                wanted = (member.cpu_cores, member.memory_bytes)
                short = [
                    Shortage(container=name, node=member.target, resource=what, needed=want, free=have)
                    for what, want, have, eps in zip(("cores", "bytes of memory"), wanted, room, spare, strict=True)
                    if want > have + eps
                ]
                if short:
                    shortages += short
                    continue
                room[0] -= wanted[0]
                room[1] -= wanted[1]
            wave.append(name)
        if not wave:
            return tuple(waves), left, tuple(shortages)
        for name in wave:
            if members[name].source in free:
                free[members[name].source][0] += members[name].cpu_cores
                free[members[name].source][1] += members[name].memory_bytes
        waves.append(tuple(wave))
        left = [name for name in left if name not in wave]
    return tuple(waves), [], ()


def _price(waves: tuple[tuple[str, ...], ...], members: Sequence[Member]) -> tuple[int, int]:
    number = {name: wave for wave, names in enumerate(waves) for name in names}
    cut = sum(number[m.container] != number.get(other, number[m.container]) for m in members for other in m.calls)
    return len(waves), cut
