"""Reading decisions from the journal; approving and changing mode through the doors of a stand-in gateway."""

from __future__ import annotations

import csv
import getpass
import io
import json
from pathlib import Path
from typing import Any

import pytest

from natwork_ray.domain.decisions import DecisionStatus
from natwork_ray.errors import ExitCode


def _state(path: Path) -> str:
    return f"state_dir={path}"


def test_decisions_are_those_of_the_run(natwork: Any, small_run: Any) -> None:
    ended = natwork("--set", _state(small_run.state_dir), "decisions", "--json")
    assert (ended.code, ended.err) == (0, "")
    rows = json.loads(ended.out)["decisions"]
    assert [row["id"] for row in rows] == [d.id for d in small_run.ending.decisions]
    assert [row["status"] for row in rows] == [str(d.status) for d in small_run.ending.decisions]
    assert len(rows) >= 5


def test_decisions_can_be_chosen(natwork: Any, small_run: Any) -> None:
    done = [d for d in small_run.ending.decisions if d.status is DecisionStatus.DONE]
    container = done[0].container
    ended = natwork(
        "--set", _state(small_run.state_dir), "decisions", "--status", "done", "--container", container, "-o", "json"
    )
    assert [r["id"] for r in json.loads(ended.out)["decisions"]] == [d.id for d in done if d.container == container]
    nothing = natwork("--set", _state(small_run.state_dir), "decisions", "--container", "[red]", "--json")
    assert json.loads(nothing.out) == {"decisions": []}


def test_decisions_as_csv_and_table(natwork: Any, small_run: Any) -> None:
    ended = natwork("--set", _state(small_run.state_dir), "decisions", "-o", "csv")
    rows = list(csv.DictReader(io.StringIO(ended.out)))
    assert [row["id"] for row in rows] == [d.id for d in small_run.ending.decisions]
    assert list(rows[0])[:4] == ["id", "at_s", "container", "kind"]
    table = natwork("--set", _state(small_run.state_dir), "decisions").out
    assert f"decisions ({len(rows)})" in table
    assert all(row["id"] in table for row in rows)


@pytest.mark.parametrize("content", [b"", b"SQLite format 3\0", b"garbage" * 1000])
def test_a_damaged_journal_is_an_error(natwork: Any, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "journal.sqlite3").write_bytes(content)
    for command in (("decisions",), ("audit", "list"), ("audit", "export", "log")):
        ended = natwork("--set", _state(tmp_path), *command)
        assert ended.code in (ExitCode.FAILED, ExitCode.PRECONDITION, ExitCode.VERIFICATION)
        assert ended.out == ""
        assert "hint: " in ended.err
    assert not Path("log").exists()


@pytest.mark.parametrize("kind", ["absent", "folder", "state_is_a_file"])
def test_no_journal(natwork: Any, tmp_path: Path, kind: str) -> None:
    state = tmp_path / "somewhere"
    if kind == "folder":
        (state / "journal.sqlite3").mkdir(parents=True)
    elif kind == "state_is_a_file":
        state.touch()
    ended = natwork("--set", _state(state), "decisions")
    assert ended.code == ExitCode.PRECONDITION
    assert f"no journal in {state}" in ended.err


def test_approve_sends_who_and_why_with_the_token(natwork: Any, gateway: Any) -> None:
    gateway.answers(200, {"id": "d-000004", "status": "issued"})
    ended = natwork(
        "--set", _state(gateway.state_dir), "approve", "d-000004", "--by", "Ada", "--note", "seen", "--json"
    )
    assert (ended.code, ended.err) == (0, "")
    assert json.loads(ended.out)["status"] == "issued"
    (asked,) = gateway.asked
    assert (asked.method, asked.path) == ("POST", "/api/v1/decisions/d-000004/approval")
    assert asked.body == {"granted": True, "by": "Ada", "note": "seen"}
    assert asked.authorization == "Bearer s3cret"


