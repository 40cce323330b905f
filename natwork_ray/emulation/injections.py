"""What goes wrong, when, and how badly: the five anomalies of D3.3 section 6.2 and three attacks of section 6.3.

Durations follow the recorded injections of iAnomaly in samples of 10 s: spikes 1 to 6, steps 10 to 60 in several
increments, CPU, memory and network 10 to 40. Intensities run from subtle to plain, 0 to 1; what an intensity means for
each kind is in docs/emulation.md. Sources of attacks are documentation addresses (RFC 5737) only.

    >>> injection = Injection(kind="high_cpu", container="auth", start_s=3700.0, end_s=3900.0, intensity=0.8)
    >>> injection.label.value
    'high_cpu'
"""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from natwork_ray.domain.anomaly import AnomalyKind
from natwork_ray.domain.labelled import LabelledEvent
from natwork_ray.domain.topology import Topology
from natwork_ray.domain.values import value
from natwork_ray.errors import InputError, UsageError

ATTACKS: tuple[str, ...] = ("ddos", "brute_force", "sql_injection")
ANOMALIES: tuple[str, ...] = ("high_cpu", "high_memory", "traffic_spike", "step_load", "network_latency")
KINDS: tuple[str, ...] = ANOMALIES + ATTACKS

# Samples of 10 s, shortest and longest.
_LENGTHS: Mapping[str, tuple[int, int]] = MappingProxyType(
    {
        "traffic_spike": (1, 6),
        "step_load": (10, 60),
        "ddos": (12, 48),
        "brute_force": (12, 60),
        "sql_injection": (12, 48),
    }
)
_OTHER_LENGTH = (10, 40)
_SAMPLE_S = 10.0
_GAP_S = 300.0  # between two injections on one container, so that the first has died away
_INTENSITY = (0.25, 1.0)
_DOCUMENTATION = tuple(ipaddress.IPv4Network(n) for n in ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24"))


@value
class Injection:
    """One thing that goes wrong with one container, from `start_s` (excluded) to `end_s` (included).

    `intensity` lies in (0, 1]; `source` is the CIDR that an attack comes from, empty for anomalies.
    """

    kind: str
    container: str
    start_s: float
    end_s: float
    intensity: float
    source: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UsageError(f"there is no injection {self.kind!r}", hint=f"one of {', '.join(KINDS)}")
        if not 0 < self.intensity <= 1:
            raise InputError(f"injection intensity = {self.intensity}", hint="it must lie in (0, 1]")
        if not (math.isfinite(self.start_s) and math.isfinite(self.end_s) and 0 <= self.start_s < self.end_s):
            raise InputError(
                f"injection from {self.start_s} to {self.end_s} s", hint="it must start at 0 or later and end after"
            )
        if self.kind in ATTACKS:
            network = parse_source(self.source)
            if not any(network.subnet_of(allowed) for allowed in _DOCUMENTATION):
                raise InputError(
                    f"attack source {self.source} is a real address",
                    hint="use 192.0.2.0/24, 198.51.100.0/24 or 203.0.113.0/24",
                )
        elif self.source:
            raise InputError(f"{self.kind} with source {self.source}", hint="only attacks have a source")

    @property
    def label(self) -> AnomalyKind:
        """Stage 2's class: an attack is `UNKNOWN`, since D3.3 names no class for it."""
        return AnomalyKind.UNKNOWN if self.kind in ATTACKS else AnomalyKind(self.kind)

    def event(self, end_s: float | None = None) -> LabelledEvent:
        """Ground truth of this injection, ended earlier where an action healed it."""
        end = self.end_s if end_s is None else min(self.end_s, end_s)
        return LabelledEvent(container=self.container, kind=self.kind, start_s=self.start_s, end_s=end)


def parse_source(source: str) -> ipaddress.IPv4Network:
    """An IPv4 CIDR, strictly.

    Raises:
        InputError: not a CIDR, or host bits set.
    """
    try:
        return ipaddress.IPv4Network(source)
    except ValueError as error:
        raise InputError(
            f"source {source!r} is not an IPv4 network: {error}", hint="for example 203.0.113.0/24"
        ) from error


def draw_schedule(
    topology: Topology,
    rng: np.random.Generator,
    start_s: float,
    end_s: float,
    *,
    per_kind: Mapping[str, int] | int = 1,
) -> tuple[Injection, ...]:
    """Injections at random within (start_s, end_s), in the order of their start.

    Two injections never overlap on one container, nor lie closer than five minutes there. `per_kind` is a number for
    every kind or one for each kind named. Begin after the commissioning hour.

    Raises:
        UsageError: an unknown kind, or more than fits in.
    """
    wanted = dict.fromkeys(KINDS, per_kind) if isinstance(per_kind, int) else dict(per_kind)
    unknown = sorted(set(wanted) - set(KINDS))
    if unknown:
        raise UsageError(f"there is no injection {unknown[0]!r}", hint=f"one of {', '.join(KINDS)}")
    names = [c.name for c in topology.containers]
    queue = [kind for kind in KINDS for _ in range(wanted.get(kind, 0))]
    # Long ones first: they are the hardest to place.
    queue.sort(key=lambda kind: -_LENGTHS.get(kind, _OTHER_LENGTH)[1])
    busy: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    drawn: list[Injection] = []
    for kind in queue:
        shortest, longest = _LENGTHS.get(kind, _OTHER_LENGTH)
        for _ in range(500):
            name = names[int(rng.integers(len(names)))]
            length_s = float(rng.integers(shortest, longest + 1)) * _SAMPLE_S
            intensity = round(float(rng.uniform(*_INTENSITY)), 3)
            first, last = math.ceil(start_s / _SAMPLE_S), math.floor((end_s - length_s) / _SAMPLE_S)
            if last <= first:
                continue
            begin = float(rng.integers(first, last)) * _SAMPLE_S
            if all(begin + length_s + _GAP_S <= a or b + _GAP_S <= begin for a, b in busy[name]):
                break
        else:
            raise UsageError(
                f"{len(queue)} injections do not fit into {end_s - start_s:.0f} s on {len(names)} containers",
                hint="lengthen the run or ask for fewer per kind",
            )
        busy[name].append((begin, begin + length_s))
        drawn.append(
            Injection(
                kind=kind,
                container=name,
                start_s=begin,
                end_s=begin + length_s,
                intensity=intensity,
                source=_draw_source(kind, rng),
            )
        )
    return tuple(sorted(drawn, key=lambda i: (i.start_s, i.container)))


def _draw_source(kind: str, rng: np.random.Generator) -> str:
    host = int(rng.integers(1, 255))
    if kind == "ddos":
        return "203.0.113.0/24"
    return f"203.0.113.{host}/32" if kind in ATTACKS else ""
