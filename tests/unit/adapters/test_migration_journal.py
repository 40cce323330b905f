"""The journal of a node's migrations: durable, bounded, and never silently wrong."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from natwork_ray.adapters import migration_journal
from natwork_ray.adapters.migration_journal import (
    MAX_FILE_BYTES,
    MAX_LINE_BYTES,
    RESERVE_BYTES,
    FileMigrationJournal,
)
from natwork_ray.errors import StoreError, UsageError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "journal"


@pytest.fixture
def journal(folder: Path) -> FileMigrationJournal:
    return FileMigrationJournal(folder)


def read_or_named(read: Callable[[], tuple[bytes, ...]], file: Path) -> tuple[bytes, ...] | None:
    """What was read, which has to be JSON objects; or None, when it was refused with the file's name."""
    try:
        found = read()
    except StoreError as error:
        if str(file) not in error.what:
            raise
        return None
    assert all(isinstance(json.loads(line), dict) for line in found)
    return found


def event(number: int) -> bytes:
    return json.dumps({"number": number}).encode()


def test_what_was_appended_is_read_in_order_also_by_another(folder: Path, journal: FileMigrationJournal) -> None:
    for number in range(5):
        journal.append("m-1", event(number))
    journal.append("m-2", event(9))
    other = FileMigrationJournal(folder)
    assert other.read("m-1") == tuple(map(event, range(5)))
    assert other.read("m-2") == (event(9),)
    assert other.read("unknown") == ()
    assert other.open_keys() == ("m-1", "m-2")
    assert other.records() == ()


def test_several_events_in_one_append_are_several_lines(journal: FileMigrationJournal) -> None:
    journal.append("m", event(1) + b"\n" + event(2))
    assert journal.read("m") == (event(1), event(2))


def test_closing_files_the_record_and_forgets_the_events(folder: Path, journal: FileMigrationJournal) -> None:
    for number in range(12):
        journal.append(f"m-{number}", event(0))
        journal.close(f"m-{number}", event(number))
    journal.close("m-3", event(77))  # again, as after a crash: the first record counts
    assert journal.open_keys() == ()
    assert journal.read("m-3") == ()
    assert journal.records() == tuple(map(event, range(12)))
    again = FileMigrationJournal(folder)
    again.close("m-12", event(12))
    assert again.records() == tuple(map(event, range(13)))


def test_a_torn_last_line_is_left_out_and_cut_off(folder: Path, journal: FileMigrationJournal) -> None:
    journal.append("m", event(1))
    journal.append("m", event(2))
    file = folder / "open" / "m.jsonl"
    whole = file.read_bytes()
    for cut in range(len(whole) + 1):
        file.write_bytes(whole[:cut])
        complete = whole[:cut].count(b"\n")
        assert journal.read("m") == (event(1), event(2))[:complete]
        journal.append("m", event(3))
        assert journal.read("m") == (*(event(1), event(2))[:complete], event(3))


def test_a_long_torn_line_is_cut_off_too(folder: Path, journal: FileMigrationJournal) -> None:
    journal.append("m", event(1))
    with (folder / "open" / "m.jsonl").open("ab") as file:
        file.write(b"x" * 200_000)
    journal.append("m", event(2))
    assert journal.read("m") == (event(1), event(2))
    (folder / "open" / "n.jsonl").write_bytes(b"y" * 200_000)
    journal.append("n", event(2))
    assert journal.read("n") == (event(2),)


@given(key=st.text(min_size=1, max_size=15).filter(lambda text: not any(0xD800 <= ord(c) < 0xE000 for c in text)))
def test_any_key_is_a_file_inside_the_folder(tmp_path_factory: pytest.TempPathFactory, key: str) -> None:
    folder = tmp_path_factory.mktemp("journal")
    journal = FileMigrationJournal(folder)
    journal.append(key, event(1))
    assert journal.open_keys() == (key,)
    assert journal.read(key) == (event(1),)
    journal.close(key, event(2))
    assert FileMigrationJournal(folder).records() == (event(2),)
    assert sorted(path.name for path in folder.iterdir()) == ["open", "records", "reserve"]


