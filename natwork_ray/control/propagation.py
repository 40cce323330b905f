"""Whether an alarm is somebody else's trouble: a container whose users wait, because one that it calls is slow.

This is the rule that the loop acts upon: exact, on the configured calls, and only for containers in alarm now. Ranking
all containers of an incident is `natwork_ray.dependencies`; it informs people and decides nothing here.
"""

from __future__ import annotations

from collections.abc import Mapping

from natwork_ray.control.alarms import Alarm
from natwork_ray.control.fleet import Fleet
from natwork_ray.domain.telemetry import Metric

_APPLICATION_METRICS = {
    Metric.LATENCY_P50,
    Metric.LATENCY_P90,
    Metric.LATENCY_P99,
    Metric.THROUGHPUT,
    Metric.ERRORS,
}


def slow_callee(
    name: str, alarm: Alarm, fleet: Fleet, last_alarm_s: Mapping[str, float], *, since_s: float
) -> str | None:
    """A container that `name` calls, in alarm itself since `since_s`, when application metrics of `name` are off most.

    One that calls back is no culprit: each of the two would wait for the other, and neither would be treated.
    """
    if not alarm.verdict.drivers or alarm.verdict.drivers[0].metric not in _APPLICATION_METRICS:
        return None
    for callee in fleet.container(name).depends_on:
        alarmed_s = last_alarm_s.get(callee)
        if alarmed_s is not None and alarmed_s >= since_s and not fleet.calls(callee, name):
            return callee
    return None
