"""`natwork train forecaster` and `natwork reproduce forecast`, as small as they go."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from natwork_ray.cli import forecasting
from natwork_ray.errors import ExitCode
from natwork_ray.forecasting.card import ForecastSettings
from natwork_ray.forecasting.model_file import digest, loads

TINY = ForecastSettings(window=6, trees=3, leaves=3, band_trees=2, min_rows=10, folds=2)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Boosters that are trained in no time, and three emulated services instead of sixteen."""
    monkeypatch.setattr("natwork_ray.emulation.training_set.SERVICES_PER_RUN", 3)
    monkeypatch.setattr(forecasting, "SHIPPED", TINY)
    monkeypatch.setattr(forecasting, "ForecastSettings", lambda: TINY)


def sockshop_file(folder: Path) -> Path:
    rows = ["time,carts_cpu,carts_mem,case,phase"]
    for repetition in (1, 2, 3):
        rows += [f"{t},{5 + t % 7},{1000 + t % 5},carts-cpu/{repetition},normal" for t in range(150)]
    file = folder / "rcd_sockshop_1s.csv.gz"
    file.write_text("\n".join(rows) + "\n")
    return file


def test_a_forecaster_is_trained_on_the_emulation_and_knows_no_service_by_name(natwork: Any, tiny: None) -> None:
    ended = natwork("train", "forecaster", "--runs", 2, "--hours", 1.5, "--window", 6, "--out", "f.st", "--json")
    assert ended.code == 0, ended.err
    document = json.loads(ended.out)
    data = Path("f.st").read_bytes()
    assert (document["sha256"], document["bytes"]) == (digest(data), len(data))
    trained = loads(data)
    assert trained.card.services == ()
    assert trained.card.trained_on == "emulated"
    again = natwork("train", "forecaster", "--out", "f.st")
    assert again.code == ExitCode.PRECONDITION


def test_recordings_train_as_well(natwork: Any, recorded: Path, tiny: None) -> None:
    ended = natwork(
        "train", "forecaster", "--data", recorded, "--horizons", "1,2", "--window", 6, "--out", "f.st"
    )  # fmt: skip
    assert ended.code == 0, ended.err
    assert "skill against naive" in ended.err
    card = loads(Path("f.st").read_bytes()).card
    assert card.services
    assert card.settings.horizons == (1, 2)


def test_sock_shop_trains_as_well(natwork: Any, tmp_path: Path, tiny: None) -> None:
    file = sockshop_file(tmp_path)
    ended = natwork(
        "train", "forecaster", "--data", file, "--format", "sockshop", "--window", 6, "--out", "f.st"
    )  # fmt: skip
    assert ended.code == 0, ended.err
    assert loads(Path("f.st").read_bytes()).card.services == ("carts",)


def test_odd_horizons_are_a_usage_error(natwork: Any) -> None:
    ended = natwork("train", "forecaster", "--horizons", "soon")
    assert ended.code == ExitCode.USAGE
    assert "1,3,10" in ended.err


def test_section_6_3_is_measured_again(natwork: Any, recorded: Path, tmp_path: Path, tiny: None) -> None:
    sockshop_file(tmp_path)
    ended = natwork("reproduce", "forecast", "--data", tmp_path, "--epochs", 0, "--json")
    assert ended.code == 0, ended.err
    document = json.loads(ended.out)
    assert {row["data"] for row in document["rows"]} == {"Sock Shop"}
    assert {row["model"] for row in document["rows"]} >= {"naive", "seasonal-naive", "lightgbm", "automatic"}
    assert len(document["published"]) == 2
    assert document["summary"][0]["skill_at_10"] is not None
    table = natwork("reproduce", "forecast", "--data", tmp_path, "--epochs", 0)
    assert table.code == 0
    assert "90 % bands hold" in table.err


def test_ianomaly_is_rotated_over_its_runs(natwork: Any, recorded: Path) -> None:
    (data,) = forecasting.data_sets(recorded, seed=7, rotate=False, quick=True)
    assert data.name == "iAnomaly"
    assert data.held_out == tuple(sorted({run.run for run in data.runs}, key=int))
    assert data.settings.trees < ForecastSettings().trees


def test_nothing_to_measure_on(natwork: Any, tmp_path: Path) -> None:
    assert natwork("reproduce", "forecast", "--data", tmp_path).code == ExitCode.PRECONDITION
    assert natwork("reproduce", "forecast").code == ExitCode.PRECONDITION
