"""Recordings in iAnomaly's format: units, labels, hostile files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from natwork_ray.adapters import ianomaly
from natwork_ray.adapters.ianomaly import (
    RecordedFile,
    RecordingKind,
    UnreadableFile,
    blocks,
    labelled_runs,
    read_recording,
    read_recordings,
    recorded_files,
)
from natwork_ray.domain.anomaly import STAGE_2_CLASSES, AnomalyKind
from natwork_ray.domain.labelled import LabelledRun
from natwork_ray.domain.telemetry import METRICS, Metric
from natwork_ray.domain.values import Backend
from natwork_ray.errors import InputError, PreconditionError

HEADER = (
    "total_disk_read_throughput,total_disk_write_throughput,rss,vsize,cpu_usage,rx_bytes_per_ns,tx_bytes_per_ns,"
    "latency_p50,latency_p90,latency_p99,request_throughput,errors_per_ns"
)
ROW = "0.004,0.002,4e8,3.0e9,0.5,0.006,0.00002,495457909.0,615332928.0,892965195.0,2.6e-09,0.0"
LABELLED = HEADER + ",Normal/Attack"

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """(name, rows, header) -> a file in the folder layout of the data set."""

    def written(name: str, rows: list[str], header: str = HEADER) -> Path:
        part = "normal_data" if "_normal" in name else "anomaly_data"
        path = tmp_path / "sample_dataset" / part / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
        return path

    return written


def _read(path: Path, kind: RecordingKind = RecordingKind.NORMAL) -> LabelledRun:
    return read_recording(path, service="s", run="1", kind=kind)


def _with_labels(labels: str) -> list[str]:
    return [f"{ROW},{label}" for label in labels]


def _kinds(write: Write, name: str, labels: str) -> list[AnomalyKind | int]:
    kind = RecordingKind.USER_SURGE if "usersurge" in name else RecordingKind.OTHER_ANOMALIES
    run = _read(write(name, _with_labels(labels), LABELLED), kind)
    return [STAGE_2_CLASSES[k] if k > 0 else int(k) for k in run.kinds]


def test_units_become_si(write: Write) -> None:
    run = _read(write("s_normal.csv", [ROW] * 3))
    expected = [4e6, 2e6, 4e8, 3e9, 0.5, 6e6, 2e4, 0.495457909, 0.615332928, 0.892965195, 2.6, 0.0]
    assert run.values[0].tolist() == pytest.approx(expected, rel=1e-6)
    assert (run.commissioning, run.step_s, run.backend) == (3, 10.0, Backend.REPLAYED)
    assert run.kinds.tolist() == [0, 0, 0]


def test_latency_without_requests_was_not_measured(write: Write) -> None:
    idle = "0,0,4e8,3e9,0.1,0,0,0.0,0,0,0.0,0"
    run = _read(write("s_normal.csv", [ROW, idle]))
    missing = np.isnan(run.values)
    assert not missing[0].any()
    assert [m for m, gone in zip(METRICS, missing[1], strict=True) if gone] == [
        Metric.LATENCY_P50,
        Metric.LATENCY_P90,
        Metric.LATENCY_P99,
    ]


def test_commissioning_is_the_first_hour(write: Write) -> None:
    assert _read(write("s_normal.csv", [ROW] * 400)).commissioning == 360


def test_other_anomalies_come_in_a_known_order(write: Write) -> None:
    cpu, memory, network = AnomalyKind.HIGH_CPU, AnomalyKind.HIGH_MEMORY, AnomalyKind.NETWORK_LATENCY
    assert _kinds(write, "s_other_anoms.csv", "011001001") == [0, cpu, cpu, 0, 0, memory, 0, 0, network]


@pytest.mark.parametrize("labels", ["0110010", "01010101", "1"])
def test_an_unexpected_number_of_blocks_is_unlabelled(write: Write, labels: str) -> None:
    assert _kinds(write, "s_other_anoms.csv", labels) == [-int(x) for x in labels]


def test_surges_by_length(write: Write) -> None:
    kinds = _kinds(write, "s_usersurge.csv", "1" * 8 + "0" + "1" * 9)
    assert kinds == [AnomalyKind.TRAFFIC_SPIKE] * 8 + [0] + [AnomalyKind.STEP_LOAD] * 9


def test_blocks() -> None:
    assert blocks(np.array([1, 1, 0, 1], dtype=bool)) == [(0, 2), (3, 4)]
    assert blocks(np.zeros(0, dtype=bool)) == []


def test_a_folder_with_gaps_and_other_services(write: Write, tmp_path: Path) -> None:
    write("fd_normal.csv", [ROW])
    write("fd_usersurge.csv", _with_labels("01"), LABELLED)
    write("ad_srv-2_normal7.csv", [ROW])
    for folder in (tmp_path, tmp_path / "sample_dataset"):
        recordings = read_recordings(folder)
        assert [(r.labelled.service, r.labelled.run, r.kind) for r in recordings] == [
            ("fd", "1", RecordingKind.NORMAL),
            ("fd", "1", RecordingKind.USER_SURGE),
            ("ad_srv-2", "7", RecordingKind.NORMAL),
        ]
    assert [r.run for r in labelled_runs(recordings)] == ["1", "1", "7"]


def test_the_supplements_time_column_is_ignored(write: Write) -> None:
    assert len(_read(write("s_normal.csv", [f"2024-01-01,{ROW}"], "time_," + HEADER)).kinds) == 1


def test_folders_that_hold_nothing(tmp_path: Path) -> None:
    with pytest.raises(PreconditionError, match="no recordings"):
        read_recordings(tmp_path)
    with pytest.raises(PreconditionError, match="no recordings"):
        read_recordings(tmp_path / "not there")


def test_names_that_do_not_fit(write: Write, tmp_path: Path) -> None:
    write("fd_strange.csv", [ROW])
    with pytest.raises(InputError, match=r"fd_strange\.csv: not a name"):
        read_recordings(tmp_path)


def test_the_same_run_twice(write: Write, tmp_path: Path) -> None:
    write("fd_normal.csv", [ROW])
    write("fd_normal1.csv", [ROW])
    with pytest.raises(InputError, match="twice"):
        read_recordings(tmp_path)


def test_too_many_files(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ianomaly, "MAX_FILES", 1)
    write("a_normal.csv", [ROW])
    write("b_normal.csv", [ROW])
    with pytest.raises(InputError, match="holds 2 files"):
        read_recordings(tmp_path)


@pytest.mark.parametrize(
    ("rows", "header", "said"),
    [
        ([], HEADER, "no rows"),
        ([ROW], HEADER.replace(",rss", ""), "columns missing: rss"),
        ([ROW], HEADER + ",extra", "unknown or repeated columns: extra"),
        ([ROW], HEADER + ",rss", "repeated"),
        ([ROW, ROW + ",1"], HEADER, "row 2: 13 cells"),
        ([ROW, "1,2"], HEADER, "row 2: 2 cells"),
        ([ROW.replace("0.5", "half")], HEADER, "row 1, column cpu_usage: 'half' is not a number"),
        ([ROW.replace("0.5", "nan")], HEADER, "column cpu_usage: 'nan' is not a number"),
        ([ROW.replace("0.5", "inf")], HEADER, "column cpu_usage: 'inf' is not a number"),
        ([ROW.replace("0.5", "")], HEADER, "column cpu_usage: '' is not a number"),
        ([ROW.replace("0.5", "1_0")], HEADER, "'1_0' is not a number"),
        ([ROW.replace("0.5", "\u0661")], HEADER, "is not a number"),
        ([ROW.replace("0.5", "9" * 70)], HEADER, "is not a number"),
        ([ROW.replace("0.5", "1e999")], HEADER, "out of range"),
        ([ROW.replace("0.5", "-0.5")], HEADER, "column cpu_usage: '-0.5' is out of range"),
        ([ROW.replace("0.5", "50000")], HEADER, "column cpu_usage: 50000.0 cannot be right"),
        ([ROW.replace("0.006", "6e6")], HEADER, "column rx_bytes_per_ns: 6000000.0 cannot be right"),
        ([ROW.replace("495457909.0", "0.4954")], HEADER, "column latency_p50: 0.4954 cannot be right"),
        ([ROW.replace("2.6e-09", "2.6")], HEADER, "column request_throughput: 2.6 cannot be right"),
        ([ROW.replace("0.006", "6e-12")], HEADER, "column rx_bytes_per_ns: 6e-12 cannot be right"),
        ([ROW.replace("4e8", "0.4")], HEADER, "column rss: 0.4 cannot be right"),
        ([ROW.replace("2.6e-09", "2.6e-18")], HEADER, "column request_throughput: 2.6e-18 cannot be right"),
        ([ROW.replace("0.5", "5e-10")], HEADER, "column cpu_usage: 5e-10 cannot be right"),
        ([f"{ROW},2"], LABELLED, "column Normal/Attack: '2'"),
        ([ROW.replace("0.5", '"0.5')], HEADER, "unexpected end of data"),
        ([ROW.replace("0.5", "x" * 200_000)], HEADER, "field larger than field limit"),
    ],
)
def test_hostile_files(write: Write, rows: list[str], header: str, said: str) -> None:
    kind = RecordingKind.USER_SURGE if header == LABELLED else RecordingKind.NORMAL
    name = "s_usersurge.csv" if header == LABELLED else "s_normal.csv"
    with pytest.raises(InputError) as caught:
        _read(write(name, rows, header), kind)
    assert said in str(caught.value)
    assert name in str(caught.value)


def test_labels_are_needed_in_anomaly_files(write: Write) -> None:
    with pytest.raises(InputError, match="columns missing: Normal/Attack"):
        _read(write("s_usersurge.csv", [ROW]), RecordingKind.USER_SURGE)


def test_size_is_bounded(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ianomaly, "MAX_ROWS", 5)
    path = write("s_normal.csv", [ROW] * 6)
    with pytest.raises(InputError, match="more than 5 rows"):
        _read(path)
    monkeypatch.setattr(ianomaly, "MAX_FILE_BYTES", 100)
    with pytest.raises(InputError, match="bytes"):
        _read(path)


def test_unreadable(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        _read(tmp_path / "absent.csv")
    binary = tmp_path / "binary.csv"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="UTF-8"):
        _read(binary)


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300), st.booleans(), st.integers(0, 400))
def test_fuzzed_files_are_input_errors_or_sound(tmp_path: Path, noise: bytes, header: bool, place: int) -> None:
    path = tmp_path / "fuzz.csv"
    sound = f"{HEADER}\n{ROW}\n{ROW}\n".encode()
    path.write_bytes(sound[:place] + noise + sound[place:] if header else noise)
    try:
        run = _read(path)
    except InputError:
        return
    assert np.isfinite(run.values[:, :7]).all()
    assert (np.nan_to_num(run.values) >= 0).all()


def _lenient(folder: Path) -> list[RecordedFile | UnreadableFile]:
    return list(recorded_files(folder))


def test_for_judging_cells_may_be_missing_and_labels_absent(write: Write, tmp_path: Path) -> None:
    write("s_normal.csv", [ROW, ROW.replace("0.5", "").replace("2.6e-09", "NaN")])
    write("s_usersurge.csv", [ROW] * 2)
    write("s_other_anoms.csv", _with_labels("010"), LABELLED)
    normal, others, surge = _lenient(tmp_path)
    assert isinstance(normal, RecordedFile)
    missing = np.isnan(normal.labelled.values)
    assert [str(METRICS[k]) for k in np.flatnonzero(missing[1])] == ["cpu_utilization", "request_throughput_per_s"]
    assert not missing[0].any()
    assert isinstance(others, RecordedFile)
    assert isinstance(surge, RecordedFile)
    assert [f.name for f in (normal, others, surge)] == [
        "normal_data/s_normal.csv",
        "anomaly_data/s_other_anoms.csv",
        "anomaly_data/s_usersurge.csv",
    ]
    assert [f.has_labels for f in (normal, others, surge)] == [True, True, False]
    assert (normal.labelled.commissioning, others.labelled.kinds.tolist()) == (2, [0, -1, 0])


def test_a_metric_that_was_never_measured(write: Write, tmp_path: Path) -> None:
    write("s_normal.csv", ["0,0,4e8,3e9,0.5,1e-3,1e-3,,,,,"] * 3)
    (file,) = _lenient(tmp_path)
    assert isinstance(file, RecordedFile)
    assert np.isnan(file.labelled.values[:, METRICS.index(Metric.LATENCY_P50) :]).all()


def test_a_normal_hour_that_is_labelled_otherwise_ends_there(write: Write, tmp_path: Path) -> None:
    write("s_normal.csv", _with_labels("00010"), LABELLED)
    (file,) = _lenient(tmp_path)
    assert isinstance(file, RecordedFile)
    assert file.labelled.commissioning == 3
    assert file.labelled.anomalous.tolist() == [False, False, False, True, False]


def test_bad_files_among_good_ones_are_told_apart(write: Write, tmp_path: Path) -> None:
    write("a_normal.csv", [ROW])
    write("b_normal.csv", [ROW.replace("0.5", "half")])
    write("c_normal.csv", [ROW], HEADER.replace(",rss", ""))
    write("d_usersurge.csv", [f"{ROW},"], LABELLED)
    good, text, column, label = _lenient(tmp_path)
    assert isinstance(good, RecordedFile)
    for bad, said in ((text, "row 1, column cpu_usage: 'half'"), (column, "columns missing: rss"), (label, "'nan'")):
        assert isinstance(bad, UnreadableFile)
        assert said in bad.error.what
        assert bad.name.rpartition("/")[2] in bad.error.what


def test_more_may_be_judged_than_trained_on(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ianomaly, "MAX_ROWS", 5)
    monkeypatch.setattr(ianomaly, "MAX_JUDGED_ROWS", 8)
    write("s_normal.csv", [ROW] * 8)
    with pytest.raises(InputError, match="more than 5 rows"):
        read_recordings(tmp_path)
    (file,) = _lenient(tmp_path)
    assert isinstance(file, RecordedFile)
    write("s_normal.csv", [ROW] * 9)
    (file,) = _lenient(tmp_path)
    assert isinstance(file, UnreadableFile)
    assert "more than 8 rows" in file.error.what


@pytest.mark.data
def test_the_published_recordings(data_dir: Path) -> None:
    recordings = read_recordings(data_dir / "ianomaly")
    runs = labelled_runs(recordings)
    assert {r.service for r in runs} >= {"fd", "fr", "preprocess"}
    for recording in recordings:
        found = {STAGE_2_CLASSES[k] for k in recording.labelled.kinds}
        if recording.kind is RecordingKind.OTHER_ANOMALIES:
            assert found == {
                AnomalyKind.FALSE_POSITIVE,
                AnomalyKind.HIGH_CPU,
                AnomalyKind.HIGH_MEMORY,
                AnomalyKind.NETWORK_LATENCY,
            }
        elif recording.kind is RecordingKind.USER_SURGE:
            assert found == {AnomalyKind.FALSE_POSITIVE, AnomalyKind.TRAFFIC_SPIKE, AnomalyKind.STEP_LOAD}
        else:
            assert recording.labelled.commissioning == 360
    values = np.concatenate([r.values for r in runs])
    throughput = values[:, METRICS.index(Metric.THROUGHPUT)]
    latency = values[:, METRICS.index(Metric.LATENCY_P50)]
    assert np.nanmin(latency) > 0
    # Latency and throughput are scraped a moment apart, so a handful of rows disagree.
    assert (np.isnan(latency) != (throughput == 0)).mean() < 0.01


@pytest.mark.parametrize(
    ("column", "right", "wrong"),
    [
        ("total_disk_read_throughput", "0.004", "4e-12"),
        ("total_disk_write_throughput", "0.002", "2e-12"),
        ("rss", "4e8", "0.4"),
        ("vsize", "3.0e9", "3.0"),
        ("cpu_usage", "0.5", "5e-10"),
        ("rx_bytes_per_ns", "0.006", "6e-12"),
        ("tx_bytes_per_ns", "0.00002", "2e-14"),
        ("request_throughput", "2.6e-09", "2.6e-18"),
    ],
)
def test_a_part_of_a_file_in_another_unit(write: Write, tmp_path: Path, column: str, right: str, wrong: str) -> None:
    write("s_normal.csv", [ROW] * 94 + [ROW.replace(right, wrong, 1)] * 6)
    (file,) = _lenient(tmp_path)
    assert isinstance(file, UnreadableFile)
    assert f"s_normal.csv, row 95, column {column}: {float(wrong)!r} cannot be right" in file.error.what
    write("s_normal.csv", [ROW] * 94 + [ROW.replace(right, "0", 1)] * 6)
    (file,) = _lenient(tmp_path)
    assert isinstance(file, RecordedFile)
