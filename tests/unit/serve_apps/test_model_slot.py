from __future__ import annotations

import asyncio
import threading

import pytest

from natwork_ray.errors import InputError
from serve_apps.model_slot import ModelSlot


def load(data: bytes) -> str:
    if not data:
        raise InputError("no model", hint="send one")
    return data.decode()


def test_a_version_that_loads_takes_the_place() -> None:
    async def swapped() -> None:
        slot = ModelSlot(load, "old")
        before = await slot.provide()
        assert await slot.swap(b"new") == "new"
        assert (before, slot.current, await slot.provide()) == ("old", "new", "new")

    asyncio.run(swapped())


def test_one_that_does_not_load_leaves_the_old_one() -> None:
    async def refused() -> None:
        slot = ModelSlot(load, "old")
        with pytest.raises(InputError):
            await slot.swap(b"")
        assert slot.current == "old"
        assert await slot.check(b"tried only") == "tried only"
        assert slot.current == "old"

    asyncio.run(refused())


def test_the_old_one_answers_while_the_new_one_loads() -> None:
    loading, go_on = threading.Event(), threading.Event()

    def slowly(data: bytes) -> str:
        loading.set()
        assert go_on.wait(10)
        return data.decode()

    async def overlapping() -> None:
        slot = ModelSlot(slowly, "old")
        swap = asyncio.create_task(slot.swap(b"new"))
        await asyncio.to_thread(loading.wait, 10)
        assert await slot.provide() == "old"
        go_on.set()
        await swap
        assert slot.current == "new"

    asyncio.run(overlapping())
