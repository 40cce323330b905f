"""A run record such as the emulation makes, from a seed: twelve containers, 540 samples, every kind of story."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.main import get_command

from agents import cluster
from natwork_ray.backends import WorldFacts
from natwork_ray.cli import main as cli_main
from natwork_ray.cli import settings as cli_settings
from natwork_ray.cli.in_process import Ending, run_in_process
from natwork_ray.cli.main import main
from natwork_ray.config import Config, load_config, to_toml
from natwork_ray.control.cycle import Turn
from natwork_ray.domain.actions import (
    ActionOutcome,
    BlockSource,
    Instruction,
    Migrate,
    MigrationMethod,
    Phase,
    Restart,
    Scale,
)
from natwork_ray.domain.anomaly import AnomalyKind, AnomalyVerdict, Driver
from natwork_ray.domain.decisions import Alternative, Decision, DecisionStatus, MitigationKind, Mode
from natwork_ray.domain.labelled import LabelledEvent
from natwork_ray.domain.quota import QuotaAccount
from natwork_ray.domain.runs import DetectionScore, RunRecord
from natwork_ray.domain.telemetry import METRICS, N_METRICS, FlowShare, Metric, NodeUsage, TelemetryWindow
from natwork_ray.domain.topology import Container, Link, Node, NodeRole, Slice, Topology
from natwork_ray.domain.values import Backend
from natwork_ray.errors import TimedOutError

NAMES = (
    "camera-gateway",
    "video-analytics",
    "number-plates",
    "traffic-control",
    "parking",
    "amf",
    "smf",
    "upf",
    "user-db",
    "mqtt-broker",
    "time-series-db",
    "dashboard",
)
STEP_S = 10.0
STARTED_S = 3600.0

_STORY: tuple[tuple[int, AnomalyKind, float, float, Metric, MitigationKind], ...] = (
    (1, AnomalyKind.HIGH_CPU, 4000, 4500, Metric.CPU, MitigationKind.HORIZONTAL_SCALE),
    (8, AnomalyKind.HIGH_MEMORY, 4600, 5300, Metric.MEMORY_RSS, MitigationKind.MEMORY_LIMIT_RESTART),
    (7, AnomalyKind.NETWORK_LATENCY, 5400, 5900, Metric.LATENCY_P99, MitigationKind.TOPOLOGY_MOVE),
    (9, AnomalyKind.TRAFFIC_SPIKE, 6200, 6500, Metric.NETWORK_RX, MitigationKind.BLOCK_SOURCE),
    (3, AnomalyKind.UNKNOWN, 7000, 7400, Metric.THROUGHPUT, MitigationKind.MTD_MOVE),
    (4, AnomalyKind.STEP_LOAD, 8200, 8500, Metric.THROUGHPUT, MitigationKind.NOTIFY),
)


def make_record(
    seed: int = 7, *, names: tuple[str, ...] = NAMES, samples: int = 540, wall_s: float = 41.5
) -> RunRecord:
    """The record; equal arguments give equal records."""
    rng = np.random.default_rng(seed)
    ended_s = samples * STEP_S
    ended_s = max(ended_s, 9000.0)
    topology = _topology(names)
    values = _telemetry(rng, len(names), samples, ended_s)
    truth, verdicts, decisions, outcomes = [], [], [], []
    for number, (row, kind, start, end, metric, mitigation) in enumerate(_STORY):
        name = names[row % len(names)]
        truth.append(LabelledEvent(container=name, kind=str(kind), start_s=start, end_s=end))
        seen = [
            _verdict(rng, name, kind, metric, start + 20 + STEP_S * k) for k in range(int((end - start) / STEP_S) - 2)
        ]
        verdicts += [v for v in seen if rng.random() < 0.8]
        decision, outcome = _decision(f"d-{number + 1:06d}", seen[1], kind, mitigation, topology)
        decisions.append(decision)
        outcomes += outcome
    verdicts.append(_verdict(rng, names[0], AnomalyKind.FALSE_POSITIVE, Metric.ERRORS, 7900.0))
    used = {d.container: sum(o.downtime_s for o in outcomes if o.key.startswith(d.id)) for d in decisions}
    return RunRecord(
        scenario="smart-city",
        seed=seed,
        backend=Backend.EMULATED,
        mode=Mode.ACT,
        detector="two-stage 1D-CNN",
        started_s=STARTED_S,
        ended_s=ended_s,
        windows=len(names) * 540,
        topology_before=topology,
        topology_after=_moved(topology, names),
        telemetry=TelemetryWindow(
            containers=names, services=names, end_s=ended_s, step_s=ended_s / samples, values=values
        ),
        node_usage=_nodes(rng, topology, ended_s),
        truth=tuple(truth),
        verdicts=tuple(verdicts),
        decisions=tuple(decisions),
        outcomes=tuple(outcomes),
        quota=tuple(
            QuotaAccount(
                container=n,
                window_start_s=0.0,
                window_s=2_592_000.0,
                budget_s=1296.0,
                reserved_s=0.0,
                spent_s=used.get(n, 0.0),
            )
            for n in names
        ),
        score=DetectionScore(
            injected=6,
            detected=5,
            false_alarms=1,
            false_alarms_per_hour=2 / 3,
            mean_delay_s=31.0,
            precision=0.91,
            recall=0.78,
            f1=0.84,
        ),
        audit_entries=612,
        audit_root="5f" * 32,
        audit_verified=True,
        wall_s=wall_s,
    )


def _topology(names: tuple[str, ...]) -> Topology:
    nodes = tuple(
        Node(name=n, role=r, cpu_cores=8.0, memory_bytes=16 * 2.0**30)
        for n, r in (
            ("edge-0", NodeRole.EDGE),
            ("edge-1", NodeRole.EDGE),
            ("core-0", NodeRole.CORE),
            ("cloud-0", NodeRole.CLOUD),
        )
    )
    return Topology(
        nodes=nodes,
        links=(Link(a="edge-0", b="edge-1", bandwidth_bytes_per_s=1.25e8, rtt_s=0.002),),
        slices=(Slice(name="city", description="smart city"),),
        containers=tuple(
            Container(
                name=n,
                service=n,
                network_service="smart-city",
                slice="city",
                node=nodes[i % 4].name,
                replicas=2,
                cpu_limit_cores=1.0,
                memory_limit_bytes=512 * 2.0**20,
            )
            for i, n in enumerate(names)
        ),
    )


def _moved(topology: Topology, names: tuple[str, ...]) -> Topology:
    moved = [
        Container(**{**vars(c), "node": "edge-0", "replicas": 3}) if c.name == names[7 % len(names)] else c
        for c in topology.containers
    ]
    return Topology(nodes=topology.nodes, links=topology.links, slices=topology.slices, containers=tuple(moved))


def _telemetry(
    rng: np.random.Generator, containers: int, samples: int, ended_s: float
) -> np.ndarray[tuple[int, int, int], np.dtype[np.float32]]:
    t = np.linspace(0.0, ended_s, samples)
    day = 1 + 0.35 * np.sin(2 * np.pi * t / 7000)
    scale = np.array([4e4, 9e4, 1.4e8, 6e8, 0.35, 3e6, 5e6, 0.012, 0.035, 0.09, 120, 0.6])
    values = scale * day[None, :, None] * rng.lognormal(0, 0.13, (containers, samples, N_METRICS))
    for row, _, start, end, metric, _ in _STORY:
        inside = (t >= start) & (t <= end)
        values[row % containers, inside, METRICS.index(metric)] *= 2.4
    values[:, :, 4] = np.clip(values[:, :, 4], 0, 1)
    values[0, 30:40] = np.nan
    return values.astype(np.float32)


def _nodes(rng: np.random.Generator, topology: Topology, ended_s: float) -> tuple[NodeUsage, ...]:
    return tuple(
        NodeUsage(
            node=n.name,
            at_s=at,
            containers=3,
            cpu_cores_used=4.0,
            cpu_fraction=float(0.3 + 0.1 * i + 0.1 * np.sin(at / 1500) + 0.03 * rng.random()),
            memory_bytes_used=8e9,
            memory_fraction=0.4 + 0.05 * i,
            network_rx_bytes_per_s=1e6,
            network_tx_bytes_per_s=1e6,
        )
        for at in np.arange(STARTED_S, ended_s, 30.0).tolist()
        for i, n in enumerate(topology.nodes)
    )


def _verdict(rng: np.random.Generator, name: str, kind: AnomalyKind, metric: Metric, at_s: float) -> AnomalyVerdict:
    return AnomalyVerdict(
        container=name,
        at_s=at_s,
        score=float(rng.uniform(0.8, 1)),
        kind=kind if rng.random() < 0.9 else AnomalyKind.UNKNOWN,
        confidence=float(rng.uniform(0.6, 1)),
        drivers=(Driver(metric=metric, deviation=9.3), Driver(metric=Metric.LATENCY_P90, deviation=4.1)),
        flows=(FlowShare(source="203.0.113.7/32", request_share=0.7, failed_share=0.9),),
        observed={str(metric): 1.0},
    )


def _decision(
    key: str, verdict: AnomalyVerdict, kind: AnomalyKind, mitigation: MitigationKind, topology: Topology
) -> tuple[Decision, list[ActionOutcome]]:
    container = verdict.container
    source = next(c.node for c in topology.containers if c.name == container)
    target = "edge-0" if source != "edge-0" else "edge-1"
    choices: dict[MitigationKind, Instruction] = {
        MitigationKind.HORIZONTAL_SCALE: Scale(key=f"{key}/0", container=container, replicas=3),
        MitigationKind.MEMORY_LIMIT_RESTART: Restart(key=f"{key}/0", container=container),
        MitigationKind.TOPOLOGY_MOVE: Migrate(
            key=f"{key}/0",
            container=container,
            source=source,
            target=target,
            method=MigrationMethod.PRE_COPY,
        ),
        MitigationKind.BLOCK_SOURCE: BlockSource(
            key=f"{key}/0", container=container, source="203.0.113.7/32", expires_at_s=verdict.at_s + 1800
        ),
        MitigationKind.MTD_MOVE: Migrate(
            key=f"{key}/0",
            container=container,
            source=source,
            target=target,
            method=MigrationMethod.HYBRID,
        ),
    }
    instruction = choices.get(mitigation)
    failed = mitigation is MitigationKind.MTD_MOVE
    status = DecisionStatus.NOTED if instruction is None else DecisionStatus.FAILED if failed else DecisionStatus.DONE
    decision = Decision(
        id=key,
        at_s=verdict.at_s,
        container=container,
        mode=Mode.ACT,
        status=status,
        verdict=verdict,
        kind=kind,
        mitigation=mitigation,
        reason=f"{kind} on {container} (stage 1 {verdict.score:.2f}): {mitigation}: as the catalogue says",
        predicted_downtime_s=0.9 if instruction and instruction.type == "migrate" else 0.0,
        instructions=(instruction,) if instruction else (),
        rejected=(
            Alternative(
                mitigation=MitigationKind.VERTICAL_CPU,
                feasible=True,
                utility=0.41,
                predicted_downtime_s=0.0,
                reason="raises the CPU limit; utility 0.41 below 0.62",
            ),
            Alternative(
                mitigation=MitigationKind.CLUSTER_SCALE,
                feasible=False,
                utility=0.0,
                predicted_downtime_s=0.0,
                reason="replicas still find room on edge-0",
            ),
        ),
    )
    if instruction is None:
        return decision, []
    move = instruction.type == "migrate"
    downtime = {"migrate": 0.62, "restart": 3.4}.get(instruction.type, 0.0)
    return decision, [
        ActionOutcome(
            key=instruction.key,
            done=not failed,
            started_at_s=verdict.at_s,
            finished_at_s=verdict.at_s + (14.2 if move else 2.0),
            downtime_s=0.0 if failed else downtime,
            backend=Backend.EMULATED,
            detail="nothing was changed" if failed else f"{instruction.type} of {container}",
            error="the target node refused: no memory left" if failed else "",
            phases=(
                Phase(name="pre-dump", duration_s=5.1, transferred_bytes=9e7),
                Phase(name="transfer", duration_s=8.2, transferred_bytes=2.1e8),
                Phase(name="freeze", duration_s=0.62, transferred_bytes=1e7),
                Phase(name="restore", duration_s=0.28),
            )
            if move and not failed
            else (),
        )
    ]


@pytest.fixture(scope="session", name="make_record")
def _make_record() -> Callable[..., RunRecord]:
    """`make_record(seed, names=..., samples=..., wall_s=...)`."""
    return make_record


@dataclass(frozen=True)
class SmallRun:
    """A quarter of an hour of ten emulated services in mode act, and the journal that it left."""

    config: Config
    state_dir: Path
    facts: WorldFacts
    ending: Ending
    turns: tuple[Turn, ...]


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    """A real run, in this process; read its journal, but copy it before changing anything (`own_state`)."""
    flags = {"loop.mode": "act", "emulation.scenario": "grid-10", "emulation.duration_s": 900, "sla.window_s": 86_400}
    state_dir = tmp_path_factory.mktemp("run") / "state"
    config = load_config(environ={}, flags={**flags, "state_dir": str(state_dir)})
    turns: list[Turn] = []
    facts, ending = asyncio.run(run_in_process(config, state_dir, on_turn=turns.append))
    return SmallRun(config, state_dir, facts, ending, tuple(turns))


@pytest.fixture
def own_state(small_run: SmallRun, tmp_path: Path) -> Path:
    """A copy of the small run's state directory, to do with as one likes."""
    return Path(shutil.copytree(small_run.state_dir, tmp_path / "state"))


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


