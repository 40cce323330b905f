"""Load classes of the migration data set (D3.3 section 2.1) and concrete containers of each class.

D3.3 loads a container on four types of resource: CPU, memory and storage at three levels, networking at four. Of the
3 x 3 x 3 x 4 = 108 combinations 34 can be obtained in practice, it says, and gives one example ("high RAM and storage
read/write operations require medium to high CPU load") but no list. Many sets of rules leave 34. This is ours:

    P1  low CPU drives nothing else: memory low, storage low, network at most low          (D3.3's example)
    P2  storage is at most as high as memory: the page cache counts in the memory cgroup    (inference)
    P3  network from medium on: memory at most medium, the cores are busy with packets      (inference)
    P4  network from medium on: storage low, likewise                                       (inference)

Counted by hand: low CPU 2; medium and high CPU each 6 (memory, storage) pairs x 2 quiet networks + 2 x 2 busy ones =
16; 2 + 16 + 16 = 34. A CPU spinner, a small and a large key-value store, a database and a web server have a class.

A level is a lognormal spread around a median (`..._LEVELS`), so that neighbouring classes overlap a little, as
containers do; how fast memory is rewritten spreads widest, since large containers that write little are common. Every
figure is ours: D3.3 names levels, not numbers. Memory levels span what CubeMig dumped (3 to 97 MiB) and go beyond it;
paths reach from a busy gigabit to a free ten.

    >>> len(ALL_CLASSES), len(FEASIBLE_CLASSES)
    (108, 34)
    >>> draw_load(FEASIBLE_CLASSES[0], np.random.default_rng(1)).cpu_limit_cores
    0.25

Left out: the relation of two loads beyond these rules (CPU scales the dirty rate, traffic takes from the link, nothing
else), and loads that change while they are measured.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np

from natwork_ray.domain.migrations import ContainerLoad, LoadClass, LoadLevel
from natwork_ray.errors import InputError

MIB = float(2**20)
LOADED_LEVELS = (LoadLevel.LOW, LoadLevel.MEDIUM, LoadLevel.HIGH)
_RANK = {LoadLevel.ZERO: 0, LoadLevel.LOW: 1, LoadLevel.MEDIUM: 2, LoadLevel.HIGH: 3}

# What the path offers, drawn evenly in the logarithm: from a third of a gigabit to the ten gigabits of a data centre.
PATH_BYTES_PER_S = (40 * MIB, 1192 * MIB)
RTT_S = (0.0001, 0.02)  # from one rack to across a country, likewise
OBSERVED_S = 5.0  # long enough to see a busy working set whole; assumed bearable before a planned migration
_LEAST_LEFT = 0.25  # of the path, whatever the container itself sends
_BOUND_SIGMAS = 2.5  # a draw is clipped there


@dataclass(frozen=True)
class Spread:
    """A lognormal spread: `median` in the unit of the quantity, `sigma` of its natural logarithm."""

    median: float
    sigma: float

    def draw(self, rng: np.random.Generator) -> float:
        """One value, clipped at 2.5 sigma."""
        z = float(np.clip(rng.standard_normal(), -_BOUND_SIGMAS, _BOUND_SIGMAS))
        return self.median * math.exp(self.sigma * z)


@dataclass(frozen=True)
class CpuLevel:
    """Share of the limit in use, the limit in cores, and how fast memory is dirtied compared with medium CPU."""

    limit_cores: float
    use_share: Spread
    dirty_factor: float


@dataclass(frozen=True)
class MemoryLevel:
    """Resident memory, the share of it that is rewritten, and how fast (at medium CPU)."""

    resident_bytes: Spread
    working_set_share: Spread
    dirty_bytes_per_s: Spread


@dataclass(frozen=True)
class StorageLevel:
    """The writable file system, the share that the target does not have, and the rate of writes."""

    volume_bytes: Spread
    delta_share: Spread
    write_bytes_per_s: Spread


CPU_LEVELS = {
    LoadLevel.LOW: CpuLevel(0.25, Spread(0.20, 0.3), 0.4),
    LoadLevel.MEDIUM: CpuLevel(1.0, Spread(0.50, 0.2), 1.0),
    LoadLevel.HIGH: CpuLevel(2.0, Spread(0.85, 0.05), 2.0),
}
MEMORY_LEVELS = {
    LoadLevel.LOW: MemoryLevel(Spread(10 * MIB, 0.4), Spread(0.20, 0.5), Spread(0.5 * MIB, 1.0)),
    LoadLevel.MEDIUM: MemoryLevel(Spread(64 * MIB, 0.4), Spread(0.30, 0.5), Spread(5 * MIB, 1.0)),
    LoadLevel.HIGH: MemoryLevel(Spread(320 * MIB, 0.4), Spread(0.40, 0.5), Spread(30 * MIB, 1.0)),
}
STORAGE_LEVELS = {
    LoadLevel.LOW: StorageLevel(Spread(4 * MIB, 0.4), Spread(0.10, 0.4), Spread(0.05 * MIB, 0.5)),
    LoadLevel.MEDIUM: StorageLevel(Spread(48 * MIB, 0.4), Spread(0.25, 0.4), Spread(1.5 * MIB, 0.5)),
    LoadLevel.HIGH: StorageLevel(Spread(192 * MIB, 0.4), Spread(0.40, 0.3), Spread(10 * MIB, 0.5)),
}
# Received plus sent; a fifth of it is received, as with a server.
NETWORK_LEVELS = {
    LoadLevel.ZERO: Spread(0.0, 0.0),
    LoadLevel.LOW: Spread(0.2 * MIB, 0.5),
    LoadLevel.MEDIUM: Spread(3 * MIB, 0.4),
    LoadLevel.HIGH: Spread(15 * MIB, 0.3),
}
_RECEIVED_SHARE = 0.2

ALL_CLASSES: tuple[LoadClass, ...] = tuple(
    LoadClass(cpu=cpu, memory=memory, storage=storage, network=network)
    for cpu, memory, storage, network in itertools.product(LOADED_LEVELS, LOADED_LEVELS, LOADED_LEVELS, LoadLevel)
)


def is_feasible(load_class: LoadClass) -> bool:
    """Whether rules P1 to P4 admit the class."""
    cpu, memory, storage, network = (
        _RANK[level] for level in (load_class.cpu, load_class.memory, load_class.storage, load_class.network)
    )
    low, medium = _RANK[LoadLevel.LOW], _RANK[LoadLevel.MEDIUM]
    p1 = cpu > low or (memory == low and storage == low and network <= low)
    p2 = storage <= memory
    p3 = network < medium or memory <= medium
    p4 = network < medium or storage == low
    return p1 and p2 and p3 and p4


FEASIBLE_CLASSES: tuple[LoadClass, ...] = tuple(c for c in ALL_CLASSES if is_feasible(c))
_BY_NAME = {c.name: c for c in ALL_CLASSES}


def load_class(name: str) -> LoadClass:
    """The class of that name (`LoadClass.name`).

    Raises:
        InputError: no such class, or one that the rules exclude.
    """
    found = _BY_NAME.get(name)
    if found is None:
        raise InputError(
            f"there is no load class {name[:80]!r}", hint="names look like cpu-high_memory-low_storage-low_network-zero"
        )
    if not is_feasible(found):
        raise InputError(f"load class {name} is not feasible", hint="docs/migration-data.md lists the 34 that are")
    return found


def draw_load(load_class: LoadClass, rng: np.random.Generator) -> ContainerLoad:
    """A container of the class, and the path that its migration would take, as measured just before it."""
    cpu, memory, storage = (
        CPU_LEVELS[load_class.cpu],
        MEMORY_LEVELS[load_class.memory],
        STORAGE_LEVELS[load_class.storage],
    )
    resident = memory.resident_bytes.draw(rng)
    working_set = resident * min(0.95, memory.working_set_share.draw(rng))
    dirty = memory.dirty_bytes_per_s.draw(rng) * cpu.dirty_factor
    volume = storage.volume_bytes.draw(rng)
    traffic = NETWORK_LEVELS[load_class.network].draw(rng)
    received, sent = _RECEIVED_SHARE * traffic, (1 - _RECEIVED_SHARE) * traffic
    path, rtt = _log_uniform(rng, PATH_BYTES_PER_S), _log_uniform(rng, RTT_S)
    return ContainerLoad(
        memory_bytes=float(round(resident)),
        dirty_bytes_per_s=float(round(dirty)),
        working_set_bytes=float(round(working_set)),
        cpu_cores=round(cpu.limit_cores * min(1.0, cpu.use_share.draw(rng)), 4),
        cpu_limit_cores=cpu.limit_cores,
        volume_bytes=float(round(volume)),
        volume_delta_bytes=float(round(volume * min(1.0, storage.delta_share.draw(rng)))),
        volume_write_bytes_per_s=float(round(storage.write_bytes_per_s.draw(rng))),
        network_rx_bytes_per_s=float(round(received)),
        network_tx_bytes_per_s=float(round(sent)),
        # The container's own replies share the way out with the migration.
        bandwidth_bytes_per_s=float(round(max(_LEAST_LEFT * path, path - sent))),
        rtt_s=round(rtt, 6),
        observed_s=OBSERVED_S,
    )


def _log_uniform(rng: np.random.Generator, bounds: tuple[float, float]) -> float:
    low, high = bounds
    return math.exp(float(rng.uniform(math.log(low), math.log(high))))
