"""The shelf: choices are journalled and survive a restart, whoever waits is told; the desk lets nothing unsound in."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from natwork_ray.adapters.model_directory import ModelDirectory
from natwork_ray.adapters.sqlite_journal import SqliteJournal
from natwork_ray.control.direct import DirectControl
from natwork_ray.control.models import ModelDesk, ModelFacts, ModelShelf
from natwork_ray.control.moving import predict_move
from natwork_ray.domain.auditing import AuditKind
from natwork_ray.errors import ConflictError, InputError, NotFoundError

STARTED_WITH = b"what the system was started with"


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Stage:
    """A control service on a journal, its shelf, and how to begin again from what is on the disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.begin()

    def begin(self) -> None:
        self.journal = SqliteJournal.open(self.folder / "state", origin="natwork.example/audit")
        self.control = DirectControl(self.journal, predict_move)
        self.store = ModelDirectory(self.folder / "models", packaged=())

        def absent() -> bytes:
            raise NotFoundError("there is none", hint="make one")

        defaults = {"profiler": lambda: STARTED_WITH, "forecaster": absent}
        self.shelf = ModelShelf(self.control, self.store, defaults)

    def restart(self) -> None:
        self.journal.close()
        self.begin()

    def choose(self, data: bytes, key: str | None = None) -> tuple[Any, bool]:
        return asyncio.run(self.shelf.choose_model("profiler", digest(data), by="ada", note="why", key=key))


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    stage = Stage(tmp_path)
    with closing(stage.journal):
        yield stage


def in_use(stage: Stage) -> Any:
    return asyncio.run(stage.shelf.model_in_use("profiler", other_than=None, patience_s=0.0))


def test_a_choice_is_journalled_audited_and_survives_a_restart(stage: Stage) -> None:
    assert in_use(stage).sha256 == digest(STARTED_WITH)
    asyncio.run(stage.shelf.publish_model("profiler", b"better"))
    chosen, repeated = stage.choose(b"better")
    assert (chosen.sha256, chosen.previous, chosen.by, repeated) == (
        digest(b"better"),
        digest(STARTED_WITH),
        "ada",
        False,
    )
    (entry,) = [e for e in stage.journal.entries(0, 10) if e.kind is AuditKind.MODEL]
    assert (entry.subject, entry.body["sha256"]) == ("profiler", digest(b"better"))
    stage.restart()
    assert in_use(stage) == chosen
    assert stage.store.load("profiler") == b"better"


def test_what_was_answering_before_is_kept_so_that_it_can_come_back(stage: Stage) -> None:
    asyncio.run(stage.shelf.publish_model("profiler", b"better"))
    stage.choose(b"better")
    assert asyncio.run(stage.shelf.model_data("profiler", digest(STARTED_WITH))) == STARTED_WITH
    again, _ = stage.choose(STARTED_WITH)
    assert (again.sha256, again.previous) == (digest(STARTED_WITH), digest(b"better"))


def test_choosing_what_is_in_use_does_not_forget_what_was_before(stage: Stage) -> None:
    asyncio.run(stage.shelf.publish_model("profiler", b"better"))
    stage.choose(b"better")
    chosen, _ = stage.choose(b"better")
    assert chosen.previous == digest(STARTED_WITH)


def test_the_same_key_is_one_choice(stage: Stage) -> None:
    asyncio.run(stage.shelf.publish_model("profiler", b"better"))
    assert stage.choose(b"better", key="k")[1] is False
    stage.choose(STARTED_WITH)
    now, repeated = stage.choose(b"better", key="k")
    assert (repeated, now.sha256) == (True, digest(STARTED_WITH))


def test_whoever_waits_is_told_at_once(stage: Stage) -> None:
    async def wait_and_choose() -> tuple[Any, float]:
        await stage.shelf.publish_model("profiler", b"better")
        waiting = asyncio.create_task(
            stage.shelf.model_in_use("profiler", other_than=digest(STARTED_WITH), patience_s=30.0)
        )
        await asyncio.sleep(0)
        began = asyncio.get_running_loop().time()
        await stage.shelf.choose_model("profiler", digest(b"better"), by="ada", note="", key=None)
        return await waiting, asyncio.get_running_loop().time() - began

    told, took_s = asyncio.run(wait_and_choose())
    assert told.sha256 == digest(b"better")
    assert took_s < 10


def test_who_waits_in_vain_is_told_what_is_in_use(stage: Stage) -> None:
    told = asyncio.run(stage.shelf.model_in_use("profiler", other_than=digest(STARTED_WITH), patience_s=0.0))
    assert told.sha256 == digest(STARTED_WITH)


def test_unknown_models_and_versions(stage: Stage) -> None:
    with pytest.raises(NotFoundError, match="'nobody'"):
        asyncio.run(stage.shelf.publish_model("nobody", b""))
    with pytest.raises(NotFoundError, match="no version"):
        stage.choose(b"never published")
    assert [m.name for m in asyncio.run(stage.shelf.models())] == ["profiler"], "of the forecaster there is none"


class Check:
    """`bad` does not load; a version's length is the window that it needs."""

    async def check(self, name: str, data: bytes) -> ModelFacts:
        if data == b"bad":
            raise InputError("it does not load", hint="train it anew")
        return ModelFacts(sha256=digest(data), window=len(data), window_in_use=8)


@pytest.fixture
def desk(stage: Stage) -> ModelDesk:
    return ModelDesk(stage.shelf, Check())


def test_the_desk_tries_before_it_keeps_and_before_it_uses(stage: Stage, desk: ModelDesk) -> None:
    with pytest.raises(InputError):
        asyncio.run(desk.publish("profiler", b"bad"))
    assert stage.store.versions("profiler") == ()
    stage.store.publish("profiler", b"bad")  # kept by an older release, which could load it
    with pytest.raises(InputError):
        asyncio.run(desk.use("profiler", digest(b"bad"), by="ada"))
    assert in_use(stage).sha256 == digest(STARTED_WITH)


def test_longer_windows_than_clients_send_are_refused(stage: Stage, desk: ModelDesk) -> None:
    version = asyncio.run(desk.publish("profiler", b"nine long"))
    with pytest.raises(ConflictError, match="9 samples"):
        asyncio.run(desk.use("profiler", version.sha256, by="ada"))
    assert in_use(stage).sha256 == digest(STARTED_WITH)


def test_back_and_forth(stage: Stage, desk: ModelDesk) -> None:
    with pytest.raises(ConflictError, match="no other version"):
        asyncio.run(desk.rollback("profiler", by="ada"))
    for data in (b"one", b"two"):
        version = asyncio.run(desk.publish("profiler", data))
        asyncio.run(desk.use("profiler", version.sha256, by="ada"))
    for expected in (b"one", b"two"):
        back, _ = asyncio.run(desk.rollback("profiler", by="ada"))
        assert back.sha256 == digest(expected)
    with pytest.raises(NotFoundError):
        asyncio.run(desk.publish("nobody", b"one"))
