"""The anomaly door on Serve agrees with the detector in this process, and outlives its replicas."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import httpx
import numpy as np
import psutil
import pytest

from natwork_ray.backends import build_world, load_detector
from natwork_ray.config import load_config
from natwork_ray.domain.anomaly import STAGE_2_CLASSES
from natwork_ray.profiling.profile import Floats, ProfileBook

T = 10


@pytest.fixture(scope="module")
def batch() -> tuple[Floats, Floats]:
    """Values (N, T, 12) and references (N, P): calm containers, then the same ones far beyond their habits."""
    world = build_world(load_config(environ={}))
    facts = world.facts()
    hour = asyncio.run(world.telemetry.window(end_s=facts.begins_s, length=round(facts.begins_s / facts.step_s)))
    references = ProfileBook.learn(hour).references(hour.services)
    calm = np.nan_to_num(hour.values[:, -T:], nan=0.0).astype(np.float32)
    wild = calm.copy()
    wild[:, -5:] *= 40
    return np.concatenate([calm, wild]), np.concatenate([references, references])


def test_raw_and_json_agree_with_the_detector_in_process(http: httpx.Client, batch: tuple[Floats, Floats]) -> None:
    windows, references = batch
    n = len(windows)
    scores = load_detector(load_config(environ={})).score(windows, references)
    assert 0 < scores.flagged.sum() < n

    whose = np.arange(n, dtype="<i4")
    body = windows.astype("<f4").tobytes() + references.astype("<f4").tobytes() + whose.tobytes()
    raw = {"Content-Type": "application/octet-stream", "Accept": "application/octet-stream"}
    query: dict[str, Any] = {"n": n, "t": T, "profiles": n}
    answer = http.post("/anomaly/verdicts", params=query, content=body, headers=raw).raise_for_status()
    table = np.frombuffer(answer.content, dtype="<f4").reshape(n, 3)
    np.testing.assert_array_equal(table[:, 0], scores.p_anomalous)
    np.testing.assert_array_equal(table[:, 2], scores.confidence)

    documents = [
        {"container": f"c{i}", "service": f"s{i}", "values": windows[i].astype(float).tolist()} for i in range(n)
    ]
    profiles = {f"s{i}": references[i].astype(float).tolist() for i in range(n)}
    asked = http.post("/anomaly/verdicts", json={"windows": documents, "profiles": profiles}).raise_for_status()
    verdicts = asked.json()["verdicts"]
    assert [v["flagged"] for v in verdicts] == scores.flagged.tolist()
    np.testing.assert_allclose([v["p_anomalous"] for v in verdicts], scores.p_anomalous, rtol=1e-6)
    flagged = [i for i in range(n) if scores.flagged[i]]
    assert [verdicts[i]["kind"] for i in flagged] == [str(STAGE_2_CLASSES[scores.kinds[i]]) for i in flagged]


def test_a_killed_replica_costs_a_retry(http: httpx.Client, batch: tuple[Floats, Floats]) -> None:
    windows, _ = batch
    body = windows.astype("<f4").tobytes()
    replicas = replica_processes()
    assert len(replicas) == 2
    statuses: list[int] = []
    slowest_s = 0.0
    for number in range(60):
        if number == 10:
            replicas[0].kill()
        began, done = time.monotonic(), False
        while not done:
            try:
                answer = http.post(
                    "/anomaly/verdicts",
                    params={"n": len(windows), "t": T},
                    content=body,
                    headers={"Content-Type": "application/octet-stream"},
                )
                statuses.append(answer.status_code)
            except httpx.TransportError:
                statuses.append(0)  # the connection went down with the replica
            done = statuses[-1] == 200
            assert time.monotonic() - began < 30
        slowest_s = max(slowest_s, time.monotonic() - began)
    assert statuses.count(200) == 60
    assert len(statuses) <= 62, statuses
    deadline = time.monotonic() + 30
    while len(replica_processes()) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.2)


def replica_processes() -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children(recursive=True):
        title = "".join(process.cmdline()[:1]) if process.status() != psutil.STATUS_ZOMBIE else ""
        if title.startswith("ray::ServeReplica:anomaly:"):
            found.append(process)
    return found
