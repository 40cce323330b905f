"""How training tells how far it is."""

from __future__ import annotations

from collections.abc import Callable

# (done, total, what): called between steps.
Progress = Callable[[int, int, str], None]


def no_progress(_done: int, _total: int, _what: str) -> None:
    """Report nothing."""


class Counted:
    """Counts steps of a known total, whichever part of the work they come from."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def step(self, what: str) -> None:
        """One more."""
        self._done += 1
        self._progress(self._done, self._total, what)
