"""`natwork audit`: list, show, export and verify, on the journal of a small run; and on altered exports."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from natwork_ray.domain.auditing import AuditKind
from natwork_ray.errors import ExitCode


@pytest.fixture
def run(natwork: Any, small_run: Any) -> Any:
    """The command on the small run's state directory."""
    return lambda *arguments: natwork("--set", f"state_dir={small_run.state_dir}", *arguments)


@pytest.fixture(scope="session")
def exported(small_run: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from natwork_ray.cli.run_record import verify_log

    path = tmp_path_factory.mktemp("export") / "audit.log"
    verify_log(small_run.state_dir, path)
    return path


def test_list(run: Any) -> None:
    everything = json.loads(run("audit", "list", "--limit", "10000", "--json").out)["entries"]
    assert [e["seq"] for e in everything] == list(range(len(everything)))
    assert everything[0]["kind"] == "run"
    part = json.loads(run("audit", "list", "--start", "3", "--limit", "4", "-o", "json").out)["entries"]
    assert part == everything[3:7]
    decided = json.loads(run("audit", "list", "--kind", "decision", "--json").out)["entries"]
    assert decided == [e for e in everything if e["kind"] == str(AuditKind.DECISION)][:100]
    rows = list(csv.DictReader(io.StringIO(run("audit", "list", "--limit", "3", "-o", "csv").out)))
    assert [r["seq"] for r in rows] == ["0", "1", "2"]
    assert "entries (2)" in run("audit", "list", "--limit", "2").out
    assert json.loads(run("audit", "list", "--start", "1000000", "--json").out) == {"entries": []}


def test_show(run: Any) -> None:
    document = json.loads(run("audit", "show", "0").out)
    assert document["kind"] == "run"
    assert json.loads(document["line"])["seq"] == 0
    assert document["inclusion"]["hashes"]
    ended = run("audit", "show", "1000000")
    assert (ended.code, ended.out) == (ExitCode.FAILED, "")


def test_export_and_verify(run: Any, natwork: Any, small_run: Any, exported: Path) -> None:
    ended = run("audit", "export", "log")
    assert (ended.code, ended.out) == (0, "")
    assert Path("log").read_bytes() == exported.read_bytes()
    assert not list(Path().glob(".*.part"))
    pub = small_run.state_dir / "audit.pub"
    report = json.loads(natwork("audit", "verify", "log", "--public-key", pub, "--json").out)
    assert report["verified"] is True
    assert report["pinned"] is True
    assert report["root"] == small_run.ending.audit_root
    again = natwork("audit", "verify", "log", "--public-key", pub.read_text().strip())
    assert again.code == 0
    assert "verified: " in again.err
    assert "could have made the key" not in again.err
    assert "could have made the key" in natwork("audit", "verify", "log").err


def test_export_to_stdout(run: Any, exported: Path) -> None:
    assert run("audit", "export").out == exported.read_text(encoding="utf-8")


def test_export_replaces_nothing_unasked(run: Any, small_run: Any) -> None:
    Path("log").write_text("mine")
    ended = run("audit", "export", "log")
    assert ended.code == ExitCode.PRECONDITION
    assert "--force" in ended.err
    assert Path("log").read_text() == "mine"
    assert run("audit", "export", "log", "--force").code == 0
    assert Path("log").read_text() != "mine"
    Path("folder").mkdir()
    assert run("audit", "export", "folder", "--force").code == ExitCode.USAGE
    assert run("audit", "export", "nowhere/log").code == ExitCode.PRECONDITION
    ended = run("audit", "export", small_run.state_dir / "journal.sqlite3", "--force")
    assert ended.code == ExitCode.USAGE
    assert "in the state directory" in ended.err


def test_a_failed_export_leaves_the_old_file(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from natwork_ray.adapters.sqlite_journal import SqliteJournal

    def full(_: object, stream: Any) -> int:
        stream.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(SqliteJournal, "export", full)
    Path("log").write_text("old")
    ended = run("audit", "export", "log", "--force")
    assert ended.code == ExitCode.FAILED
    assert "No space left" in ended.err
    assert [p.name for p in Path().iterdir()] == ["log"]
    assert Path("log").read_text() == "old"


@pytest.mark.parametrize("place", [0.0, 0.3, 0.7, 0.999])
def test_a_changed_byte_ends_with_4(natwork: Any, exported: Path, place: float) -> None:
    data = bytearray(exported.read_bytes())
    data[int(place * len(data))] ^= 1
    Path("log").write_bytes(data)
    ended = natwork("audit", "verify", "log", "--json")
    assert (ended.code, ended.out) == (ExitCode.VERIFICATION, "")
    assert "hint: " in ended.err


@pytest.mark.parametrize("content", [b"", b"\n", b"\0" * 100, b"\xff" * 70_000, b"{}\n", b"[red]\x1b[2J\n"])
def test_what_is_no_export_ends_with_4(natwork: Any, content: bytes) -> None:
    Path("log").write_bytes(content)
    ended = natwork("audit", "verify", "log")
    assert ended.code == ExitCode.VERIFICATION
    assert "\x1b" not in ended.err


def test_a_huge_sparse_file_is_refused_at_its_first_line(natwork: Any) -> None:
    with Path("log").open("wb") as file:
        file.truncate(2**40)
    assert natwork("audit", "verify", "log").code == ExitCode.VERIFICATION


def test_witness(run: Any, natwork: Any, exported: Path, own_state: Path) -> None:
    note = json.loads(run("audit", "show", "0").out)["inclusion"]["checkpoint"]
    Path("witness").write_text(note)
    assert json.loads(natwork("audit", "verify", exported, "--witness", "witness", "--json").out)["witnessed"] > 0
    Path("witness").write_bytes(b"nonsense")
    assert natwork("audit", "verify", exported, "--witness", "witness").code == ExitCode.VERIFICATION


def test_files_that_cannot_be_read(natwork: Any, exported: Path) -> None:
    assert natwork("audit", "verify", "absent").code == ExitCode.PRECONDITION
    assert natwork("audit", "verify", ".").code == ExitCode.PRECONDITION
    assert natwork("audit", "verify", exported, "--witness", "absent").code == ExitCode.PRECONDITION
    assert natwork("audit", "verify", exported, "--witness", ".").code == ExitCode.PRECONDITION
    with Path("huge").open("wb") as file:
        file.truncate(2**30)
    for option in ("--witness", "--public-key"):
        ended = natwork("audit", "verify", exported, option, "huge")
        assert ended.code == ExitCode.FAILED
        assert "larger than" in ended.err


@pytest.mark.parametrize("key", ["nonsense", "k" * 5000, "[red]", "a+b+c", "\x1b[2J"])
def test_keys_that_are_none(natwork: Any, exported: Path, key: str) -> None:
    ended = natwork("audit", "verify", exported, "--public-key", key)
    assert ended.code in (ExitCode.FAILED, ExitCode.VERIFICATION)
    assert "\x1b" not in ended.err


def test_the_wrong_key_is_a_failed_verification(natwork: Any, exported: Path) -> None:
    from natwork_ray.audit.notes import Signer

    other = str(Signer.generate("natwork-ray/control").verifier_key)
    assert natwork("audit", "verify", exported, "--public-key", other).code == ExitCode.VERIFICATION


def test_a_journal_whose_head_was_altered(natwork: Any, own_state: Path) -> None:
    import sqlite3
    from contextlib import closing

    with closing(sqlite3.connect(own_state / "journal.sqlite3")) as database:
        database.execute("DELETE FROM entries WHERE seq = (SELECT max(seq) FROM entries)")
        database.commit()
    ended = natwork("--set", f"state_dir={own_state}", "audit", "list")
    assert ended.code in (ExitCode.FAILED, ExitCode.VERIFICATION)
    shutil.rmtree(own_state)
