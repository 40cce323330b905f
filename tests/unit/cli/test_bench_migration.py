"""`natwork bench migration`: the emulated table, sizes on the command line, the folder of a testbed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from natwork_ray.adapters import testbed_orphans
from natwork_ray.cli.bench_migration import ESSENTIAL, size_bytes, state_folder
from natwork_ray.cli.main import app
from natwork_ray.domain.phases import MigrationMethod
from natwork_ray.errors import UsageError


def _bench(*words: str) -> dict[str, Any]:
    result = CliRunner().invoke(app, ["bench", "migration", "--backend", "emulated", *words, "--json"])
    assert result.exit_code == 0, result.output
    document: dict[str, Any] = json.loads(result.stdout)
    return document


def test_the_emulated_table_has_every_method_and_no_peer() -> None:
    document = _bench("--runs", "3", "--seed", "5")
    assert document["runs"] == 3
    assert set(document["methods"]) == set(MigrationMethod)
    assert document["peers"] == {}
    assert document["backend"] == "emulated"
    for row in document["methods"].values():
        assert {"total_s_p50", "downtime_s_p50", "ideal_total_s_p50", "lost_replies"} <= set(row)
        assert row["total_s_p50"] > row["downtime_s_p50"] > 0
        assert set(row["ideal"]["phases"]) <= set(ESSENTIAL)
    cold, post = document["methods"]["cold"], document["methods"]["post-copy"]
    assert post["downtime_s_p50"] < cold["downtime_s_p50"]


def test_the_seed_decides_and_the_memory_counts() -> None:
    assert (
        _bench("--runs", "2", "--methods", "cold")["methods"] == _bench("--runs", "2", "--methods", "cold")["methods"]
    )
    small = _bench("--runs", "1", "--methods", "cold")["methods"]["cold"]["total_s_p50"]
    large = _bench("--runs", "1", "--methods", "cold", "--memory", "1GiB")["methods"]["cold"]["total_s_p50"]
    assert large > small


def test_as_a_table() -> None:
    result = CliRunner().invoke(
        app, ["bench", "migration", "--backend", "emulated", "--runs", "1", "--methods", "hybrid", "-o", "csv"]
    )
    assert result.exit_code == 0
    assert result.stdout.splitlines()[0].startswith("method,total_s_p50")
    assert result.stdout.splitlines()[1].startswith("hybrid,")


@pytest.mark.parametrize(("text", "size"), [("0", 0), ("64MiB", 64 * 2**20), ("1 GiB", 2**30), ("7KiB", 7168)])
def test_sizes(text: str, size: int) -> None:
    assert size_bytes(text) == size


@pytest.mark.parametrize("text", ["", "64MB", "-1", "1.5GiB", "2000GiB", "9999999999999", "MiB"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(UsageError):
        size_bytes(text)


def test_a_folder_that_is_not_empty_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(testbed_orphans, "members", lambda: ())  # the machine's are none of this test's business
    with state_folder() as folder:
        pass
    assert not folder.exists()
    with state_folder() as folder:
        (folder / "something").touch()
    assert (folder / "something").exists()
    (folder / "something").unlink()
    folder.rmdir()
