"""A fault campaign as a plan and as a result: which fault strikes when, and what came of the container each time.

Pure: the plan is drawn from a seed before anything is made, the verdict is computed from what was seen. The campaign
itself is natwork_ray.cli.bench_faults.

    >>> [fault.kind for fault in draw(random.Random(1), 2)] == [fault.kind for fault in draw(random.Random(1), 2)]
    True
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

from natwork_ray.domain.phases import MigrationMethod
from natwork_ray.domain.values import Backend, value
from natwork_ray.limi.steps import Verb

KEPT, SET_BACK, LOST = "kept", "set back", "lost"

LIVE = (Verb.PRE_DUMP, Verb.PRE_DUMP_TRANSFER)
# Kind: steps of the migration at which it can hit something.
KINDS: dict[str, tuple[Verb, ...]] = {
    "agent-source": (Verb.PREPARE, Verb.DUMP, Verb.DUMP_TRANSFER, Verb.RESTORE, Verb.SETTLE_SOURCE),
    "agent-target": (Verb.PREPARE, Verb.DUMP, Verb.DUMP_TRANSFER, Verb.RESTORE, Verb.ADDRESS_MOVE),
    "criu-source": (Verb.DUMP,),
    "criu-target": (Verb.RESTORE,),
    "sshd-target": (Verb.PREPARE, Verb.DUMP, Verb.DUMP_TRANSFER),
    "disk-source": (Verb.PREPARE, Verb.DUMP),
    "disk-target": (Verb.PREPARE, Verb.DUMP, Verb.DUMP_TRANSFER),
    "link-short": (Verb.PREPARE, Verb.DUMP, Verb.DUMP_TRANSFER, Verb.RESTORE),
    "link-long": (Verb.DUMP, Verb.DUMP_TRANSFER, Verb.RESTORE),
}
_ROUNDS = frozenset({MigrationMethod.PRE_COPY, MigrationMethod.HYBRID})
_LAZY = frozenset({MigrationMethod.POST_COPY, MigrationMethod.HYBRID})
_WITH_ROUNDS = frozenset({"agent-source", "criu-source", "sshd-target", "disk-target", "link-short", "link-long"})
_WITH_PAGES = frozenset({"agent-source", "agent-target", "criu-source", "criu-target", "sshd-target", "link-short"})


@value
class Fault:
    """One fault to come: `delay_s` after its step was reported as under way."""

    kind: str
    method: MigrationMethod
    step: str
    delay_s: float


@value
class Struck:
    """What came of one.

    Attributes:
        struck: whether it hit anything: a step that was over too soon is shot at again, and this one counts as none.
        runs_on: where the container was found running; addresses: nodes that have its address on the bridge.
        served: whether a new client was answered.
        session_kept: what the client that watched says; memory: `kept`, `set back` or `lost`.
        confessed: whether the record says that memory was lost, or may have been, past the point of no return.
        recovery_s: from the strike until the migration was settled; gap_s: the longest the client waited.
        leftovers: what should not be there any more.
    """

    fault: Fault
    number: int
    struck: bool
    state: str
    error: str
    source: str
    target: str
    runs_on: tuple[str, ...]
    addresses: tuple[str, ...]
    served: bool
    session_kept: bool
    memory: str
    confessed: bool
    recovery_s: float
    gap_s: float
    leftovers: tuple[str, ...]

    @property
    def survived(self) -> bool:
        """Alive on exactly one node, reachable there, nothing left."""
        return len(self.runs_on) == 1 and self.addresses == self.runs_on and self.served and not self.leftovers

    @property
    def memory_sound(self) -> bool:
        """Memory was kept, or what is gone went past the point of no return, where the methods document it."""
        return self.memory == KEPT or self.confessed


def draw(rng: random.Random, count: int) -> list[Fault]:
    """A campaign: kinds in turn, methods in turn, steps and moments drawn."""
    faults: list[Fault] = []
    kinds = list(KINDS)
    while len(faults) < count:
        order = rng.sample(kinds, len(kinds))
        for kind in order[: count - len(faults)]:
            method = list(MigrationMethod)[len(faults) % len(MigrationMethod)]
            steps = list(KINDS[kind])
            if method in _ROUNDS and kind in _WITH_ROUNDS:
                steps += [s for s in LIVE if kind != "criu-source" or s is Verb.PRE_DUMP]
            # Half of those that can hit past the point of no return do: that is where going back is hardest.
            late = method in _LAZY and kind in _WITH_PAGES and rng.random() < 0.5
            step = Verb.PAGES_FETCHED if late else rng.choice(steps)
            faults.append(Fault(kind=kind, method=method, step=step, delay_s=round(rng.uniform(0.0, 0.04), 4)))
    return faults


def document(
    results: Sequence[Struck], *, wanted: int, seed: int, left: Sequence[str], wall_s: float
) -> dict[str, Any]:
    """What the campaign says.

    `faults` are those that hit; shots that hit nothing were repeated and are listed as `missed`. It passed when exactly
    as many as were `wanted` hit, the container survived every migration, missed shots included, no memory was lost but
    where that is documented, and nothing is left.
    """
    struck = [r for r in results if r.struck]
    missed = [r for r in results if not r.struck]
    memory = Counter(r.memory for r in struck)
    recovery = sorted(r.recovery_s for r in struck)

    def row(r: Struck) -> dict[str, Any]:
        return {
            "number": r.number, "kind": r.fault.kind, "phase": r.fault.step, "method": str(r.fault.method),
            "struck": r.struck, "state": r.state, "source": r.source, "target": r.target, "runs_on": list(r.runs_on),
            "address_on": list(r.addresses), "served": r.served, "session_kept": r.session_kept,
            "memory_kept": r.memory == KEPT, "memory": r.memory, "recovery_s": round(r.recovery_s, 3),
            "client_gap_s": round(r.gap_s, 3),
            "leftovers": list(r.leftovers), "survived": r.survived, "memory_sound": r.memory_sound, "error": r.error,
        }  # fmt: skip

    return {
        "backend": str(Backend.REAL),
        "seed": seed,
        "faults": [row(r) for r in struck],
        "missed": [row(r) for r in missed],
        "totals": {
            "faults": len(struck),
            "missed": len(missed),
            "survived": sum(r.survived for r in struck),
            "by_kind": dict(sorted(Counter(r.fault.kind for r in struck).items())),
            "by_state": dict(sorted(Counter(r.state for r in struck).items())),
            "sessions_kept": sum(r.session_kept for r in struck),
            "memory_kept": memory[KEPT],
            "memory_set_back": memory[SET_BACK],
            "memory_lost": memory[LOST],
            "memory_unexcused": sum(not r.memory_sound for r in results),
            "on_two_nodes": sum(len(r.runs_on) > 1 for r in results),
            "on_no_node": sum(not r.runs_on for r in results),
            "recovery_s": {"p50": _quantile(recovery, 0.5), "max": _quantile(recovery, 1.0)},
            "leftovers": sum(len(r.leftovers) for r in results),
        },
        "left_after_down": list(left),
        "wall_s": round(wall_s, 1),
        "passed": len(struck) == wanted and all(r.survived and r.memory_sound for r in results) and not left,
    }


def _quantile(ordered: Sequence[float], q: float) -> float | None:
    return round(ordered[min(int(q * len(ordered)), len(ordered) - 1)], 3) if ordered else None
