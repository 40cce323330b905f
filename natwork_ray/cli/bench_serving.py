"""`natwork bench serving`: how fast windows are judged in process, through Ray Serve, and behind plain uvicorn.

One run measures all three with the same model and the same windows, taken from an emulated network with its anomalies.
The HTTP figures come from one client on one connection, which waits for each answer; Serve and uvicorn take turns in
short rounds, so that whatever else the machine does falls on both. One window travels as JSON with its service's
profile, a batch of 1,024 as raw float32 both ways (docs/http.md): parsing that much JSON would cost more than the
model. Every window has as many samples as the detector makes use of.

Left out: the machine's noise. Figures of a busy machine are of a busy machine; `load` says how busy it was.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from natwork_ray.backends import build_world, load_detector, model_bytes
from natwork_ray.cli.demo import free_port, write_effective
from natwork_ray.cli.settings import settle
from natwork_ray.config import Config
from natwork_ray.errors import NatworkError, PreconditionError, TimedOutError
from natwork_ray.profiling.profile import Floats, ProfileBook

COLUMNS = ("path", "request", "p50_ms", "p99_ms", "rps", "windows_per_s")
BATCH = 1024
_JSON, _RAW = "application/json", "application/octet-stream"
_ROUTE = "/api/v1/anomaly/verdicts"
_START_PATIENCE_S = 60.0
_SEED = 4

# Route, body and headers; and what sends them and waits for the answer.
Request = tuple[str, bytes, dict[str, str]]
Ask = Callable[[str, bytes, dict[str, str]], None]


@dataclass(frozen=True, eq=False)
class Load:
    """What is judged: values (1024, T, 12) of a network with anomalies, profiles (R, P), and (1024,) whose they are."""

    values: Floats
    profiles: Floats
    whose: NDArray[np.int32]

    @property
    def references(self) -> Floats:
        """(1024, P)."""
        return self.profiles[self.whose]

    def one(self, i: int) -> Request:
        """Route, body and headers of a request for window i, JSON."""
        window = {
            "container": "bench",
            "service": "bench",
            "values": [[None if np.isnan(x) else float(x) for x in row] for row in self.values[i]],
        }
        profile = self.profiles[self.whose[i]].astype(float).tolist()
        body = json.dumps({"windows": [window], "profiles": {"bench": profile}}).encode()
        return _ROUTE, body, {"Content-Type": _JSON}

    def batch(self) -> Request:
        """Route, body and headers of a request for all windows, raw both ways."""
        parts = (self.values.astype("<f4"), self.profiles.astype("<f4"), self.whose.astype("<i4"))
        body = b"".join(part.tobytes() for part in parts)
        route = f"{_ROUTE}?n={len(self.values)}&t={self.values.shape[1]}&profiles={len(self.profiles)}"
        return route, body, {"Content-Type": _RAW, "Accept": _RAW}


def run(*, seconds: float, rounds: int, bar: Any) -> dict[str, Any]:
    """Measure; a document for JSON. `seconds` is the time for each figure, dealt over `rounds`."""
    config = settle()
    task = bar.add_task("emulating a network", total=4)
    load = network_load(config)
    bar.update(task, advance=1, description="in process")
    inside, flagged = in_process(config, load, seconds=seconds)
    bar.update(task, advance=1, description="starting Ray Serve and uvicorn")
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="natwork-bench-")))
        targets = {
            "http": stack.enter_context(_serve(config, folder / "ray")),
            "uvicorn": stack.enter_context(_uvicorn(config, folder / "uvicorn")),
        }
        bar.update(task, advance=1, description="over HTTP")
        answers = over_http({n: partial(_ask, c) for n, c in targets.items()}, load, seconds=seconds, rounds=rounds)
        proxy = _proxy()
    bar.advance(task)
    ratio = answers["http"]["one_window"]["p50_ms"] / answers["uvicorn"]["one_window"]["p50_ms"]
    return {
        "in_process_windows_per_s_core": inside,
        **answers,
        "one_window_p50_ratio": ratio,
        "batch": BATCH,
        "samples_per_window": int(load.values.shape[1]),
        "flagged_share": flagged,
        "payload": {"one_window": _JSON, "batch_1024": _RAW},
        "clients": 1,
        "model": _model(config),
        "proxy": proxy,
        "machine": _machine(),
    }


def rows(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The document as a table."""
    inside = {"path": "in process", "request": "batch_1024", "windows_per_s": document["in_process_windows_per_s_core"]}
    return [inside] + [
        {"path": path, "request": kind, **figures, "windows_per_s": figures["rps"] * (BATCH if "batch" in kind else 1)}
        for path in ("http", "uvicorn")
        for kind, figures in document[path].items()
    ]


