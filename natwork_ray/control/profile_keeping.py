"""Keeping profiles: told to the loop when they are learnt, checked for drift, and learnt anew when a person orders it.

Beside the turns, whoever turns the loop lets a `ProfileKeeper` mind the profiles. It keeps nothing that cannot be read
back: the commissioning hour and every stretch that profiles were learnt from are asked of the telemetry source again,
and which stretches those are, of the control service. Where a source no longer has them, the commissioning hour's
profile is used again, and the loop is told so.

    keeper = ProfileKeeper(control=control, telemetry=world.telemetry, hour=hour)
    await keeper.begin(at_s)
    ... each turn:  if await keeper.mind(at_s): judge.use(keeper.book)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from natwork_ray.control.events import DriftObserved, Event, ProfilesLearnt
from natwork_ray.control.service import Answer
from natwork_ray.domain.profiles import ProfilesInUse
from natwork_ray.domain.telemetry import TelemetryWindow
from natwork_ray.errors import InputError, NatworkError
from natwork_ray.ports import TelemetrySource
from natwork_ray.profiling.drift import BLOCKS, MIN_BLOCK, DriftCheck, summaries
from natwork_ray.profiling.profile import ProfileBook

ORDERS_EVERY_TURNS = 6
DRIFT_EVERY_TURNS = 60
DRIFT_HOURS_S = 4 * 3600.0  # looked back over, once so much has passed since the commissioning hour


class ProfileControl(Protocol):
    """What the keeper asks of the control service."""

    async def submit(self, events: Sequence[Event]) -> tuple[Answer, ...]:
        """Handle events durably."""
        ...

    async def profiles(self) -> ProfilesInUse:
        """What was learnt, has drifted, and is to be learnt anew."""
        ...


class ProfileKeeper:
    """The profiles of one run. `book` is the newest."""

    def __init__(self, *, control: ProfileControl, telemetry: TelemetrySource, hour: TelemetryWindow) -> None:
        """`hour` is the commissioning window; profiles are learnt from it at once."""
        self._control, self._telemetry = control, telemetry
        self._begins_s, self._step_s = hour.end_s, hour.step_s
        self._hour_from_s = hour.end_s - hour.length * hour.step_s
        self.book = self._first = ProfileBook.learn(hour)
        self._check = DriftCheck.learn(hour, self.book)

    async def begin(self, at_s: float) -> None:
        """Tell the loop what was learnt, and take up again what was learnt anew before a restart."""
        event = ProfilesLearnt(
            id=f"profiles@{self._begins_s:.3f}",
            at_s=self._begins_s,
            profiles=summaries(self._first, from_s=self._hour_from_s, to_s=self._begins_s),
        )
        (answer,) = await self._control.submit((event,))
        answer.unwrap()
        if not answer.known:
            return
        for summary in (await self._control.profiles()).profiles:
            if (summary.from_s, summary.to_s) != (self._hour_from_s, self._begins_s):
                await self._learn(summary.service, summary.from_s, summary.to_s, at_s)

    async def mind(self, at_s: float) -> bool:
        """Carry out orders and look for drift, each when it is time; whether `book` has changed."""
        number = round((at_s - self._begins_s) / self._step_s)
        if number % ORDERS_EVERY_TURNS:
            return False
        in_use = await self._control.profiles()
        for order in in_use.relearning:
            await self._learn(order.service, order.from_s, order.to_s, at_s)
        if number % DRIFT_EVERY_TURNS == 0:
            await self._look_for_drift(in_use, at_s)
        return bool(in_use.relearning)

    async def _learn(self, service: str, from_s: float, to_s: float, at_s: float) -> None:
        failed: dict[str, str] = {}
        try:
            window = await self._stretch(service, from_s, to_s)
            fresh = ProfileBook.learn(window)
            self.book = self.book.joined(ProfileBook(profiles=fresh.profiles))
            self._check = self._check.with_book(window, self.book)
            told = summaries(fresh, from_s=from_s, to_s=to_s)
        except NatworkError as error:
            failed = {service: error.what}
            kept = [p for p in self._first.profiles if p.service == service]
            self.book = self.book.joined(ProfileBook(profiles=tuple(kept)))
            told = tuple(
                s for s in summaries(self._first, from_s=self._hour_from_s, to_s=self._begins_s) if s.service == service
            )
        event = ProfilesLearnt(id=f"profiles:{service}@{at_s:.3f}", at_s=at_s, profiles=told, failed=failed)
        (answer,) = await self._control.submit((event,))
        answer.unwrap()

    async def _stretch(self, service: str, from_s: float, to_s: float) -> TelemetryWindow:
        """The samples of a service's containers in that time."""
        # Samples were taken at whole steps from the commissioning hour's end, before and after.
        last = self._begins_s + math.floor((to_s - self._begins_s) / self._step_s + 1e-6) * self._step_s
        window = await self._telemetry.window(end_s=last, length=max(1, round((last - from_s) / self._step_s)))
        rows = [i for i, name in enumerate(window.services) if name == service]
        if not rows or np.isnan(window.values[rows]).all():
            raise InputError(f"there are no samples of {service} then", hint="name a stretch that was measured")
        return TelemetryWindow(
            containers=tuple(window.containers[i] for i in rows),
            services=tuple(window.services[i] for i in rows),
            end_s=window.end_s,
            step_s=window.step_s,
            values=window.values[rows],
        )

    async def _look_for_drift(self, in_use: ProfilesInUse, at_s: float) -> None:
        since_s = at_s - self._begins_s
        length = round(DRIFT_HOURS_S / self._step_s)
        if since_s < DRIFT_HOURS_S or length < BLOCKS * MIN_BLOCK:
            return
        try:
            recent = await self._telemetry.window(end_s=at_s, length=length)
        except InputError:
            return  # a source that remembers less can't tell
        before = frozenset(d.service for d in in_use.drifts)
        drifts = self._check.drifts(recent, drifted_before=before)
        if drifts or before:
            (answer,) = await self._control.submit((DriftObserved(id=f"drift@{at_s:.3f}", at_s=at_s, drifts=drifts),))
            answer.unwrap()
