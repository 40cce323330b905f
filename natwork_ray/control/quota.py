"""The downtime-quota ledger (D3.3 section 2.2: "a budget (i.e. quota) of MTD operations for each CNF").

An availability A over a window of W seconds leaves W * (1 - A) seconds of downtime: 99.95 % of 30 days is 1296 s. The
budget is counted in seconds of downtime, not in actions (docs/adr/0004). Windows are fixed and start at multiples
of W on the backend's clock; what is left at the end of one lapses.

Rule kept: no path can promise more than is left. `reserve` takes the predicted 95th percentile before an action is
issued and refuses when it does not fit; `settle` replaces the promise by what was measured. A measured downtime above
the promise may exceed the budget: that is counted as a violation and never hidden, also when the window has ended
meanwhile. Time never goes back for the ledger: a date before the newest one counts as the newest window, so that a
clock that was set back opens no second budget.

    >>> ledger = QuotaLedger(availability=0.9995, window_s=86_400)
    >>> ledger.reserve("amf", "d-1/0", 2.0, at_s=0.0)
    >>> ledger.settle("d-1/0", 1.5, at_s=9.0)
    >>> round(ledger.account("amf", at_s=10.0).left_s, 1)
    41.7
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from natwork_ray.domain.quota import QuotaAccount
from natwork_ray.errors import ConflictError, QuotaError, UsageError


@dataclass(frozen=True)
class _Reservation:
    container: str
    window: int
    seconds: float


class QuotaLedger:
    """Budgets of all CNFs of one SLA."""

    def __init__(self, *, availability: float, window_s: float) -> None:
        if not 0 < availability < 1 or not window_s > 0:
            raise UsageError(
                f"quota ledger: availability {availability}, window {window_s} s",
                hint="availability lies between 0 and 1, the window is positive",
            )
        self.window_s = window_s
        self.budget_s = window_s * (1 - availability)
        self._newest: int | None = None
        self._spent_s: dict[tuple[str, int], float] = {}
        self._violations: dict[str, int] = {}
        self._reservations: dict[str, _Reservation] = {}

    @property
    def violations(self) -> int:
        """Settlements above the budget, of all CNFs and windows, also of those that are gone."""
        return sum(self._violations.values())

    def reserve(self, container: str, key: str, seconds: float, *, at_s: float) -> None:
        """Promise `seconds` of downtime to the action `key`.

        Raises:
            QuotaError: less than that is left in the present window.
            ConflictError: the key holds a reservation already.
            UsageError: `seconds` is negative or not a finite number.
        """
        if not (math.isfinite(seconds) and seconds >= 0):
            raise UsageError(f"reservation of {seconds} s for {key}", hint="a downtime is zero or positive")
        if key in self._reservations:
            raise ConflictError(f"{key} holds a reservation already", hint="settle or release it first")
        left = self.account(container, at_s=at_s).left_s
        if seconds > left:
            raise QuotaError(
                f"{container}: {seconds:.2f} s of downtime asked for, {left:.2f} s of {self.budget_s:.2f} s left",
                hint="wait for the next window, or choose an action with less downtime",
            )
        self._reservations[key] = _Reservation(container, self._advance(at_s), seconds)

    def settle(self, key: str, downtime_s: float, *, at_s: float) -> None:
        """Replace a reservation by the measured downtime; it is charged to the window of the reservation.

        Raises:
            ConflictError: no reservation under that key.
            UsageError: `downtime_s` is negative or not a finite number.
        """
        if not (math.isfinite(downtime_s) and downtime_s >= 0):
            raise UsageError(f"downtime of {downtime_s} s for {key}", hint="a downtime is zero or positive")
        reservation = self._take(key)
        book = (reservation.container, reservation.window)
        spent_s = self._spent_s[book] = self._spent_s.get(book, 0.0) + downtime_s
        # Promises that fill the budget to the brim add up to it only within rounding.
        if downtime_s > 0 and spent_s > self.budget_s * (1 + 1e-9):
            self._violations[reservation.container] = self._violations.get(reservation.container, 0) + 1
        self._advance(at_s)

    def release(self, key: str) -> None:
        """Give a reservation back unused.

        Raises:
            ConflictError: no reservation under that key.
        """
        self._take(key)

    def account(self, container: str, *, at_s: float) -> QuotaAccount:
        """The account of a CNF in the window of `at_s`; `violations` counts over all windows. Changes nothing."""
        window = self._window(at_s)
        reserved = sum(
            r.seconds for r in self._reservations.values() if r.container == container and r.window == window
        )
        return QuotaAccount(
            container=container,
            window_start_s=window * self.window_s,
            window_s=self.window_s,
            budget_s=self.budget_s,
            reserved_s=reserved,
            spent_s=self._spent_s.get((container, window), 0.0),
            violations=self._violations.get(container, 0),
        )

    def _window(self, at_s: float) -> int:
        window = int(at_s // self.window_s)
        return window if self._newest is None else max(window, self._newest)

    def _advance(self, at_s: float) -> int:
        """The window of `at_s`, from now on the earliest one; forgets what no open reservation can still touch."""
        window = self._window(at_s)
        if window != self._newest:
            self._newest = window
            touched = {(r.container, r.window) for r in self._reservations.values()}
            self._spent_s = {k: s for k, s in self._spent_s.items() if k[1] >= window or k in touched}
        return window

    def _take(self, key: str) -> _Reservation:
        try:
            return self._reservations.pop(key)
        except KeyError:
            raise ConflictError(f"{key} holds no reservation", hint="it was settled or released before") from None
