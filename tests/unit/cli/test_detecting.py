"""`natwork detect` on recordings: verdicts for every row, figures where there are labels, and no silent normal."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from natwork_ray.cli import detecting
from natwork_ray.domain.anomaly import STAGE_2_CLASSES, AnomalyKind
from natwork_ray.errors import ExitCode
from natwork_ray.profiling.alarming import AlarmRule
from natwork_ray.profiling.profile import Floats, ProfileBook, deviations
from natwork_ray.profiling.verdicts import Scores

FOLDER = "sample_dataset"
THRESHOLD = 3.0


class FarFromUsual:
    """A detector that needs no training: a row is anomalous when a metric is far from its profile."""

    window = 2
    history = 2
    book = ProfileBook()
    card = SimpleNamespace(data_sha256="of nothing", alarm=None)

    def score(self, values: Floats, references: Floats) -> Scores:
        """See `Detector`."""
        newest = deviations(values, references)[:, -1]
        far = np.abs(np.nan_to_num(newest, nan=0.0)).max(axis=1)
        flagged = far > THRESHOLD
        kinds = np.where(flagged, STAGE_2_CLASSES.index(AnomalyKind.STEP_LOAD), 0).astype(np.int8)
        return Scores(
            p_anomalous=(far / 16).astype(np.float32),
            kinds=kinds,
            confidence=np.ones(len(far), dtype=np.float32),
            deviations=newest,
            flagged=flagged,
            scored=np.asarray(~np.isnan(newest).all(axis=1)),
            contributions=np.zeros_like(newest),
        )


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """No model is loaded, so that these tests are about the command."""
    described = {"file": "stand-in", "sha256": "", "detector": "far", "trained_on": "nothing", "services": []}
    monkeypatch.setattr(detecting, "load_detector", lambda model, shipped: (FarFromUsual(), dict(described)))


def _detect(natwork: Any, folder: Path, *options: object) -> dict[str, Any]:
    ended = natwork("detect", "--data", folder, "--json", *options)
    assert ended.code == 0, ended.err
    document: dict[str, Any] = json.loads(ended.out)
    return document


def _file(folder: Path, name: str) -> Path:
    return next(folder.rglob(name))


def _edit(path: Path, row: int, column: str, text: str) -> None:
    lines = path.read_text().splitlines()
    cells = lines[row].split(",")
    cells[lines[0].split(",").index(column)] = text
    lines[row] = ",".join(cells)
    path.write_text("\n".join(lines) + "\n")


def test_every_row_has_a_verdict(natwork: Any, recorded: Path, stand_in: None) -> None:
    document = _detect(natwork, recorded)
    assert set(document) == {"model", "rows", "files", "skipped", "metrics"}
    lines = sum(len(path.read_text().splitlines()) - 1 for path in recorded.rglob("*.csv"))
    assert len(document["rows"]) == lines
    for row in document["rows"]:
        assert set(row) == {
            "file", "row", "score", "anomalous", "alarm", "type", "drivers", "label", "commissioning", "degraded",
        }  # fmt: skip
        assert (row["type"] is not None) == row["anomalous"]
        assert bool(row["drivers"]) == row["anomalous"]
    first = [row for row in document["rows"] if row["commissioning"]]
    assert [row["row"] for row in first] == list(range(1, 361))
    assert {row["file"] for row in first} == {"normal_data/svc_normal1.csv"}
    metrics = document["metrics"]
    assert metrics["rows"] == lines - 360
    assert metrics["f1"] > 0.9
    assert metrics["auc"] > 0.99
    assert metrics["events"]["found"] == metrics["events"]["events"] == 15
    assert [file["profile"] for file in document["files"]] == ["the first normal hour"] * 9
    assert document["model"]["seen_in_training"] is False


def test_tables_for_people(natwork: Any, recorded: Path, stand_in: None) -> None:
    ended = natwork("detect", "--data", recorded)
    assert ended.code == 0
    assert "svc_usersurge2" in ended.out
    assert "15 of 15" in ended.out
    assert "step_load: " in ended.err


def test_the_document_as_a_file(natwork: Any, recorded: Path, stand_in: None) -> None:
    ended = natwork("detect", "--data", recorded, "--out", "verdicts.json", "--json")
    assert json.loads(Path("verdicts.json").read_text()) == json.loads(ended.out)
    assert natwork("detect", "--data", recorded, "--out", "verdicts.json").code == ExitCode.PRECONDITION
    assert natwork("detect", "--data", recorded, "--out", "verdicts.json", "--force").code == 0


def test_files_without_labels_are_judged_and_not_scored(natwork: Any, recorded: Path, stand_in: None) -> None:
    for path in recorded.rglob("anomaly_data/*.csv"):
        lines = [line.rpartition(",")[0] for line in path.read_text().splitlines()]
        path.write_text("\n".join(lines) + "\n")
    for path in recorded.rglob("normal_data/svc_normal[23].csv"):
        path.unlink()
    document = _detect(natwork, recorded)
    assert {row["label"] for row in document["rows"] if "anomaly_data" in row["file"]} == {None}
    assert any(row["anomalous"] for row in document["rows"])
    assert document["metrics"]["unlabelled"] == sum(file["rows"] for file in document["files"]) - 370
    assert "anomaly_data" in natwork("detect", "--data", recorded, "--json").out


def test_no_label_at_all(natwork: Any, recorded: Path, stand_in: None) -> None:
    for path in recorded.rglob("normal_data/*.csv"):
        path.unlink()
    for path in recorded.rglob("anomaly_data/*.csv"):
        lines = [line.rpartition(",")[0] for line in path.read_text().splitlines()]
        path.write_text("\n".join(lines) + "\n")
    document = _detect(natwork, recorded)
    assert document["metrics"] is None
    # Nobody knows what is normal here, and every row says so.
    assert all("no normal hour of svc" in row["degraded"] for row in document["rows"])
    assert "No file says" in natwork("detect", "--data", recorded).err


@pytest.mark.parametrize("text", ["", "nan", "NaN", "null"])
def test_a_cell_that_was_not_measured(natwork: Any, recorded: Path, stand_in: None, text: str) -> None:
    _edit(_file(recorded, "svc_usersurge2.csv"), 5, "cpu_usage", text)
    rows = {(row["file"], row["row"]): row for row in _detect(natwork, recorded)["rows"]}
    assert rows["anomaly_data/svc_usersurge2.csv", 5]["degraded"] == "not measured: cpu_utilization"
    assert rows["anomaly_data/svc_usersurge2.csv", 5]["anomalous"] is False
    assert rows["anomaly_data/svc_usersurge2.csv", 4]["degraded"] == ""


def test_a_row_of_nothing_is_not_judged(natwork: Any, recorded: Path, stand_in: None) -> None:
    path = _file(recorded, "svc_usersurge2.csv")
    lines = path.read_text().splitlines()
    lines[5] = "," * 12 + "0"
    path.write_text("\n".join(lines) + "\n")
    document = _detect(natwork, recorded)
    (row,) = [r for r in document["rows"] if (r["file"], r["row"]) == ("anomaly_data/svc_usersurge2.csv", 5)]
    assert (row["anomalous"], row["score"], row["type"]) == (None, None, None)
    assert "not judged" in row["degraded"]
    assert document["metrics"]["not_judged"] == 1
    assert "1 rows not judged" in natwork("detect", "--data", recorded).err


def test_labelled_files_of_which_nothing_was_measured(natwork: Any, recorded: Path, stand_in: None) -> None:
    for path in recorded.rglob("*.csv"):
        lines = path.read_text().splitlines()
        labelled = path.parent.name == "anomaly_data"
        blank = [("," * 12 + line.rpartition(",")[2]) if labelled else "," * 11 for line in lines[1:]]
        path.write_text("\n".join([lines[0], *blank]) + "\n")
    document = _detect(natwork, recorded)
    assert {row["anomalous"] for row in document["rows"]} == {None}
    metrics = document["metrics"]
    assert metrics["rows"] == 0
    assert [metrics[name] for name in ("accuracy", "precision", "recall", "f1", "auc")] == [None] * 5
    table = natwork("detect", "--data", recorded)
    assert (table.code, "nan" in table.out) == (0, False)
    assert " - " in table.out


def test_metrics_that_were_never_measured(natwork: Any, recorded: Path, stand_in: None) -> None:
    for path in recorded.rglob("*.csv"):
        lines = path.read_text().splitlines()
        names = lines[0].split(",")
        gone = [i for i, name in enumerate(names) if name.startswith("latency") or name == "request_throughput"]
        for row in range(1, len(lines)):
            cells = lines[row].split(",")
            for i in gone:
                cells[i] = ""
            lines[row] = ",".join(cells)
        path.write_text("\n".join(lines) + "\n")
    document = _detect(natwork, recorded)
    assert document["metrics"]["f1"] > 0.9
    for row in document["rows"]:
        assert "the profile does not know latency_p50_s" in row["degraded"]
        assert "request_throughput_per_s" in row["degraded"]


@pytest.mark.parametrize(
    ("column", "text", "said"),
    [
        ("cpu_usage", "half", "row 3, column cpu_usage: 'half' is not a number"),
        ("cpu_usage", "-1", "row 3, column cpu_usage: '-1' is out of range"),
        ("cpu_usage", "inf", "row 3, column cpu_usage: 'inf'"),
        ("rx_bytes_per_ns", "6e6", "row 3, column rx_bytes_per_ns: 6000000.0 cannot be right"),
        ("latency_p50", "0.2", "row 3, column latency_p50: 0.2 cannot be right"),
        ("rss", "4e17", "row 3, column rss"),
        ("Normal/Attack", "yes", "row 3, column Normal/Attack: 'yes'"),
        ("Normal/Attack", "2", "row 3, column Normal/Attack: '2'"),
    ],
)
def test_a_bad_cell_refuses_all_unless_it_may_be_skipped(
    natwork: Any, recorded: Path, stand_in: None, column: str, text: str, said: str
) -> None:
    _edit(_file(recorded, "svc_usersurge2.csv"), 3, column, text)
    ended = natwork("detect", "--data", recorded, "--json")
    assert (ended.code, ended.out) == (ExitCode.FAILED, "")
    told = " ".join(ended.err.split())
    assert said in told
    assert "svc_usersurge2.csv" in told
    assert "--skip-bad" in told
    if column != "cpu_usage":
        return  # what is skipped does not hang on why
    document = _detect(natwork, recorded, "--skip-bad")
    assert [skipped["file"] for skipped in document["skipped"]] == ["anomaly_data/svc_usersurge2.csv"]
    assert said in document["skipped"][0]["reason"]
    assert "anomaly_data/svc_usersurge2.csv" not in {row["file"] for row in document["rows"]}
    assert "skipped: " in natwork("detect", "--data", recorded, "--skip-bad").err


def test_a_whole_column_in_another_unit(natwork: Any, recorded: Path, stand_in: None) -> None:
    path = _file(recorded, "svc_usersurge2.csv")
    for row in range(1, len(path.read_text().splitlines())):
        _edit(path, row, "tx_bytes_per_ns", "2e-14")
    ended = natwork("detect", "--data", recorded)
    assert ended.code == ExitCode.FAILED
    assert "column tx_bytes_per_ns: 2e-14 cannot be right" in " ".join(ended.err.split())


def test_columns_missing_and_empty_files(natwork: Any, recorded: Path, stand_in: None) -> None:
    path = _file(recorded, "svc_usersurge2.csv")
    whole = path.read_text()
    for content, said in (
        ("", "columns missing"),
        (whole.splitlines()[0] + "\n", "no rows"),
        (whole.replace("cpu_usage", "cpu"), "columns missing: cpu_usage"),
    ):
        path.write_text(content)
        ended = natwork("detect", "--data", recorded)
        assert ended.code == ExitCode.FAILED
        assert said in ended.err
    for other in recorded.rglob("*.csv"):
        other.write_text("")
    ended = natwork("detect", "--data", recorded, "--skip-bad")
    assert ended.code == ExitCode.FAILED
    assert "and 8 more files" in " ".join(ended.err.split())


def test_rows_are_bounded(natwork: Any, recorded: Path, stand_in: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detecting, "MAX_ROWS_IN_ALL", 500)
    ended = natwork("detect", "--data", recorded)
    assert ended.code == ExitCode.FAILED
    assert "more than 500 rows" in ended.err


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ((), ExitCode.USAGE, "--data FOLDER or --prometheus URL"),
        (("--data", "x", "--prometheus", "http://x"), ExitCode.USAGE, "one of the two"),
        (("--data", "x", "--model", "m", "--detector", "best"), ExitCode.USAGE, "--model and --detector"),
        (("--data", "x", "--once"), ExitCode.USAGE, "--once without --prometheus"),
        (("--data", "x", "--step", "5s"), ExitCode.USAGE, "--step without --prometheus"),
        (("--prometheus", "http://x", "--skip-bad"), ExitCode.USAGE, "about recordings"),
        (("--data", "absent"), ExitCode.PRECONDITION, "no recordings"),
        (("--data", "x", "--out", "."), ExitCode.USAGE, "is a folder"),
    ],
)
def test_odd_requests(natwork: Any, arguments: tuple[str, ...], code: ExitCode, said: str) -> None:
    ended = natwork("detect", *arguments)
    assert (ended.code, ended.out) == (code, "")
    assert said in " ".join(ended.err.split())


def test_models_that_are_none(natwork: Any, recorded: Path) -> None:
    ended = natwork("detect", "--data", recorded, "--model", "absent")
    assert ended.code == ExitCode.PRECONDITION
    Path("bad").write_bytes(b"not a model at all")
    ended = natwork("detect", "--data", recorded, "--model", "bad")
    assert ended.code == ExitCode.FAILED
    with Path("huge").open("wb") as file:
        file.truncate(2**30)
    ended = natwork("detect", "--data", recorded, "--model", "huge")
    assert (ended.code, "no model of ours" in ended.err) == (ExitCode.FAILED, True)


def test_a_trained_model_on_recordings_it_never_saw(natwork: Any, recorded: Path, tmp_path: Path) -> None:
    """From `train profiler` to `detect`, as an operator does it; then the shipped model on the same folder."""
    other = tmp_path / "other" / FOLDER / "anomaly_data"
    other.mkdir(parents=True)
    _file(recorded, "svc_usersurge3.csv").rename(other / "svc_usersurge3.csv")
    made = natwork("train", "profiler", "--data", recorded, "--detector", "annex-a", "--epochs", "6", "--out", "m")
    assert made.code == 0, made.err
    document = _detect(natwork, other.parents[1], "--model", "m")
    assert [file["profile"] for file in document["files"]] == ["the model"]
    assert document["model"]["services"] == ["svc"]
    assert document["metrics"]["f1"] > 0.5
    assert document["metrics"]["commissioning"] == 0
    assert _detect(natwork, recorded, "--model", "m")["model"]["seen_in_training"] is True
    shipped = _detect(natwork, recorded)
    assert shipped["model"]["file"] == "shipped: profiler"
    assert len(shipped["rows"]) > 1000


def test_a_live_server_is_watched_with_what_was_asked_for(
    natwork: Any, stand_in: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr("natwork_ray.cli.watching.watch", lambda *given, model: asked.append((*given, model)))
    url = "http://127.0.0.1:9090"
    ended = natwork("detect", "--prometheus", url, "--commissioning", "10m", "--step", "15s", "--for", "1h", "--json")
    assert ended.code == 0, ended.err
    config, detector, options, model = asked.pop()
    assert (config.prometheus.url, config.loop.step_s) == (url, 15.0)
    assert isinstance(detector, FarFromUsual)
    assert (options.commissioning_s, options.for_s, options.once, options.as_json) == (600.0, 3600.0, False, True)
    assert model == "stand-in"
    natwork("detect", "--prometheus", url, "--once", "--scrape-interval", "5s")
    config, _, options, _ = asked.pop()
    assert (config.prometheus.scrape_interval_s, options.once, options.for_s) == (5.0, True, None)
    assert options.commissioning_s == config.loop.commissioning_s
    assert natwork("detect", "--prometheus", url, "--step", "soon").code == ExitCode.USAGE


def test_the_alarm_rule_of_a_model_is_obeyed(
    natwork: Any, recorded: Path, stand_in: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_flag_is_not_enough = AlarmRule(high=2.0, needed=2, of=2, hold=1)
    monkeypatch.setattr(FarFromUsual, "card", SimpleNamespace(data_sha256="", alarm=one_flag_is_not_enough))
    rows = _detect(natwork, recorded)["rows"]
    assert any(row["anomalous"] and not row["alarm"] for row in rows)
    assert any(row["alarm"] for row in rows)
