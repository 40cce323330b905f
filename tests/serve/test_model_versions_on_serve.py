"""Versions of the detector change while requests keep coming: none fails, and each answer names who gave it."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest

from natwork_ray.adapters.model_directory import ModelDirectory
from natwork_ray.profiling.bounds import DEFAULT_MODEL
from natwork_ray.profiling.model_file import digest, dumps, loads

CLIENTS = 4
T = 10
RAW = {"Content-Type": "application/octet-stream", "Accept": "application/octet-stream"}


@pytest.fixture(scope="module")
def shipped() -> bytes:
    return ModelDirectory().load(DEFAULT_MODEL)


def changed(data: bytes, threshold: float) -> bytes:
    """The same model at another operating point: other bytes, so another version."""
    detector: Any = loads(data)
    detector.card = replace(detector.card, threshold=threshold)
    return dumps(detector)


@pytest.fixture
def publish(loop: Any, http: httpx.Client, token: dict[str, str]) -> Any:
    def publish(data: bytes) -> httpx.Response:
        headers = {**token, "Content-Type": "application/octet-stream"}
        return http.post(f"/models/{DEFAULT_MODEL}/versions", content=data, headers=headers)

    return publish


class Traffic:
    """Clients that ask without a pause; what each answer was, and which version gave it."""

    def __init__(self, url: str) -> None:
        self.url = f"{url}/api/v1/anomaly/verdicts"
        self.statuses: Counter[str] = Counter()
        self.models: list[tuple[float, str]] = []
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(i,)) for i in range(CLIENTS)]

    def __enter__(self) -> Traffic:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, number: int) -> None:
        n = (1, 1, 64, 300)[number % 4]
        raw = np.ones((n, T, 12), dtype="<f4").tobytes()
        window = {"container": "c", "values": np.ones((T, 12)).tolist()}
        with httpx.Client(trust_env=False, timeout=30) as client:
            while not self._ended.is_set():
                try:
                    if number == 0:
                        answer = client.post(self.url, json={"windows": [window]})
                    else:
                        answer = client.post(f"{self.url}?n={n}&t={T}", content=raw, headers=RAW)
                except httpx.HTTPError as error:
                    self.statuses[repr(error)] += 1
                    continue
                self.statuses[str(answer.status_code)] += 1
                model = answer.headers.get("natwork-model", "")
                if number == 0 and answer.status_code == 200:
                    assert answer.json()["model"] == model
                self.models.append((time.monotonic(), model))


@pytest.fixture
def traffic(anomaly_app: str) -> Iterator[Traffic]:
    with Traffic(anomaly_app) as traffic:
        yield traffic


def follows(traffic: Traffic, sha256: str) -> float:
    """Seconds until two replicas' worth of answers come from that version and from no other."""
    began = time.monotonic()
    while time.monotonic() - began < 20:
        recent = [model for at, model in traffic.models if at > time.monotonic() - 0.5]
        if len(recent) >= 20 and set(recent) == {sha256}:
            return time.monotonic() - began
        time.sleep(0.05)
    raise AssertionError(f"still {Counter(recent)}, wanted {sha256}")


def test_swapping_while_requests_come_fails_none_of_them(
    loop: Any, http: httpx.Client, token: dict[str, str], publish: Any, traffic: Traffic, shipped: bytes
) -> None:
    versions = [changed(shipped, threshold) for threshold in (0.41, 0.43, 0.47)]
    for data in versions:
        kept = publish(data).raise_for_status().json()
        assert kept["sha256"] == digest(data)
    follows(traffic, digest(shipped))
    for data in (*versions, versions[0], versions[2]):
        choice = {"sha256": digest(data), "by": "a test", "note": "swap"}
        used = http.put(f"/models/{DEFAULT_MODEL}/current", json=choice, headers=token).raise_for_status().json()
        assert used["sha256"] == digest(data)
        follows(traffic, digest(data))
    back = http.post(f"/models/{DEFAULT_MODEL}/rollback", json={"by": "a test"}, headers=token)
    assert back.raise_for_status().json()["sha256"] == digest(versions[0])
    follows(traffic, digest(versions[0]))
    assert set(traffic.statuses) == {"200"}, traffic.statuses
    assert traffic.statuses["200"] > 500
    told = {model for _, model in traffic.models}
    assert told == {digest(shipped), *map(digest, versions)}

    entries = http.get("/audit", params={"limit": 1000}).json()["items"]
    swaps = [e["body"] for e in entries if e["kind"] == "model"]
    assert [s["sha256"] for s in swaps[-6:-1]] == [digest(v) for v in (*versions, versions[0], versions[2])]


def test_a_version_that_does_not_load_is_refused_and_the_old_one_stays(
    loop: Any, http: httpx.Client, token: dict[str, str], publish: Any, shipped: bytes
) -> None:
    before = http.get("/anomaly/model").json()["sha256"]
    for bad in (b"no model at all", shipped[:-100]):
        answer = publish(bad)
        assert answer.status_code == 422, answer.text
        assert answer.json()["hint"]
    absent = {"sha256": "ab" * 32, "by": "a test"}
    assert http.put(f"/models/{DEFAULT_MODEL}/current", json=absent, headers=token).status_code == 404
    unsigned = http.post(f"/models/{DEFAULT_MODEL}/rollback", json={"by": "mallory"})
    assert unsigned.status_code == 401
    assert http.get("/anomaly/model").json()["sha256"] == before


def test_newest_samples_are_remembered_for_all_replicas(anomaly_app: str) -> None:
    with httpx.Client(base_url=f"{anomaly_app}/api/v1/anomaly", trust_env=False, timeout=30) as client:
        for step in range(12):
            sample = {"container": "ring", "service": "s", "values": [1.0] * 12}
            body = {"at_s": 1000.0 + 10 * step, "samples": [sample]}
            (verdict,) = client.post("/samples", json=body).raise_for_status().json()["verdicts"]
            assert verdict["history"] == min(step + 1, verdict["of"])
