"""`natwork demo`: repeatable, whole, and its audit log proves itself."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from natwork_ray.adapters import ianomaly


@pytest.fixture
def demo(shell: Any, tmp_path: Path) -> Any:
    def run(name: str, *arguments: str) -> Any:
        return shell.json("demo", "--json", "--out", str(tmp_path / name), *arguments, timeout_s=120)

    return run


def test_the_same_seed_gives_the_same_run_and_its_log_verifies(demo: Any, shell: Any, tmp_path: Path) -> None:
    first, second = demo("a", "--seed", "7", "--minutes", "20"), demo("b", "--seed", "7", "--minutes", "20")
    for run in (first, second):
        assert 0 < run.pop("wall_s") < 60
    assert first == second
    assert first["backend"] == "emulated"
    assert first["seed"] == 7
    assert 0.98 * 12 * 120 <= first["windows"] <= 12 * 120  # a container that was just moved has no sample yet
    assert first["actions"]["done"] >= 1
    assert first["quota"]["violations"] == 0
    assert first["audit"]["verified"]
    report = (tmp_path / "a" / "report.html").read_text(encoding="utf-8")
    assert report.lstrip().lower().startswith("<!doctype html")
    assert 'src="http' not in report
    assert 'rel="stylesheet" href="http' not in report

    log, key = tmp_path / "a" / "audit.log", str(tmp_path / "a" / "state" / "audit.pub")
    verified = shell.json("audit", "verify", str(log), "--public-key", key, "--json")
    assert verified["entries"] == first["audit"]["entries"]
    assert verified["root"] == first["audit"]["root"]
    assert verified["pinned"]
    altered = bytearray(log.read_bytes())
    altered[len(altered) // 2] ^= 0x01
    (tmp_path / "altered.log").write_bytes(altered)
    refused = shell.natwork("audit", "verify", str(tmp_path / "altered.log"), "--public-key", key, code=4)
    assert "error" in refused.stderr
    # Another run's key is not this log's.
    shell.natwork("audit", "verify", str(log), "--public-key", str(tmp_path / "b" / "state" / "audit.pub"), code=4)


def test_a_folder_that_holds_a_run_is_not_written_over(shell: Any, tmp_path: Path) -> None:
    (tmp_path / "a" / "state").mkdir(parents=True)
    shell.natwork("demo", "--out", str(tmp_path / "a"), code=2)


def test_recordings_in_ianomalys_format_are_replayed(demo: Any, tmp_path: Path) -> None:
    folder = write_recordings(tmp_path / "recordings")
    run = demo("replayed", "--telemetry", f"replay:{folder}", "--run", "1")
    assert run["backend"] == "replayed"
    assert run["windows"] > 0
    assert run["anomalies"]["injected"] >= 1
    assert run["labels"] is not None
    assert run["audit"]["verified"]


@pytest.mark.data
@pytest.mark.slow
def test_the_public_recordings_are_replayed(demo: Any, data_dir: Path) -> None:
    run = demo("real", "--telemetry", f"replay:{data_dir / 'ianomaly'}")
    assert run["backend"] == "replayed"
    assert run["anomalies"]["injected"] > 0
    assert 0 < run["labels"]["f1"] <= 1
    assert run["quota"]["violations"] == 0


def write_recordings(folder: Path) -> Path:
    """Two services, one run: an hour of normal operation each, and a surge of users at one of them."""
    rng = np.random.default_rng(3)
    (folder / "normal_data").mkdir(parents=True)
    (folder / "anomaly_data").mkdir()
    columns = [spec.name for spec in ianomaly._COLUMNS.values()]
    typical = {
        "rss": 2e8, "vsize": 1e9, "cpu_usage": 0.2, "request_throughput": 2e-8, "errors_per_ns": 0.0,
        "latency_p50": 2e7, "latency_p90": 4e7, "latency_p99": 8e7,
    }  # fmt: skip

    def write(path: Path, rows: int, labels: list[int] | None) -> None:
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow([*columns, *(["Normal/Attack"] if labels else [])])
            for i in range(rows):
                surge = 6.0 if labels and labels[i] else 1.0
                row = [typical.get(c, 1e-4) * surge * rng.lognormal(0.0, 0.05) for c in columns]
                writer.writerow([*(f"{x:.12f}" for x in row), *([labels[i]] if labels else [])])

    for service in ("detector", "recogniser"):
        write(folder / "normal_data" / f"{service}_normal.csv", 420, None)
    write(folder / "anomaly_data" / "detector_usersurge.csv", 120, [int(40 <= i < 70) for i in range(120)])
    return folder
