"""Model versions across Ray: replicas that follow the control actor's choice, and the check before a choice.

A replica asks the control actor which version is in use and gets the answer when it changes (a long poll), so a choice
reaches every replica within milliseconds and costs nothing in between. It fetches the bytes from the control actor too:
the folder of versions lies on one machine only. While the control actor is away, a replica serves on with what it has.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from ray import serve
from ray.serve.exceptions import RayServeException

from agents.calls import persist
from agents.control import connect
from agents.naming import NAMESPACE, SERVED_MODELS
from natwork_ray.control.models import ModelFacts, ShelfApi
from natwork_ray.errors import InputError, NatworkError, NotFoundError, TimedOutError

POLL_S = 20.0
_PAUSE_S = 2.0
_CHECK_PATIENCE_S = 30.0

_log = logging.getLogger(__name__)


class ModelWatch:
    """Keeps one replica at the version in use. `tend` is called again and again, and starts it when it does not run."""

    def __init__(
        self,
        name: str,
        *,
        serving: Callable[[], str],
        swap: Callable[[bytes], Awaitable[object]],
        shelf: ShelfApi | None = None,
        poll_s: float = POLL_S,
        pause_s: float = _PAUSE_S,
    ) -> None:
        """`serving` names the digest of the version that the replica serves, `swap` replaces it (InputError: refused).

        `shelf` is the control actor's by default.
        """
        self._name, self._serving, self._swap = name, serving, swap
        self._shelf: ShelfApi = shelf or connect(NAMESPACE, patience_s=poll_s + 10.0)
        self._poll_s, self._pause_s = poll_s, pause_s
        self._refused: str | None = None
        self._task: asyncio.Task[None] | None = None

    def tend(self) -> None:
        """Start watching on the running event loop, if nobody watches."""
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._watch())

    def stop(self) -> None:
        """Watch no longer."""
        if self._task is not None:
            self._task.cancel()

    async def step(self) -> None:
        """Wait for a choice that differs from what is served, and follow it.

        Raises:
            NatworkError: the control actor is away, or the version cannot be had.
        """
        seen = self._refused or self._serving()
        in_use = await self._shelf.model_in_use(self._name, other_than=seen, patience_s=self._poll_s)
        if in_use.sha256 == self._refused:
            return
        self._refused = None
        if in_use.sha256 == self._serving():
            return
        data = await self._shelf.model_data(self._name, in_use.sha256)
        try:
            await self._swap(data)
        except InputError as error:
            # It was tried before it was chosen, so this replica runs other code: it stays with what it can load.
            self._refused = in_use.sha256
            _log.warning("version %s of model %s does not load here: %s", in_use.sha256[:12], self._name, error)

    async def _watch(self) -> None:
        while True:
            try:
                await self.step()
            except NatworkError as error:
                _log.debug("model %s: %s", self._name, error)
                await asyncio.sleep(self._pause_s)


class ServeModelCheck:
    """`ModelCheck` by a replica of the application that serves the model."""

    async def check(self, name: str, data: bytes) -> ModelFacts:
        """See `ModelCheck`."""
        app = SERVED_MODELS.get(name)
        if app is None:
            raise NotFoundError(
                f"there is no model {name[:80]!r} to be served", hint=f"there are: {', '.join(SERVED_MODELS)}"
            )

        async def ask() -> Any:
            try:
                return await serve.get_app_handle(app).check.remote(data)
            except RayServeException as error:
                raise TimedOutError(
                    f"nobody serves model {name!r}: {error}", hint="`natwork status` shows what runs"
                ) from error

        facts: ModelFacts = await persist(ask, what=f"trying a version of {name}", patience_s=_CHECK_PATIENCE_S)
        return facts
