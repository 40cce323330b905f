"""`natwork up` to `down`: the system as an operator sees it, with jobs submitted to it."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from agents.cluster import RAY_TOKEN_FILE

ROOT = Path(__file__).parents[2]


class System:
    def __init__(self, shell: Any, state: Path) -> None:
        self.shell, self.state = shell, state
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.set = ("--set", f"state_dir={state}", "--set", f"http.port={self.port}")

    def natwork(self, *arguments: str, **options: Any) -> Any:
        return self.shell.natwork(*self.set, *arguments, **options)

    def json(self, *arguments: str, **options: Any) -> Any:
        return json.loads(self.natwork(*arguments, "--json", **options).stdout)


@pytest.fixture
def system(shell: Any, tmp_path: Path) -> Any:
    system = System(shell, tmp_path / "state")
    yield system
    system.natwork("down")


def test_up_approve_mode_jobs_and_down(system: Any, shell: Any, tmp_path: Path) -> None:
    fast = ("--set", "emulation.speed=300", "--set", "emulation.seed=8", "--set", "loop.approval_lapse_s=86000")
    up = system.json(*fast, "up", "--mode", "approve", "--hours", "3")
    assert up["url"] == f"http://127.0.0.1:{system.port}"
    state = system.json("status", "--wait", "60")
    assert state["mode"] == "approve"

    again = system.natwork("up", code=1)
    assert "runs already" in again.stderr
    other = System(shell, tmp_path / "other")
    other.set = ("--set", f"state_dir={other.state}", "--set", f"http.port={system.port}")
    assert "cannot be used" in other.natwork("up", code=3).stderr

    deadline = time.monotonic() + 90
    while not (waiting := system.json("decisions", "--status", "awaiting_approval")["decisions"]):
        assert time.monotonic() < deadline
        time.sleep(0.5)
    granted = system.json("approve", waiting[0]["id"], "--note", "seen")
    assert granted["status"] == "issued"
    while system.json("decisions")["decisions"][int(waiting[0]["id"][2:]) - 1]["status"] != "done":
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert system.json("mode", "observe")["mode"] == "observe"
    # A person's order is carried out in every mode.
    node = {c["name"]: c["node"] for c in system.json("status")["topology"]["containers"]}["auth"]
    order = ("migrate", "auth", "--to", "core-1" if node != "core-1" else "edge-2")
    foretold = system.json(*order, "--dry-run")
    assert (foretold["decision"]["status"], len(foretold["outlooks"][0]["forecasts"])) == ("issued", 4)
    moved = system.json(*order, "--key", "e2e")
    assert (moved["state"], moved["backend"], moved["record"]["source"]) == ("migrated", "emulated", node)
    assert system.json(*order, "--key", "e2e") == moved
    assert moved["key"] in system.natwork("migration", "show", moved["key"]).stdout

    ray = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(system.state / RAY_TOKEN_FILE)}
    submit = (str(shell.bin / "ray"), "job", "submit", "--address", up["dashboard"], "--working-dir", ".")
    out = tmp_path / "job"
    job = shell.run(
        *submit, "--", "python", "scripts/run_loop.py", "--minutes", "5", "--seed", "8", "--out", str(out),
        cwd=ROOT, timeout_s=180, **ray,
    )  # fmt: skip
    assert "succeeded" in job.stdout
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    assert 0 < summary["windows"] <= 12 * 30
    assert summary["audit"]["verified"]
    assert json.dumps(summary["audit"]) in job.stdout

    head = psutil.Process(json.loads((system.state / "cluster.json").read_text())["pid"])
    family = [head, *head.children(recursive=True)]
    assert system.json("down")["ended"]
    assert not [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    assert not system.json("down")["ended"]
    # What was decided can be read when nothing runs.
    assert system.json("decisions")["decisions"][0]["id"] == "d-000001"
