"""The Sock Shop set: units once, segments apart, and nothing odd gets in."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from natwork_ray.adapters import sockshop
from natwork_ray.adapters.sockshop import FILE_NAME, labelled_runs, read_sockshop
from natwork_ray.domain.anomaly import STAGE_2_CLASSES, AnomalyKind
from natwork_ray.domain.telemetry import METRICS, Metric
from natwork_ray.errors import InputError, PreconditionError

HEADER = "time,carts_cpu,user-db_cpu,carts_mem,user-db_mem,carts_lod,carts_lat_50,carts_lat_90,carts_lat_99,case,phase"
CPU, RSS, P50, RX = (METRICS.index(m) for m in (Metric.CPU, Metric.MEMORY_RSS, Metric.LATENCY_P50, Metric.NETWORK_RX))


def line(second: int, case: str = "carts-cpu/1", phase: str = "normal", cpu: str = "50.0", lat: str = "0.5") -> str:
    return f"{second},{cpu},1.5,1000000,2000000,4.5,{lat},0.7,0.9,{case},{phase}"


LINES = [
    *(line(100 + t) for t in range(3)),
    *(line(200 + t, phase="anomalous", cpu="99.0") for t in range(4)),
    *(line(300 + t, case="user-db-mem/2") for t in range(2)),
]


def written(folder: Path, lines: list[str], *, header: str = HEADER, packed: bool = True) -> Path:
    text = ("\n".join([header, *lines]) + "\n").encode()
    file = folder / FILE_NAME
    file.write_bytes(gzip.compress(text) if packed else text)
    return file


@pytest.mark.parametrize("packed", [True, False])
def test_segments_are_kept_apart_and_units_are_si(tmp_path: Path, packed: bool) -> None:
    written(tmp_path, LINES, packed=packed)
    first, second, third = read_sockshop(tmp_path)
    assert (first.case, first.cause, first.fault, first.repetition, first.phase) == (
        "carts-cpu/1", "carts", "cpu", 1, "normal",
    )  # fmt: skip
    assert (third.cause, third.fault, third.repetition) == ("user-db", "mem", 2)
    assert [s.telemetry.length for s in (first, second, third)] == [3, 4, 2]
    telemetry = second.telemetry
    assert telemetry.containers == telemetry.services == ("carts", "user-db")
    assert (telemetry.end_s, telemetry.step_s) == (203.0, 1.0)
    assert telemetry.values[0, 0, CPU] == pytest.approx(0.99)
    assert telemetry.values[1, 0, CPU] == pytest.approx(0.015)
    assert telemetry.values[0, 0, RSS] == 1e6
    assert telemetry.values[0, 0, P50] == 0.5
    assert np.isnan(telemetry.values[:, :, RX]).all()
    assert np.isnan(telemetry.values[1, :, P50]).all()


def test_what_was_not_measured_is_missing(tmp_path: Path) -> None:
    written(tmp_path, [line(1, lat="0.0"), line(2, lat=""), line(3, cpu="")])
    (segment,) = read_sockshop(tmp_path)
    assert np.isnan(segment.telemetry.values[0, :2, P50]).all()
    assert np.isnan(segment.telemetry.values[0, 2, CPU])


def test_only_the_injected_container_is_labelled_with_the_fault(tmp_path: Path) -> None:
    runs = labelled_runs(read_sockshop(written(tmp_path, LINES)))
    assert [(r.service, r.run, len(r.kinds)) for r in runs] == [
        ("carts", "1", 3), ("user-db", "1", 3), ("carts", "1", 4), ("user-db", "1", 4), ("carts", "2", 2),
        ("user-db", "2", 2),
    ]  # fmt: skip
    assert not runs[0].kinds.any()
    assert (runs[2].kinds == STAGE_2_CLASSES.index(AnomalyKind.HIGH_CPU)).all()
    assert (runs[3].kinds == -1).all()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda lines: [], "no rows"),
        (lambda lines: [*lines, "1,2"], "row 10: 2 cells"),
        (lambda lines: [line(1, cpu="fast")], "row 1, column carts_cpu: 'fast'"),
        (lambda lines: [line(1, cpu="nan")], "column carts_cpu"),
        (lambda lines: [line(1, cpu="-1")], "column carts_cpu"),
        (lambda lines: [line(1, cpu="1e999")], "column carts_cpu"),
        (lambda lines: [line(1), line(2, cpu="5e10")], "row 2, column carts_cpu.*cannot be right"),
        (lambda lines: [line(1), line(3)], "row 2: not one second"),
        (lambda lines: [line(1, phase="maybe")], "phase 'maybe'"),
        (lambda lines: [line(1, case="carts")], "case 'carts'"),
        (lambda lines: [line(1, case="ghost-cpu/1")], "container without columns"),
        (lambda lines: [line(1), line(2, phase="anomalous"), line(3)], "there twice"),
        (lambda lines: [line(1).replace("1,", ",", 1)], "column time"),
        (lambda lines: ['1,"open'], "CSV|cells"),
    ],
)
def test_odd_rows_are_refused_with_their_place(
    tmp_path: Path, change: Callable[[list[str]], list[str]], why: str
) -> None:
    with pytest.raises(InputError, match=why):
        read_sockshop(written(tmp_path, change(LINES)))


@pytest.mark.parametrize(
    ("header", "why"),
    [
        (HEADER.replace("carts_lod", "carts_joy"), "unknown column 'carts_joy'"),
        (HEADER.replace("carts_mem", "carts_lat_50"), "a name twice"),
        (HEADER.replace(",phase", ""), "missing: phase"),
        (HEADER.replace("user-db_mem", "user_mem"), "missing: user-db_mem|missing: user_cpu"),
        ("time,case,phase", "columns missing"),
        ("", "columns missing"),
    ],
)
def test_odd_headers_are_refused(tmp_path: Path, header: str, why: str) -> None:
    with pytest.raises(InputError, match=why):
        read_sockshop(written(tmp_path, LINES, header=header))


def test_a_small_file_may_not_unpack_into_a_large_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockshop, "MAX_TEXT_BYTES", 1000)
    file = written(tmp_path, LINES * 20)
    with pytest.raises(InputError, match="unpacks to more"):
        read_sockshop(file)
    monkeypatch.setattr(sockshop, "MAX_FILE_BYTES", 10)
    with pytest.raises(InputError, match="more than 10 bytes"):
        read_sockshop(file)


def test_too_many_rows_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockshop, "MAX_ROWS", 5)
    with pytest.raises(InputError, match="more than 5 rows"):
        read_sockshop(written(tmp_path, LINES))


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    file = written(tmp_path, LINES)
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(InputError):
        read_sockshop(file)
    file.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(InputError, match="CSV"):
        read_sockshop(file)
    with pytest.raises(PreconditionError, match="no file"):
        read_sockshop(tmp_path / "none.csv")
    (tmp_path / "folder.csv" / FILE_NAME).mkdir(parents=True)
    with pytest.raises(PreconditionError, match="cannot read"):
        read_sockshop(tmp_path / "folder.csv")
