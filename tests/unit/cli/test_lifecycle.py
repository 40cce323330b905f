"""`status`, `down`, and `up` as far as it goes without Ray."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import socket
from pathlib import Path
from typing import Any

import httpx
import pytest

from agents import cluster
from natwork_ray.adapters.sqlite_journal import SqliteJournal
from natwork_ray.cli import doors, lifecycle
from natwork_ray.domain.values import encode, plain
from natwork_ray.errors import ExitCode, PreconditionError, TimedOutError


@pytest.fixture
def state(small_run: Any) -> dict[str, Any]:
    """What the gateway's /state answers, as far as `status` reads it."""
    ending = small_run.ending
    keys = ("backend", "scenario", "mode", "at_s", "turns", "windows", "alarms", "decisions", "awaiting_approval",
            "done", "failed", "quota_violations")  # fmt: skip
    return {
        **dict.fromkeys(keys, 1),
        "scenario": "[red]\x1b[2J",
        "topology": plain(ending.topology),
        "quota": [plain(account) for account in ending.quota],
    }


def test_status(natwork: Any, gateway: Any, state: dict[str, Any], small_run: Any) -> None:
    gateway.answers(200, state)
    ended = natwork("--set", f"state_dir={gateway.state_dir}", "status", "--json")
    assert (ended.code, ended.err) == (0, "")
    assert json.loads(ended.out) == state
    assert gateway.asked[0].path == "/api/v1/state"
    assert gateway.asked[0].authorization is None
    listed = natwork("--set", f"state_dir={gateway.state_dir}", "status", "-o", "csv")
    rows = list(csv.DictReader(io.StringIO(listed.out)))
    assert [row["name"] for row in rows] == [c.name for c in small_run.ending.topology.containers]
    account = small_run.ending.quota[0]
    left = next(float(row["quota_left_s"]) for row in rows if row["name"] == account.container)
    assert left == pytest.approx(account.budget_s - account.spent_s - account.reserved_s, rel=1e-3)
    shown = natwork("--set", f"state_dir={gateway.state_dir}", "status")
    assert "[red]\\x1b[2J" in shown.err
    assert "containers (10)" in shown.out


@pytest.mark.parametrize("answer", [{}, {"quota": 3}, {"quota": [], "topology": {"containers": [{}]}}, {"quota": [1]}])
def test_a_state_of_another_kind(natwork: Any, gateway: Any, answer: dict[str, Any]) -> None:
    gateway.answers(200, answer)
    ended = natwork("--set", f"state_dir={gateway.state_dir}", "status")
    assert ended.code == ExitCode.FAILED
    assert "no state of a loop" in ended.err


def test_status_of_nothing(natwork: Any, tmp_path: Path) -> None:
    ended = natwork("--set", f"state_dir={tmp_path}", "status", "--json")
    assert (ended.code, ended.out) == (ExitCode.PRECONDITION, "")
    assert "no system was started" in ended.err


