"""`natwork train profiler`, as small as it goes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from natwork_ray.adapters.model_directory import ModelDirectory
from natwork_ray.cli import train
from natwork_ray.errors import ExitCode
from natwork_ray.profiling.bounds import DEFAULT_MODEL
from natwork_ray.profiling.model_file import digest, loads

TINY = ("train", "profiler", "--detector", "annex-a", "--epochs", "1", "--runs", "2", "--hours", "1.5")


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
    ended = natwork(
        "train",
        "profiler",
        "--data",
        recorded,
        "--detector",
        "annex-a",
        "--epochs",
        "1",
        "--out",
        "m.safetensors",
        "--force",
    )
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


def test_a_training_is_checked_on_runs_it_did_not_see(natwork: Any, recorded: Path, tmp_path: Path) -> None:
    command = ("train", "profiler", "--data", recorded, "--detector", "annex-a", "--epochs", "1", "--evaluate")
    ended = natwork(*command, "--resume", tmp_path / "work", "--out", "m.safetensors", "--json")
    assert ended.code == 0
    by_run = json.loads(ended.out)["by_run"]
    assert (by_run["row"]["split"], by_run["work"]["cells"], by_run["work"]["resumed"]) == ("by-run", 3, 0)
    again = natwork(*command, "--resume", tmp_path / "work", "--out", "n.safetensors")
    assert again.code == 0
    assert "3 of 3 were finished before" in again.err
    assert "trained without each run in turn" in again.err
    assert Path("m.safetensors").read_bytes() == Path("n.safetensors").read_bytes()


def test_options_of_the_evaluation_need_it(natwork: Any, recorded: Path) -> None:
    ended = natwork("train", "profiler", "--data", recorded, "--seeds", "2")
    assert (ended.code, ended.out) == (ExitCode.USAGE, "")
    assert "--evaluate" in ended.err


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"a,b\n1,2\n", b"[red]\x1b[2J\n"])
def test_hostile_recordings(natwork: Any, recorded: Path, content: bytes) -> None:
    victim = next(recorded.rglob("svc_usersurge2.csv"))
    victim.write_bytes(content)
    ended = natwork("train", "profiler", "--data", recorded)
    assert (ended.code, ended.out) == (ExitCode.FAILED, "")
    assert "svc_usersurge2.csv" in ended.err
    assert "\x1b" not in ended.err


def test_a_huge_recording_is_not_read(natwork: Any, recorded: Path) -> None:
    with next(recorded.rglob("svc_normal1.csv")).open("wb") as file:
        file.truncate(2**40)
    assert natwork("train", "profiler", "--data", recorded).code == ExitCode.FAILED
