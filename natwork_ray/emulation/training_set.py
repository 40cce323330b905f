"""Labelled runs for training and testing the profiler: many services at random, each with its commissioning hour.

Labels are honest about propagation. Only the injected container is anomalous of the injected kind (attacks: the index
of `UNKNOWN`). A neighbour that shows it is neither normal nor anomalous of its own; since the testbed's noise does not
depend on injections, the same world is run a second time without any, and a neighbour's samples that differ plainly
from that twin are labelled -1 (anomalous of a type not labelled). Leave those out of training and of scores, or count
them for stage 1 only.

    >>> run = labelled_runs(seed=1, runs=1, hours=1.5)[0]
    >>> run.values.shape, run.commissioning
    ((540, 12), 360)
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from natwork_ray.domain.anomaly import STAGE_2_CLASSES
from natwork_ray.domain.labelled import LabelledRun
from natwork_ray.domain.telemetry import Metric
from natwork_ray.domain.values import Backend
from natwork_ray.emulation.injections import KINDS, draw_schedule
from natwork_ray.emulation.scenarios import Scenario, grid
from natwork_ray.emulation.testbed import Testbed
from natwork_ray.errors import UsageError

COMMISSIONING_S = 3600.0
SERVICES_PER_RUN = 16
_PLAIN = 1.5  # a neighbour's metric that differs from its twin by this factor
_COMPARED = [list(Metric).index(m) for m in (Metric.LATENCY_P50, Metric.THROUGHPUT, Metric.CPU, Metric.ERRORS)]


def labelled_runs(
    scenario: Scenario | None = None,
    *,
    seed: int,
    runs: int,
    hours: float = 2.0,
    per_kind: Mapping[str, int] | int | None = None,
) -> tuple[LabelledRun, ...]:
    """Emulate `runs` testbeds for `hours` each, the first hour without injections.

    Args:
        scenario: the world of every run; by default each run has 16 new services drawn at random.
        seed: decides everything.
        runs: how many worlds; all containers of one share a run name, so that a split by run is possible.
        hours: length of each, more than 1.
        per_kind: injections per kind and run; by default about a fifth of the samples after the first hour.

    Returns:
        One LabelledRun for each container of each run, run by run.

    Raises:
        UsageError: `runs` or `hours` out of range, or more injections than fit in.
    """
    if not 1 <= runs <= 10_000:
        raise UsageError(f"training set of {runs} runs", hint="1 to 10000")
    if not 1.0 < hours <= 240:
        raise UsageError(f"training runs of {hours} hours", hint="more than the commissioning hour, at most 240")
    out: list[LabelledRun] = []
    for number, child in enumerate(np.random.SeedSequence(seed).spawn(runs)):
        world_seed, services_seed = (int(x) for x in child.generate_state(2))
        world = scenario or grid(SERVICES_PER_RUN, seed=services_seed)
        out += _one_run(world, f"{world.name}-{seed}-{number}", world_seed, hours, per_kind)
    return tuple(out)


def _one_run(
    world: Scenario, name: str, seed: int, hours: float, per_kind: Mapping[str, int] | int | None
) -> list[LabelledRun]:
    end_s = round(hours * 360) * 10.0
    if per_kind is None:
        per_kind = _usual(len(world.profiles), end_s - COMMISSIONING_S)
    schedule = draw_schedule(world.topology, np.random.default_rng(seed), COMMISSIONING_S, end_s, per_kind=per_kind)
    testbed, twin = Testbed(world, seed=seed, schedule=schedule), Testbed(world, seed=seed)
    testbed.advance(end_s)
    twin.advance(end_s)
    length = round(end_s / testbed.step_s)
    values = testbed.window(end_s=end_s, length=length).values
    undisturbed = twin.window(end_s=end_s, length=length).values
    ends = testbed.step_s * np.arange(1, length + 1)
    kinds = np.zeros(values.shape[:2], dtype=np.int8)
    position = {c: i for i, c in enumerate(testbed.names)}
    kinds[_differs(values, undisturbed)] = -1
    for injection in schedule:
        during = (ends > injection.start_s) & (ends <= injection.end_s)
        kinds[position[injection.container], during] = STAGE_2_CLASSES.index(injection.label)
    return [
        LabelledRun(
            service=container.service if world.name == "smart-city" else f"{name}/{container.service}",
            run=name,
            backend=Backend.EMULATED,
            step_s=testbed.step_s,
            values=values[i],
            kinds=kinds[i],
            commissioning=round(COMMISSIONING_S / testbed.step_s),
        )
        for i, container in enumerate(world.topology.containers)
    ]


def _usual(containers: int, seconds: float) -> dict[str, int]:
    """Injections of each kind so that about a fifth of the samples are anomalous; spikes are short, so more of them."""
    hours = containers * seconds / 3600
    return {
        kind: max(1, round(hours * (0.9 if kind == "traffic_spike" else 0.2 if kind == "step_load" else 0.25)))
        for kind in KINDS
    }


def _differs(values: NDArray[np.float32], twin: NDArray[np.float32]) -> NDArray[np.bool_]:
    """(N, T) where latency, throughput, CPU or errors differ plainly from the undisturbed twin."""
    a, b = values[..., _COMPARED].astype(float), twin[..., _COMPARED].astype(float)
    floor = np.maximum(0.25 * np.nanmedian(b, axis=1, keepdims=True), 1e-4)
    with np.errstate(invalid="ignore"):
        ratio = np.maximum(a, floor) / np.maximum(b, floor)
        return np.asarray(((ratio > _PLAIN) | (ratio < 1 / _PLAIN)).any(axis=2))
