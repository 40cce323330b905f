"""`natwork exporter`: what it refuses, and what it says when it listens."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from natwork_ray.cli import exporter as command
from natwork_ray.cli.settings import remember
from natwork_ray.errors import NatworkError, NotFoundError, PreconditionError, UsageError


def call(**options: object) -> None:
    given: dict[str, object] = {
        "port": 0, "host": "127.0.0.1", "cgroup": None, "pid": None, "testbed": False, "namespace": "", "for_s": 0.0,
        "as_json": True,
    }  # fmt: skip
    command.exporter(**{**given, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({}, UsageError),
        ({"pid": ["1"]}, UsageError),
        ({"pid": ["x=web"]}, UsageError),
        ({"pid": ["-1=web"]}, UsageError),
        ({"pid": ["1=we b"]}, UsageError),
        ({"pid": ["99999999999=web"]}, UsageError),
        ({"pid": [f"{2**30}=web"]}, NotFoundError),
        ({"pid": [f"{os.getpid()}=a", f"{os.getpid()}=a"]}, UsageError),
        ({"cgroup": ["relative=web"]}, UsageError),
        ({"cgroup": ["/a/../b=web"]}, UsageError),
        ({"cgroup": ["/natwork-none=web"]}, NotFoundError),
        ({"cgroup": ["/sys/fs/cgroup/natwork-none=web"]}, NotFoundError),
    ],
)
def test_what_is_refused(options: dict[str, object], kind: type[NatworkError]) -> None:
    with pytest.raises(kind):
        call(**options)


def test_without_a_testbed(tmp_path: Path) -> None:
    remember(None, [f"state_dir={tmp_path}"])
    try:
        with pytest.raises(PreconditionError, match="export"):
            call(testbed=True)
    finally:
        remember(None, [])


def test_it_says_where_it_listens(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    call(pid=[f"{os.getpid()}=me"])
    told = json.loads(capsys.readouterr().out)
    assert told["containers"] == ["me"]
    assert told["url"].startswith("http://127.0.0.1:")
    assert signal.getsignal(signal.SIGTERM) is before
    call(pid=[f"{os.getpid()}=me"], as_json=False)
    assert "answers scrapes" in capsys.readouterr().err
