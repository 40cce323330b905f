"""`natwork bench serving` from end to end: Serve and uvicorn are started, measured, and gone afterwards."""

from __future__ import annotations

import contextlib
import http.client
import json
import subprocess
import sys
from typing import Any

import psutil
import pytest

from natwork_ray.cli import bench_serving
from natwork_ray.config import load_config
from natwork_ray.errors import NatworkError


def test_uvicorn_is_a_process_of_its_own_and_is_ended(tmp_path: Any) -> None:
    config = load_config(environ={})
    with bench_serving._uvicorn(config, tmp_path / "uvicorn") as connection:
        connection.request("GET", "/api/v1/anomaly/model")
        answer = json.loads(connection.getresponse().read())
        port = connection.port
        assert answer["window"] >= 2
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=2)) as after, pytest.raises(OSError):
        after.request("GET", "/")


def test_a_model_that_is_not_there_is_told(tmp_path: Any) -> None:
    config = load_config(environ={}).model_copy(update={"model": tmp_path / "absent"})
    with pytest.raises(NatworkError, match="uvicorn ended"), bench_serving._uvicorn(config, tmp_path / "uvicorn"):
        pass


@pytest.mark.slow
def test_everything_is_measured_in_one_run_and_nothing_is_left() -> None:
    before = {p.pid for p in psutil.process_iter()}
    command = [sys.executable, "-m", "natwork_ray.cli.main", "bench", "serving", "--seconds", "0.5", "--rounds", "1"]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["in_process_windows_per_s_core"] > 0
    for path in ("http", "uvicorn"):
        for kind in ("one_window", "batch_1024"):
            figures = document[path][kind]
            assert 0 < figures["p50_ms"] <= figures["p99_ms"]
            assert figures["rps"] > 0
    left = [p for p in psutil.process_iter(["cmdline"]) if p.pid not in before]
    ours = [
        p for p in left if any(w in " ".join(p.info["cmdline"] or ()) for w in ("natwork-bench-", "natwork-address"))
    ]
    assert ours == []
