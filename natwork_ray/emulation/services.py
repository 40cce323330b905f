"""What makes one emulated service differ from another: the constants of its load, CPU, memory, network and latency.

Three recorded services (iAnomaly: face detector, face recogniser, preprocessing) span the ranges: 0.4 to 22 requests/s,
0.11 to 0.90 of the CPU limit in normal operation, coefficient of variation of throughput 0.06 to 0.75, p99/p50 from
1.2 to 2.5, resident memory around 0.5 GB varying by 3 to 5 %. docs/emulation.md compares them with what comes out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

MIB = float(2**20)


@dataclass(frozen=True, kw_only=True)
class ServiceProfile:
    """Constants of one service.

    Attributes:
        demand_rps: requests per second from users outside; 0 for a service that only others call.
        calls_per_request: calls to each container it depends on, per request served.
        normal_rps: requests per second in normal operation, all callers together; scales memory and latency.
        cpu_s_per_request: core seconds that a request costs.
        idle_cpu: fraction of the CPU limit used without any request.
        service_time_s: median time of a request in an idle replica, without callees.
        tail: p99/p50 of an idle replica, above 1.
        demand_cv: coefficient of variation of the demand from one sample to the next.
        daily_amplitude: half the daily swing of demand, fraction of its mean.
        wave_amplitude, wave_period_s: a slower swing of minutes (shift, traffic light, batch of devices).
        rx_per_request, tx_per_request: bytes.
        socket_disk: disk bytes per received byte: what rchar and wchar count (about 1 for streaming services).
        disk_read_per_request, disk_write_per_request: bytes of true storage traffic.
        rss_bytes, rss_per_rps, gc_fraction, gc_period_s: resident memory per replica and its saw-tooth.
        vsize_ratio: virtual over resident memory in normal operation.
        cron_period_s, cron_cpu: a periodic job inside the container, fraction of the limit; period 0 means none.
        dirty_share_per_s, working_set_share: how fast, and how much of, memory is rewritten (for migrations).
        volume_delta_bytes: what the writable file system has gained (for migrations).
        base_error: fraction of requests that fail in normal operation.
        clients: coupling of users to slowness: 0 open loop, 1 fully closed loop (they wait before they ask again).
    """

    demand_rps: float
    normal_rps: float
    calls_per_request: float = 1.0
    cpu_s_per_request: float
    idle_cpu: float = 0.02
    service_time_s: float
    tail: float = 2.0
    demand_cv: float = 0.1
    daily_amplitude: float = 0.3
    wave_amplitude: float = 0.1
    wave_period_s: float = 2400.0
    rx_per_request: float = 2000.0
    tx_per_request: float = 4000.0
    socket_disk: float = 0.0
    disk_read_per_request: float = 0.0
    disk_write_per_request: float = 200.0
    rss_bytes: float
    rss_per_rps: float = 0.0
    gc_fraction: float = 0.05
    gc_period_s: float = 600.0
    vsize_ratio: float = 3.0
    cron_period_s: float = 0.0
    cron_cpu: float = 0.0
    dirty_share_per_s: float = 0.01
    working_set_share: float = 0.39
    volume_delta_bytes: float = MIB
    base_error: float = 0.001
    clients: float = 0.5


def draw_profile(
    rng: np.random.Generator, *, demand_rps: float, normal_rps: float, cpu_limit_cores: float, load: float
) -> ServiceProfile:
    """A service at random that uses `load` (0 to 0.95) of `cpu_limit_cores` in normal operation."""
    u = rng.uniform
    idle = min(float(u(0.005, 0.06)), load / 2)
    return ServiceProfile(
        demand_rps=demand_rps,
        normal_rps=normal_rps,
        calls_per_request=float(u(0.3, 1.0)),
        cpu_s_per_request=(load - idle) * cpu_limit_cores / normal_rps,
        idle_cpu=idle,
        service_time_s=_log_uniform(rng, 0.003, 0.5),
        tail=float(u(1.3, 5.0)),
        demand_cv=float(u(0.04, 0.35)),
        daily_amplitude=float(u(0.1, 0.5)),
        wave_amplitude=float(u(0.02, 0.25)),
        wave_period_s=float(u(900, 5400)),
        rx_per_request=min(_log_uniform(rng, 3e2, 7e5), 2e7 / normal_rps),
        tx_per_request=min(_log_uniform(rng, 3e2, 1e5), 2e7 / normal_rps),
        socket_disk=1.0 if u() < 0.5 else 0.0,
        disk_read_per_request=_log_uniform(rng, 1e2, 2e5) if u() < 0.4 else 0.0,
        disk_write_per_request=_log_uniform(rng, 1e2, 2e4),
        rss_bytes=_log_uniform(rng, 60 * MIB, 900 * MIB),
        rss_per_rps=float(u(0, 0.25)) * 100 * MIB / normal_rps,
        gc_fraction=float(u(0.01, 0.15)),
        gc_period_s=float(u(120, 1500)),
        vsize_ratio=float(u(1.5, 6.0)),
        cron_period_s=float(u(1200, 3600)) if u() < 0.6 else 0.0,
        cron_cpu=float(u(0.15, 0.5)),
        dirty_share_per_s=_log_uniform(rng, 0.002, 0.05),
        working_set_share=float(u(0.1, 0.39)),
        base_error=float(u(0.0, 0.004)),
        clients=float(u(0.2, 0.9)),
    )


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(math.exp(rng.uniform(math.log(low), math.log(high))))
