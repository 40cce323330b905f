"""Recorded services as a TelemetrySource: one run number of an iAnomaly folder, played back on a virtual clock.

Every recorded service is one container of the same name. Its timeline is the first hour of its normal recording
(commissioning, from which profiles are learnt), then the rest of that recording, its `other_anoms` and its `usersurge`
recording, back to back. As in the emulation, sample k (from 0) is taken at (k + 1) * step.

What recordings cannot give: who sent the traffic, what the nodes did, and what would have happened had somebody acted.
The first two are empty; actions are carried out on the made-up placement that `topology` gives and change nothing
here. Services are recorded for different lengths: where one has no sample (any more), its values are NaN.

    >>> source = ReplayTelemetry.open(Path("ianomaly"), run="1")
    >>> window = asyncio.run(source.window(end_s=source.commissioning_s, length=360))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from natwork_ray.adapters.ianomaly import (
    COMMISSIONING_SAMPLES,
    STEP_S,
    Recording,
    RecordingKind,
    blocks,
    read_recordings,
)
from natwork_ray.domain.anomaly import STAGE_2_CLASSES
from natwork_ray.domain.labelled import LabelledEvent
from natwork_ray.domain.telemetry import N_METRICS, FlowShare, NodeUsage, TelemetryWindow
from natwork_ray.domain.topology import Container, Link, Node, NodeRole, Slice, Topology
from natwork_ray.errors import InputError, NotFoundError

MAX_WINDOW = 100_000
UNLABELLED = "unlabelled"
_GIB = float(2**30)
_CORES_PER_CONTAINER = 1.0
_MEMORY_PER_CONTAINER = 4 * _GIB
_BANDWIDTH = 125e6


class ReplayTelemetry:
    """One run of a recorded folder."""

    def __init__(self, recordings: Sequence[Recording], *, run: str | None = None) -> None:
        """Replay run `run` of these recordings; by default the run with most services, the lowest number of equals.

        Raises:
            NotFoundError: no recordings of that run.
        """
        runs = sorted({r.labelled.run for r in recordings}, key=lambda name: (len(name), name))
        if run is None and runs:
            run = max(runs, key=lambda name: len({r.labelled.service for r in recordings if r.labelled.run == name}))
        chosen = [r for r in recordings if r.labelled.run == run]
        if run is None or not chosen:
            raise NotFoundError(f"no recordings of run {run!r}", hint=f"there are runs {', '.join(runs) or '(none)'}")
        self.run: str = run
        self.runs: tuple[str, ...] = tuple(runs)
        self.step_s = STEP_S
        self.containers: tuple[str, ...] = tuple(sorted({r.labelled.service for r in chosen}))
        parts = {
            service: [r for kind in RecordingKind for r in chosen if r.labelled.service == service and r.kind is kind]
            for service in self.containers
        }
        # A service whose normal hour is missing or short begins late, so that all are decided upon together.
        lead = {s: min(_normal_rows(p), COMMISSIONING_SAMPLES) for s, p in parts.items()}
        self._commissioning = max(lead.values())
        starts = {s: self._commissioning - lead[s] for s in self.containers}
        length = max(starts[s] + sum(len(r.labelled.kinds) for r in p) for s, p in parts.items())
        self._values = np.full((len(self.containers), length, N_METRICS), np.nan, dtype=np.float32)
        self._kinds = np.zeros((len(self.containers), length), dtype=np.int8)
        for i, service in enumerate(self.containers):
            at = starts[service]
            for recording in parts[service]:
                rows = len(recording.labelled.kinds)
                self._values[i, at : at + rows] = recording.labelled.values
                self._kinds[i, at : at + rows] = recording.labelled.kinds
                at += rows
        self._kinds.flags.writeable = False

    @classmethod
    def open(cls, folder: Path, *, run: str | None = None) -> ReplayTelemetry:
        """Read a folder and replay one of its runs.

        Raises:
            PreconditionError, InputError: as `read_recordings`.
            NotFoundError: no recordings of that run.
        """
        return cls(read_recordings(folder), run=run)

    @property
    def commissioning_s(self) -> float:
        """End of the commissioning hour; what follows is to be judged. 0 where nothing normal was recorded."""
        return self._commissioning * self.step_s

    @property
    def end_s(self) -> float:
        """Time of the last sample."""
        return self._values.shape[1] * self.step_s

    async def window(self, *, end_s: float, length: int) -> TelemetryWindow:
        """See `TelemetrySource.window`; samples before the first one are NaN."""
        last = end_s / self.step_s
        if not 1 <= last <= self._values.shape[1] + 1e-9:
            raise InputError(
                f"replay of run {self.run} has no window that ends at {end_s} s",
                hint=f"choose {self.step_s} to {self.end_s} s",
            )
        if not 1 <= length <= MAX_WINDOW:
            raise InputError(f"window of {length} samples", hint=f"1 to {MAX_WINDOW}")
        # Times are sums of steps: a hair below a sample's time still means that sample.
        end = int(last + 1e-9)
        values = np.full((len(self.containers), length, N_METRICS), np.nan, dtype=np.float32)
        have = min(length, end)
        values[:, length - have :] = self._values[:, end - have : end]
        return TelemetryWindow(
            containers=self.containers,
            services=self.containers,
            end_s=end_s,
            step_s=self.step_s,
            values=values,
        )

    async def node_usage(self, *, at_s: float) -> tuple[NodeUsage, ...]:
        """Nothing: nodes were not recorded."""
        return ()

    async def flows(self, containers: Sequence[str], *, at_s: float) -> Mapping[str, tuple[FlowShare, ...]]:
        """Nothing: flows were not recorded."""
        return {}

    def truth(self) -> tuple[LabelledEvent, ...]:
        """Labelled blocks, each from its first sample to the one after its last; consecutive kinds are separate."""
        events = []
        for name, kinds in zip(self.containers, self._kinds, strict=True):
            for kind in sorted(set(kinds.tolist()) - {0}):
                events += [
                    LabelledEvent(
                        container=name,
                        kind=str(STAGE_2_CLASSES[kind]) if kind > 0 else UNLABELLED,
                        start_s=(start + 1) * self.step_s,
                        end_s=(end + 1) * self.step_s,
                    )
                    for start, end in blocks(kinds == kind)
                ]
        return tuple(sorted(events, key=lambda e: (e.start_s, e.container)))

    def labels(self) -> NDArray[np.int8]:
        """(N, T) label of every sample, index into `STAGE_2_CLASSES`, -1 unlabelled type, 0 normal or not recorded."""
        return self._kinds

    def recorded(self) -> NDArray[np.bool_]:
        """(N, T) true where a sample was recorded; the others count in no score."""
        return np.asarray(~np.isnan(self._values).all(axis=2))

    def topology(self) -> Topology:
        """A placement to act upon, made up: the recordings do not say where anything ran.

        Two edge nodes and a core node, each with room for all containers, so that moving one is possible.
        """
        room = len(self.containers) + 1
        nodes = tuple(
            Node(
                name=name,
                role=role,
                cpu_cores=room * 2 * _CORES_PER_CONTAINER,
                memory_bytes=room * _MEMORY_PER_CONTAINER,
            )
            for name, role in (("edge-1", NodeRole.EDGE), ("edge-2", NodeRole.EDGE), ("core-1", NodeRole.CORE))
        )
        return Topology(
            nodes=nodes,
            links=(
                Link(a="edge-1", b="edge-2", bandwidth_bytes_per_s=_BANDWIDTH, rtt_s=0.004),
                Link(a="edge-1", b="core-1", bandwidth_bytes_per_s=_BANDWIDTH, rtt_s=0.010),
                Link(a="edge-2", b="core-1", bandwidth_bytes_per_s=_BANDWIDTH, rtt_s=0.012),
            ),
            slices=(Slice(name="replay", description="services recorded in iAnomaly's format"),),
            containers=tuple(
                Container(
                    name=name,
                    service=name,
                    network_service="replay",
                    slice="replay",
                    node=nodes[i % len(nodes)].name,
                    replicas=1,
                    cpu_limit_cores=_CORES_PER_CONTAINER,
                    memory_limit_bytes=_MEMORY_PER_CONTAINER,
                )
                for i, name in enumerate(self.containers)
            ),
        )


def _normal_rows(recordings: Sequence[Recording]) -> int:
    return sum(len(r.labelled.kinds) for r in recordings if r.kind is RecordingKind.NORMAL)
