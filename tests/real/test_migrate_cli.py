"""`natwork migrate` on the real testbed, as a user types it: four methods in one session, journal, quota, refusals."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from natwork_ray.adapters.probe_client import ProbeClient
from natwork_ray.adapters.testbed_containers import find
from natwork_ray.adapters.testbed_world import build_ports
from natwork_ray.errors import ExitCode

NAME = "typed"


class Commands:
    """The command line over one testbed's state directory."""

    def __init__(self, testbed: Any) -> None:
        self.testbed = testbed

    def __call__(self, *words: str) -> tuple[int, str, str]:
        settings = ("--set", f"state_dir={self.testbed.state_dir}", "--set", "backend=testbed")
        done = subprocess.run(
            [sys.executable, "-m", "natwork_ray.cli.main", *settings, *words],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert "Traceback" not in done.stderr
        return done.returncode, done.stdout, done.stderr

    def json(self, *words: str) -> Any:
        code, out, err = self(*words, "--json")
        assert code == 0, err
        return json.loads(out)

    def home(self) -> str:
        (row,) = [r for r in self.json("testbed", "containers")["containers"] if r["name"] == NAME]
        assert row["state"] == "running"
        return str(row["node"])


@pytest.fixture
def natwork(testbed: Any) -> Iterator[Commands]:
    """A container that runs on node-0; afterwards it runs nowhere and the journal is gone."""
    natwork = Commands(testbed)
    code, _, err = natwork("testbed", "run", NAME, "--node", "node-0", "--memory", "44MiB")
    assert code == 0, err
    yield natwork
    asyncio.run(_removed(testbed))
    for path in testbed.state_dir.iterdir():
        if path.is_file():
            path.unlink()


async def _removed(testbed: Any) -> None:
    for layout in testbed.record.nodes:
        ports = build_ports(testbed.record, layout.name, testbed.tools)
        await ports.runtime.destroy(NAME, key="end")
        await ports.bridge.remove(NAME)
        await ports.shut()


def test_four_methods_under_one_session(natwork: Commands, testbed: Any) -> None:
    asyncio.run(_four(natwork, testbed))


async def _four(natwork: Commands, testbed: Any) -> None:
    placed = await find(testbed.record, NAME, tools=testbed.tools)
    host = placed.spec.address.partition("/")[0]
    client = ProbeClient(testbed.record, testbed.tools)
    client.open()
    keys = []
    try:
        await client.until_served(host)
        await client.start(host)
        for turn, method in enumerate(("cold", "pre-copy", "post-copy", "hybrid")):
            target = f"node-{(turn + 1) % 3}"
            document = await asyncio.to_thread(natwork.json, "migrate", NAME, "--to", target, "--method", method)
            assert (document["state"], document["method"], document["backend"]) == ("migrated", method, "real")
            assert document["record"]["runs_on"] == target
            assert 0 < document["downtime_s"] <= document["total_s"]
            phases = {p["name"]: p for p in document["phases"]}
            assert phases["dump transfer"]["size_bytes"] > 0
            assert all(p["duration_s"] >= 0 for p in document["phases"])
            keys.append(document["key"])
        report = await client.stop()
    finally:
        client.close()
    assert report.whole, report
    assert natwork.home() == "node-1"
    listed = natwork.json("migration", "list")["migrations"]
    assert [m["key"] for m in listed] == keys
    code, shown, _ = natwork("migration", "show", keys[-1])
    assert code == 0
    assert "restore" in shown
    audit = natwork.json("audit", "list")["entries"]
    assert [e["kind"] for e in audit if e["kind"] in ("decision", "instruction", "outcome")] == [
        "decision", "instruction", "outcome",
    ] * 4  # fmt: skip


def test_auto_measures_foretells_and_chooses(natwork: Commands) -> None:
    foretold = natwork.json("migrate", NAME, "--to", "node-2", "--dry-run")
    (outlook,) = foretold["outlooks"]
    assert len(outlook["forecasts"]) + len(outlook["impossible"]) == 4
    assert outlook["load"]["memory_bytes"] > 40 * 2**20
    assert outlook["load"]["bandwidth_bytes_per_s"] > 0
    assert natwork.home() == "node-0"
    moved = natwork.json("migrate", NAME, "--to", "node-2")
    record = moved["record"]
    assert record["chosen_by"] in ("rule", "model")
    assert record["load"] is not None
    assert record["forecast"]["method"] == moved["method"]
    left = natwork.json("migrate", NAME, "--to", "node-1", "--dry-run")["quota"][0]
    assert left["spent_s"] == pytest.approx(moved["downtime_s"])


def test_what_cannot_be_is_refused_and_nothing_moves(natwork: Commands) -> None:
    for words, expected in (
        ((NAME, "--to", "node-0"), ExitCode.REFUSED),
        ((NAME, "--to", "node-9"), ExitCode.FAILED),
        (("nobody", "--to", "node-1"), ExitCode.FAILED),
    ):
        code, out, err = natwork("migrate", *words, "--json")
        assert (code, out) == (expected, "")
        assert "hint: " in err
    assert natwork.home() == "node-0"


def test_a_service_goes_whole(natwork: Commands) -> None:
    moved = natwork.json("migrate-service", NAME, "--to", "node-1", "--key", "once")
    assert [m["state"] for m in moved["migrations"]] == ["migrated"]
    assert natwork.json("migrate-service", NAME, "--to", "node-1", "--key", "once") == moved
    assert natwork.home() == "node-1"
