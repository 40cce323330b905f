"""A service of three containers that call each other on the real testbed: all arrive together, or all come back."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from natwork_ray.adapters.probe_client import ProbeClient
from natwork_ray.adapters.testbed_containers import find
from natwork_ray.adapters.testbed_world import build_ports
from natwork_ray.errors import ExitCode

MIB = 2**20
# name -> node, memory, whom it calls
SHOP = {"shop-web": ("node-0", 16, ("shop-cart", "shop-db")), "shop-cart": ("node-0", 32, ("shop-db",)),
        "shop-db": ("node-1", 96, ())}  # fmt: skip


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
            timeout=180,
            check=False,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, done.stdout, done.stderr

    def homes(self) -> dict[str, str]:
        code, out, err = self("testbed", "containers", "--json")
        assert code == 0, err
        rows = [r for r in json.loads(out)["containers"] if r["name"] in SHOP]
        assert all(r["state"] == "running" for r in rows), rows
        assert len(rows) == len(SHOP), rows
        return {r["name"]: r["node"] for r in rows}


@pytest.fixture
def shop(testbed: Any) -> Iterator[Commands]:
    """The service; afterwards it runs nowhere and the journal is gone."""
    natwork = Commands(testbed)
    try:
        for name, (node, memory, calls) in SHOP.items():
            asked = [word for other in calls for word in ("--depends-on", other)]
            words = ("--node", node, "--memory", f"{memory}MiB", "--service", "shop", *asked)
            code, out, err = natwork("testbed", "run", name, *words, "--json")
            assert code == 0, err
            assert (json.loads(out)["service"], json.loads(out)["depends_on"]) == ("shop", list(calls))
        yield natwork
    finally:
        asyncio.run(_removed(testbed))
        for path in testbed.state_dir.iterdir():
            if path.is_file():
                path.unlink()


async def _removed(testbed: Any) -> None:
    for layout in testbed.record.nodes:
        ports = build_ports(testbed.record, layout.name, testbed.tools)
        for name in SHOP:
            await ports.runtime.destroy(name, key="end")
            await ports.bridge.remove(name)
        await ports.shut()


async def _watched(testbed: Any, work: Any) -> tuple[Any, dict[str, Any]]:
    """What `work()` says, and what one session with each container saw meanwhile; all from one client's namespace."""
    sessions = {name: ProbeClient(testbed.record, testbed.tools) for name in SHOP}
    home, *_ = sessions.values()
    home.open()
    try:
        async with contextlib.AsyncExitStack() as stack:
            for name, session in sessions.items():
                host = (await find(testbed.record, name, tools=testbed.tools)).spec.address.partition("/")[0]
                await session.until_served(host)
                await session.start(host)
                stack.push_async_callback(session._reap)  # also where the work fails
            said = await asyncio.to_thread(work)
            return said, {name: await session.stop() for name, session in sessions.items()}
    finally:
        home.close()


def test_a_service_arrives_together_and_every_session_lives(shop: Commands, testbed: Any) -> None:
    code, out, err = shop("migrate-service", "shop", "--to", "node-2", "--dry-run")
    assert code == 0, err
    assert "shop: 3 containers in 1 wave" in out + err
    assert set(shop.homes().values()) == {"node-0", "node-1"}, "a dry run moves nobody"

    (code, out, err), seen = asyncio.run(
        _watched(testbed, lambda: shop("migrate-service", "shop", "--to", "node-2", "--json"))
    )
    assert code == 0, err
    document = json.loads(out)
    assert {m["state"] for m in document["migrations"]} == {"migrated"}
    assert set(shop.homes().values()) == {"node-2"}
    assert all(report.whole for report in seen.values()), seen
    moved = document["service"]
    assert sorted(moved["arrived"]) == sorted(SHOP)
    assert moved["gates"] == ["freeze", "restore", "attach"]
    # Machines of a test are busy: this tells a schedule from none, and not how good it is.
    assert 0 <= moved["arrival_spread_s"] < 1.0
    assert 0 <= moved["arrival_spread_pct"] < 50
    assert moved["planned"]["last_arrival_s"] > 0
    records = [m["record"] for m in document["migrations"]]
    frozen = [_at(r, "freeze") for r in records]
    restored = [_at(r, "restore") for r in records]
    verified = [_at(r, "dump transfer", ends=True) for r in records]
    assert max(frozen) < min(restored), "nobody is restored before all stand still"
    assert max(verified) <= min(restored), "nobody is restored before all is verified on the target"
    kinds = [e["kind"] for e in json.loads(shop("audit", "list", "--json")[1])["entries"]]
    assert [k for k in kinds if k in ("decision", "instruction", "outcome")] == [
        "decision", *["instruction"] * 3, *["outcome"] * 3,
    ]  # fmt: skip


def _at(record: dict[str, Any], phase: str, *, ends: bool = False) -> float:
    (found,) = [p for p in record["phases"] if p["name"] == phase]
    at_s: float = record["started_at_s"] + found["starts_s"] + (found["duration_s"] if ends else 0.0)
    return at_s


def test_one_that_fails_brings_all_back(shop: Commands, testbed: Any) -> None:
    """The target has room for the images of the small ones, not for those of the largest."""
    before = shop.homes()
    images = Path(testbed.record.node("node-2").images)
    ballast = images / "ballast"
    free = os.statvfs(images)
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize - 80 * MIB)
    try:
        (code, out, err), seen = asyncio.run(
            _watched(testbed, lambda: shop("migrate-service", "shop", "--to", "node-2", "--json"))
        )
    finally:
        ballast.unlink()
    assert code in (ExitCode.FAILED, ExitCode.REFUSED), (out, err)
    assert shop.homes() == before
    assert all(report.whole for report in seen.values()), seen
    if out:
        document = json.loads(out)
        assert sorted(document["service"]["stayed"]) == sorted(SHOP)
        errors = {m["container"]: m["error"] for m in document["migrations"]}
        assert all(errors.values()), errors
        assert any("moves as a whole" in error for name, error in errors.items() if name != "shop-db"), errors
    code, out, err = shop("migrate-service", "shop", "--to", "node-2", "--json")
    assert code == 0, err
    assert set(shop.homes().values()) == {"node-2"}
