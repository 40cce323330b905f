"""The ledger against an independent oracle that keeps every promise and every charge for ever."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from natwork_ray.control.quota import QuotaLedger
from natwork_ray.errors import ConflictError, QuotaError, UsageError

CONTAINERS = ("amf", "smf", "upf")
SECONDS = st.one_of(st.integers(0, 60).map(lambda n: n / 4), st.floats(0, 20))


@dataclass
class Oracle:
    """All that ever happened; nothing is summed up, rolled over or forgotten."""

    window_s: float
    budget_s: float
    newest: int | None = None
    open: dict[str, tuple[str, int, float]] = field(default_factory=dict)
    charges: list[tuple[str, int, float]] = field(default_factory=list)
    broken: set[tuple[str, int]] = field(default_factory=set)  # where a settlement went beyond its promise
    violations: dict[str, int] = field(default_factory=dict)

    def window(self, at_s: float) -> int:
        window = math.floor(at_s / self.window_s)
        return window if self.newest is None else max(window, self.newest)

    def spent(self, container: str, window: int) -> float:
        return math.fsum(s for c, w, s in self.charges if (c, w) == (container, window))

    def reserved(self, container: str, window: int) -> float:
        return math.fsum(s for c, w, s in self.open.values() if (c, w) == (container, window))


class LedgerMachine(RuleBasedStateMachine):
    @initialize(window_s=st.sampled_from([100.0, 1000.0, 86_400.0]), availability=st.sampled_from([0.9, 0.99, 0.9995]))
    def start(self, window_s: float, availability: float) -> None:
        self.ledger = QuotaLedger(availability=availability, window_s=window_s)
        self.oracle = Oracle(window_s, window_s * (1 - availability))
        self.at_s = 0.0
        self.keys = 0

    @rule(part=st.floats(0, 2.5))
    def time_passes(self, part: float) -> None:
        self.at_s += part * self.oracle.window_s

    @rule(part=st.floats(0, 3))
    def clock_is_set_back(self, part: float) -> None:
        self.at_s -= part * self.oracle.window_s

    @rule(container=st.sampled_from(CONTAINERS), windows=st.integers(0, 5))
    def reading_changes_nothing(self, container: str, windows: int) -> None:
        self.ledger.account(container, at_s=self.at_s + windows * self.oracle.window_s)

    @rule(container=st.sampled_from(CONTAINERS), seconds=SECONDS)
    def reserve(self, container: str, seconds: float) -> None:
        self._reserve(container, seconds)

    @rule(container=st.sampled_from(CONTAINERS))
    def reserve_all_that_is_left(self, container: str) -> None:
        self._reserve(container, self.ledger.account(container, at_s=self.at_s).left_s, fits=True)

    def _reserve(self, container: str, seconds: float, *, fits: bool | None = None) -> None:
        self.keys += 1
        key = f"k{self.keys}"
        oracle = self.oracle
        window = oracle.window(self.at_s)
        taken = oracle.spent(container, window) + oracle.reserved(container, window)
        room = oracle.budget_s - taken
        try:
            self.ledger.reserve(container, key, seconds, at_s=self.at_s)
        except QuotaError:
            assert fits is None
            assert seconds > room - 1e-9 * oracle.budget_s
            return
        assert seconds <= max(room, 0.0) + 1e-9 * oracle.budget_s
        oracle.newest = window
        oracle.open[key] = (container, window, seconds)
        with pytest.raises(ConflictError):
            self.ledger.reserve(container, key, 0.0, at_s=self.at_s)

    @precondition(lambda self: self.oracle.open)
    @rule(data=st.data(), part=st.floats(0, 1))
    def settle_within_the_promise(self, data: st.DataObject, part: float) -> None:
        key = data.draw(st.sampled_from(sorted(self.oracle.open)))
        self._settle(key, self.oracle.open[key][2] * part)

    @precondition(lambda self: self.oracle.open)
    @rule(data=st.data())
    def settle_exactly(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.oracle.open)))
        self._settle(key, self.oracle.open[key][2])

    @precondition(lambda self: self.oracle.open)
    @rule(data=st.data(), excess=st.floats(0.5, 200))
    def settle_beyond_the_promise(self, data: st.DataObject, excess: float) -> None:
        key = data.draw(st.sampled_from(sorted(self.oracle.open)))
        container, window, seconds = self.oracle.open[key]
        self.oracle.broken.add((container, window))
        self._settle(key, seconds + excess)

    def _settle(self, key: str, downtime_s: float) -> None:
        oracle = self.oracle
        container, window, _ = oracle.open.pop(key)
        self.ledger.settle(key, downtime_s, at_s=self.at_s)
        oracle.newest = oracle.window(self.at_s)
        oracle.charges.append((container, window, downtime_s))
        over = oracle.spent(container, window) > oracle.budget_s * (1 + 1e-9)
        if over and downtime_s > 0:
            oracle.violations[container] = oracle.violations.get(container, 0) + 1
        with pytest.raises(ConflictError):
            self.ledger.settle(key, 0.0, at_s=self.at_s)

    @precondition(lambda self: self.oracle.open)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.oracle.open)))
        self.ledger.release(key)
        del self.oracle.open[key]
        with pytest.raises(ConflictError):
            self.ledger.release(key)

    @invariant()
    def accounts_agree(self) -> None:
        oracle = self.oracle
        window = oracle.window(self.at_s)
        for container in CONTAINERS:
            account = self.ledger.account(container, at_s=self.at_s)
            assert account.window_start_s == window * oracle.window_s
            assert account.spent_s == pytest.approx(oracle.spent(container, window))
            assert account.reserved_s == pytest.approx(oracle.reserved(container, window))
            assert account.violations == oracle.violations.get(container, 0)
            if (container, window) not in oracle.broken:
                assert account.reserved_s + account.spent_s <= oracle.budget_s * (1 + 1e-9)
        assert self.ledger.violations == sum(oracle.violations.values())

    @invariant()
    def no_violation_without_a_broken_promise(self) -> None:
        if not self.oracle.broken:
            assert self.ledger.violations == 0


TestLedger = LedgerMachine.TestCase
TestLedger.settings = settings(deadline=None)


def test_the_sla_of_the_deliverable_leaves_1296_seconds_a_month() -> None:
    ledger = QuotaLedger(availability=0.9995, window_s=30 * 86_400)
    assert ledger.account("amf", at_s=0.0).left_s == pytest.approx(1296.0)


def test_an_overrun_is_counted_also_when_its_window_has_ended() -> None:
    ledger = QuotaLedger(availability=0.99, window_s=1000.0)
    ledger.reserve("amf", "k", 2.0, at_s=990.0)
    ledger.settle("k", 500.0, at_s=1010.0)
    account = ledger.account("amf", at_s=1010.0)
    assert (account.violations, account.spent_s) == (1, 0.0)


def test_a_clock_set_back_opens_no_second_budget() -> None:
    ledger = QuotaLedger(availability=0.99, window_s=1000.0)
    ledger.reserve("amf", "k", 10.0, at_s=1500.0)
    with pytest.raises(QuotaError):
        ledger.reserve("amf", "k2", 10.0, at_s=500.0)


def test_looking_into_the_future_spends_nothing_and_forgives_nothing() -> None:
    ledger = QuotaLedger(availability=0.99, window_s=1000.0)
    ledger.reserve("amf", "k", 4.0, at_s=1.0)
    ledger.settle("k", 4.0, at_s=2.0)
    assert ledger.account("amf", at_s=5000.0).spent_s == 0.0
    assert ledger.account("amf", at_s=3.0).spent_s == 4.0


def test_a_settlement_without_downtime_is_no_second_violation() -> None:
    ledger = QuotaLedger(availability=0.99, window_s=1000.0)
    ledger.reserve("amf", "restart", 5.0, at_s=1.0)
    ledger.reserve("amf", "scale", 0.0, at_s=1.0)
    ledger.settle("restart", 11.0, at_s=2.0)
    ledger.settle("scale", 0.0, at_s=3.0)
    assert ledger.account("amf", at_s=3.0).violations == 1


@pytest.mark.parametrize("seconds", [-1.0, math.nan, math.inf])
def test_senseless_downtimes_are_refused_and_change_nothing(seconds: float) -> None:
    ledger = QuotaLedger(availability=0.99, window_s=1000.0)
    with pytest.raises(UsageError):
        ledger.reserve("amf", "k", seconds, at_s=0.0)
    ledger.reserve("amf", "k", 1.0, at_s=0.0)
    with pytest.raises(UsageError):
        ledger.settle("k", seconds, at_s=0.0)
    assert ledger.account("amf", at_s=0.0).reserved_s == 1.0


@pytest.mark.parametrize(
    ("availability", "window_s"), [(0.0, 1.0), (1.0, 1.0), (0.5, 0.0), (math.nan, 1.0), (0.5, math.nan)]
)
def test_senseless_agreements_are_refused(availability: float, window_s: float) -> None:
    with pytest.raises(UsageError):
        QuotaLedger(availability=availability, window_s=window_s)


def test_a_window_with_an_open_promise_is_not_forgotten() -> None:
    ledger = QuotaLedger(availability=0.99, window_s=1000.0)
    ledger.reserve("amf", "a", 5.0, at_s=1.0)
    ledger.settle("a", 5.0, at_s=2.0)
    ledger.reserve("amf", "b", 5.0, at_s=3.0)
    ledger.reserve("amf", "c", 0.0, at_s=1001.0)  # the next window has begun
    ledger.settle("b", 5.5, at_s=1002.0)
    assert ledger.violations == 1
