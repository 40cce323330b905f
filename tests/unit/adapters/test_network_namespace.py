"""Namespaces by name: what the kernel is asked, what is left when it refuses; and, as root, real ones."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

import pytest

from natwork_ray.adapters import network_namespace
from natwork_ray.adapters.network_namespace import delete, inside, is_namespace, make

_STATUS = Path("/proc/self/status").read_text(encoding="ascii")
_MAY = os.geteuid() == 0 and bool(int(_STATUS.partition("CapEff:")[2].split()[0], 16) >> 21 & 1)  # CAP_SYS_ADMIN
AS_ROOT = pytest.mark.skipif(not _MAY, reason="network namespaces need root")
OWN = Path("/proc/self/ns/net")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is called, by name and thread; `mount` refuses where the list begins with `refuse`."""
    found: list[str] = []

    def call(name: str, *_arguments: object) -> None:
        found.append(name)
        assert threading.current_thread() is not threading.main_thread() or name == "umount2"
        if name == "mount" and found[0] == "refuse":
            raise OSError(1, "mount: Operation not permitted")

    monkeypatch.setattr(network_namespace, "_call", call)
    return found


def test_one_is_made_in_a_thread_of_its_own(tmp_path: Path, asked: list[str]) -> None:
    path = tmp_path / "web"
    make(path)
    assert asked == ["unshare", "mount"]
    assert path.exists()
    make(path)  # what was left of an attempt that was killed is no namespace
    assert asked == ["unshare", "mount"] * 2


def test_nothing_is_left_of_one_that_was_refused(tmp_path: Path, asked: list[str]) -> None:
    asked.append("refuse")
    with pytest.raises(OSError, match="not permitted"):
        make(tmp_path / "web")
    assert not (tmp_path / "web").exists()


def test_a_file_that_is_none_is_taken_away_and_never_unmounted(tmp_path: Path, asked: list[str]) -> None:
    (tmp_path / "web").touch()
    assert not is_namespace(tmp_path / "web")
    assert not is_namespace(tmp_path / "none")
    assert is_namespace(OWN)
    for _ in range(2):
        delete(tmp_path / "web")
    assert asked == []
    assert not (tmp_path / "web").exists()


def test_work_is_done_inside_and_what_it_raises_is_heard(asked: list[str]) -> None:
    assert inside(OWN, lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        inside(OWN, lambda: 1 // 0)
    assert asked == ["setns", "setns"]


def test_what_is_no_namespace_cannot_be_entered(tmp_path: Path) -> None:
    (tmp_path / "web").touch()
    for name in ("web", "none"):
        with pytest.raises(OSError, match=r"setns|No such file"):
            inside(tmp_path / name, lambda: 3)


@AS_ROOT
def test_a_real_one_is_empty_and_ours_stays_ours(tmp_path: Path) -> None:
    path = tmp_path / "web"
    before = (OWN.stat().st_ino, socket.if_nameindex())
    make(path)
    try:
        assert is_namespace(path)
        assert inside(path, socket.if_nameindex) == [(1, "lo")]
        inode = path.stat().st_ino
        make(path)
        assert path.stat().st_ino == inode != before[0]
    finally:
        delete(path)
    assert not path.exists()
    assert (OWN.stat().st_ino, socket.if_nameindex()) == before
