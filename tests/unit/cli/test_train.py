"""`natwork train profiler` and `natwork reproduce table-2`, as small as they go."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from natwork_ray.adapters.model_directory import ModelDirectory
from natwork_ray.cli import train
from natwork_ray.errors import ExitCode
from natwork_ray.profiling.bounds import DEFAULT_MODEL
from natwork_ray.profiling.model_file import digest, loads

TINY = ("train", "profiler", "--epochs", "1", "--runs", "2", "--hours", "1.5")


@pytest.fixture
def few_services(monkeypatch: pytest.MonkeyPatch) -> None:
    """Emulated runs of three services instead of sixteen."""
    monkeypatch.setattr("natwork_ray.emulation.training_set.SERVICES_PER_RUN", 3)


def test_a_model_is_trained_and_can_be_used(natwork: Any, few_services: None) -> None:
    ended = natwork(*TINY, "--out", "m.safetensors", "--json")
    assert ended.code == 0
    document = json.loads(ended.out)
    data = Path("m.safetensors").read_bytes()
    assert (document["sha256"], document["bytes"]) == (digest(data), len(data))
    assert document["card"]["settings"]["epochs"] == 1
    assert loads(data).card.runs == 2
    doctor = natwork("--set", "model=m.safetensors", "doctor", "--json")
    checks = {row["check"]: row["found"] for row in json.loads(doctor.out)["checks"]}
    assert "trained on 2 emulated runs" in checks["profiler model"]
    again = natwork(*TINY, "--out", "m.safetensors")
    assert again.code == ExitCode.PRECONDITION
    assert Path("m.safetensors").read_bytes() == data


def test_recordings_train_as_well(natwork: Any, recorded: Path) -> None:
    Path("m.safetensors").write_bytes(b"old")
    ended = natwork("train", "profiler", "--data", recorded, "--epochs", "1", "--out", "m.safetensors", "--force")
    assert (ended.code, ended.out) == (0, "")
    assert "sha256" in ended.err
    assert "out-of-fold, split by run" in ended.err
    assert str(loads(Path("m.safetensors").read_bytes()).card.trained_on) == "replayed"


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--out", "nowhere/m"), ExitCode.PRECONDITION),
        (("--out", "."), ExitCode.USAGE),
        (("--out", ""), ExitCode.USAGE),
        (("--data", "absent"), ExitCode.PRECONDITION),
        (("--data", "/dev/null"), ExitCode.PRECONDITION),
        (("--epochs", "0"), ExitCode.USAGE),
        (("--epochs", "10001"), ExitCode.FAILED),
        (("--window", "100000"), ExitCode.FAILED),
        (("--seed", "4294967296"), ExitCode.FAILED),
        (("--hours", "1.0"), ExitCode.USAGE),
        (("--hours", "nan"), ExitCode.USAGE),
        (("--hours", "1e9"), ExitCode.USAGE),
        (("--runs", "1"), ExitCode.USAGE),
        (("--runs", "99999"), ExitCode.USAGE),
        (("--data-seed", "-1"), ExitCode.USAGE),
    ],
)
def test_what_makes_no_sense_is_refused_before_any_work(
    natwork: Any, arguments: tuple[str, ...], code: ExitCode
) -> None:
    ended = natwork("train", "profiler", *arguments)
    assert (ended.code, ended.out) == (code, "")
    assert not list(Path().iterdir())


def test_the_defaults_are_those_of_the_shipped_model() -> None:
    card = loads(ModelDirectory().load(DEFAULT_MODEL)).card
    assert card.runs == train.SHIPPED_RUNS
    assert card.trained_on == "emulated"


def test_table_2_beside_the_published_rows(natwork: Any, recorded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = ("reproduce", "table-2", "--epochs", "1", "--folds", "2")
    ended = natwork(*small, "--data", recorded, "--json")
    assert ended.code == 0
    document = json.loads(ended.out)
    assert document["rows"]
    assert document["published"]
    recorded.rename(recorded.with_name("ianomaly"))
    monkeypatch.setenv("NATWORK_DATA_DIR", str(recorded.parent))
    by_environment = natwork(*small, "-o", "csv")
    rows = list(csv.DictReader(io.StringIO(by_environment.out)))
    for source, name in (("measured", "rows"), ("published", "published")):
        assert [r["model"] for r in rows if r["source"] == source] == [r["model"] for r in document[name]]


def test_table_2_needs_data(natwork: Any, tmp_path: Path) -> None:
    ended = natwork("reproduce", "table-2")
    assert ended.code == ExitCode.PRECONDITION
    assert "NATWORK_DATA_DIR" in ended.err
    ended = natwork("--set", f"data_dir={tmp_path}", "reproduce", "table-2")
    assert ended.code == ExitCode.PRECONDITION
    assert str(tmp_path / "ianomaly") in ended.err


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"a,b\n1,2\n", b"[red]\x1b[2J\n"])
def test_hostile_recordings(natwork: Any, recorded: Path, content: bytes) -> None:
    victim = next(recorded.rglob("svc_usersurge2.csv"))
    victim.write_bytes(content)
    for command in (("reproduce", "table-2"), ("train", "profiler")):
        ended = natwork(*command, "--data", recorded)
        assert (ended.code, ended.out) == (ExitCode.FAILED, "")
        assert "svc_usersurge2.csv" in ended.err
        assert "\x1b" not in ended.err


def test_a_huge_recording_is_not_read(natwork: Any, recorded: Path) -> None:
    with next(recorded.rglob("svc_normal1.csv")).open("wb") as file:
        file.truncate(2**40)
    assert natwork("train", "profiler", "--data", recorded).code == ExitCode.FAILED
