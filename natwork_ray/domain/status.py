"""What the loop shows of itself."""

from __future__ import annotations

from natwork_ray.domain.decisions import Mode
from natwork_ray.domain.outlook import LoadOutlook
from natwork_ray.domain.quota import QuotaAccount
from natwork_ray.domain.topology import Topology
from natwork_ray.domain.values import Backend, value


@value
class LoopStatus:
    """The loop at one moment.

    `at_s` is the time of the newest event, on the backend's clock; `windows` counts container windows judged;
    `degraded` names containers whose newest window could not be judged; `trouble` says why the loop stands still, empty
    when it turns. `outlook` sums up the forecasts of the newest turn; None where nothing is forecast. `drifted` names
    services whose normal operation no longer fits their profile, so that verdicts on them are to be read with care.
    """

    backend: Backend
    scenario: str
    seed: int
    mode: Mode
    at_s: float
    turns: int
    windows: int
    flagged: int
    alarms: int
    decisions: int
    awaiting_approval: int
    under_way: int
    done: int
    failed: int
    quota_violations: int
    degraded: tuple[str, ...]
    topology: Topology
    quota: tuple[QuotaAccount, ...]
    trouble: str = ""
    outlook: LoadOutlook | None = None
    drifted: tuple[str, ...] = ()
