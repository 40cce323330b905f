"""`natwork migrations collect`, `natwork train selector`, `natwork reproduce migration-models`, as small as they go."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from natwork_ray.adapters.migration_data import part_of, read_dataset, write_dataset
from natwork_ray.cli import migrations
from natwork_ray.domain.values import Backend
from natwork_ray.emulation.collecting import collect_emulated
from natwork_ray.errors import ExitCode
from natwork_ray.limi.collection import class_names
from natwork_ray.limi.selector_card import SelectorSettings
from natwork_ray.limi.selector_file import digest, loads

FEW = ("--runs", "2", "--classes", "cpu-low_*", "--workers", "0")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Classes of every level of memory, four times."""
    # Eleven: refitting takes more than twenty runs, and half of these are what stands in for real ones.
    patterns = ["cpu-medium_*_network-zero", "cpu-high_*storage-low*low", "cpu-low_memory-low_*"]
    plan, _ = migrations.plan_of(Backend.EMULATED, seed=2, runs=4, patterns=patterns)
    path = tmp_path_factory.mktemp("data") / "d.csv.gz"
    with path.open("wb") as stream:
        write_dataset(stream, migrations.collected(plan, lambda _done, _all, _what: None), compressed=True)
    return path


@pytest.fixture(autouse=True)
def _small_models(monkeypatch: pytest.MonkeyPatch) -> None:
    quick = SelectorSettings(trees=4, margin_trees=2, folds=2, leaf_rows=10, learning_rate=0.6)
    monkeypatch.setattr("natwork_ray.cli.selector.SelectorSettings", lambda: quick)


def test_a_collection_is_written_and_read_back(natwork: Any) -> None:
    ended = natwork("migrations", "collect", "--out", "d.csv", *FEW, "--json")
    assert ended.code == 0
    document = json.loads(ended.out)
    assert (document["migrations"], document["resumed_from"], document["left_out"]) == (16, 0, [])
    rows = read_dataset(Path("d.csv"))
    assert len(rows) == 16
    assert {row.load_class for row in rows} == set(document["classes"])
    again = natwork("migrations", "collect", "--out", "d.csv", *FEW)
    assert again.code == ExitCode.PRECONDITION
    forced = natwork("migrations", "collect", "--out", "d.csv", *FEW, "--force")
    assert (forced.code, forced.out) == (0, "")
    assert read_dataset(Path("d.csv")) == rows


def test_a_collection_that_was_cut_off_goes_on(natwork: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    work = collect_emulated
    calls = 0

    def dies(plan: Any, keys: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return work(plan, keys)

    monkeypatch.setattr(migrations, "collect_emulated", dies)
    assert natwork("migrations", "collect", "--out", "d.csv.gz", *FEW).code != 0
    assert part_of(Path("d.csv.gz")).exists()
    other = natwork("migrations", "collect", "--out", "d.csv.gz", *FEW, "--seed", "99")
    assert other.code == ExitCode.FAILED
    assert "other parameters" in other.err
    dry = natwork("migrations", "collect", "--out", "d.csv.gz", *FEW, "--dry-run", "--json")
    assert json.loads(dry.out)["resumes"] is True
    ended = natwork("migrations", "collect", "--out", "d.csv.gz", *FEW, "--json")
    assert json.loads(ended.out)["resumed_from"] == 8
    assert len(read_dataset(Path("d.csv.gz"))) == 16


def test_a_dry_run_collects_nothing(natwork: Any) -> None:
    ended = natwork("migrations", "collect", "--out", "d.csv", "--dry-run")
    assert ended.code == 0
    assert "6120 migrations of 34 classes" in ended.err
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--out", "d.txt"), ExitCode.USAGE),
        (("--out", "d.csv", "--classes", "gpu-*"), ExitCode.USAGE),
        (("--out", "d.csv", "--backend", "replayed"), ExitCode.USAGE),
        (("--out", "nowhere/d.csv"), ExitCode.PRECONDITION),
        (("--out", "d.csv", "--runs", "0"), ExitCode.USAGE),
    ],
)
def test_collections_that_cannot_be_are_refused(natwork: Any, arguments: tuple[str, ...], code: ExitCode) -> None:
    ended = natwork("migrations", "collect", *arguments)
    assert (ended.code, ended.out) == (code, "")
    assert not list(Path().iterdir())


def test_a_selector_is_trained_on_a_file(natwork: Any, data: Path) -> None:
    ended = natwork("train", "selector", "--data", data, "--out", "s.json", "--json")
    assert ended.code == 0
    document = json.loads(ended.out)
    model = Path("s.json").read_bytes()
    assert (document["sha256"], document["bytes"]) == (digest(model), len(model))
    assert loads(model).card.rows == len(read_dataset(data)) == document["card"]["rows"]
    assert natwork("train", "selector", "--data", data, "--out", "s.json").code == ExitCode.PRECONDITION
    talked = natwork("train", "selector", "--data", data, "--out", "s.json", "--force", "--seed", "9")
    assert "error of total time" in talked.err
    assert Path("s.json").read_bytes() != model


