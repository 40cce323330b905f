"""`natwork bench migration`: total time and downtime per method, beside the ideal and beside podman, in one run.

On the real backend a testbed of its own is made for the run and taken down after it, whatever happens
(natwork_ray.adapters.migration_bench). On the emulated one the same table comes from the laboratory: there the ideal is
the dump, transfer and restore phases of the same migration laid end to end, there is no peer, and replies are not
numbered, so that none can be counted as lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from natwork_ray.domain.migrations import MigrationRecord
from natwork_ray.domain.phases import MigrationMethod, Phase
from natwork_ray.domain.topology import Link
from natwork_ray.domain.values import Backend, plain, value
from natwork_ray.emulation.lab_values import ContainerProfile, LabContainer, LabNode
from natwork_ray.emulation.migration_lab import MigrationLab
from natwork_ray.emulation.migration_nodes import run_migration
from natwork_ray.errors import UsageError
from natwork_ray.limi.migration_bench import IDEAL, OURS, Measurement, figures, targets
from natwork_ray.limi.steps import Verb

# What nobody can move a container without; everything else is orchestration.
ESSENTIAL = (
    Verb.PRE_DUMP, Verb.PRE_DUMP_TRANSFER, Verb.DUMP, Verb.DUMP_TRANSFER, Verb.VOLUME_TRANSFER, Verb.RESTORE,
    Verb.PAGES_FETCHED,
)  # fmt: skip
# Measured between two nodes of the real testbed, unshaped (docs/testbed.md).
_BANDWIDTH_BYTES_PER_S, _RTT_S = 450e6, 0.0002
_UNITS = {"": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


class BenchBackend(StrEnum):
    """Where a benchmark of migrations is run."""

    REAL = "real"
    EMULATED = "emulated"


@value
class Workload:
    """What is moved: resident memory, data in its volume, memory written per second in distinct pages."""

    memory_bytes: float
    volume_bytes: float = 0.0
    dirty_bytes_per_s: float = 0.0


def size_bytes(text: str) -> float:
    """A size as people write it: `64MiB`, `1GiB`, `0`.

    Raises:
        UsageError: it is none, or more than a TiB.
    """
    match = re.fullmatch(r"(\d{1,12})\s*(|KiB|MiB|GiB)", text.strip())
    if match is None or int(match[1]) * _UNITS[match[2]] > 2**40:
        raise UsageError(f"{text!r} is no size", hint="such as 64MiB or 1GiB, at most 1024GiB")
    return float(int(match[1]) * _UNITS[match[2]])


@contextlib.contextmanager
def state_folder() -> Iterator[Path]:
    """An empty folder for a testbed of this process. Those of killed benchmarks and collections are taken down first
    (natwork_ray.adapters.testbed_orphans).
    """
    from natwork_ray.adapters.testbed_orphans import ephemeral

    with ephemeral("natwork-") as folder:
        yield folder


def emulated(
    workload: Workload, *, runs: int, methods: Sequence[MigrationMethod], seed: int, bar: Any
) -> dict[str, Any]:
    """The table from the laboratory."""
    task = bar.add_task("emulated migrations", total=runs * len(methods))
    found = []
    for run in range(runs):
        for method in methods:
            record = _emulated_move(run, method, workload, seed)
            found += [_as_recorded(run, record), _end_to_end(run, record)]
            bar.advance(task)
    document = figures(found, seed=seed)
    notes = {
        "ideal": "dump, transfer and restore phases of the same migrations, one after the other",
        "lost_replies": "not counted: the laboratory's requests carry no numbers",
        "peers": "there is no peer in the emulation",
    }
    return _whole(document, Backend.EMULATED, workload, seed, notes)


def real(
    workload: Workload, *, runs: int, methods: Sequence[MigrationMethod], seed: int, peer: bool, bar: Any
) -> dict[str, Any]:
    """The table from a testbed that is made for it.

    Raises:
        PreconditionError: something that real migration needs is missing; nothing was changed.
    """
    from natwork_ray.adapters.migration_bench import BenchPlan, measure

    plan = BenchPlan(**plain(workload), runs=runs, methods=tuple(methods), seed=seed, peer=peer)
    task = bar.add_task("making a testbed", total=plan.moves)

    def told(what: str, done: int) -> None:
        bar.update(task, description=what, completed=done)

    load_before = os.getloadavg()[0]
    with state_folder() as folder:
        result = asyncio.run(measure(plan, folder, rng=random.Random(seed), told=told))  # noqa: S311
    document = figures(result.measurements, seed=seed)
    for name, facts in result.peers.items():
        document["peers"].setdefault(name, {}).update(facts)
    document["versions"] = dict(result.versions)
    document["sizes"] = dict(result.sizes)
    document["leftovers"] = list(result.leftovers)
    notes = dict(result.notes)
    if load_before > (os.cpu_count() or 1) / 2:
        notes["busy"] = (
            f"the machine was busy before the first move (load {load_before:.1f}): expect worse than on a quiet one"
        )
    return _whole(document, Backend.REAL, workload, seed, notes)


def rows(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The document as lines of a table."""
    found: list[dict[str, Any]] = []
    for name, row in document["methods"].items():
        found.append({"method": name, **row})
    for name, row in document["peers"].items():
        if "total_s_p50" in row:
            found.append({**row, "method": f"{name} ({row['method']})"})
    return found


