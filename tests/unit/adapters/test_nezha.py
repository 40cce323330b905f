"""Recordings in Nezha's format: units, clocks that lie, hostile files."""

from __future__ import annotations

import contextlib
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from natwork_ray.adapters import nezha
from natwork_ray.adapters.nezha import read_nezha
from natwork_ray.domain.telemetry import METRICS, Metric
from natwork_ray.errors import InputError, PreconditionError

HEADER = (
    "Time,TimeStamp,PodName,CpuUsageRate(%),MemoryUsage(Mi),NetworkReceiveBytes,NetworkTransmitBytes,"
    "PodServerLatencyP90(s),PodServerLatencyP99(s),PodWorkload(Ops)"
)
POD, OTHER = "cartservice-579f59597d-wc2lz", "ts-food-service-f5756978c-k8vqf"
FAULT = {"inject_time": "2022-08-22 03:53:54", "inject_timestamp": "1", "inject_pod": POD, "inject_type": "cpu"}

Write = Callable[..., Path]


def row(minute: int, *, pod: str = POD, cells: str = "50,100,1000,2000,0.02,0.05,5", stamp: int = 7) -> str:
    return f"2022-08-22 03:{minute:02d}:19.123456789 +0000 UTC m=+0.1,{stamp},{pod},{cells}"


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """(rows, faults, header, text) -> a folder in the data set's layout."""

    def written(rows: Any = None, faults: Any = None, *, header: str = HEADER, lists: str | None = None) -> Path:
        rows = [row(50), row(51), row(53)] if rows is None else rows
        with gzip.open(tmp_path / "nezha_metrics_60s.csv.gz", "wt", encoding="utf-8") as file:
            file.write("\n".join([header, *rows]) + "\n")
        document = json.dumps({"03": [FAULT] if faults is None else faults}) if lists is None else lists
        (tmp_path / "nezha_faults").mkdir(exist_ok=True)
        (tmp_path / "nezha_faults" / "2022-08-22-fault_list.json").write_text(document, encoding="utf-8")
        return tmp_path

    return written


def metric(day: Any, which: Metric) -> Any:
    return day.telemetry.values[0, :, METRICS.index(which)]


def test_units_become_si_and_gaps_stay_gaps(write: Write) -> None:
    (day,) = read_nezha(write())
    assert (day.date, day.application, day.telemetry.containers) == ("2022-08-22", "online-boutique", ("cartservice",))
    assert (day.telemetry.length, day.telemetry.step_s) == (4, 60.0)
    assert metric(day, Metric.CPU).tolist()[0] == 0.5
    assert metric(day, Metric.MEMORY_RSS)[0] == 100 * 2**20
    assert np.isnan(day.telemetry.values[0, 2]).all()
    assert np.isnan(metric(day, Metric.LATENCY_P50)).all()


def test_written_times_are_believed_and_stamps_are_not(write: Write) -> None:
    (day,) = read_nezha(write([row(50, stamp=1861140279), row(53, stamp=0)]))
    (fault,) = day.faults
    assert (fault.service, fault.kind) == ("cartservice", "cpu")
    assert (fault.at_s - day.starts_s) == 215.0  # 03:53:54 after 03:50:19
    assert day.starts_s == 1661140219.0


def test_what_was_not_measured_is_not_zero(write: Write) -> None:
    (day,) = read_nezha(write([row(50, cells="50,100,1000,2000,0,,5"), row(51, cells="0,0,0,0,0,0,0")]))
    assert np.isnan(metric(day, Metric.LATENCY_P90)[0])
    assert np.isnan(metric(day, Metric.LATENCY_P99)[0])
    assert np.isnan(day.telemetry.values[0, 1]).all()


