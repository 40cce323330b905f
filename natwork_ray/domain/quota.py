"""A CNF's downtime budget (D3.3 section 2.2: an SLA of 99.95 % leaves 1296 s in a 30-day month)."""

from __future__ import annotations

from natwork_ray.domain.values import value


@value
class QuotaAccount:
    """The state of one CNF's budget in one window. All in seconds of downtime.

    `reserved_s` is promised to actions under way, `spent_s` is used up; `violations` counts, over all windows,
    settlements that ended above the budget although every reservation fitted.
    """

    container: str
    window_start_s: float
    window_s: float
    budget_s: float
    reserved_s: float
    spent_s: float
    violations: int = 0

    @property
    def left_s(self) -> float:
        """What a new action may still be promised."""
        return max(0.0, self.budget_s - self.reserved_s - self.spent_s)