def _emulated_move(run: int, method: MigrationMethod, workload: Workload, seed: int) -> MigrationRecord:
    profile = ContainerProfile(
        memory_bytes=workload.memory_bytes,
        dirty_bytes_per_s=workload.dirty_bytes_per_s,
        working_set_bytes=workload.memory_bytes / 4,
        volume_bytes=workload.volume_bytes,
        volume_delta_bytes=workload.volume_bytes,
        cpu_cores=0.1,
    )
    lab = MigrationLab(
        [LabNode(name="node-0"), LabNode(name="node-1")],
        [Link(a="node-0", b="node-1", bandwidth_bytes_per_s=_BANDWIDTH_BYTES_PER_S, rtt_s=_RTT_S)],
        [LabContainer(name="bench", node="node-0", profile=profile)],
        seed=seed,
    )
    return run_migration(lab, "bench", "node-1", method, key=f"bench-{run}-{method}", observe_s=None)


def _as_recorded(run: int, record: MigrationRecord) -> Measurement:
    return Measurement(
        run=run,
        who=OURS,
        method=record.method,
        total_s=record.total_s,
        downtime_s=record.client_downtime_s,
        record_downtime_s=record.downtime_s,
        phases=record.phases,
        rounds=record.pre_copy_rounds,
    )


def _end_to_end(run: int, record: MigrationRecord) -> Measurement:
    phases: list[Phase] = []
    at_s = 0.0
    for phase in record.phases:
        if phase.name in ESSENTIAL:
            phases.append(replace(phase, starts_s=at_s))
            at_s += phase.duration_s
    return Measurement(run=run, who=IDEAL, method=record.method, total_s=at_s, phases=tuple(phases))


def _whole(
    document: dict[str, Any], backend: Backend, workload: Workload, seed: int, notes: dict[str, str]
) -> dict[str, Any]:
    memory = Path("/proc/meminfo").read_text(encoding="ascii") if backend is Backend.REAL else ""
    machine = {"cores": os.cpu_count(), "kernel": platform.release(), "load": [round(n, 2) for n in os.getloadavg()]}
    if memory:
        machine["memory_bytes"] = int(memory.split()[1]) * 1024
    return {
        **document,
        "backend": str(backend),
        "seed": seed,
        "workload": plain(workload),
        "targets": targets(document, memory_bytes=workload.memory_bytes),
        "machine": machine,
        "notes": notes,
    }