def test_status_waits_and_gives_up(natwork: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(lifecycle.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(lifecycle.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    ended = natwork("--set", f"state_dir={tmp_path}", "status", "--wait", "5")
    assert ended.code == ExitCode.TIMED_OUT
    assert "not ready after 5 s" in ended.err
    assert now[0] == pytest.approx(5.0)


def test_status_waits_and_gets_an_answer(
    natwork: Any, gateway: Any, state: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway.answers(503, {"detail": "restarting"})
    monkeypatch.setattr(lifecycle.time, "sleep", lambda _: gateway.answers(200, state))
    assert natwork("--set", f"state_dir={gateway.state_dir}", "status", "--wait", "60", "--json").code == 0
    assert len(gateway.asked) == 2


def test_a_real_world_is_ready_while_it_learns(natwork: Any, gateway: Any, state: dict[str, Any]) -> None:
    gateway.answers(200, {**state, "backend": "real", "turns": 0})
    ended = natwork("--set", f"state_dir={gateway.state_dir}", "status", "--wait", "5")
    assert ended.code == 0
    assert "orders are taken; profiles are being learnt" in ended.err


def test_a_loop_that_stands_still_is_no_success(
    natwork: Any, gateway: Any, state: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway.answers(200, {**state, "trouble": "emulated world: no answer"})
    ended = natwork("--set", f"state_dir={gateway.state_dir}", "status")
    assert ended.code == ExitCode.FAILED
    assert "the loop stands still: emulated world: no answer" in ended.err
    now = [0.0]
    monkeypatch.setattr(lifecycle.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(lifecycle.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    ended = natwork("--set", f"state_dir={gateway.state_dir}", "status", "--wait", "5")
    assert ended.code == ExitCode.TIMED_OUT
    assert "emulated world: no answer" in ended.err


def test_the_journal_of_an_ended_world_is_set_aside_and_stays_readable(natwork: Any, own_state: Path) -> None:
    before = natwork("--set", f"state_dir={own_state}", "decisions", "--json").out
    folder = lifecycle.set_aside(own_state)
    assert folder == own_state / "ended" / "1"
    assert natwork("--set", f"state_dir={folder}", "decisions", "--json").out == before
    assert natwork("--set", f"state_dir={own_state}", "decisions").code == ExitCode.PRECONDITION
    assert lifecycle.set_aside(own_state) is None


def test_a_journal_that_is_written_is_not_set_aside(own_state: Path) -> None:
    journal = SqliteJournal.open(own_state, origin="natwork-ray/control")
    try:
        with pytest.raises(PreconditionError, match="another process"):
            lifecycle.set_aside(own_state)
    finally:
        journal.close()
    (own_state / "ended" / "7").mkdir(parents=True)
    assert lifecycle.set_aside(own_state) == own_state / "ended" / "8"


def test_nobody_answers(natwork: Any, gateway: Any) -> None:
    gateway.close()
    ended = natwork("--set", f"state_dir={gateway.state_dir}", "status")
    assert ended.code == ExitCode.PRECONDITION
    assert "nobody answers at http://127.0.0.1:" in ended.err


def test_a_silent_gateway_times_out(gateway: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(*_: object, **__: object) -> None:
        raise httpx.ReadTimeout("silence")

    monkeypatch.setattr(httpx, "request", silent)
    with pytest.raises(TimedOutError, match="did not answer in 20 s"):
        doors.Doors(gateway.state_dir).get("/state")


def test_down(natwork: Any, tmp_path: Path) -> None:
    ended = natwork("--set", f"state_dir={tmp_path}", "down")
    assert (ended.code, ended.out) == (0, "")
    assert "nothing was running" in ended.err
    assert json.loads(natwork("--set", f"state_dir={tmp_path}", "down", "--json").out) == {"ended": False}


@contextlib.contextmanager
def _taken_port() -> Any:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        yield holder.getsockname()[1]


def _free_port() -> int:
    with _taken_port() as port:
        pass
    return int(port)


def test_up_refuses_a_taken_port(natwork: Any, tmp_path: Path) -> None:
    with _taken_port() as port:
        ended = natwork("--set", f"state_dir={tmp_path}", "--set", f"http.port={port}", "up", "--json")
    assert (ended.code, ended.out) == (ExitCode.PRECONDITION, "")
    assert "--set http.port=ANOTHER" in ended.err


def test_up_refuses_a_second_system(natwork: Any, tmp_path: Path) -> None:
    record = cluster.ClusterRecord(
        pid=os.getpid(),
        created_s=cluster.psutil.Process().create_time(),
        address="",
        dashboard_port=None,
        metrics_port=1,
        temp_dir="",
    )
    (tmp_path / cluster.CLUSTER_FILE).write_bytes(encode(record))
    ended = natwork("--set", f"state_dir={tmp_path}", "up")
    assert ended.code == ExitCode.FAILED
    assert "runs already" in ended.err


def test_up_refuses_what_cannot_run_before_it_starts_ray(natwork: Any, tmp_path: Path) -> None:
    for setting in ("emulation.scenario=moon-base", "backend=replay", f"model={tmp_path / 'absent'}"):
        place = ("--set", f"state_dir={tmp_path}", "--set", f"http.port={_free_port()}")
        ended = natwork(*place, "--set", setting, "up")
        assert ended.code in (ExitCode.USAGE, ExitCode.PRECONDITION)
        assert not (tmp_path / cluster.CLUSTER_FILE).exists()


def test_up_starts_everything_and_lets_go(natwork: Any, tmp_path: Path, without_ray: Any) -> None:
    started = without_ray()
    state = tmp_path / "state"
    place = ("--set", f"state_dir={state}", "--set", f"http.port={_free_port()}")
    ended = natwork(*place, "up", "--json", "--hours", "0.5", "--mode", "approve")
    assert ended.code == 0
    answer = json.loads(ended.out)
    assert (answer["url"], answer["dashboard"]) == ("http://127.0.0.1:8000", "http://127.0.0.1:8265")
    assert started.done == ["start", "connect", "deploy", "start_supervisor", "disconnect"]
    written = doors.Doors(state).config
    assert (written.loop.mode, written.emulation.duration_s) == ("approve", 1800.0)
    assert Path(answer["token_file"]).stat().st_mode & 0o077 == 0
    assert state.stat().st_mode & 0o077 == 0
    del os.environ["NATWORK_CONFIG"]  # a second command is a second process
    shown = natwork(*place, "up")
    assert shown.out == ""
    assert "ray job submit" in shown.err
    assert doors.Doors(state).config.emulation.duration_s == 86_400.0


def test_up_ends_what_it_began_when_a_part_fails(natwork: Any, tmp_path: Path, without_ray: Any) -> None:
    started = without_ray(failing="deploy")
    ended = natwork("--set", f"state_dir={tmp_path}", "--set", f"http.port={_free_port()}", "up", "--json")
    assert (ended.code, ended.out) == (ExitCode.TIMED_OUT, "")
    assert started.done == ["start", "connect", "deploy", "disconnect", "end"]
