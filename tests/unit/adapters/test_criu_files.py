"""CRIU's statistics, logs and cache."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from natwork_ray.adapters import criu_files
from natwork_ray.adapters.criu_files import (
    CriuTimes,
    decisive_line,
    drop_cache,
    fetched_bytes,
    hint_for,
    lazy_bytes,
    parse_times,
    read_log,
    read_times,
    share_cache,
    size_of,
)
from natwork_ray.errors import InputError

HEADER = (0x55105940).to_bytes(4, "little") + (0x57093306).to_bytes(4, "little")


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def message(**fields: int) -> bytes:
    return b"".join(varint(int(name[1:]) << 3) + varint(number) for name, number in fields.items())


# As CRIU 4.2 writes them after a dump: times, pages scanned and written, and fields that nobody reads.
_INNER = message(f1=1234, f2=78_377, f3=60_020, f4=21_620, f5=25_646, f6=0, f7=19_067, f9=0, f10=1)
DUMP = b"\x0a" + varint(len(_INNER)) + _INNER


def stats(body: bytes) -> bytes:
    return HEADER + len(body).to_bytes(4, "little") + body


def test_times_of_a_dump() -> None:
    times = parse_times(stats(DUMP))
    assert (times.freezing_us, times.frozen_us, times.pages_written) == (1234, 78_377, 19_067)


def test_times_of_a_restore() -> None:
    inner = message(f1=0, f2=0, f3=5, f4=2048, f5=7)
    assert parse_times(stats(b"\x12" + varint(len(inner)) + inner)) == CriuTimes(restore_us=2048, pages_restored=7)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 40,
        stats(DUMP)[:-1],
        stats(DUMP) + b"\0",
        stats(b"\x0a\xff"),
        stats(b"\x0d\0\0\0\0"),
        stats(b"\x08" + b"\xff" * 11),
        b"\0\0\0\0" + stats(DUMP)[4:],
        b"x" * 70_000,
    ],
)
def test_damaged_statistics_are_refused(data: bytes) -> None:
    with pytest.raises(InputError):
        parse_times(data)


@given(st.binary(max_size=200))
def test_no_bytes_break_the_reader(body: bytes) -> None:
    try:
        parse_times(stats(body))
    except InputError as error:
        assert error.hint  # noqa: PT017


def test_statistics_are_found_in_a_work_folder(tmp_path: Path) -> None:
    assert read_times(tmp_path) is None
    (tmp_path / "stats-dump").write_bytes(stats(DUMP))
    assert read_times(tmp_path) == parse_times(stats(DUMP))


def test_the_first_error_decides_and_has_a_hint() -> None:
    log = (
        "(00.123365) Error (criu/page-pipe.c:418): page-pipe: tee: 65536: Operation not permitted\n"
        "(00.124299) Error (criu/cr-dump.c:1883): Lazy pages transfer FAILED.\n"
    )
    assert decisive_line(log) == "page-pipe: tee: 65536: Operation not permitted"
    assert "pipe-max-size" in hint_for(decisive_line(log))
    noise = "(00.0) Error (criu/rlimit.c:1): rlimit: Can't setup RLIMIT_NOFILE for self: Operation not permitted\n"
    assert decisive_line(noise + log) == decisive_line(log)
    assert decisive_line(noise) == ""
    assert decisive_line("(00.1) all is well\n") == ""
    assert hint_for("something else") == ""
    assert "full" in hint_for("Can't write: No space left on device")


def test_what_a_lazy_dump_leaves_is_what_the_target_fetches() -> None:
    dump = "(00.1) Pagemap generated: 3 pages (0 lazy) 0 holes\n(00.2) Pagemap generated: 40 pages (37 lazy) 0 holes\n"
    fetch = "(00.1) pr1-1 Read 7fc5435c5000 36 pages\n(00.2) pr1-1 Read ac4000 1 pages\n"
    assert lazy_bytes(dump) == fetched_bytes(fetch) == 37 * 4096


def test_a_log_that_is_not_there_is_empty(tmp_path: Path) -> None:
    assert read_log(tmp_path / "none") == ""


def test_the_size_of_a_set_counts_pages_apart(tmp_path: Path) -> None:
    (tmp_path / "pages-1.img").write_bytes(b"x" * 4096)
    (tmp_path / "core-1.img").write_bytes(b"x" * 100)
    (tmp_path / "pages-x.img").write_bytes(b"x")
    (tmp_path / "parent").symlink_to("../pre-1")
    assert size_of(tmp_path) == (4197, 4096)


class TestCache:
    """CRIU's cache is linked to where it finds it, and taken away again."""

    @pytest.fixture(autouse=True)
    def _made(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(criu_files, "_made_apart", lambda *_: b"features")
        monkeypatch.setattr(criu_files, "_keeps", lambda _folder: False)

    def test_it_is_linked_and_dropped(self, tmp_path: Path) -> None:
        cache, folder = tmp_path / "criu.kdat", tmp_path / "images"
        folder.mkdir()
        assert share_cache(Path("criu"), folder, {}, cache)
        assert cache.read_bytes() == b"features"
        drop_cache(tmp_path / "others", cache)
        assert cache.is_symlink()
        drop_cache(folder, cache)
        assert not os.path.lexists(cache)

    def test_a_link_that_dangles_is_replaced_and_dropped_by_anybody(self, tmp_path: Path) -> None:
        cache, folder = tmp_path / "criu.kdat", tmp_path / "images"
        folder.mkdir()
        cache.symlink_to(tmp_path / "gone")
        assert share_cache(Path("criu"), folder, {}, cache)
        assert cache.exists()
        (folder / "criu.kdat").unlink()
        drop_cache(tmp_path / "others", cache)
        assert not cache.is_symlink()

    def test_one_that_is_there_is_left_alone(self, tmp_path: Path) -> None:
        cache = tmp_path / "criu.kdat"
        cache.write_bytes(b"own")
        assert share_cache(Path("criu"), tmp_path, {}, cache)
        drop_cache(tmp_path, cache)
        assert cache.read_bytes() == b"own"

    def test_where_criu_cannot_make_one_there_is_none(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(criu_files, "_made_apart", lambda *_: None)
        assert not share_cache(Path("criu"), tmp_path, {}, tmp_path / "criu.kdat")
        assert not (tmp_path / "criu.kdat").is_symlink()


def test_where_run_is_a_tmpfs_criu_keeps_its_own() -> None:
    assert criu_files._keeps(Path("/dev/shm/x")) or not os.path.ismount("/dev/shm")
    assert not criu_files._keeps(Path("/proc"))


def test_without_programs_there_is_no_cache(tmp_path: Path) -> None:
    assert criu_files._made_apart(Path("criu"), tmp_path / "criu.kdat", {"PATH": str(tmp_path)}) is None


def test_criu_writes_its_cache_in_a_mount_namespace_that_ends(tmp_path: Path) -> None:
    programs, cache = tmp_path / "bin", tmp_path / "run" / "criu.kdat"
    programs.mkdir()
    cache.parent.mkdir()
    skip = 'while [ "$1" != -- ]; do shift; done; shift; exec "$@"'
    texts = {
        "unshare": skip,
        "nsenter": skip,
        "mount": "exit 0",
        "criu": f"printf features > {cache}",
        "cat": "exec /bin/cat",
    }
    for name, text in texts.items():
        (programs / name).write_text(f"#!/bin/sh\n{text}\n")
        (programs / name).chmod(0o700)
    env = {"PATH": str(programs)}
    assert criu_files._made_apart(programs / "criu", cache, env) == b"features"
    cache.unlink()
    (programs / "criu").write_text("#!/bin/sh\nexit 1\n")
    assert criu_files._made_apart(programs / "criu", cache, env) is None
