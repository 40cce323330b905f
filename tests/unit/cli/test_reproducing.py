"""`natwork reproduce ...` with models that take no time; the figures themselves are tested where they are made."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from natwork_ray.cli import computing
from natwork_ray.errors import ExitCode

CHEAP = ("--models", "largest-deviation,constant-threshold")
TABLES = ("table-2", "events", "unseen-service")


@pytest.fixture
def two_services(recorded: Path) -> Path:
    """The recordings of one service, once more under another name."""
    for path in sorted(recorded.rglob("svc_*.csv")):
        path.with_name(path.name.replace("svc_", "other_")).write_bytes(path.read_bytes())
    return recorded


@pytest.mark.parametrize("table", TABLES)
def test_rows_beside_the_published_ones(natwork: Any, two_services: Path, table: str) -> None:
    ended = natwork("reproduce", table, *CHEAP, "--data", two_services, "--json")
    assert ended.code == 0
    document = json.loads(ended.out)
    assert {"model", "split", "accuracy", "precision", "recall", "f1", "auc", "f1_ci"} <= set(document["rows"][0])
    assert bool(document["published"]) == (table == "table-2")
    assert document["demand"]["models"] == ["largest-deviation", "constant-threshold"]
    assert document["work"]["resumed"] == 0
    assert document["definitions"]


def test_table_3_and_unknown(natwork: Any, two_services: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("natwork_ray.profiling.reproduction.contestants._QUICK_EPOCHS", 1)
    ended = natwork("reproduce", "table-3", "--models", "lightgbm", "--quick", "--data", two_services, "--json")
    document = json.loads(ended.out)
    assert {"macro_f1", "macro_f1_ci", "mix", "f1_of_class"} <= set(document["rows"][0])
    assert [row["f1"] for row in document["published"]] == [0.8964, 0.8584, 0.9034, 0.8192]
    ended = natwork("reproduce", "unknown", "--models", "annex-a", "--quick", "--folds", "2", "--data", two_services)
    assert ended.code == 0
    assert "say that it works" in ended.err
    assert "surge" in ended.out


def test_published_rows_follow_in_tables_and_csv(natwork: Any, recorded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded.rename(recorded.with_name("ianomaly"))
    monkeypatch.setenv("NATWORK_DATA_DIR", str(recorded.parent))
    ended = natwork("reproduce", "table-2", *CHEAP, "-o", "csv")
    rows = list(csv.DictReader(io.StringIO(ended.out)))
    assert [row["source"] for row in rows] == ["measured"] * 2 + ["published"] * 4


def test_what_was_finished_is_not_done_again(
    natwork: Any, recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "work"
    command = ("reproduce", "table-2", "--models", "constant-threshold", "--data", recorded, "--resume", work, "--json")
    calls: list[str] = []
    whole = computing._here

    def interrupted(*arguments: Any) -> Any:
        for done, answer in enumerate(whole(*arguments)):
            if done == 2:
                raise KeyboardInterrupt
            calls.append(answer[0].title)
            yield answer

    monkeypatch.setattr(computing, "_here", interrupted)
    with pytest.raises(BaseException):  # noqa: B017 - the command line ends as a shell has it
        assert natwork(*command).code == 0
    monkeypatch.setattr(computing, "_here", whole)
    assert len(calls) == len(list(work.iterdir())) == 2
    document = json.loads(natwork(*command).out)
    assert (document["work"]["cells"], document["work"]["resumed"]) == (3, 2)
    again = json.loads(natwork(*command).out)
    assert again["work"]["resumed"] == 3
    assert again["rows"] == document["rows"]
    assert "finished before" in natwork(*command[:-1]).err
    # The same seed under other data starts from nothing.
    victim = next(recorded.rglob("svc_usersurge1.csv"))
    victim.write_text("\n".join(victim.read_text().splitlines()[:-1]) + "\n")
    assert json.loads(natwork(*command).out)["work"]["resumed"] == 0


def test_the_headline_and_seeds(natwork: Any, recorded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from natwork_ray.profiling.reproduction import table_2

    monkeypatch.setattr(table_2, "MODELS", ("best", "largest-deviation"))
    ended = natwork("reproduce", "table-2", "--detector", "annex-a", "--seeds", "2", "--data", recorded, "--json")
    document = json.loads(ended.out)
    assert [row["model"] for row in document["rows"]] == ["largest deviation from the profile"]
    assert document["demand"]["seeds"] == [7, 8]
    assert len(document["rows"][0]["f1_of_seeds"]) == 2


@pytest.mark.parametrize("table", ["table-2", "table-3", "unknown", "unseen-service", "events"])
def test_data_are_needed(natwork: Any, tmp_path: Path, table: str) -> None:
    ended = natwork("reproduce", table)
    assert ended.code == ExitCode.PRECONDITION
    assert "NATWORK_DATA_DIR" in ended.err
    ended = natwork("--set", f"data_dir={tmp_path}", "reproduce", table)
    assert ended.code == ExitCode.PRECONDITION
    assert str(tmp_path / "ianomaly") in ended.err


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--models", "gpt"), ExitCode.USAGE, "no model 'gpt'"),
        (("--models", " , "), ExitCode.USAGE, "(none)"),
        (("--models", "svm,svm"), ExitCode.USAGE, "once"),
        (("--folds", "1"), ExitCode.USAGE, ""),
        (("--seeds", "0"), ExitCode.USAGE, ""),
        (("--seed", "-1"), ExitCode.USAGE, ""),
        (("--detector", "other"), ExitCode.USAGE, ""),
        (("--resume", "/dev/null"), ExitCode.USAGE, "is a file"),
        (("--models", "normal-only", "--data", "absent"), ExitCode.PRECONDITION, "no recordings"),
    ],
)
def test_odd_requests(natwork: Any, recorded: Path, arguments: tuple[str, ...], code: ExitCode, said: str) -> None:
    data = () if "--data" in arguments else ("--data", recorded)
    ended = natwork("reproduce", "table-2", *data, *arguments)
    assert (ended.code, ended.out) == (code, "")
    assert said in " ".join(ended.err.split())


def test_one_service_cannot_be_unseen(natwork: Any, recorded: Path) -> None:
    ended = natwork("reproduce", "unseen-service", *CHEAP, "--data", recorded)
    assert (ended.code, ended.out) == (ExitCode.FAILED, "")
    assert "at least two services" in ended.err


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"a,b\n1,2\n", b"[red]\x1b[2J\n"])
def test_hostile_recordings(natwork: Any, recorded: Path, content: bytes) -> None:
    next(recorded.rglob("svc_usersurge2.csv")).write_bytes(content)
    ended = natwork("reproduce", "table-2", "--data", recorded)
    assert (ended.code, ended.out) == (ExitCode.FAILED, "")
    assert "svc_usersurge2.csv" in ended.err
    assert "\x1b" not in ended.err
