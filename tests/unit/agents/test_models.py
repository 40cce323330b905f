"""A replica follows the choice, stays with what it can load, and outlives the control service."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

import pytest

from agents.models import ModelWatch, ServeModelCheck
from natwork_ray.domain.model_versions import ModelInUse
from natwork_ray.errors import InputError, NotFoundError, TimedOutError


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Shelf:
    """Answers at once; `away` so many times before that."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.away = 0
        self.asked: list[str | None] = []

    async def model_in_use(self, name: str, *, other_than: str | None, patience_s: float) -> ModelInUse:
        await asyncio.sleep(0)
        self.asked.append(other_than)
        if self.away:
            self.away -= 1
            raise TimedOutError("the control actor is away", hint="wait")
        return ModelInUse(name=name, sha256=digest(self.data))

    async def model_data(self, name: str, sha256: str) -> bytes:
        return self.data


class Replica:
    def __init__(self, shelf: Any) -> None:
        self.serves = b"first"
        self.swaps = 0
        self.watch = ModelWatch(
            "profiler", serving=lambda: digest(self.serves), swap=self.swap, shelf=shelf, poll_s=0.0, pause_s=0.0
        )

    async def swap(self, data: bytes) -> None:
        self.swaps += 1
        if data == b"broken":
            raise InputError("it does not load", hint="train it anew")
        self.serves = data


def test_a_choice_is_followed_once() -> None:
    shelf = Shelf(b"second")
    replica = Replica(shelf)

    async def follow() -> None:
        await replica.watch.step()
        await replica.watch.step()

    asyncio.run(follow())
    assert (replica.serves, replica.swaps) == (b"second", 1)
    assert shelf.asked == [digest(b"first"), digest(b"second")]


def test_what_does_not_load_is_tried_once_and_the_old_one_stays(caplog: pytest.LogCaptureFixture) -> None:
    shelf = Shelf(b"broken")
    replica = Replica(shelf)

    async def follow() -> None:
        for _ in range(3):
            await replica.watch.step()
        shelf.data = b"mended"
        await replica.watch.step()

    asyncio.run(follow())
    assert (replica.serves, replica.swaps) == (b"mended", 2)
    assert "does not load here" in caplog.text


def test_going_back_to_what_is_served_needs_no_swap() -> None:
    shelf = Shelf(b"broken")
    replica = Replica(shelf)

    async def follow() -> None:
        await replica.watch.step()
        shelf.data = b"first"
        await replica.watch.step()
        shelf.data = b"broken"
        await replica.watch.step()

    asyncio.run(follow())
    assert (replica.serves, replica.swaps) == (b"first", 2)


def test_the_watch_outlives_the_control_service_and_is_started_once() -> None:
    shelf = Shelf(b"second")
    shelf.away = 3
    replica = Replica(shelf)

    async def tended() -> None:
        for _ in range(50):
            replica.watch.tend()
            await asyncio.sleep(0.001)
            if replica.serves == b"second":
                break
        replica.watch.stop()
        await asyncio.sleep(0)

    asyncio.run(tended())
    assert replica.serves == b"second"
    assert replica.swaps == 1


def test_nobody_serves_a_model_of_that_name() -> None:
    with pytest.raises(NotFoundError, match="'nobody'"):
        asyncio.run(ServeModelCheck().check("nobody", b""))
