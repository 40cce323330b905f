"""One model of a replica, and how a newer version takes its place without a request noticing.

The new version is loaded and warmed up in a thread, beside the old one, which answers meanwhile. Then one assignment
puts it into its place. Whoever serves a request takes `current` once, at its beginning, so that parsing, judging and
the digest in the answer belong to one version; requests that are under way end with the version they began with.

A version that does not load is refused and the old one stays.

    slot = ModelSlot(load_anomaly_model, first)
    served = slot.current          # once per request
    await slot.swap(data)          # InputError: it does not load
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class ModelSlot(Generic[T]):
    """Holds the version in use."""

    def __init__(self, load: Callable[[bytes], T], first: T) -> None:
        """`load` makes a version ready to serve from a model file's bytes, warmed up; InputError when it cannot."""
        self._load = load
        self._current = first
        self._swapping = asyncio.Lock()

    @property
    def current(self) -> T:
        """The version in use."""
        return self._current

    async def provide(self) -> T:
        """The version in use, as the doors ask for it."""
        return self._current

    async def check(self, data: bytes) -> T:
        """Load a version without using it.

        Raises:
            InputError: it does not load.
        """
        return await asyncio.to_thread(self._load, data)

    async def swap(self, data: bytes) -> T:
        """Load a version and use it from now on; the old one stays when it does not load.

        Raises:
            InputError: it does not load.
        """
        async with self._swapping:
            fresh = await asyncio.to_thread(self._load, data)
            self._current = fresh
        return fresh
