"""Debian's Prometheus on a free port, scraping real processes and containers every second: what it says is what the
kernel says, and what nobody measured is missing.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import psutil
import pytest
from prometheus_client import CollectorRegistry, Counter, Histogram, start_http_server

from natwork_ray.adapters.cadvisor_exporter import ContainerExporter, Exported, serving
from natwork_ray.adapters.cadvisor_testbed import exported_of
from natwork_ray.adapters.prometheus import PrometheusTelemetry
from natwork_ray.adapters.prometheus_masks import Observation
from natwork_ray.adapters.testbed_containers import new_spec, start
from natwork_ray.adapters.testbed_world import build_ports
from natwork_ray.adapters.workload import MIB, Load
from natwork_ray.config import PrometheusConfig
from natwork_ray.domain.telemetry import METRICS, Metric
from natwork_ray.errors import InputError, PreconditionError, TimedOutError

T = TypeVar("T")
# Prometheus takes up to five seconds to begin with its targets; then a rate needs four scrapes and one more.
FILLED_S = 25.0
# Burns a share of a core that its standard input sets, in slices of 50 ms; writes a little to a file each time.
LOAD = """
import select, sys, time
duty = float(sys.argv[1])
while True:
    until = time.monotonic() + duty * 0.05
    while time.monotonic() < until:
        pass
    if select.select([sys.stdin], [], [], max(0.001, (1 - duty) * 0.05))[0]:
        duty = float(sys.stdin.readline())