Natwork = Callable[..., Ended]


@pytest.fixture(scope="session")
def command_tree() -> Any:
    """The commands as Typer builds them at every start: a fifth of a second, spent once for all tests."""
    return get_command(cli_main.app)


@pytest.fixture
def natwork(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, command_tree: Any
) -> Iterator[Natwork]:
    """`natwork("audit", "list")`: the console script's entry point in this process, in an empty folder.

    It must end with SystemExit: any other exception is a bug, and fails the test.
    """
    for name in [n for n in os.environ if n.startswith("NATWORK_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(cli_main, "app", command_tree)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def call(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["natwork", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        code = ended.value.code
        return Ended(0 if code is None else int(code), said.out, said.err)

    yield call
    cli_settings.remember(None, [])


@dataclass(frozen=True)
class Asked:
    """One request that reached the stand-in gateway."""

    method: str
    path: str
    body: Any
    authorization: str | None


class StandInGateway:
    """An HTTP server on loopback that answers what a test tells it to, and keeps what it was asked."""

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir
        self.asked: list[Asked] = []
        self._answer = (500, b"{}")
        self._at: dict[tuple[str, str], tuple[int, bytes]] = {}
        gateway = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                length = int(self.headers.get("Content-Length", 0))
                sent = self.rfile.read(length) if length else b""
                raw = self.headers.get("Content-Type") == "application/octet-stream"
                body = sent if raw else json.loads(sent) if sent else None
                gateway.asked.append(Asked(self.command, self.path, body, self.headers.get("Authorization")))
                status, answer = gateway._at.get((self.command, self.path), gateway._answer)
                self.send_response(status)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            do_POST = do_PUT = do_GET  # noqa: N815 - http.server looks them up by these names

            def log_message(self, *_: object) -> None:
                """Stderr belongs to the command under test."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        port = self._server.server_address[1]
        config = load_config(environ={}, flags={"state_dir": str(state_dir), "http.port": port})
        (state_dir / "natwork.toml").write_text(to_toml(config), encoding="utf-8")
        (state_dir / "api-token").write_text("s3cret\n", encoding="ascii")

    def answers_at(self, method: str, path: str, status: int, answer: dict[str, Any]) -> None:
        """From now on, to that request; others as `answers` says."""
        self._at[method, path] = (status, json.dumps(answer).encode())

    def answers(self, status: int, answer: dict[str, Any] | bytes) -> None:
        """From now on."""
        self._answer = (status, answer if isinstance(answer, bytes) else json.dumps(answer).encode())

    def close(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[StandInGateway]:
    """A gateway of a state directory of its own."""
    (tmp_path / "gateway").mkdir()
    server = StandInGateway(tmp_path / "gateway")
    yield server
    server.close()


class WithoutRay:
    """What `up` and `demo` ask of Ray, noted instead of done."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, failing: str = "") -> None:
        import agents.supervisor
        import serve_apps.deploy

        self.done: list[str] = []
        self.failing = failing
        record = cluster.ClusterRecord(
            pid=1, created_s=1.0, address="127.0.0.1:1", dashboard_port=8265, metrics_port=9000, temp_dir=""
        )

        class SupervisorActor:
            async def call(self, method: str) -> int:
                return len(method)

        for module, name, answer in (
            (cluster, "start", record),
            (cluster, "connect", record),
            (cluster, "disconnect", None),
            (cluster, "end", True),
            (serve_apps.deploy, "deploy", "http://127.0.0.1:8000"),
            (agents.supervisor, "start_supervisor", SupervisorActor()),
        ):
            monkeypatch.setattr(module, name, self._noted(name, answer))
        monkeypatch.setattr(os, "environ", dict(os.environ))

    def _noted(self, name: str, answer: Any) -> Any:
        def call(*_: object, **__: object) -> Any:
            self.done.append(name)
            if name == self.failing:
                raise TimedOutError(f"{name} took too long", hint="wait")
            return answer

        return call


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> Callable[..., WithoutRay]:
    """`without_ray(failing="deploy")`: from then on commands start nothing, and one step may fail."""

    def install(*, failing: str = "") -> WithoutRay:
        return WithoutRay(monkeypatch, failing=failing)

    return install


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    """A folder in iAnomaly's format: runs 1 to 3 of one service, made up, with blocks as the set has them."""
    root = tmp_path / "recorded" / "sample_dataset"
    for run in (1, 2, 3):
        rng = np.random.default_rng(run)
        _write_recording(root / "normal_data" / f"svc_normal{run}.csv", rng, [0] * 370, labelled=False)
        others = [0] * 20 + ([1] * 15 + [0] * 15) * 3
        _write_recording(root / "anomaly_data" / f"svc_other_anoms{run}.csv", rng, others, labelled=True)
        surges = [0] * 10 + [1] * 3 + [0] * 15 + [1] * 15 + [0] * 10
        _write_recording(root / "anomaly_data" / f"svc_usersurge{run}.csv", rng, surges, labelled=True)
    return root.parent


def _write_recording(path: Path, rng: np.random.Generator, labels: list[int], *, labelled: bool) -> None:
    names = (
        "total_disk_read_throughput,total_disk_write_throughput,rss,vsize,cpu_usage,rx_bytes_per_ns,tx_bytes_per_ns,"
        "latency_p50,latency_p90,latency_p99,request_throughput,errors_per_ns"
    )
    usual = np.array([0.004, 0.002, 4e8, 3e9, 0.4, 0.006, 2e-5, 2e8, 4e8, 6e8, 2.6e-9, 1e-11])
    values = usual * rng.lognormal(0.0, 0.05, (len(labels), len(usual)))
    values[np.array(labels) == 1] *= 3.0
    rows = [",".join([*map(repr, row), *([str(mark)] if labelled else [])])
            for row, mark in zip(values.tolist(), labels, strict=True)]  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([names + (",Normal/Attack" if labelled else ""), *rows]) + "\n", encoding="utf-8")
