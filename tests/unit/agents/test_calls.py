"""Calling an actor that may be restarting, without any Ray behind it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, GetTimeoutError, RayTaskError

from agents import calls
from agents.calls import NamedActor, persist
from natwork_ray.errors import ConflictError, TimedOutError


def answers(*scripted: Any) -> tuple[Callable[[], Any], list[Any]]:
    """A call that plays the script, and what was taken from it."""
    taken: list[Any] = []

    async def ask() -> Any:
        item = scripted[min(len(taken), len(scripted) - 1)]
        taken.append(item)
        if isinstance(item, BaseException):
            raise item
        return item

    return ask, taken


def raised_by_the_actor(cause: Exception) -> RayTaskError:
    return RayTaskError("submit", "trace", cause)  # type: ignore[no-untyped-call]


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "_FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(calls, "_LONGEST_PAUSE_S", 0.002)


def test_it_asks_until_the_actor_is_back() -> None:
    away = [ActorUnavailableError("restarting", None), ActorDiedError(), GetTimeoutError(), ValueError("no such name")]
    ask, taken = answers(*away, 42)
    assert asyncio.run(persist(ask, what="x")) == 42
    assert len(taken) == 5


def test_it_gives_up_when_its_patience_is_over() -> None:
    ask, taken = answers(ActorUnavailableError("restarting", None))
    with pytest.raises(TimedOutError, match="the clerk: no answer within 0 s"):
        asyncio.run(persist(ask, what="the clerk", patience_s=0.05))
    assert len(taken) > 1


def test_an_answer_that_never_comes_is_not_waited_for_longer() -> None:
    async def ask() -> None:
        await asyncio.Event().wait()

    with pytest.raises(TimedOutError):
        asyncio.run(persist(ask, what="x", patience_s=0.05))


def test_the_actors_own_refusal_is_raised_as_it_was_and_not_repeated() -> None:
    refusal = ConflictError("taken", hint="wait")
    ask, taken = answers(raised_by_the_actor(refusal))
    with pytest.raises(ConflictError) as raised:
        asyncio.run(persist(ask, what="x"))
    assert raised.value is refusal
    assert len(taken) == 1


def test_a_bug_in_the_actor_is_neither_repeated_nor_hidden() -> None:
    ask, taken = answers(raised_by_the_actor(KeyError("bug")))
    with pytest.raises(RayTaskError):
        asyncio.run(persist(ask, what="x"))
    assert len(taken) == 1


class _Method:
    def __init__(self, item: Any) -> None:
        self._item = item

    async def remote(self, *_: Any) -> Any:
        if isinstance(self._item, BaseException):
            raise self._item
        return self._item


class _Handle:
    def __init__(self, item: Any) -> None:
        self.tell = _Method(item)


def test_a_named_actor_is_looked_up_again_after_it_died(monkeypatch: pytest.MonkeyPatch) -> None:
    handles = iter([_Handle(ActorDiedError()), _Handle("here"), _Handle("unused")])
    monkeypatch.setattr(calls, "find", lambda _name, _namespace: next(handles))
    actor = NamedActor("a", namespace="n", what="x")

    async def scene() -> None:
        assert await actor.call("tell") == "here"
        assert await actor.call("tell") == "here"  # the handle is kept

    asyncio.run(scene())
    assert next(handles).tell._item == "unused"
