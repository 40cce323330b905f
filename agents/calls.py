"""Calling an actor that may be restarting.

Ray gives at-most-once or at-least-once; exactly-once effects come from ids and keys (see natwork_ray.ports). So every
call here is repeated until an answer comes or the time is up, and what must not happen twice is told apart by its id.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from natwork_ray.errors import NatworkError, TimedOutError

PATIENCE_S = 60.0
_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 1.0


async def persist(ask: Callable[[], Awaitable[Any]], *, what: str, patience_s: float = PATIENCE_S) -> Any:
    """Await `ask()`, again and again while the actor behind it is dead or restarting.

    Args:
        ask: makes a fresh call and returns its awaitable; must be safe to repeat.
        what: words for the error message.
        patience_s: seconds after which to give up, in all.

    Raises:
        TimedOutError: no answer in time.
        NatworkError: the actor's own refusal, as it raised it.
    """
    deadline = time.monotonic() + patience_s
    pause_s = _FIRST_PAUSE_S
    while True:
        remaining_s = deadline - time.monotonic()
        try:
            return await asyncio.wait_for(_awaitable(ask()), timeout=max(0.1, remaining_s))
        except RayTaskError as error:
            if isinstance(error.cause, NatworkError):
                raise error.cause from None
            raise
        except (RayActorError, GetTimeoutError, TimeoutError, ValueError) as error:
            # ValueError: Ray finds no actor of that name (yet, or while it is being made again).
            if time.monotonic() + pause_s >= deadline:
                raise TimedOutError(
                    f"{what}: no answer within {patience_s:.0f} s ({type(error).__name__})",
                    hint="`natwork status` shows what runs; the logs are in the session folder of Ray",
                ) from error
        await asyncio.sleep(pause_s)
        pause_s = min(_LONGEST_PAUSE_S, pause_s * 2)


async def _awaitable(pending: Awaitable[Any]) -> Any:
    return await pending


def find(name: str, namespace: str) -> Any:
    """Handle of a named actor; ValueError when there is none."""
    return ray.get_actor(name, namespace=namespace)


class NamedActor:
    """A named actor that is found again after it was made anew."""

    def __init__(self, name: str, *, namespace: str, what: str, patience_s: float = PATIENCE_S) -> None:
        self._name, self._namespace, self._what, self._patience_s = name, namespace, what, patience_s
        self._handle: Any = None

    async def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method that is safe to repeat; errors as in `persist`."""

        def ask() -> Awaitable[Any]:
            if self._handle is None:
                self._handle = find(self._name, self._namespace)
            pending: Awaitable[Any] = getattr(self._handle, method).remote(*args, **kwargs)
            return pending

        async def ask_or_forget() -> Any:
            try:
                return await ask()
            except RayActorError:
                self._handle = None
                raise

        return await persist(ask_or_forget, what=f"{self._what}: {method}", patience_s=self._patience_s)
