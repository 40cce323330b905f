"""`doctor`: what every run needs, and what real migration needs of the machine."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from natwork_ray.adapters.testbed_requirements import ALL, LAZY, Requirement
from natwork_ray.cli import doctor
from natwork_ray.domain.actions import MigrationMethod
from natwork_ray.errors import ExitCode

Real = Callable[..., None]


@pytest.fixture(autouse=True)
def real(monkeypatch: pytest.MonkeyPatch) -> Real:
    """`real(root=False)`: the machine has everything for real migration but what is named."""

    def install(*, root: bool = True, lazy: bool = True, tracking: bool = True) -> None:
        def one(name: str, found: bool, methods: tuple[MigrationMethod, ...], purpose: str) -> Requirement:
            detail, hint = ("there", "") if found else ("not there", f"get {name}")
            return Requirement(name=name, found=found, detail=detail, hint=hint, needed_for=methods, purpose=purpose)

        found = (
            one("root", root, ALL, "all methods"),
            one("criu uffd-noncoop", lazy, LAZY, "post-copy and hybrid"),
            one("criu mem_dirty_track", tracking, (), "CRIU's own incremental pre-dump"),
        )
        monkeypatch.setattr(doctor, "requirements", lambda: found)

    install()
    return install


def test_what_is_here(natwork: Any, tmp_path: Path) -> None:
    ended = natwork("--set", f"http.port={_free_port()}", "--set", f"data_dir={tmp_path}", "doctor", "--json")
    assert ended.err == ""
    answer = json.loads(ended.out)
    checks = {row["check"]: row for row in answer["checks"]}
    assert {name for name, row in checks.items() if row["state"] == "ok"} >= {
        "python", "ray", "torch", "profiler model", "http port", "public data",
    }  # fmt: skip
    assert all(row["hint"] for row in checks.values() if row["state"] != "ok")
    assert ended.code == (0 if checks["memory"]["state"] == "ok" else ExitCode.PRECONDITION)
    migration = answer["real_migration"]
    assert (migration["available"], migration["dirty_tracking"], migration["reasons"]) == (True, True, {})
    assert migration["methods"] == ["cold", "pre-copy", "post-copy", "hybrid"]
    shown = natwork("doctor")
    assert all(name in shown.out for name in (*checks, "criu uffd-noncoop", "real live migration (3)"))
    assert shown.err == "real migration: cold, pre-copy, post-copy, hybrid\n"


def test_missing_root_says_so_and_is_no_failure_of_an_emulated_world(natwork: Any, real: Real) -> None:
    real(root=False)
    before = natwork("--set", f"http.port={_free_port()}", "doctor", "--json")
    migration = json.loads(before.out)["real_migration"]
    assert (migration["available"], migration["methods"]) == (False, [])
    assert migration["reasons"] == dict.fromkeys(map(str, ALL), "root: not there; get root")
    row = migration["checks"][0]
    assert row == {
        "check": "root", "state": "absent", "found": "not there", "hint": "get root", "needed_for": "all methods",
    }  # fmt: skip
    memory = {row["check"]: row["state"] for row in json.loads(before.out)["checks"]}["memory"]
    assert before.code == (0 if memory == "ok" else ExitCode.PRECONDITION)
    assert natwork("doctor").err == "real migration: not available, because root: not there; get root\n"


def test_with_testbed_it_is_a_failure(natwork: Any, real: Real) -> None:
    real(lazy=False, tracking=False)
    ended = natwork("doctor", "--testbed", "-o", "csv")
    assert ended.code == ExitCode.PRECONDITION
    rows = {row["check"]: row for row in csv.DictReader(io.StringIO(ended.out))}
    assert (rows["criu uffd-noncoop"]["state"], rows["criu uffd-noncoop"]["part"]) == ("missing", "real migration")
    assert rows["criu mem_dirty_track"]["state"] == "absent"  # every method works without it
    assert rows["python"]["part"] == "every run"
    expected = "real migration: cold, pre-copy; not post-copy, hybrid, because criu uffd-noncoop: not there; get criu"
    assert natwork("doctor", "--testbed").err.startswith(expected)


def test_it_ends_with_3_when_something_needed_is_missing(natwork: Any, tmp_path: Path) -> None:
    bad = tmp_path / "model.safetensors"
    bad.write_bytes(b"\xff" * 100)
    for model in (bad, tmp_path, tmp_path / "absent"):
        ended = natwork("--set", f"model={model}", "doctor", "-o", "csv")
        assert ended.code == ExitCode.PRECONDITION
        rows = {row["check"]: row for row in csv.DictReader(io.StringIO(ended.out))}
        assert rows["profiler model"]["state"] == "missing"


def test_a_poor_machine(natwork: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import psutil

    class Memory:
        available = 2**20

    class Disk:
        free = 2**20

    monkeypatch.setattr(psutil, "virtual_memory", Memory)
    monkeypatch.setattr("natwork_ray.cli.doctor.shutil.disk_usage", lambda _: Disk())
    monkeypatch.setattr("natwork_ray.cli.doctor.sys.version_info", (3, 10))
    with _taken_port() as port:
        ended = natwork("--set", f"http.port={port}", "doctor", "--json")
    states = {row["check"]: row["state"] for row in json.loads(ended.out)["checks"]}
    assert ended.code == ExitCode.PRECONDITION
    assert (states["python"], states["memory"], states["shared memory"]) == ("missing", "missing", "absent")
    assert (states["http port"], states["public data"]) == ("absent", "absent")


@contextlib.contextmanager
def _taken_port() -> Iterator[int]:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        yield holder.getsockname()[1]


def _free_port() -> int:
    with _taken_port() as port:
        pass
    return port
