"""`natwork bench`: what is measured is reported whole; no test looks at how fast it was."""

from __future__ import annotations

import asyncio
import csv
import io
import json
from typing import Any

import pytest

from natwork_ray.cli.bench_loop import NoHands
from natwork_ray.domain.actions import Restart
from natwork_ray.errors import ConflictError, ExitCode


def test_the_audit_log(natwork: Any) -> None:
    ended = natwork("bench", "audit", "--entries", "2000", "--json")
    assert (ended.code, ended.err) == (0, "")
    document = json.loads(ended.out)
    assert (document["entries"], document["batch"]) == (2000, 500)
    assert all(figure > 0 for figure in document.values())
    shown = natwork("bench", "audit", "--entries", "1000", "--batch", "1000")
    assert all(name in shown.out for name in document)


def test_the_loop_in_this_process(natwork: Any) -> None:
    ended = natwork("bench", "loop", "--no-ray", "--containers", "10", "--turns", "5", "--json")
    assert (ended.code, ended.err) == (0, "")
    document = json.loads(ended.out)
    (row,) = document["rows"]
    assert (document["backend"], row["containers"], row["path"]) == ("emulated", 10, "in process")
    assert 0 < row["p50_ms"] <= row["p99_ms"]
    assert set(row["parts_mean_ms"]) == {"detection", "decision", "telemetry and evidence"}
    assert row["slowest_part"] in row["parts_mean_ms"]
    assert "10 containers (in process)" in document["limit"]
    listed = natwork("bench", "loop", "--no-ray", "--containers", "3", "--turns", "5", "-o", "csv")
    assert [r["containers"] for r in csv.DictReader(io.StringIO(listed.out))] == ["3"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("audit", "--entries", "0"),
        ("audit", "--batch", "0"),
        ("audit", "--entries", "many"),
        ("loop", "--no-ray", "--turns", "4"),
        ("loop", "--no-ray", "--containers", "0"),
        ("loop", "--no-ray", "--containers", "5001"),
    ],
)
def test_senseless_sizes(natwork: Any, arguments: tuple[str, ...]) -> None:
    ended = natwork("bench", *arguments)
    assert (ended.code, ended.out) == (ExitCode.USAGE, "")


def test_nobody_acts_while_it_is_measured() -> None:
    with pytest.raises(ConflictError, match="mode observe"):
        asyncio.run(NoHands().execute(Restart(key="k", container="c")))