"""


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(coroutine)


def until(holds: Callable[[], bool], *, within_s: float, what: str) -> float:
    """Wait until it holds; how long that took."""
    began = time.monotonic()
    while not holds():
        assert time.monotonic() - began < within_s, what
        time.sleep(0.1)
    return time.monotonic() - began


class Burner:
    """A process that burns a share of a core."""

    def __init__(self, duty: float) -> None:
        self._process = subprocess.Popen([sys.executable, "-c", LOAD, str(duty)], stdin=subprocess.PIPE, text=True)

    @property
    def pid(self) -> int:
        return self._process.pid

    def burn(self, duty: float) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{duty}\n")
        self._process.stdin.flush()

    def end(self) -> None:
        self._process.kill()
        with self._process:
            pass


@dataclass
class Server:
    """A Prometheus of our own."""

    binary: str
    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def begin(self, targets: dict[str, Sequence[int]]) -> None:
        """Scrape these ports every second, by job."""
        jobs = [
            {"job_name": job, "static_configs": [{"targets": [f"127.0.0.1:{port}" for port in ports]}]}
            for job, ports in targets.items()
        ]
        config = {"global": {"scrape_interval": "1s", "scrape_timeout": "1s"}, "scrape_configs": jobs}
        (self.folder / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    self.binary, f"--config.file={self.folder}/prometheus.yml",
                    f"--storage.tsdb.path={self.folder}/data", f"--web.listen-address=127.0.0.1:{self.port}",
                    "--log.level=warn",
                ],
                stdout=log, stderr=log,
            )  # fmt: skip
        until(self._ready, within_s=30, what=(self.folder / "log").read_text())

    def _ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=2) as answer:  # noqa: S310 - our own
                return bool(answer.status == 200)
        except (urllib.error.URLError, ConnectionError):
            return False

    def end(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="session")
def binary() -> str:
    """Prometheus; the reason for skipping where there is none. The pipeline has installed it."""
    found = shutil.which("prometheus")
    if found is None:
        if os.geteuid() == 0 and os.environ.get("CI") == "1":
            pytest.fail("the pipeline has no Prometheus")
        pytest.skip("no prometheus here: sudo scripts/install_testbed --with-prometheus")
    return found


@pytest.fixture
def server(binary: str, tmp_path: Path) -> Iterator[Server]:
    made = Server(binary, tmp_path, free_port())
    yield made
    made.end()


@dataclass
class Stage:
    """Everything that one Prometheus watches for the tests of this module, begun together since all need time."""

    server: Server
    telemetry: PrometheusTelemetry
    exported: list[Exported]
    burners: dict[str, Burner]
    mortal: contextlib.ExitStack
    requests: Counter
    latency: Histogram
    began_s: float = field(default_factory=time.time)

    def look(self, length: int = 6, **config: Any) -> Observation:
        """The window that ends now."""
        source = PrometheusTelemetry(PrometheusConfig(url=self.server.url, **config), step_s=1.0)
        try:
            return run(source.observation(end_s=time.time(), length=length))
        finally:
            source.close()


@pytest.fixture(scope="module")
def stage(binary: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with contextlib.ExitStack() as stack:
        server = Server(binary, tmp_path_factory.mktemp("prometheus"), free_port())
        stack.callback(server.end)
        burners = {}
        for name, duty in {"steady": 0.3, "reborn": 0.2, "mortal": 0.1}.items():
            burners[name] = Burner(duty)
        stack.callback(lambda: [burner.end() for burner in burners.values()])
        exported = [Exported(name=name, pid=burners[name].pid) for name in ("steady", "reborn")]
        _, port = stack.enter_context(serving(ContainerExporter(lambda: exported), host="127.0.0.1", port=0))
        mortal = stack.enter_context(contextlib.ExitStack())
        last = [Exported(name="mortal", pid=burners["mortal"].pid)]
        _, mortal_port = mortal.enter_context(serving(ContainerExporter(lambda: last), host="127.0.0.1", port=0))
        registry = CollectorRegistry()
        requests = Counter("http_requests", "of the shop", ["container", "code"], registry=registry)
        latency = Histogram("http_request_duration_seconds", "of the shop", ["container"], registry=registry)
        requests.labels("steady", "200").inc(0)
        latency.labels("steady").observe(0.02)
        application, thread = start_http_server(0, addr="127.0.0.1", registry=registry)
        stack.callback(thread.join)
        stack.callback(application.server_close)
        stack.callback(application.shutdown)
        server.begin({"containers": [port, mortal_port], "application": [application.server_port]})
        telemetry = PrometheusTelemetry(PrometheusConfig(url=server.url), step_s=1.0)
        stack.callback(telemetry.close)
        made = Stage(server, telemetry, exported, burners, mortal, requests, latency)
        for name in ("steady", "reborn", "mortal"):
            until_rated(made.look, name)
        until(lambda: newest(made.look(), "steady", Metric.THROUGHPUT) == 0, within_s=20, what="no application")
        yield made


def column(seen: Observation, container: str, metric: Metric) -> list[float]:
    row = seen.window.containers.index(container)
    return [float(x) for x in seen.window.values[row, :, METRICS.index(metric)]]


def newest(seen: Observation, container: str, metric: Metric) -> float:
    return column(seen, container, metric)[-1]


def reasons(seen: Observation, container: str) -> str:
    return "; ".join(remark.text for remark in seen.degraded if remark.container == container)


def until_rated(look: Callable[[], Observation], container: str) -> None:
    """Wait for the first rates of a container."""

    def rated() -> bool:
        seen = look()
        return container in seen.window.containers and not math.isnan(newest(seen, container, Metric.CPU))

    until(rated, within_s=FILLED_S, what=f"no rates of {container}")


def test_a_process_is_as_proc_has_it(stage: Stage) -> None:
    process = psutil.Process(stage.burners["steady"].pid)
    before, began = process.cpu_times(), time.monotonic()
    time.sleep(4)
    seen = stage.look()
    after, took = process.cpu_times(), time.monotonic() - began
    cores = (after.user + after.system - before.user - before.system) / took
    assert newest(seen, "steady", Metric.CPU) == pytest.approx(cores / (psutil.cpu_count() or 1), rel=0.25)
    memory = process.memory_info()
    assert newest(seen, "steady", Metric.MEMORY_RSS) == pytest.approx(memory.rss, rel=0.02)
    assert newest(seen, "steady", Metric.MEMORY_VSIZE) == pytest.approx(memory.vms, rel=0.02)
    assert newest(seen, "steady", Metric.DISK_WRITE) == 0.0
    # It shares the machine's network, and so nobody knows its traffic.
    assert math.isnan(newest(seen, "steady", Metric.NETWORK_RX))
    assert "its node's" in "".join(note.text for note in seen.notes if note.container == "steady")
    assert reasons(seen, "steady") == ""
    (node,) = [n for n in run(stage.telemetry.node_usage(at_s=time.time())) if n.containers == 2]
    both = newest(seen, "steady", Metric.CPU) + newest(seen, "reborn", Metric.CPU)
    assert node.cpu_fraction == pytest.approx(both, rel=0.4)
    assert 0 < node.memory_fraction < 1


def test_windows_of_one_moment_agree(stage: Stage) -> None:
    at_s = round(time.time() - 3, 3)
    longer = run(stage.telemetry.window(end_s=at_s, length=6))
    shorter = run(stage.telemetry.window(end_s=at_s, length=2))
    rows = [longer.containers.index(name) for name in shorter.containers]
    np.testing.assert_array_equal(shorter.values, longer.values[rows, -2:])
    assert (longer.end_s, longer.step_s, longer.values.dtype) == (at_s, 1.0, np.float32)
    for end_s, length in ((time.time() + 60, 1), (at_s, 0), (math.nan, 1)):
        with pytest.raises(InputError):
            run(stage.telemetry.window(end_s=end_s, length=length))


def test_no_requests_no_latency(stage: Stage) -> None:
    seen = stage.look()
    assert newest(seen, "steady", Metric.THROUGHPUT) == 0.0
    assert newest(seen, "steady", Metric.ERRORS) == 0.0
    assert math.isnan(newest(seen, "steady", Metric.LATENCY_P99))
    assert math.isnan(newest(seen, "reborn", Metric.THROUGHPUT))  # it counts none: not the same as no requests
    for _ in range(4):
        for _ in range(10):
            stage.requests.labels("steady", "200").inc()
            stage.latency.labels("steady").observe(0.3)
        time.sleep(1)
    time.sleep(1)
    seen = stage.look()
    assert newest(seen, "steady", Metric.THROUGHPUT) == pytest.approx(10, rel=0.5)
    assert 0.25 <= newest(seen, "steady", Metric.LATENCY_P50) <= 0.5
    assert newest(seen, "steady", Metric.LATENCY_P50) <= newest(seen, "steady", Metric.LATENCY_P99)


def test_a_restart_masks_its_rates(stage: Stage) -> None:
    assert newest(stage.look(), "reborn", Metric.CPU) > 0
    stage.burners["reborn"].end()
    stage.burners["reborn"] = Burner(0.2)
    stage.exported[:] = [replace(e, pid=stage.burners[e.name].pid) for e in stage.exported]
    at = time.time()
    waited = until(
        lambda: math.isnan(newest(stage.look(), "reborn", Metric.CPU)), within_s=3, what="the restart was not seen"
    )
    seen = stage.look()
    assert reasons(seen, "reborn")
    assert reasons(seen, "steady") == ""
    until(lambda: not math.isnan(newest(stage.look(), "reborn", Metric.CPU)), within_s=12, what="rates never came back")
    assert waited < 3
    # All of it once more, from behind: no rate was ever made up.
    seen = stage.look(length=round(time.time() - at) + 4)
    rates = [x for x in column(seen, "reborn", Metric.CPU) if not math.isnan(x)]
    assert len(rates) <= seen.window.length - 4
    assert all(0 < rate < 1 / (psutil.cpu_count() or 1) for rate in rates)
    assert not any(math.isnan(x) for x in column(seen, "steady", Metric.CPU))


def test_an_exporter_that_is_gone_leaves_nothing_behind(stage: Stage) -> None:
    assert newest(stage.look(), "mortal", Metric.MEMORY_RSS) > 1e6
    stage.mortal.close()
    row = METRICS.index(Metric.MEMORY_RSS)

    def masked() -> bool:
        seen = stage.look()
        return bool(math.isnan(seen.window.values[seen.window.containers.index("mortal"), -1, row]))

    assert until(masked, within_s=4, what="the last sample lives on") < 4
    seen = stage.look()
    index = seen.window.containers.index("mortal")
    assert seen.window.missing()[index]
    assert reasons(seen, "mortal") == "cadvisor: not scraped"


def test_a_slow_way_to_the_server_is_cut_off(stage: Stage) -> None:
    with _proxy(stage.server.port, delay_s=2.0) as port:
        source = PrometheusTelemetry(PrometheusConfig(url=f"http://127.0.0.1:{port}", timeout_s=0.5), step_s=1.0)
        began = time.monotonic()
        with pytest.raises(TimedOutError):
            run(source.window(end_s=time.time(), length=3))
        assert time.monotonic() - began < 2
        source.close()


def test_a_query_that_the_server_refuses_costs_its_metric(stage: Stage, tmp_path: Path) -> None:
    from importlib.resources import files

    text = (files("natwork_ray.adapters") / "prometheus_queries.toml").read_text()
    edited = tmp_path / "queries.toml"
    edited.write_text(
        text.replace("sum by ($by) (container_memory_rss{$selector})", "sum by ($by) (container_memory_rss")
    )
    seen = stage.look(queries=edited)
    assert math.isnan(newest(seen, "steady", Metric.MEMORY_RSS))
    assert newest(seen, "steady", Metric.MEMORY_VSIZE) > 0
    (remark,) = [r for r in seen.degraded if r.metric == Metric.MEMORY_RSS]
    assert "refuses a query: bad_data" in remark.text


def test_a_server_that_is_killed(server: Server) -> None:
    burner = Burner(0.05)
    try:
        exporter = ContainerExporter(lambda: [Exported(name="web", pid=burner.pid)])
        with serving(exporter, host="127.0.0.1", port=0) as (_, port):
            server.begin({"containers": [port]})
            source = PrometheusTelemetry(PrometheusConfig(url=server.url, timeout_s=3), step_s=1.0)
            until(
                lambda: run(source.window(end_s=time.time(), length=1)).containers == ("web",),
                within_s=10,
                what="nothing was scraped",
            )
            server.end()
            with pytest.raises(PreconditionError, match="no Prometheus"):
                run(source.window(end_s=time.time(), length=1))
            # Back with its data, it says nothing of the time in between, and at first nothing of rates.
            time.sleep(2)
            server.begin({"containers": [port]})
            until_rated(lambda: run(source.observation(end_s=time.time(), length=8)), "web")
            source.close()
    finally:
        burner.end()


def test_containers_of_a_testbed_are_scraped(server: Server, testbed: Any) -> None:
    record, name = testbed.record, f"scraped-{random.randrange(16**4):04x}"
    spec = new_spec(record, name, Load(memory_bytes=32 * MIB), cpu_limit_cores=0.5, memory_limit_bytes=256.0 * MIB)
    placed = run(start(record, "node-0", spec, tools=testbed.tools, rng=random.Random(1), serve_within_s=20))
    runtime = build_ports(record, "node-0", testbed.tools).runtime
    try:
        exporter = ContainerExporter(lambda: exported_of(record.nodes), nodes=[n.name for n in record.nodes])
        with serving(exporter, host="127.0.0.1", port=0) as (_, port):
            server.begin({"containers": [port]})
            config = PrometheusConfig(url=server.url, service_label="service", node_label="node")
            source = PrometheusTelemetry(config, step_s=1.0)
            until_rated(lambda: run(source.observation(end_s=time.time(), length=1)), name)
            load = run(runtime.load(name, observe_s=2.0))
            seen = run(source.observation(end_s=time.time(), length=3))
            assert seen.window.containers == (name,)
            assert reasons(seen, name) == ""
            limited = load.cpu_cores / 0.5
            assert newest(seen, name, Metric.CPU) == pytest.approx(limited, abs=0.05, rel=0.3)
            assert newest(seen, name, Metric.MEMORY_RSS) == pytest.approx(load.memory_bytes, rel=0.3)
            assert newest(seen, name, Metric.MEMORY_VSIZE) > newest(seen, name, Metric.MEMORY_RSS)
            # A network namespace of its own: its traffic is its own.
            assert newest(seen, name, Metric.NETWORK_RX) >= 0
            assert not any(note.container == name for note in seen.notes)  # a limit is known
            usage = {n.node: n for n in run(source.node_usage(at_s=time.time()))}
            assert usage["node-0"].containers == 1
            assert usage["node-0"].network_rx_bytes_per_s >= 0
            source.close()
        assert placed.pid in psutil.pids()
    finally:
        run(_ended(testbed, runtime, name))


async def _ended(testbed: Any, runtime: Any, name: str) -> None:
    from natwork_ray.adapters.l2_bridge import L2Bridge
    from natwork_ray.adapters.testbed_traces import delete_tree

    layout = testbed.record.node("node-0")
    bridge = L2Bridge(layout)
    try:
        await runtime.destroy(name, key="end")
        await bridge.remove(name)
        delete_tree(layout.bundle(name))
    finally:
        await bridge.shut()


def test_stress_is_seen_within_three_scrapes(server: Server) -> None:
    """The command itself, on a live server: half a minute of commissioning, then a process burns a whole core."""
    burners = {"web": Burner(0.1), "calm": Burner(0.1)}
    try:
        exported = [Exported(name=name, pid=burner.pid) for name, burner in burners.items()]
        with serving(ContainerExporter(lambda: exported), host="127.0.0.1", port=0) as (_, port):
            server.begin({"containers": [port]})
            with _watching(server.url) as lines:
                verdicts: list[dict[str, Any]] = []
                stressed_s = 0.0
                for line in lines:
                    event = json.loads(line)
                    if event["event"] == "verdict":
                        verdicts.append(event)
                    learnt = [v for v in verdicts if v["container"] == "web" and v["profile"] == "own"]
                    if not stressed_s and len(learnt) >= 5:
                        burners["web"].burn(1.0)
                        stressed_s = time.time()
                    if stressed_s and verdicts[-1]["at_s"] > stressed_s + 6:
                        break
    finally:
        for burner in burners.values():
            burner.end()
    quiet = [v for v in verdicts if v["at_s"] <= stressed_s and v["profile"] == "own"]
    assert [v for v in quiet if v["anomalous"]] == []
    assert all("not from an hour" in "".join(v["degraded"]) for v in quiet)
    loud = [v for v in verdicts if v["container"] == "web" and v["at_s"] > stressed_s]
    first = next((v for v in loud if v["anomalous"]), None)
    assert first is not None, loud
    # A scrape a second: the third one after the stress began is seen by the step that follows it.
    assert first["at_s"] - stressed_s <= 4.0, loud
    assert first["drivers"][0]["metric"] == Metric.CPU
    assert [v for v in verdicts if v["container"] == "calm" and v["at_s"] > stressed_s and v["anomalous"]] == []


@contextlib.contextmanager
def _watching(url: str) -> Iterator[Iterator[str]]:
    command = [sys.executable, "-m", "natwork_ray.cli.main", "detect", "--prometheus", url, "--step", "1s"]
    process = subprocess.Popen(
        [*command, "--commissioning", "30s", "--for", "90s", "--json"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        yield iter(process.stdout)
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise


@contextlib.contextmanager
def _proxy(port: int, *, delay_s: float) -> Iterator[int]:
    """Passes a request on, and holds its answer back."""
    listener = socket.create_server(("127.0.0.1", 0))

    def carry() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(client,), daemon=True).start()

    def serve(client: socket.socket) -> None:
        with client, contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)) as upstream:
            upstream.sendall(client.recv(65_536))
            time.sleep(delay_s)
            client.sendall(upstream.recv(65_536))

    threading.Thread(target=carry, daemon=True).start()
    try:
        yield int(listener.getsockname()[1])
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