@pytest.mark.parametrize("key", ["", "k" * 201, "\ud800"])
def test_keys_that_are_no_names_are_refused(journal: FileMigrationJournal, key: str) -> None:
    with pytest.raises(UsageError):
        journal.append(key, event(1))
    with pytest.raises(UsageError):
        journal.read(key)


@pytest.mark.parametrize(
    "body",
    [b"", b"no", b"[1]", b"\xff", b'{"a":1}\n', b'{"a":1}\n\n{}', b"[" * 5000,
     b'{"a":"' + b"x" * MAX_LINE_BYTES + b'"}'],
)  # fmt: skip
def test_what_is_no_event_is_not_written(folder: Path, journal: FileMigrationJournal, body: bytes) -> None:
    with pytest.raises(UsageError):
        journal.append("m", body)
    with pytest.raises(UsageError):
        journal.close("m", body)
    assert list((folder / "open").iterdir()) == []
    assert journal.records() == ()


@given(position=st.integers(0, 10_000), byte=st.integers(0, 255), insert=st.booleans())
def test_a_changed_file_is_refused_by_name_or_read_as_lines(
    tmp_path_factory: pytest.TempPathFactory, position: int, byte: int, insert: bool
) -> None:
    folder = tmp_path_factory.mktemp("journal")
    journal = FileMigrationJournal(folder)
    for number in range(6):
        journal.append("m", event(number))
    file = folder / "open" / "m.jsonl"
    data = bytearray(file.read_bytes())
    position %= len(data)
    data[position : position + (not insert)] = bytes([byte])
    file.write_bytes(data)
    events = read_or_named(lambda: journal.read("m"), file)
    if events is not None:
        assert b"".join(line + b"\n" for line in events) == bytes(data[: data.rfind(b"\n") + 1])


