"""Applications as Serve would run them, over a real control service and a real journal, without Ray."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI

from natwork_ray.adapters.model_directory import ModelDirectory
from natwork_ray.adapters.sqlite_journal import SqliteJournal
from natwork_ray.config import AlarmConfig, SlaConfig
from natwork_ray.control.direct import DirectControl
from natwork_ray.control.events import Event, RunStarted, VerdictsReached
from natwork_ray.control.models import ModelFacts, ModelShelf
from natwork_ray.control.planner import MovePrediction
from natwork_ray.domain.actions import Instruction, MigrationMethod
from natwork_ray.domain.anomaly import AnomalyKind, AnomalyVerdict, Driver
from natwork_ray.domain.decisions import Mode
from natwork_ray.domain.topology import Container, Link, Node, NodeRole, Slice, Topology
from natwork_ray.domain.values import Backend
from natwork_ray.errors import InputError
from natwork_ray.profiling.model_card import ModelCard, OutOfFoldMetrics, TrainingSettings
from natwork_ray.profiling.profile import ServiceProfile, check_references
from natwork_ray.profiling.verdicts import Scores
from serve_apps.anomaly_api import create_app as create_anomaly
from serve_apps.anomaly_wire import ModelInfo, Served
from serve_apps.event_stream import StreamLimits
from serve_apps.gateway_api import create_app as create_gateway
from serve_apps.local_samples import LocalSamples
from serve_apps.series import SeriesLimits

SHIPPED = b"4 the shipped one"
TOKEN = "only-the-tests-know-this-one"
LIMIT = 65_536
GIB = 2.0**30


class InProcess(DirectControl):
    """`DirectControl` as a provider gives it. `failing` is raised instead of any answer; `hanging` never answers."""

    def __init__(self, journal: SqliteJournal, models: Path) -> None:
        super().__init__(journal, predict_move)
        self.journal = journal
        shelf = ModelShelf(self, ModelDirectory(models, packaged=()), {"profiler": lambda: SHIPPED})
        self.models = shelf.models
        self.publish_model = shelf.publish_model
        self.model_data = shelf.model_data
        self.choose_model = shelf.choose_model
        self.model_in_use = shelf.model_in_use
        self.failing: Exception | None = None
        self.hanging = False

    async def provide(self) -> InProcess:
        if self.failing is not None:
            raise self.failing
        if self.hanging:
            await asyncio.Event().wait()
        return self

    def feed(self, *events: Event) -> None:
        """Submit, and insist that each is accepted."""
        for answer in asyncio.run(self.submit(events)):
            answer.unwrap()

    def pending(self) -> tuple[Instruction, ...]:
        """The outbox."""
        return asyncio.run(self.outbox())


class FirstByteCheck:
    """A version's first byte is the window that it needs; anything but a digit is no model. In use: 4."""

    async def check(self, name: str, data: bytes) -> ModelFacts:
        if not data[:1].isdigit():
            raise InputError("this is no model", hint="begin it with a digit")
        return ModelFacts(sha256=hashlib.sha256(data).hexdigest(), window=int(data[:1]), window_in_use=4)


class Client:
    """One application, asked one request at a time as a loopback client would."""

    def __init__(self, app: FastAPI, *, raises: bool = True) -> None:
        self.app = app
        self._raises = raises

    def __call__(
        self, method: str, path: str, *, token: str | None = None, headers: Any = None, **more: Any
    ) -> httpx.Response:
        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(app=self.app, raise_app_exceptions=self._raises)
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000") as client:
                extra = dict(headers or {})
                if token is not None:
                    extra["Authorization"] = f"Bearer {token}"
                return await client.request(method, path, headers=extra, **more)

        return asyncio.run(ask())

    def get(self, path: str, **more: Any) -> httpx.Response:
        return self("GET", path, **more)


def predict_move(container: Container, *, rss_bytes: float, bandwidth_bytes_per_s: float) -> MovePrediction:
    return MovePrediction(MigrationMethod.PRE_COPY, downtime_p95_s=1.5, total_s=rss_bytes / bandwidth_bytes_per_s)


def topology() -> Topology:
    def cnf(name: str, node: str, slice_name: str) -> Container:
        return Container(
            name=name,
            service=name.split("-")[0],
            network_service="video",
            slice=slice_name,
            node=node,
            replicas=1,
            cpu_limit_cores=1.0,
            memory_limit_bytes=GIB,
        )

    return Topology(
        nodes=(
            Node(name="edge-1", role=NodeRole.EDGE, cpu_cores=8.0, memory_bytes=16 * GIB),
            Node(name="core-1", role=NodeRole.CORE, cpu_cores=16.0, memory_bytes=32 * GIB),
        ),
        links=(Link(a="edge-1", b="core-1", bandwidth_bytes_per_s=1.25e8, rtt_s=0.004),),
        slices=(Slice(name="embb", description="broadband"), Slice(name="urllc", description="low latency")),
        containers=(
            cnf("analytics-1", "edge-1", "embb"),
            cnf("analytics-2", "core-1", "embb"),
            cnf("upf", "edge-1", "urllc"),
        ),
    )