def test_the_published_layout_is_read_as_well(tmp_path: Path) -> None:
    folder = tmp_path / "2022-08-22" / "metric"
    folder.mkdir(parents=True)
    for pod in (POD, OTHER):
        (folder / f"{pod}_metric.csv").write_text("\n".join([HEADER, row(50, pod=pod)]) + "\n", encoding="utf-8")
    (tmp_path / "2022-08-22" / "2022-08-22-fault_list.json").write_text(json.dumps({"03": [FAULT]}), encoding="utf-8")
    (day,) = read_nezha(tmp_path)
    assert day.telemetry.services == ("cartservice", "ts-food-service")
    assert day.application == "train-ticket"


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"header": HEADER.replace("Time,", "When,", 1)}, "column 'Time' is missing"),
        ({"header": HEADER.replace("MemoryUsage(Mi)", "PodName")}, "'PodName' is there twice"),
        ({"rows": [row(50, cells="x,100,1,1,1,1,1")]}, r"row 1, CpuUsageRate\(%\): 'x'"),
        ({"rows": [row(50, cells="nan,100,1,1,1,1,1")]}, "'nan'"),
        ({"rows": [row(50, cells="1_0,100,1,1,1,1,1")]}, "'1_0'"),
        ({"rows": [row(50, cells="-1,100,1,1,1,1,1")]}, "not negative"),
        ({"rows": [row(50, cells="50,100,1,1,1e9,1,1")]}, "published unit"),
        ({"rows": [row(50), "too,few"]}, "row 2: 2 cells"),
        ({"rows": [row(50).replace("+0000 UTC", "+0800 CST")]}, "Time"),
        ({"rows": [row(50).replace("2022-08-22", "2022-08-32")]}, "Time"),
        ({"rows": [row(50, pod="nobody")]}, "pod 'nobody'"),
        ({"rows": [row(50), row(50, pod="cartservice-579f59597d-aaaaa")]}, "two pods of one service"),
        ({"faults": []}, "no injections"),
        ({"lists": "[1]"}, "no injections"),
        ({"lists": "{"}, "no JSON"),
        ({"faults": [{**FAULT, "inject_time": "yesterday"}]}, "injection 1"),
        ({"faults": [{k: v for k, v in FAULT.items() if k != "inject_pod"}]}, "inject_pod"),
        ({"faults": [{**FAULT, "inject_pod": OTHER}]}, "which has no metrics"),
        ({"faults": [7]}, "injection 1"),
    ],
)
def test_files_that_break_the_format(write: Write, fields: dict[str, Any], match: str) -> None:
    with pytest.raises(InputError, match=match):
        read_nezha(write(**fields))


def test_what_is_not_there(write: Write, tmp_path: Path) -> None:
    with pytest.raises(PreconditionError, match="no metrics"):
        read_nezha(tmp_path)
    folder = write()
    lists = folder / "nezha_faults"
    (lists / "2022-08-22-fault_list.json").rename(lists / "1999-01-01-fault_list.json")
    with pytest.raises(InputError, match="no day has both"):
        read_nezha(folder)
    next(folder.glob("*/*.json")).unlink()
    with pytest.raises(PreconditionError, match="no fault lists"):
        read_nezha(folder)


def test_bounds_hold(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, most, match in (
        ("MAX_BYTES", 100, "more than 100 bytes"), ("MAX_FAULT_BYTES", 10, "at most 10"), ("MAX_FILES", 1, "at most 1"),
        ("MAX_DAY_SAMPLES", 2, "spans 4 minutes"),
    ):  # fmt: skip
        with monkeypatch.context() as patch:
            patch.setattr(nezha, name, most)
            folder = write()
            with pytest.raises(InputError, match=match):
                read_nezha(folder)


def test_a_torn_archive_is_an_error(write: Write) -> None:
    path = write() / "nezha_metrics_60s.csv.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match="as published"):
        read_nezha(path.parent)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=60))
def test_no_text_crashes_the_reader(write: Write, text: str) -> None:
    folder = write([row(50), text.replace("\r", " ").replace("\n", " ")])
    with contextlib.suppress(InputError):
        read_nezha(folder)
