"""Concurrent migrations as fluid flows over shared links: how long transfers take when they are not alone.

The schedule of a network service (`natwork_ray.limi.schedule`, D3.3 section 2.1) has to know this before anything
moves, since what it decides is who shares a link with whom. Rates are max-min fair: they grow together until a link is
full or a flow has all that it can use (an encrypted stream does not fill a link); whoever is not held back goes on.

`simulate` runs jobs, each a chain of stages (a fixed time, then a transfer), from their starts to their ends: exact,
one step per start or end of a stage. Max-min rates depend on who is active and on nothing else, so the same simulation
also runs backwards: jobs that all begin at 0 with their stages reversed say how long before a common end each has to
start. That turns "arrive together" into one simulation instead of a search.

    >>> link = {"edge-core": 100.0}
    >>> a = Job(start_s=0.0, stages=(Stage(transfer_bytes=100.0, links=("edge-core",)),))
    >>> b = Job(start_s=0.0, stages=(Stage(fixed_s=1.0), Stage(transfer_bytes=100.0, links=("edge-core",))))
    >>> simulate((a, b), link)
    ((1.0,), (1.0, 2.0))

Left out: packets, slow start, loss, and traffic that is not a migration (give `simulate` what it leaves over).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from natwork_ray.errors import UsageError

_ROUNDING, _NOTHING_BYTES = 1e-12, 1e-9  # less of a stage's size, or less altogether, is nothing


@dataclass(frozen=True)
class Stage:
    """A time that nothing shortens, then bytes that cross `links`, at most `rate_bytes_per_s` of them at once."""

    fixed_s: float = 0.0
    transfer_bytes: float = 0.0
    links: tuple[str, ...] = ()
    rate_bytes_per_s: float = math.inf

    def __post_init__(self) -> None:
        for name in ("fixed_s", "transfer_bytes"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise UsageError(f"stage {name} = {value}", hint="it must be finite and not negative")
        if not self.rate_bytes_per_s > 0:
            raise UsageError(f"stage rate_bytes_per_s = {self.rate_bytes_per_s}", hint="it must be above zero")
        if self.transfer_bytes > 0 and not self.links and not math.isfinite(self.rate_bytes_per_s):
            raise UsageError("a transfer without link and without limit", hint="name its links or its rate")


@dataclass(frozen=True)
class Job:
    """Stages in order, from `start_s` on."""

    start_s: float
    stages: tuple[Stage, ...]


def fair_rates(stages: Sequence[Stage], capacity: Mapping[str, float]) -> list[float]:
    """Max-min fair rates of transfers that are active together, in bytes per second.

    Raises:
        UsageError: a stage names a link that `capacity` lacks, or one without capacity.
    """
    rates = [0.0] * len(stages)
    left: dict[str, float] = {}
    users: dict[str, list[int]] = {}
    for i, stage in enumerate(stages):
        for link in stage.links:
            if link not in left:
                if not capacity.get(link, 0.0) > 0:
                    raise UsageError(f"link {link!r} has no capacity", hint="list every link with what it can carry")
                left[link], users[link] = capacity[link], []
            users[link].append(i)
    waiting = set(range(len(stages)))
    counts = {link: len(members) for link, members in users.items()}
    while waiting:
        narrowest = min((link for link in left if counts[link]), key=lambda k: left[k] / counts[k], default=None)
        level = max(0.0, left[narrowest]) / counts[narrowest] if narrowest is not None else math.inf
        # Who wants no more than an even share gets it, whatever the others do.
        settled = [i for i in waiting if stages[i].rate_bytes_per_s <= level]
        if not settled and narrowest is not None:
            settled = [i for i in users[narrowest] if i in waiting]
        for i in settled:
            rates[i] = min(stages[i].rate_bytes_per_s, level)
            waiting.discard(i)
            for link in stages[i].links:
                left[link] -= rates[i]
                counts[link] -= 1
    return rates


def simulate(jobs: Sequence[Job], capacity: Mapping[str, float]) -> tuple[tuple[float, ...], ...]:
    """For each job, when each of its stages ends.

    Raises:
        UsageError: as `fair_rates`, or a start that is not finite.
    """
    if not all(math.isfinite(job.start_s) for job in jobs):
        raise UsageError("a job starts at no finite time", hint="give every job a start")
    ends: list[list[float]] = [[] for _ in jobs]
    # Per job: when its fixed time is over, and then what is left to send.
    ready = [job.start_s + (job.stages[0].fixed_s if job.stages else 0.0) for job in jobs]
    left = [job.stages[0].transfer_bytes if job.stages else 0.0 for job in jobs]
    fixed = {i for i, job in enumerate(jobs) if job.stages}
    sending: list[int] = []
    now = min((ready[i] for i in fixed), default=0.0)
    while fixed or sending:
        rates = fair_rates([jobs[i].stages[len(ends[i])] for i in sending], capacity)
        next_s = min((ready[i] for i in fixed), default=math.inf)
        step = max(0.0, next_s - now)
        for i, rate in zip(sending, rates, strict=True):
            step = min(step, left[i] / rate) if rate > 0 else step
        now += step
        over: list[int] = []
        for i, rate in zip(sending, rates, strict=True):
            left[i] -= rate * step
            if left[i] <= max(_NOTHING_BYTES, jobs[i].stages[len(ends[i])].transfer_bytes * _ROUNDING):
                over.append(i)
        for i in [i for i in fixed if ready[i] <= now]:
            fixed.discard(i)
            if left[i] > _NOTHING_BYTES:
                sending.append(i)
            else:
                over.append(i)
        for i in over:
            if i in sending:
                sending.remove(i)
            ends[i].append(now)
            if len(ends[i]) < len(jobs[i].stages):
                following = jobs[i].stages[len(ends[i])]
                ready[i], left[i] = now + following.fixed_s, following.transfer_bytes
                fixed.add(i)
    return tuple(tuple(of) for of in ends)


def lead_times(chains: Sequence[tuple[Stage, ...]], capacity: Mapping[str, float]) -> tuple[tuple[float, ...], ...]:
    """If all chains are to end together: how long before that end each of their stages has to begin.

    Raises:
        UsageError: as `simulate`.
    """
    return _lead_times(tuple(tuple(chain) for chain in chains), tuple(sorted(capacity.items())))


@lru_cache(maxsize=128)  # who re-plans at every event asks again for what has not changed
def _lead_times(
    chains: tuple[tuple[Stage, ...], ...], capacity: tuple[tuple[str, float], ...]
) -> tuple[tuple[float, ...], ...]:
    jobs = []
    for chain in chains:
        backwards: list[Stage] = []
        for stage in reversed(chain):
            # Reversed, what a stage sends comes before its fixed time.
            sends = Stage(
                transfer_bytes=stage.transfer_bytes, links=stage.links, rate_bytes_per_s=stage.rate_bytes_per_s
            )
            backwards += (sends, Stage(fixed_s=stage.fixed_s))
        jobs.append(Job(0.0, tuple(backwards)))
    return tuple(tuple(reversed(ends[1::2])) for ends in simulate(jobs, dict(capacity)))
