"""Recorded incidents as cases: what is the normal part, what the incident, and what is tuned on."""

from __future__ import annotations

import gzip
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from natwork_ray.adapters.sockshop import FILE_NAME
from natwork_ray.cli.causes_cases import NEZHA_INCIDENT, recorded_cases
from natwork_ray.errors import PreconditionError

HEADER = (
    "Time,PodName,CpuUsageRate(%),MemoryUsage(Mi),NetworkReceiveBytes,NetworkTransmitBytes,"
    "PodServerLatencyP90(s),PodServerLatencyP99(s),PodWorkload(Ops)"
)
MINUTES = 90


def _nezha(folder: Path) -> None:
    """Two days of three services; a fault at minute 30 of each, and one at the very end that left no sample."""
    lists = folder / "nezha_faults"
    lists.mkdir(parents=True)
    rows = []
    for day in (22, 23):
        start = datetime(2022, 8, day, 3, 0, 10, tzinfo=UTC)
        for service in ("frontend", "cartservice", "adservice"):
            for minute in range(MINUTES):
                cpu = 90 if service == "cartservice" and 31 <= minute < 38 else 10 + minute % 3
                at = (start + timedelta(minutes=minute)).strftime("%Y-%m-%d %H:%M:%S.5 +0000 UTC")
                rows.append(f"{at},{service}-579f59597d-wc2lz,{cpu},{100 + minute % 5},9,9,0.1,0.2,{5 + minute % 2}")
        faults = [
            {
                "inject_time": (start + timedelta(minutes=minute, seconds=30)).strftime("%Y-%m-%d %H:%M:%S"),
                "inject_pod": "cartservice-579f59597d-wc2lz",
                "inject_type": "cpu",
            }
            for minute in (30, MINUTES)
        ]
        (lists / f"2022-08-{day}-fault_list.json").write_text(json.dumps({"03": faults}), encoding="utf-8")
    with gzip.open(folder / "nezha_metrics_60s.csv.gz", "wt", encoding="utf-8") as file:
        file.write("\n".join([HEADER, *rows]) + "\n")


def _sock_shop(file: Path) -> None:
    rows = ["time,carts_cpu,user_cpu,carts_mem,user_mem,case,phase"]
    at_s = 0
    for repetition in (1, 3):
        for phase in ("normal", "anomalous"):
            at_s += 1000
            cpu = 99 if phase == "anomalous" else 1
            rows += [
                f"{at_s + i},{cpu + i % 2},{2 + i % 2},1000000,2000000,carts-cpu/{repetition},{phase}"
                for i in range(20)
            ]
    with gzip.open(file, "wt", encoding="utf-8") as stream:
        stream.write("\n".join(rows) + "\n")


def test_recordings_become_cases(tmp_path: Path) -> None:
    _nezha(tmp_path / "nezha")
    _sock_shop(tmp_path / FILE_NAME)
    cases = recorded_cases(tmp_path)
    assert [(c.data, c.part, c.cause, c.kind) for c in cases] == [
        ("nezha online-boutique", "tune", "cartservice", "cpu"),
        ("nezha online-boutique", "test", "cartservice", "cpu"),
        ("sock shop", "tune", "carts", "cpu"),
        ("sock shop", "test", "carts", "cpu"),
    ]
    day = cases[0]
    cart = day.incident.containers.index("cartservice")
    cpu = day.incident.values[cart, :, 4]
    assert cpu.tolist() == pytest.approx([0.9] * NEZHA_INCIDENT)  # from the first whole minute after the injection
    assert day.normal.values[cart, :, 4].max() < 0.2  # no minute that a fault troubles
    assert day.graph.callees("frontend").keys() == {"cartservice", "adservice"}


def test_a_folder_without_incidents_says_so(tmp_path: Path) -> None:
    with pytest.raises(PreconditionError, match="no recorded incidents"):
        recorded_cases(tmp_path)
