"""What to do with a container before the load comes: scale, migrate, throttle, or nothing (D3.3 section 4.2).

Section 4.2 gives the inputs (expected load ranges, anomaly likelihoods), the actions, and one preference: resilience
when an anomaly is likely, energy when trends are stable. The rules are ours, in this order; the first that fits counts:

1. An anomaly is likely and the load is about to exceed its headroom: *throttle* where one source sends most of it and
   throttling is allowed (adding replicas would pay for the attacker), else *migrate* where the node is under pressure
   as well, else *scale*.
2. An anomaly is likely and the load is not about to exceed anything: *migrate* off a node under pressure, else wait
   and see: detection says what it is.
3. Nothing unusual, and the load is about to exceed its headroom: growth. *Scale*, else *migrate*, else *throttle*.
4. Nothing unusual, stable or falling, and well below capacity on a nearly empty node: *migrate*, so that the node can
   rest. Off unless `consolidate_below` is set: every move costs downtime.
5. Else nothing.

The likelihood of a container is that of its least likely metric, corrected for their number (Bonferroni), so that more
metrics do not make more alarms. "About to exceed" looks at the band's upper edge while an anomaly is likely, and at the
expected value otherwise: resilience provisions for the worst of the range, energy for the middle.

What a forecast was degraded for is said in the reason. Pure functions; nothing is carried out here.

    >>> advise(forecasts_of_one_container).action
    'scale'
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from natwork_ray.domain.forecasts import LoadForecast, PlacementAction, PlacementAdvice, Stance, Trend
from natwork_ray.domain.telemetry import Metric
from natwork_ray.domain.values import value
from natwork_ray.errors import InputError


@value
class PlacementPolicy:
    """The thresholds.

    Attributes:
        likely: an anomaly likelihood from here on, 0 to 1, puts resilience first. Of normal samples a share of
            1 - likely reaches it.
        headroom: share of a limit that the load should stay below.
        stable_within: relative change over the forecast below which a trend is stable.
        pressed_from: share of a node's CPU from which it is under pressure.
        dominant_from: share of a container's requests from one source from which throttling hits the right one.
        consolidate_below: share of a node's CPU below which stable containers leave it for energy's sake; 0 is never.
        idle_below: share of its limit below which a container's load may move for energy's sake.
    """

    likely: float = 0.99
    headroom: float = 0.8
    stable_within: float = 0.1
    pressed_from: float = 0.85
    dominant_from: float = 0.5
    consolidate_below: float = 0.0
    idle_below: float = 0.3

    def __post_init__(self) -> None:
        for name in (
            "likely", "headroom", "stable_within", "pressed_from", "dominant_from", "consolidate_below", "idle_below",
        ):  # fmt: skip
            given = getattr(self, name)
            if not 0.0 <= given <= 1.0:
                raise InputError(f"placement policy {name} = {given}", hint="it is a share between 0 and 1")


@value
class Circumstances:
    """What is known of a container besides its forecasts. The defaults stand for "not known".

    Attributes:
        memory_limit_bytes: 0 when there is none or it is not known. (CPU is forecast as a share of its limit.)
        node_cpu_fraction: share of the node's CPU in use, None when not known.
        dominant_source_share: largest source's share of the requests, 0 when not measured.
        can_scale, can_migrate, may_throttle: what the orchestrator can and the tenant's agreement allows.
    """

    memory_limit_bytes: float = 0.0
    node_cpu_fraction: float | None = None
    dominant_source_share: float = 0.0
    can_scale: bool = True
    can_migrate: bool = True
    may_throttle: bool = True


_NAMES = {str(Metric.CPU): "CPU", str(Metric.MEMORY_RSS): "memory"}


def advise(
    forecasts: Sequence[LoadForecast],
    circumstances: Circumstances | None = None,
    policy: PlacementPolicy | None = None,
) -> PlacementAdvice:
    """Advice for one container from the forecasts of its metrics.

    Raises:
        InputError: no forecasts, or forecasts of several containers.
    """
    circumstances, policy = circumstances or Circumstances(), policy or PlacementPolicy()
    names = {f.container for f in forecasts}
    if len(names) != 1:
        raise InputError(
            f"advice asked for {len(names)} containers at once", hint="give forecasts of one, or use advise_all"
        )
    likelihood = joint_likelihood(forecasts)
    likely = likelihood >= policy.likely
    decisive, share = _decisive(forecasts, circumstances, worst=likely)
    trend = trend_of(decisive, policy)
    exceeds = share is not None and share >= policy.headroom
    action, why = _action(likely, exceeds, share, trend, circumstances, policy)
    stance: Stance = "resilience" if likely or exceeds else "energy"
    return PlacementAdvice(
        container=decisive.container,
        at_s=max(f.at_s for f in forecasts),
        action=action,
        stance=stance,
        likelihood=likelihood,
        trend=trend,
        reason=_reason(decisive, share, likelihood, likely, trend, why),
    )


def advise_all(
    forecasts: Sequence[LoadForecast],
    circumstances: Mapping[str, Circumstances] | None = None,
    policy: PlacementPolicy | None = None,
) -> tuple[PlacementAdvice, ...]:
    """Advice for every container that the forecasts name, in their order; `circumstances` are by container."""
    of: dict[str, list[LoadForecast]] = {}
    for forecast in forecasts:
        of.setdefault(forecast.container, []).append(forecast)
    known = circumstances or {}
    return tuple(advise(own, known.get(container), policy) for container, own in of.items())


def joint_likelihood(forecasts: Sequence[LoadForecast]) -> float:
    """One minus the Bonferroni-corrected smallest p-value of several metrics, 0 to 1."""
    least = min(1.0 - f.likelihood for f in forecasts)
    # Rounding must not turn a single metric's .99 into .98999.
    return max(f.likelihood for f in forecasts) if len(forecasts) == 1 else max(0.0, 1.0 - len(forecasts) * least)


def trend_of(forecast: LoadForecast, policy: PlacementPolicy | None = None) -> Trend:
    """Where the expected values go between the first and the last horizon; unknown with a single horizon."""
    policy = policy or PlacementPolicy()
    first, last = forecast.expected[0], forecast.expected[-1]
    if len(forecast.horizons) < 2:
        return "unknown"
    if abs(last - first) <= policy.stable_within * max(first, last):
        return "stable"
    return "rising" if last > first else "falling"


def _decisive(
    forecasts: Sequence[LoadForecast], circumstances: Circumstances, *, worst: bool
) -> tuple[LoadForecast, float | None]:
    """The forecast that comes closest to its limit, and the share of the limit that it reaches; None without limits."""
    limits = {str(Metric.CPU): 1.0, str(Metric.MEMORY_RSS): circumstances.memory_limit_bytes}
    shares = [
        (max(f.upper if worst else f.expected) / limits[f.metric], f)
        for f in forecasts
        if limits.get(f.metric, 0.0) > 0
    ]
    if not shares:
        return max(forecasts, key=lambda f: f.likelihood), None
    share, decisive = max(shares, key=lambda pair: pair[0])
    return decisive, share


def _action(
    likely: bool,
    exceeds: bool,
    share: float | None,
    trend: Trend,
    circumstances: Circumstances,
    policy: PlacementPolicy,
) -> tuple[PlacementAction, str]:
    node = circumstances.node_cpu_fraction
    pressed = node is not None and node >= policy.pressed_from
    if likely and exceeds:
        if circumstances.may_throttle and circumstances.dominant_source_share >= policy.dominant_from:
            return "throttle", "one source sends most of the requests"
        if pressed and circumstances.can_migrate:
            return "migrate", "the node is under pressure too"
        return _grow(circumstances)
    if likely:
        if pressed and circumstances.can_migrate:
            return "migrate", "the node is under pressure"
        return "none", "the load stays within its headroom; detection will say what it is"
    if exceeds:
        return _grow(circumstances)
    if (
        node is not None
        and node < policy.consolidate_below
        and trend in ("stable", "falling")
        and share is not None
        and share < policy.idle_below
        and circumstances.can_migrate
    ):
        return "migrate", "the node is nearly empty and can rest"
    return "none", "nothing calls for action"


def _grow(circumstances: Circumstances) -> tuple[PlacementAction, str]:
    if circumstances.can_scale:
        return "scale", "capacity has to grow before the load does"
    if circumstances.can_migrate:
        return "migrate", "it cannot be scaled where it is"
    if circumstances.may_throttle:
        return "throttle", "it can be neither scaled nor moved"
    return "none", "it can be neither scaled nor moved nor throttled: a person has to look"


def _reason(
    decisive: LoadForecast, share: float | None, likelihood: float, likely: bool, trend: Trend, why: str
) -> str:
    name = _NAMES.get(decisive.metric, decisive.metric)
    ahead = decisive.horizons[-1] * decisive.step_s
    # While an anomaly is likely the upper edge decides, else the expected value: name the one that did.
    reaches = f" and {'may reach' if likely else 'should reach'} {share:.0%} of its limit" if share is not None else ""
    direction = {"rising": "rises", "falling": "falls", "stable": "is stable", "unknown": "has no known trend"}[trend]
    weak = f" (forecast degraded: {decisive.degraded})" if decisive.degraded else ""
    return f"{name} {direction} over the next {ahead:g} s{reaches}; anomaly likelihood {likelihood:.1%}: {why}{weak}."
