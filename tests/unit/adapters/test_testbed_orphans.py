"""Testbeds of killed benchmarks: who made them is noted, and whoever comes next takes them down."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from natwork_ray.adapters import testbed, testbed_orphans
from natwork_ray.adapters.machine import Machine
from natwork_ray.adapters.testbed_orphans import OWNER, Owner, ephemeral, standing, take_down_orphans
from natwork_ray.adapters.testbed_state import OwnProcess, identify
from natwork_ray.domain.values import encode


@pytest.fixture
def register(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """The register, and a `down` that empties it."""
    members: dict[str, Path] = {}

    def down(state_dir: Path, *, machine: Machine | None = None) -> str | None:
        folder = state_dir / testbed.FOLDER
        name = next((name for name, path in members.items() if path == folder), None)
        if name is not None:
            del members[name]
            folder.rmdir()
        return name

    monkeypatch.setattr(testbed_orphans, "members", lambda: tuple(members.items()))
    monkeypatch.setattr(testbed, "down", down)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return members


def _made(members: dict[str, Path], name: str, state_dir: Path, maker: OwnProcess | None) -> Path:
    (state_dir / testbed.FOLDER).mkdir(parents=True)
    members[name] = state_dir / testbed.FOLDER
    if maker is not None:
        (state_dir / OWNER).write_bytes(encode(maker))
    return state_dir


ME = identify(os.getpid(), "this")
DEAD = OwnProcess(pid=os.getpid(), started_ticks=ME.started_ticks - 1, what="an earlier one of that number")


def test_only_those_of_the_dead_are_orphans(register: dict[str, Path], tmp_path: Path) -> None:
    named = _made(register, "nw0001", tmp_path / "named", None)
    alive = _made(register, "nw0002", tmp_path / "alive", ME)
    dead = _made(register, "nw0003", tmp_path / "dead", DEAD)
    assert [(one.id, one.owner) for one in standing()] == [
        ("nw0001", Owner.NONE),
        ("nw0002", Owner.ALIVE),
        ("nw0003", Owner.DEAD),
    ]
    assert take_down_orphans() == ("nw0003",)
    assert not dead.exists()
    assert named.is_dir()
    assert (alive / OWNER).is_file()
    assert take_down_orphans() == ()


def test_a_new_one_takes_orphans_down_first_and_leaves_nothing(register: dict[str, Path], tmp_path: Path) -> None:
    dead = _made(register, "nw0003", tmp_path / "dead", DEAD)
    with ephemeral("nwx-") as folder:
        assert not dead.exists()
        register["nw0004"] = folder / testbed.FOLDER
        assert [(one.id, one.owner) for one in standing()] == [("nw0004", Owner.ALIVE)]
        register.clear()
    assert not folder.exists()


def test_a_testbed_that_would_not_go_keeps_its_note(register: dict[str, Path]) -> None:
    with ephemeral("nwx-") as folder:
        (folder / testbed.FOLDER).mkdir()
    assert (folder / OWNER).is_file()
    (folder / testbed.FOLDER).rmdir()
    with ephemeral("nwx-") as other:
        (other / "mine").touch()
    assert [path.name for path in other.iterdir()] == ["mine"]


def test_notes_that_cannot_be_believed_make_no_orphan(
    register: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state_dir = _made(register, "nw0003", tmp_path / "dead", DEAD)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert standing()[0].owner is Owner.NONE  # another user's
    monkeypatch.undo()
    monkeypatch.setattr(testbed_orphans, "members", lambda: tuple(register.items()))
    (state_dir / OWNER).write_text("{")
    assert standing()[0].owner is Owner.NONE


def test_two_who_clear_up_do_not_meet(register: dict[str, Path], tmp_path: Path) -> None:
    state_dir = _made(register, "nw0003", tmp_path / "dead", DEAD)
    with (state_dir / OWNER).open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert take_down_orphans() == ()
    assert take_down_orphans() == ("nw0003",)