def network_load(config: Config) -> Load:
    """1,024 windows out of an emulated network's run with anomalies, and what is normal for their services."""
    config = config.model_copy(update={"backend": "emulated"})
    world = build_world(config)
    facts = world.facts()

    async def look() -> Load:
        samples = round((facts.ends_s - facts.begins_s) / facts.step_s)
        hour = await world.telemetry.window(end_s=facts.begins_s, length=facts.commissioning_samples)
        world.advance(facts.ends_s)
        run = await world.telemetry.window(end_s=facts.ends_s, length=samples)
        services = tuple(dict.fromkeys(run.services))
        profiles = ProfileBook.learn(hour).references(services)
        whose = np.array([services.index(service) for service in run.services], dtype=np.int32)
        t = max(config.loop.window, load_detector(config).history)
        windows = np.lib.stride_tricks.sliding_window_view(run.values, t, axis=1)  # (N, samples - T + 1, 12, T)
        rng = np.random.default_rng(_SEED)
        which = rng.integers(windows.shape[0], size=BATCH), rng.integers(windows.shape[1], size=BATCH)
        values = np.ascontiguousarray(windows[which].transpose(0, 2, 1), dtype=np.float32)
        return Load(values, profiles, whose[which[0]])

    return asyncio.run(look())


def in_process(config: Config, load: Load, *, seconds: float) -> tuple[float, float]:
    """Windows per second on one core, in batches of 1,024 (median), and the share of them that stage 1 flags."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        detector, references = load_detector(config), load.references
        flagged = float(detector.score(load.values, references).flagged.mean())
        times = _timed(lambda: detector.score(load.values, references), seconds=seconds)
    finally:
        torch.set_num_threads(before)
    return BATCH / float(np.median(times)), flagged


def over_http(
    targets: dict[str, Ask], load: Load, *, seconds: float, rounds: int
) -> dict[str, dict[str, dict[str, float]]]:
    """p50, p99 and rate of each kind of request at each target, the targets taking turns."""
    kinds = {
        "one_window": [load.one(i) for i in range(min(64, len(load.values)))],
        "batch_1024": [load.batch()],
    }
    answers: dict[str, dict[str, dict[str, float]]] = {name: {} for name in targets}
    for kind, requests in kinds.items():
        times: dict[str, list[float]] = {name: [] for name in targets}
        for number in range(rounds + 1):
            for name, ask in targets.items():
                one_round = _timed(partial(_ask_next, ask, cycle(requests)), seconds=seconds / rounds)
                if number:  # the first round warms up
                    times[name] += one_round
        for name, taken in times.items():
            p50, p99 = (1000 * float(np.percentile(taken, q)) for q in (50, 99))
            answers[name][kind] = {"p50_ms": p50, "p99_ms": p99, "rps": len(taken) / sum(taken), "requests": len(taken)}
    return answers


def _ask_next(ask: Ask, requests: Iterator[Request]) -> None:
    ask(*next(requests))


def _timed(work: Callable[[], object], *, seconds: float) -> list[float]:
    """Seconds of each repetition of `work`, for so long, and at least ten times."""
    work()
    times: list[float] = []
    deadline = time.perf_counter() + seconds
    while time.perf_counter() < deadline or len(times) < 10:
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return times


def _ask(connection: http.client.HTTPConnection, route: str, body: bytes, headers: dict[str, str]) -> None:
    connection.request("POST", route, body, headers)
    answer = connection.getresponse()
    content = answer.read()
    if answer.status != 200:
        raise NatworkError(
            f"{answer.status} from {connection.host}:{connection.port}: {content[:200]!r}",
            hint="the processes' logs tell more",
        )


@contextlib.contextmanager
def _serve(config: Config, state_dir: Path) -> Iterator[http.client.HTTPConnection]:
    """The anomaly door on a Ray Serve of its own, and a connection to it."""
    from agents import cluster

    config = config.model_copy(
        update={"state_dir": state_dir, "http": config.http.model_copy(update={"port": free_port()})}
    )
    state_dir.mkdir(mode=0o700, parents=True)
    write_effective(config)
    before = dict(os.environ)
    os.environ.update(cluster.environment(state_dir))
    cluster.start(state_dir, dashboard=False, cpus=2)
    try:
        cluster.connect(state_dir)
        from serve_apps.deploy import deploy

        deploy(config.http, only="anomaly")
        with _connected(config.http.port) as connection:
            yield connection
    finally:
        cluster.disconnect()
        cluster.end(state_dir)
        os.environ.clear()
        os.environ.update(before)


@contextlib.contextmanager
def _uvicorn(config: Config, folder: Path) -> Iterator[http.client.HTTPConnection]:
    """The same application behind uvicorn in a process of its own, and a connection to it."""
    folder.mkdir(mode=0o700)
    port = free_port()
    write_effective(config.model_copy(update={"state_dir": folder}))
    command = [sys.executable, "-m", "uvicorn", "--factory", "serve_apps.plain:anomaly", "--host", "127.0.0.1",
               "--port", str(port), "--no-access-log", "--log-level", "warning"]  # fmt: skip
    environ = {k: v for k, v in os.environ.items() if not k.startswith("NATWORK_")}
    with (folder / "uvicorn.log").open("wb") as log:
        process = subprocess.Popen(
            command,
            env=environ | {"OMP_NUM_THREADS": "1", "NATWORK_CONFIG": str(folder / "natwork.toml")},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        with _connected(port, process, folder / "uvicorn.log") as connection:
            yield connection
    finally:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def _connected(
    port: int, process: subprocess.Popen[bytes] | None = None, log: Path | None = None
) -> Iterator[http.client.HTTPConnection]:
    """A connection to a door that answers; waits until it does."""
    deadline = time.monotonic() + _START_PATIENCE_S
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        try:
            connection.request("GET", "/api/v1/anomaly/model")
            answer = connection.getresponse()
            answer.read()
            if answer.status == 200:
                break
            why = str(answer.status)
        except (OSError, http.client.HTTPException) as error:
            why = str(error)
        connection.close()
        if process is not None and process.poll() is not None:
            lines = log.read_text(errors="replace").strip().splitlines() if log else []
            raise PreconditionError(f"uvicorn ended: {''.join(lines[-1:])}", hint="is the model there?")
        if time.monotonic() > deadline:
            raise TimedOutError(f"no answer on port {port}: {why}", hint="a busier machine may need longer")
        time.sleep(0.1)
    with contextlib.closing(connection):
        yield connection


def _proxy() -> str:
    from agents import haproxy

    return "haproxy" if haproxy.binary() else "python"


def _model(config: Config) -> dict[str, Any]:
    from natwork_ray.profiling.model_file import digest

    data = model_bytes(config)
    detector = load_detector(config)
    return {"sha256": digest(data), "bytes": len(data), "window": detector.window, "kind": type(detector).__name__}


def _machine() -> dict[str, Any]:
    versions = {name: _version(name) for name in ("ray", "torch", "numpy", "uvicorn", "fastapi")}
    return {
        "cores": len(os.sched_getaffinity(0)),
        "processor": platform.machine(),
        "python": platform.python_version(),
        "load": [round(x, 2) for x in os.getloadavg()],
        **versions,
    }


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)
