"""Replay of recordings: timeline, gaps, truth, bounds."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from natwork_ray.adapters.ianomaly import Recording, RecordingKind
from natwork_ray.adapters.replay import UNLABELLED, ReplayTelemetry
from natwork_ray.domain.anomaly import AnomalyKind
from natwork_ray.domain.labelled import LabelledRun
from natwork_ray.domain.telemetry import TelemetryWindow
from natwork_ray.domain.values import Backend
from natwork_ray.errors import InputError, NotFoundError, PreconditionError


def _recording(service: str, run: str, kind: RecordingKind, length: int, first: float, kinds: str = "") -> Recording:
    values = np.repeat((first + np.arange(length, dtype=np.float32))[:, None], 12, axis=1)
    labels = np.array([int(k) for k in kinds], dtype=np.int8) if kinds else np.zeros(length, dtype=np.int8)
    labels = np.where(labels == 9, -1, labels).astype(np.int8)
    commissioning = min(length, 360) if kind is RecordingKind.NORMAL else 0
    labelled = LabelledRun(service, run, Backend.REPLAYED, 10.0, values, labels, commissioning)
    return Recording(kind, labelled)


RECORDINGS = (
    _recording("b", "1", RecordingKind.USER_SURGE, 5, 3000, "03300"),
    _recording("a", "1", RecordingKind.NORMAL, 361, 0),
    _recording("a", "1", RecordingKind.OTHER_ANOMALIES, 6, 1000, "011029"),
    _recording("a", "1", RecordingKind.USER_SURGE, 4, 2000, "0044"),
    _recording("b", "1", RecordingKind.NORMAL, 360, 0),
    _recording("c", "1", RecordingKind.OTHER_ANOMALIES, 3, 5000, "099"),
    _recording("a", "12", RecordingKind.NORMAL, 50, 0),
)


@pytest.fixture
def source() -> ReplayTelemetry:
    return ReplayTelemetry(RECORDINGS)


def _window(source: ReplayTelemetry, end_s: float, length: int) -> TelemetryWindow:
    return asyncio.run(source.window(end_s=end_s, length=length))


def test_commissioning_then_everything_else_back_to_back(source: ReplayTelemetry) -> None:
    assert source.containers == ("a", "b", "c")
    assert (source.commissioning_s, source.end_s) == (3600.0, 3710.0)
    hour = _window(source, 3600.0, 360)
    assert hour.values[0, :, 0].tolist() == list(range(360))
    assert np.isnan(hour.values[2]).all()
    rest = _window(source, 3710.0, 11).values[:, :, 0]
    assert rest[0].tolist() == [360, *range(1000, 1006), *range(2000, 2004)]
    assert rest[1, :5].tolist() == list(range(3000, 3005))
    assert np.isnan(rest[1, 5:]).all()
    assert rest[2, :3].tolist() == [5000, 5001, 5002]


def test_samples_before_the_first_are_missing(source: ReplayTelemetry) -> None:
    window = _window(source, 30.0, 5)
    assert np.isnan(window.values[0, :2]).all()
    assert window.values[0, 2:, 0].tolist() == [0, 1, 2]
    assert (window.end_s, window.step_s, window.services) == (30.0, 10.0, source.containers)


def test_windows_are_copies(source: ReplayTelemetry) -> None:
    _window(source, 100.0, 5).values[:] = -1
    assert (_window(source, 100.0, 5).values[0] >= 0).all()
    with pytest.raises(ValueError, match="read-only"):
        source.labels()[:] = 1


def test_truth_and_labels_agree(source: ReplayTelemetry) -> None:
    events = [(e.container, e.kind, e.start_s, e.end_s) for e in source.truth()]
    assert events == [
        ("b", AnomalyKind.TRAFFIC_SPIKE, 3620.0, 3640.0),
        ("c", UNLABELLED, 3620.0, 3640.0),
        ("a", AnomalyKind.HIGH_CPU, 3630.0, 3650.0),
        ("a", AnomalyKind.HIGH_MEMORY, 3660.0, 3670.0),
        ("a", UNLABELLED, 3670.0, 3680.0),
        ("a", AnomalyKind.STEP_LOAD, 3700.0, 3720.0),
    ]
    labels = source.labels()
    for event in source.truth():
        row = labels[source.containers.index(event.container)]
        assert row[round(event.start_s / 10) - 1] != 0
        assert row[round(event.end_s / 10) - 2] != 0
    assert source.recorded().sum(axis=1).tolist() == [371, 365, 3]


def test_choice_of_run() -> None:
    assert ReplayTelemetry(RECORDINGS).run == "1"
    short = ReplayTelemetry(RECORDINGS, run="12")
    assert (short.commissioning_s, short.end_s, short.truth()) == (500.0, 500.0, ())
    assert short.runs == ("1", "12")
    with pytest.raises(NotFoundError, match="'7'"):
        ReplayTelemetry(RECORDINGS, run="7")
    with pytest.raises(NotFoundError, match="none"):
        ReplayTelemetry(())


def test_a_run_without_a_normal_hour_starts_cold() -> None:
    source = ReplayTelemetry(RECORDINGS[5:6])
    assert (source.commissioning_s, source.end_s) == (0.0, 30.0)


@pytest.mark.parametrize(("end_s", "length"), [(0.0, 5), (3711.0, 5), (float("nan"), 5), (100.0, 0), (100.0, 10**6)])
def test_bounds(source: ReplayTelemetry, end_s: float, length: int) -> None:
    with pytest.raises(InputError):
        _window(source, end_s, length)


def test_nothing_is_made_up(source: ReplayTelemetry) -> None:
    assert asyncio.run(source.node_usage(at_s=100.0)) == ()
    assert asyncio.run(source.flows(("a",), at_s=100.0)) == {}


def test_placement_holds_every_container_and_leaves_room_to_move(source: ReplayTelemetry) -> None:
    topology = source.topology()
    assert [c.name for c in topology.containers] == list(source.containers)
    for node in topology.nodes:
        assert node.cpu_cores > sum(c.cpu_limit_cores for c in topology.containers)
        assert node.memory_bytes > sum(c.memory_limit_bytes for c in topology.containers)
        assert all(topology.link(node.name, other.name) for other in topology.nodes if other is not node)


def test_opening_a_folder(tmp_path: Path) -> None:
    with pytest.raises(PreconditionError):
        ReplayTelemetry.open(tmp_path)


@pytest.mark.data
def test_the_published_recordings(data_dir: Path) -> None:
    source = ReplayTelemetry.open(data_dir / "ianomaly")
    assert source.commissioning_s == 3600.0
    assert len(source.containers) >= 3
    assert {e.kind for e in source.truth()} == {str(k) for k in AnomalyKind} - {"false_positive", "unknown"}
    assert not np.isnan(_window(source, 3600.0, 360).values[:, :, 4]).any()