@given(data=st.binary(max_size=300))
def test_hostile_files_raise_or_read_as_json(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    folder = tmp_path_factory.mktemp("journal")
    journal = FileMigrationJournal(folder)
    (folder / "open" / "m.jsonl").write_bytes(data)
    (folder / "records" / "00000000001 m.json").write_bytes(data)
    read_or_named(lambda: journal.read("m"), folder / "open" / "m.jsonl")
    read_or_named(journal.records, folder / "records" / "00000000001 m.json")


def test_files_that_are_too_large_are_not_read(folder: Path, journal: FileMigrationJournal) -> None:
    journal.append("m", event(1))
    os.truncate(folder / "open" / "m.jsonl", MAX_FILE_BYTES + 1)
    with pytest.raises(StoreError, match=r"m\.jsonl"):
        journal.read("m")
    journal.close("r", event(1))
    os.truncate(folder / "records" / "00000000001 r.json", MAX_LINE_BYTES + 1)
    with pytest.raises(StoreError, match=r"r\.json"):
        journal.records()


def test_a_full_file_takes_no_more(
    folder: Path, journal: FileMigrationJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migration_journal, "MAX_FILE_BYTES", 40)
    journal.append("m", event(1))
    before = (folder / "open" / "m.jsonl").read_bytes()
    with pytest.raises(StoreError, match="at most"):
        journal.append("m", event(10**20))
    assert (folder / "open" / "m.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    "name",
    ["open/nothing", "open/%zz.jsonl", "open/a%2f.jsonl", "open/.jsonl", "open/%FF.jsonl", "records/x.json",
     "records/00000000001 .json", "records/0000000000x m.json", "records/00000000001 m.txt"],
)  # fmt: skip
def test_foreign_files_are_named(folder: Path, journal: FileMigrationJournal, name: str) -> None:
    (folder / name).write_bytes(event(1) + b"\n")
    with pytest.raises(StoreError, match="no "):
        (journal.open_keys if name.startswith("open") else journal.records)()


def test_listings_are_bounded(folder: Path, journal: FileMigrationJournal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migration_journal, "MAX_RECORDS", 3)
    monkeypatch.setattr(migration_journal, "MAX_OPEN", 3)
    for number in range(5):
        journal.append(f"m-{number}", event(number))
    with pytest.raises(StoreError, match="5 files, 3 at most"):
        journal.open_keys()
    for number in range(5):
        journal.close(f"m-{number}", event(number))
    assert journal.records() == tuple(map(event, [2, 3, 4]))


def test_a_link_is_not_followed(folder: Path, journal: FileMigrationJournal, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(b"")
    (folder / "open" / "m.jsonl").symlink_to(elsewhere)
    with pytest.raises(StoreError, match=r"m\.jsonl"):
        journal.append("m", event(1))
    with pytest.raises(StoreError, match=r"m\.jsonl"):
        journal.read("m")
    assert elsewhere.read_bytes() == b""


def test_a_crash_between_record_and_forgetting_is_finished_at_the_next_start(
    folder: Path, journal: FileMigrationJournal
) -> None:
    journal.append("m", event(1))
    events = (folder / "open" / "m.jsonl").read_bytes()
    journal.close("m", event(2))
    (folder / "open" / "m.jsonl").write_bytes(events)
    (folder / "records" / "00000000002 n.json.draft").write_bytes(b"half")
    again = FileMigrationJournal(folder)
    assert again.open_keys() == ()
    assert again.records() == (event(2),)
    assert list((folder / "records").glob("*.draft")), "who only reads changes nothing"
    again.append("other", event(3))
    assert again.open_keys() == ("other",)
    assert not (folder / "open" / "m.jsonl").exists()
    assert not list((folder / "records").glob("*.draft"))


def _full_disk(monkeypatch: pytest.MonkeyPatch, folder: Path, *, while_reserved: bool) -> None:
    write = os.pwrite

    def pwrite(descriptor: int, data: bytes, offset: int) -> int:
        if not while_reserved or (folder / "reserve").exists():
            write(descriptor, data[:3], offset)  # a part of it is on the disk already
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)


def test_the_reserve_lets_a_migration_end_on_a_full_disk(
    folder: Path, journal: FileMigrationJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not (folder / "reserve").exists(), "made by the first write"
    journal.append("m", event(1))
    assert (folder / "reserve").stat().st_size == RESERVE_BYTES
    with monkeypatch.context() as patch:
        _full_disk(patch, folder, while_reserved=True)
        journal.append("m", event(2))
        assert not (folder / "reserve").exists()
        assert journal.read("m") == (event(1), event(2))
    journal.close("m", event(3))
    assert (folder / "reserve").stat().st_size == RESERVE_BYTES


def test_a_record_uses_the_reserve_too(
    folder: Path, journal: FileMigrationJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    _full_disk(monkeypatch, folder, while_reserved=True)
    journal.close("m", event(3))
    assert journal.records() == (event(3),)


def test_a_disk_that_refuses_leaves_the_file_as_it_was(
    folder: Path, journal: FileMigrationJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal.append("m", event(1))
    _full_disk(monkeypatch, folder, while_reserved=False)
    with pytest.raises(StoreError, match="No space left"):
        journal.append("m", event(2))
    with pytest.raises(StoreError, match="No space left"):
        journal.close("m", event(2))
    assert journal.read("m") == (event(1),)
    assert journal.open_keys() == ("m",)
    assert journal.records() == ()


def test_a_failing_disk_is_no_full_one(
    folder: Path, journal: FileMigrationJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fdatasync", fail)
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StoreError, match="Input/output"):
        journal.append("m", event(1))
    with pytest.raises(StoreError, match="Input/output"):
        journal.close("m", event(1))
    assert (folder / "reserve").exists()


def test_without_room_for_the_reserve_it_works_all_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    journal = FileMigrationJournal(folder)
    assert not (folder / "reserve").exists()
    journal.append("m", event(1))
    assert journal.read("m") == (event(1),)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match="file"):
        FileMigrationJournal(tmp_path / "file" / "journal")


def test_nobody_else_can_read_it(folder: Path, journal: FileMigrationJournal) -> None:
    journal.append("m", event(1))
    journal.close("n", event(1))
    for path in [folder, *folder.rglob("*")]:
        assert path.stat().st_mode & 0o077 == 0, path