def test_refuse_and_the_users_name(natwork: Any, gateway: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(getpass, "getuser", lambda: "grace")
    gateway.answers(200, {"status": "refused"})
    ended = natwork("--set", _state(gateway.state_dir), "approve", "d-000005", "--refuse")
    assert (ended.code, ended.out) == (0, "")
    assert "d-000005 is refused" in ended.err
    assert gateway.asked[0].body == {"granted": False, "by": "grace", "note": ""}


def test_a_user_without_a_name_must_say_who(natwork: Any, gateway: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> str:
        raise KeyError("getpwuid(): uid not found: 1234")

    monkeypatch.setattr(getpass, "getuser", nobody)
    ended = natwork("--set", _state(gateway.state_dir), "mode", "act")
    assert ended.code == ExitCode.USAGE
    assert "--by NAME" in ended.err
    assert gateway.asked == []


def test_mode(natwork: Any, gateway: Any) -> None:
    gateway.answers(200, {"mode": "approve"})
    ended = natwork("--set", _state(gateway.state_dir), "mode", "approve", "--by", "Ada")
    assert "mode is approve" in ended.err
    assert ended.out == ""
    assert (gateway.asked[0].method, gateway.asked[0].path) == ("PUT", "/api/v1/mode")
    assert json.loads(natwork("--set", _state(gateway.state_dir), "mode", "approve", "--json").out) == {
        "mode": "approve"
    }


@pytest.mark.parametrize(
    ("identifier", "path"),
    [
        ("../mode", "/api/v1/decisions/..%2Fmode/approval"),
        ("d?x=1#y", "/api/v1/decisions/d%3Fx%3D1%23y/approval"),
        ("[red]\x1b[31m", "/api/v1/decisions/%5Bred%5D%1B%5B31m/approval"),
    ],
)
def test_an_identifier_is_one_part_of_the_path(natwork: Any, gateway: Any, identifier: str, path: str) -> None:
    gateway.answers(404, {"detail": f"no decision {identifier}", "hint": "look again"})
    ended = natwork("--set", _state(gateway.state_dir), "approve", identifier, "--by", "Ada")
    assert ended.code == ExitCode.FAILED
    assert gateway.asked[0].path == path
    assert "\x1b" not in ended.err
    assert "hint: look again" in ended.err


@pytest.mark.parametrize(
    ("status", "kind", "code"),
    [
        (400, "about:blank", ExitCode.USAGE),
        (401, "about:blank", ExitCode.REFUSED),
        (403, "about:blank", ExitCode.REFUSED),
        (404, "urn:natwork:problem:not-found", ExitCode.FAILED),
        (409, "urn:natwork:problem:refused", ExitCode.REFUSED),
        (409, "urn:natwork:problem:quota", ExitCode.REFUSED),
        (409, "urn:natwork:problem:conflict", ExitCode.FAILED),
        (409, "about:blank", ExitCode.REFUSED),
        (422, "urn:natwork:problem:usage", ExitCode.USAGE),
        (500, "about:blank", ExitCode.FAILED),
        (503, "urn:natwork:problem:timed-out", ExitCode.TIMED_OUT),
        (503, "urn:natwork:problem:precondition", ExitCode.PRECONDITION),
    ],
)
def test_refusals_of_the_gateway(natwork: Any, gateway: Any, status: int, kind: str, code: ExitCode) -> None:
    gateway.answers(status, {"type": kind, "detail": "not so", "hint": "do otherwise"})
    ended = natwork("--set", _state(gateway.state_dir), "mode", "act", "--by", "Ada", "--json")
    assert ended.code == code
    assert ended.out == ""
    assert f"error: {status}: not so" in ended.err
    assert "hint: do otherwise" in ended.err


@pytest.mark.parametrize("body", [b"", b"<html>[red]", b"[1]", b"null", b"\xff\xfe", b'"x"'])
@pytest.mark.parametrize("status", [200, 502])
def test_another_program_on_the_port(natwork: Any, gateway: Any, body: bytes, status: int) -> None:
    gateway.answers(status, body)
    ended = natwork("--set", _state(gateway.state_dir), "mode", "act", "--by", "Ada")
    assert ended.code == ExitCode.FAILED
    assert f"answered {status} without a JSON object" in ended.err


@pytest.mark.parametrize("token", [None, b"\xff\xfe"])
def test_without_the_token_nothing_is_asked(natwork: Any, gateway: Any, token: bytes | None) -> None:
    path = gateway.state_dir / "api-token"
    path.unlink()
    if token is not None:
        path.write_bytes(token)
    ended = natwork("--set", _state(gateway.state_dir), "mode", "act", "--by", "Ada")
    assert ended.code == ExitCode.PRECONDITION
    assert "cannot read the token" in ended.err
    assert gateway.asked == []