def test_without_data_the_emulated_set_is_collected(natwork: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrations, "class_names", lambda: class_names()[:10])
    ended = natwork("train", "selector", "--runs", "2", "--out", "s.json", "--data-seed", "4", "--json")
    assert json.loads(ended.out)["card"]["rows"] == 80


def test_models_are_measured_on_held_out_runs(natwork: Any, data: Path, tmp_path: Path) -> None:
    real = tmp_path / "real.csv"
    rows = [
        replace(r, backend=Backend.REAL, total_s=2 * r.total_s, client_downtime_s=None)
        for r in read_dataset(data)
        if r.repetition < 2
    ]
    with real.open("wb") as stream:
        write_dataset(stream, rows, compressed=False)
    ended = natwork("reproduce", "migration-models", "--data", data, "--real", real, "--json")
    assert ended.code == 0, ended.err
    document = json.loads(ended.out)
    emulated, measured = document["emulated"], document["real"]
    assert emulated["rows"] == 2 * len(rows)
    assert 0 <= emulated["regret_pct"] < emulated["baselines"]["always cold"]["regret_pct"]
    assert emulated["balanced_accuracy_ci"][0] <= emulated["balanced_accuracy"] <= emulated["balanced_accuracy_ci"][1]
    assert 0 < emulated["noise_ceiling"] <= 1
    assert emulated["total_time_mape_floor_pct"] <= emulated["total_time_mape_pct"]
    assert set(emulated["harder_splits"]) == {"classes out", "high memory out"}
    assert measured["emulated_models"]["forecasts"]["total_time_mape_pct"] > 30
    assert (
        measured["rescaled_models"]["forecasts"]["total_time_mape_pct"]
        < measured["emulated_models"]["forecasts"]["total_time_mape_pct"]
    )
    assert measured["refitted"]["runs"] == len(rows) // 4
    assert measured["cubemig"]["dumps"] == 0


def test_the_same_as_a_table_and_without_real_data(natwork: Any, data: Path) -> None:
    ended = natwork("reproduce", "migration-models", "--data", data, "-o", "csv")
    assert ended.code == 0, ended.err
    assert ended.out.startswith("weight,policy,regret_pct")
    assert "0.2,oracle,0," in ended.out
    assert "no real data set" in ended.err


def test_the_two_kinds_of_data_are_not_mixed_up(natwork: Any, data: Path) -> None:
    ended = natwork("reproduce", "migration-models", "--real", data, "--json")
    assert (ended.code, ended.out) == (ExitCode.FAILED, "")
    assert "real ones are needed" in ended.err


def test_a_large_collection_goes_to_ray_and_leaves_no_cluster(natwork: Any, without_ray: Any, monkeypatch: Any) -> None:
    noted = without_ray()
    import agents.collecting

    asked: list[int] = []

    def fan_out(plan: Any, keys: Any, *, workers: int) -> Any:
        asked.append(workers)
        yield from (collect_emulated(plan, [key]) for key in keys)

    monkeypatch.setattr(agents.collecting, "fan_out", fan_out)
    ended = natwork("migrations", "collect", "--out", "d.csv", *FEW[:-1], "3", "--json")
    assert (ended.code, asked) == (0, [3])
    assert noted.done == ["start", "connect", "disconnect", "end"]
    assert len(read_dataset(Path("d.csv"))) == 16


def test_real_classes_that_do_not_fit_are_told(natwork: Any, monkeypatch: Any) -> None:
    from natwork_ray.adapters import real_collecting

    def collect(plan: Any, keys: Any) -> Any:
        emulated = replace(plan, backend=Backend.EMULATED)
        for key in keys:
            yield tuple(replace(r, backend=Backend.REAL) for r in collect_emulated(emulated, [key]))

    monkeypatch.setattr(real_collecting, "require", lambda _methods: None)
    monkeypatch.setattr(real_collecting, "needed_bytes", lambda name: 1e15 if "network-low" in name else 1.0)
    monkeypatch.setattr(real_collecting, "collect_real", collect)
    ended = natwork("migrations", "collect", "--backend", "real", "--out", "d.csv", *FEW, "--json")
    assert ended.code == 0, ended.err
    document = json.loads(ended.out)
    assert (document["backend"], document["migrations"]) == ("real", 8)
    assert [x["class"] for x in document["left_out"]] == ["cpu-low_memory-low_storage-low_network-low"]
    assert "left out: cpu-low" in ended.err
    assert {row.backend for row in read_dataset(Path("d.csv"))} == {Backend.REAL}
