"""`natwork bench serving` without Ray: what is measured, how targets take turns, and what is reported."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest

from natwork_ray.cli import bench_serving
from natwork_ray.cli.bench_serving import BATCH, Load, in_process, network_load, over_http, rows
from natwork_ray.config import load_config
from natwork_ray.errors import NatworkError, TimedOutError
from natwork_ray.profiling.profile import REFERENCE_WIDTH


@pytest.fixture(scope="module")
def load() -> Load:
    return network_load(load_config(environ={}, flags={"emulation.duration_s": 900.0}))


def test_the_load_is_a_network_with_profiles_of_its_services(load: Load) -> None:
    n, t, metrics = load.values.shape
    assert (n, metrics) == (BATCH, 12)
    assert t >= load_config(environ={}).loop.window
    assert load.profiles.shape[1] == REFERENCE_WIDTH
    assert load.references.shape == (BATCH, REFERENCE_WIDTH)
    assert len(np.unique(load.values[:, -1], axis=0)) > BATCH / 2, "the windows differ"
    again = network_load(load_config(environ={}, flags={"emulation.duration_s": 900.0}))
    np.testing.assert_array_equal(load.values, again.values)


def test_requests_are_what_the_door_reads(load: Load) -> None:
    route, body, headers = load.one(3)
    document = json.loads(body)
    assert route == "/api/v1/anomaly/verdicts"
    assert len(document["windows"][0]["values"]) == load.values.shape[1]
    assert len(document["profiles"]["bench"]) == REFERENCE_WIDTH
    assert headers == {"Content-Type": "application/json"}
    route, body, headers = load.batch()
    assert f"n={BATCH}&t={load.values.shape[1]}&profiles={len(load.profiles)}" in route
    assert len(body) == 4 * (load.values.size + load.profiles.size + BATCH)
    assert headers["Accept"] == "application/octet-stream"


def test_in_process(load: Load) -> None:
    rate, flagged = in_process(load_config(environ={}), load, seconds=0.01)
    assert rate > 0
    assert 0 <= flagged <= 1


def test_targets_take_turns(load: Load) -> None:
    turns: list[str] = []

    def ask(name: str) -> Any:
        def answer(route: str, body: bytes, headers: dict[str, str]) -> None:
            if not turns or turns[-1] != name:
                turns.append(name)

        return answer

    small = Load(load.values[:4], load.profiles, load.whose[:4])
    answers = over_http({"http": ask("http"), "uvicorn": ask("uvicorn")}, small, seconds=0.02, rounds=2)
    assert turns == ["http", "uvicorn"] * 6  # two kinds of request, a warm-up and two rounds each
    for kinds in answers.values():
        for figures in kinds.values():
            assert figures["requests"] >= 20, "the warm-up does not count"
            assert 0 <= figures["p50_ms"] <= figures["p99_ms"]
            assert figures["rps"] > 0


def test_the_table(natwork: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = {"p50_ms": 1.0, "p99_ms": 2.0, "rps": 100.0}
    kinds = {"one_window": figures, "batch_1024": figures}
    document = {"in_process_windows_per_s_core": 2e5, "http": kinds, "uvicorn": kinds}
    assert [(r["path"], r["request"], r["windows_per_s"]) for r in rows(document)] == [
        ("in process", "batch_1024", 2e5),
        ("http", "one_window", 100.0),
        ("http", "batch_1024", 102_400.0),
        ("uvicorn", "one_window", 100.0),
        ("uvicorn", "batch_1024", 102_400.0),
    ]
    monkeypatch.setattr(bench_serving, "run", lambda **_: document)
    assert json.loads(natwork("bench", "serving", "--json").out) == document
    assert "uvicorn" in natwork("bench", "serving").out


class Answers(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        self.rfile.read(length)
        self.send_response(200 if self.command == "GET" else 500)
        self.send_header("Content-Length", "4")
        self.end_headers()
        self.wfile.write(b"gone")

    do_POST = do_GET  # noqa: N815 - http.server looks it up by this name

    def log_message(self, *_: object) -> None:
        """Stderr belongs to the command under test."""


@pytest.fixture
def door() -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_refusal_ends_the_measurement(door: int) -> None:
    with bench_serving._connected(door) as connection, pytest.raises(NatworkError, match=r"500 .* b'gone'"):
        bench_serving._ask(connection, "/x", b"body", {})


def test_a_door_that_does_not_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_serving, "_START_PATIENCE_S", 0.0)
    with pytest.raises(TimedOutError, match="no answer on port 1"), bench_serving._connected(1):
        pass