def verdict(container: str, at_s: float) -> AnomalyVerdict:
    return AnomalyVerdict(
        container=container,
        at_s=at_s,
        score=0.99,
        kind=AnomalyKind.NETWORK_LATENCY,
        confidence=0.9,
        drivers=(Driver(metric="latency_p99_s", deviation=12.0),),
        observed={"memory_rss_bytes": 5e8, "cpu_utilization": 0.4},
    )


@pytest.fixture
def empty_control(tmp_path: Path) -> Iterator[InProcess]:
    """Control without a run."""
    with closing(SqliteJournal.open(tmp_path / "state", origin="natwork.example/audit")) as journal:
        yield InProcess(journal, tmp_path / "models")


@pytest.fixture
def control(empty_control: InProcess) -> InProcess:
    """A run in mode approve, with two migrations awaiting a person's word."""
    start = RunStarted(
        id="run",
        at_s=0.0,
        backend=Backend.EMULATED,
        mode=Mode.APPROVE,
        scenario="unit",
        seed=1,
        step_s=10.0,
        approval_lapse_s=900.0,
        topology=topology(),
        alarm=AlarmConfig(votes_needed=1),
        sla=SlaConfig(),
    )
    seen = tuple(verdict(name, 10.0) for name in ("analytics-1", "upf"))
    turn = VerdictsReached(id="verdicts@10", at_s=10.0, scanned=2, verdicts=seen, degraded=("analytics-2",))
    empty_control.feed(start, turn)
    return empty_control


def gateway_app(
    control: InProcess | Current,
    *,
    hosts: Sequence[str] = ("127.0.0.1", "[::1]"),
    limit: int = LIMIT,
    series: SeriesLimits | None = None,
) -> FastAPI:
    # One look at the log and one heartbeat, then the stream ends: no test has to wait.
    quick = StreamLimits(poll_s=0.0, heartbeat_s=0.0, stream_s=0.0, streams=2)
    return create_gateway(
        control.provide,
        token=TOKEN,
        max_body_bytes=limit,
        allowed_hosts=hosts,
        stream=quick,
        check=FirstByteCheck(),
        series=series,
    )


class Current:
    """Whom the shared gateway asks: routes take a tenth of a second to build, and each test has its own control."""

    control: InProcess

    async def provide(self) -> Any:
        return await self.control.provide()


@pytest.fixture(scope="session")
def shared_gateway() -> tuple[FastAPI, Current]:
    current = Current()
    return gateway_app(current), current


@pytest.fixture
def gateway(control: InProcess, shared_gateway: tuple[FastAPI, Current]) -> Client:
    app, current = shared_gateway
    current.control = control
    return Client(app)


@pytest.fixture
def make_gateway() -> Callable[..., FastAPI]:
    return gateway_app


class ThresholdDetector:
    """Stage 1 is the newest CPU sample itself; stage 2 says high CPU above one half."""

    window = history = 4

    def score(self, values: Any, references: Any) -> Scores:
        assert values.dtype == references.dtype == np.float32
        check_references(references, len(values))
        centre, scale = references[:, :12], references[:, 12:24]
        newest = values[:, -1]
        p = np.clip(np.nan_to_num((newest[:, 4] - centre[:, 4]) / scale[:, 4]), 0, 1).astype(np.float32)
        return Scores(
            p_anomalous=p,
            kinds=(p > 0.5).astype(np.int8),
            confidence=np.maximum(p, 1 - p),
            deviations=(newest - centre) / scale,
            flagged=p > 0.5,
            scored=~np.isnan(newest).all(axis=1),
            contributions=np.zeros_like(newest),
        )


def profile_of(centre: float, scale: float) -> ServiceProfile:
    return ServiceProfile(service="*", samples=(100,) * 12, centre=(centre,) * 12, scale=(scale,) * 12)


@pytest.fixture(scope="session")
def reference() -> Callable[[float, float], list[float]]:
    """(centre, scale) of every metric -> reference row, as clients send it."""
    return lambda centre, scale: list(profile_of(centre, scale).reference)


@pytest.fixture(scope="session")
def served() -> Served:
    fleet = profile_of(0.0, 1.0)
    quality = OutOfFoldMetrics(accuracy=0.9, precision=0.9, recall=0.9, f1=0.9, auc=0.9, kind_accuracy=None)
    card = ModelCard(
        threshold=0.5,
        settings=TrainingSettings(window=4),
        fleet=fleet,
        trained_on=Backend.EMULATED,
        runs=1,
        windows=1,
        data_sha256="00" * 32,
        made_with="torch 0",
        out_of_fold=quality,
    )
    return Served(ThresholdDetector(), ModelInfo(sha256="11" * 32, window=4, history=4, card=card))


def anomaly_app(served: Served, *, hosts: Sequence[str] = ("127.0.0.1",), limit: int = LIMIT) -> FastAPI:
    async def provide() -> Served:
        return served

    return create_anomaly(provide, max_body_bytes=limit, allowed_hosts=hosts, samples=LocalSamples(step_s=10.0))


@pytest.fixture
def anomaly(served: Served) -> Client:
    return Client(anomaly_app(served))


@pytest.fixture
def make_anomaly() -> Callable[..., FastAPI]:
    return anomaly_app


@pytest.fixture(scope="session")
def token() -> str:
    return TOKEN


@pytest.fixture
def make_client() -> type[Client]:
    return Client
