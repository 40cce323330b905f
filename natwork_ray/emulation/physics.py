"""One step of the emulated world: demand, call graph, utilisation, latency, memory and traffic, for all containers.

The order is that of the causes (docs/emulation.md gives the equations):

1. demand of the users, with daily pattern, slower waves and noise;
2. down the call graph, callers first: what arrives, what capacity allows, what is served or dropped;
3. up the call graph, callees first: latency percentiles, so that a slow service slows its callers;
4. CPU, memory, disk and network of what was really served.

All noise of a step is drawn in one fixed shape before anything else happens, from a stream that nothing but steps uses:
an action changes the container it acts on and, through the call graph and the node, its neighbours, never their dice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from natwork_ray.domain.telemetry import METRICS, N_METRICS, Metric
from natwork_ray.domain.topology import Topology
from natwork_ray.emulation.services import ServiceProfile
from natwork_ray.errors import InputError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

CPU_CAP = 0.9  # throttled containers of the recorded data stand at 0.88 to 0.92 of their limit
FAIR_SHARE = 0.35  # of that, the scheduler leaves at least so much to the service beside a stray process
QUEUE_MOST = 3.0  # a full queue: recorded surges raise latency 2 to 5 times
DROP_FAILS = 0.35  # of requests beyond capacity, the part that fails; the rest is never sent (clients wait)
MISSING = 0.002  # scrapes that fail
DEPLOY = 1 / 1200  # per sample and container: about one release in three hours
FLUSH = 1 / 900  # cache flushes
BURST = 1 / 250  # benign bursts of one sample
IN_SEQUENCE = 3.0  # calls to one callee that a request waits for one after the other; more run side by side
WARM_DECAY = 0.92  # per sample
_COL = {metric: i for i, metric in enumerate(METRICS)}
_NORMALS, _UNIFORMS = 12, 5


@dataclass(frozen=True)
class CallGraph:
    """The calls between containers, ordered by level: level 0 is called by nobody."""

    levels: tuple[Ints, ...]
    edges: tuple[tuple[Ints, Ints], ...]  # per level: (callers, callees) of the calls that its members make

    @classmethod
    def of(cls, topology: Topology) -> CallGraph:
        """Order the containers.

        Raises:
            InputError: containers that call each other in a circle.
        """
        position = {c.name: i for i, c in enumerate(topology.containers)}
        calls = [[position[d] for d in c.depends_on] for c in topology.containers]
        waiting = np.zeros(len(calls), dtype=np.int64)
        for targets in calls:
            for target in targets:
                waiting[target] += 1
        levels: list[Ints] = []
        current = [i for i in range(len(calls)) if waiting[i] == 0]
        seen = 0
        while current:
            levels.append(np.array(current, dtype=np.int64))
            seen += len(current)
            following = []
            for i in current:
                for target in calls[i]:
                    waiting[target] -= 1
                    if waiting[target] == 0:
                        following.append(target)
            current = following
        if seen != len(calls):
            raise InputError("containers call each other in a circle", hint="break the circle in depends_on")
        edges = []
        for level in levels:
            pairs = [(int(i), j) for i in level for j in calls[int(i)]]
            edges.append((np.array([a for a, _ in pairs], np.int64), np.array([b for _, b in pairs], np.int64)))
        return cls(tuple(levels), tuple(edges))


@dataclass
class Setting:
    """What actions decide, per container, for one step: replicas, limits, place, and how much of the step is lost."""

    replicas: Floats
    cpu_limit: Floats
    memory_limit: Floats
    node: Ints
    mesh: NDArray[np.bool_]
    outage: Floats  # fraction of the step in which nobody is served
    degraded: Floats  # fraction in which pages are fetched on demand
    restarted: NDArray[np.bool_]  # memory starts afresh in this step
    blocked: Floats  # fraction of normal demand that a firewall drops


@dataclass
class Disturbance:
    """What injections do, per container, in one step; `neutral` disturbs nothing."""

    stray_cores: Floats
    leak_bytes: Floats
    leak_vsize: Floats  # multiple of the normal vsize
    surge: Floats
    network: Floats  # 1 or more: how many times fewer requests get through
    attack_rps: Floats
    attack_fails: Floats
    attack_cpu: Floats  # cost of an attacking request, in normal requests
    attack_bytes: Floats
    attack_read: Floats
    attack_tx: Floats
    heavy_tail: Floats  # factor of p99

    @classmethod
    def neutral(cls, n: int) -> Disturbance:
        """No disturbance of `n` containers."""
        factors = ("surge", "network", "heavy_tail")
        return cls(**{f.name: np.ones(n) if f.name in factors else np.zeros(n) for f in fields(cls)})


@dataclass(frozen=True)
class Sample:
    """What one step gave: measured metrics, and the truth behind them that no port shows.

    Attributes:
        metrics: float32 (N, 12), NaN where not measured.
        offered_rps, normal_rps, attack_rps: requests that arrived: all, of users and callers, of attackers.
        normal_failed_rps, attack_failed_rps: the failed part of them.
        cpu_cores, memory_bytes, rx, tx: (N,) true use, all replicas together.
        oom: containers whose memory outgrew its limit.
    """

    metrics: NDArray[np.float32]
    offered_rps: Floats
    normal_rps: Floats
    attack_rps: Floats
    normal_failed_rps: Floats
    attack_failed_rps: Floats
    cpu_cores: Floats
    memory_bytes: Floats
    rx: Floats
    tx: Floats
    oom: NDArray[np.bool_]


class Physics:
    """The dynamic state of all containers, and the step that moves it on."""

    def __init__(
        self,
        topology: Topology,
        profiles: Sequence[ServiceProfile],
        *,
        node_cores: Floats,
        rtt_s: Floats,
        step_s: float,
        start_hour: float,
        seed: np.random.SeedSequence,
    ) -> None:
        n = len(profiles)
        self.n, self.step_s, self.start_hour = n, step_s, start_hour
        self.graph = CallGraph.of(topology)
        self.node_cores, self.rtt_s = node_cores, rtt_s
        # One array per constant, by its field name.
        self.p = {f: np.array([getattr(p, f) for p in profiles], float) for f in ServiceProfile.__dataclass_fields__}
        static, noise = seed.spawn(2)
        rng = np.random.default_rng(static)
        self.phase = rng.uniform(size=(n, 4))  # GC, cron, wave, memory walk
        self.noise = np.random.default_rng(noise)
        self.steps = 0
        self.drift = np.zeros(n)  # slow part of the demand noise
        self.walk = np.zeros(n)  # slow walk of memory
        self.warm = np.zeros(n)  # 1 just after a cold start, then decaying
        self.leak = np.zeros(n)
        self.node_load = np.zeros(len(node_cores))
        self.slowness = np.ones(n)  # latency of the last step over normal latency
        self.normal_p50 = self._normal_latency(topology)

    def _normal_latency(self, topology: Topology) -> Floats:
        limits = np.array([c.replicas * c.cpu_limit_cores for c in topology.containers])
        p = self.p
        capacity = np.maximum(CPU_CAP - p["idle_cpu"], 0.1) * limits / p["cpu_s_per_request"]
        own = p["service_time_s"] * _queue(p["normal_rps"] / capacity)
        for callers, callees in reversed(self.graph.edges):
            np.add.at(own, callers, np.minimum(p["calls_per_request"][callers], IN_SEQUENCE) * own[callees])
        return np.asarray(own)

    def step(self, end_s: float, setting: Setting, disturbance: Disturbance) -> Sample:
        """Move from `end_s - step_s` to `end_s`."""
        p, d, s = self.p, disturbance, setting
        z = self.noise.standard_normal((self.n, _NORMALS))
        u = self.noise.random((self.n, _UNIFORMS))
        self.steps += 1

        # Benign events that look like trouble: releases, cache flushes, bursts, cron jobs.
        deploy = u[:, 0] < DEPLOY
        outage = np.clip(s.outage + 0.4 * deploy, 0.0, 1.0)
        self.warm *= WARM_DECAY
        self.warm = np.where(deploy | s.restarted, 1.0, np.where(u[:, 1] < FLUSH, 0.6, self.warm))
        burst = np.where(u[:, 2] < BURST, 1.0 + 0.6 * u[:, 3], 1.0)
        cron = self._cron(end_s, z[:, 7])

        # 1. Demand of the users.
        self.drift = 0.93 * self.drift + np.sqrt(1 - 0.93**2) * z[:, 0]
        hour = self.start_hour + end_s / 3600
        daily = 1 + p["daily_amplitude"] * np.sin(2 * np.pi * (hour - 9.0) / 24)
        wave = 1 + p["wave_amplitude"] * np.sin(2 * np.pi * (end_s / p["wave_period_s"] + self.phase[:, 2]))
        cv = p["demand_cv"]
        jitter = np.exp(0.4 * cv * self.drift + 0.9 * cv * z[:, 1] - 0.485 * cv**2)
        users = p["demand_rps"] * daily * wave * burst

        # 2. Down the call graph.
        limits = s.replicas * s.cpu_limit
        pressure = self._pressure(s)
        contention = 1 + 0.25 * np.clip((self.node_load[s.node] - 0.7) / 0.3, 0, 1)
        cost = p["cpu_s_per_request"] * contention * (1 + 0.02 * s.mesh)
        for_service = np.maximum(CPU_CAP * limits - d.stray_cores, FAIR_SHARE * CPU_CAP * limits)
        capacity = np.maximum(for_service - (p["idle_cpu"] + cron) * limits, 0.25 * for_service) / cost
        capacity *= (1 - 0.65 * pressure) * (1 - 0.5 * s.degraded)
        network = np.where(s.mesh, 1 + 0.3 * (d.network - 1), d.network)
        throttle = 1 / (1 + 0.5 * p["clients"] * np.maximum(self.slowness - 1.15, 0))
        arriving = users
        admitted = throttle * (1 - s.blocked) / network
        normal, served_share, rho = np.zeros(self.n), np.ones(self.n), np.zeros(self.n)
        for level, (callers, callees) in zip(self.graph.levels, self.graph.edges, strict=True):
            mean = arriving[level] * d.surge[level] * jitter[level] * admitted[level]
            normal[level] = _counts(mean * self.step_s, z[level, 2]) / self.step_s
            load = normal[level] + d.attack_rps[level] * d.attack_cpu[level]
            rho[level] = load / capacity[level]
            served_share[level] = np.minimum(1.0, 1 / np.maximum(rho[level], 1e-9)) * (1 - outage[level])
            through = (normal + d.attack_rps * (1 - d.attack_fails))[callers] * served_share[callers]
            np.add.at(arriving, callees, through * p["calls_per_request"][callers])

        served = normal * served_share
        attack_served = d.attack_rps * served_share
        attack_ok = attack_served * (1 - d.attack_fails)
        dropped = normal - served
        failing = p["base_error"] * (1 + 4 * np.clip(rho - 0.9, 0, 1) + 3 * pressure)
        normal_failed = served * np.minimum(failing * np.exp(0.4 * z[:, 3]), 0.5) + DROP_FAILS * dropped
        ok = np.maximum(served * (1 - np.minimum(failing * np.exp(0.4 * z[:, 3]), 0.5)), 0.0) + attack_ok
        attack_failed = d.attack_rps - attack_ok

        # 3. Up the call graph.
        slow_cpu = 1 + 0.8 * np.minimum(d.stray_cores / np.maximum(limits, 1e-9), 1.0)
        own = p["service_time_s"] * _queue(rho) * slow_cpu * contention * (1 + 1.5 * pressure)
        own *= (1 + 0.5 * self.warm) * (1 + 0.6 * s.degraded) * np.exp(0.06 * z[:, 4])
        # Few requests seldom meet the tail.
        seen = np.clip(np.log1p(ok * self.step_s) / np.log(100), 0, 1)
        tail = 1 + (p["tail"] * (1 + 0.4 * np.minimum(rho, 1) ** 4) * np.exp(0.12 * z[:, 5]) - 1).clip(0.02) * seen
        latency = np.stack([own, own * tail**0.551, own * tail * d.heavy_tail], axis=1)
        latency[:, 2] += outage * self.step_s * 0.5
        delay = (network - 1) * np.maximum(self.normal_p50, 0.02)
        for callers, callees in reversed(self.graph.edges):
            weight = np.minimum(p["calls_per_request"][callers], IN_SEQUENCE)
            hop = self.rtt_s[s.node[callers], s.node[callees]] + delay[callees]
            np.add.at(latency, callers, weight[:, None] * (latency[callees] + hop[:, None]))
        latency = np.maximum.accumulate(latency, axis=1)
        self.slowness = np.minimum(latency[:, 0] / self.normal_p50, 12.0)

        # 4. Resources of what was really served.
        work = (served + attack_served * d.attack_cpu) * cost
        cores = (p["idle_cpu"] + cron) * limits + d.stray_cores + work
        cpu = np.minimum(cores / np.maximum(limits, 1e-9), CPU_CAP) * (1 - outage)
        cpu = np.clip(cpu * (1 + 0.03 * z[:, 6]) + 0.004 * np.abs(z[:, 8]), 0, 1)
        rss, oom = self._memory(end_s, s, d, ok, z[:, 9])
        vsize = p["rss_bytes"] * p["vsize_ratio"] * (1 + 0.01 * self.walk + d.leak_vsize) + self.leak
        vsize = np.maximum(vsize * (1 - 0.05 * self.warm), rss)
        rx = (served * p["rx_per_request"] + d.attack_rps * d.attack_bytes) * np.exp(0.05 * z[:, 10])
        tx = (ok * p["tx_per_request"] + attack_served * d.attack_tx) * np.exp(0.07 * z[:, 11])
        rx, tx = rx * (1 + 0.05 * s.mesh) + 40, tx * (1 + 0.05 * s.mesh) + 30
        read = p["socket_disk"] * rx * (1 + 0.01 * z[:, 8])
        read += ok * p["disk_read_per_request"] * (0.6 + 0.8 * u[:, 3] + 2 * self.warm) + attack_served * d.attack_read
        write = p["socket_disk"] * rx * (1 + 0.01 * z[:, 7]) + served * p["disk_write_per_request"] * np.exp(
            0.2 * z[:, 8]
        )

        metrics = np.empty((self.n, N_METRICS))
        for metric, values in (
            (Metric.DISK_READ, read), (Metric.DISK_WRITE, write), (Metric.MEMORY_RSS, rss),
            (Metric.MEMORY_VSIZE, vsize), (Metric.CPU, cpu), (Metric.NETWORK_RX, rx), (Metric.NETWORK_TX, tx),
            (Metric.LATENCY_P50, latency[:, 0]), (Metric.LATENCY_P90, latency[:, 1]),
            (Metric.LATENCY_P99, latency[:, 2]), (Metric.THROUGHPUT, ok),
            (Metric.ERRORS, normal_failed + attack_failed),
        ):  # fmt: skip
            metrics[:, _COL[metric]] = np.maximum(values, 0.0)
        idle = ok * self.step_s < 0.5
        metrics[np.ix_(idle, [_COL[m] for m in (Metric.LATENCY_P50, Metric.LATENCY_P90, Metric.LATENCY_P99)])] = np.nan
        metrics[u[:, 4] < MISSING] = np.nan
        used = cpu * limits
        self.node_load = np.bincount(s.node, weights=used, minlength=len(self.node_cores)) / self.node_cores
        return Sample(
            metrics=metrics.astype(np.float32), offered_rps=normal + d.attack_rps, normal_rps=normal,
            attack_rps=d.attack_rps.copy(), normal_failed_rps=normal_failed, attack_failed_rps=attack_failed,
            cpu_cores=used, memory_bytes=rss * s.replicas, rx=rx, tx=tx, oom=oom,
        )  # fmt: skip

    def _cron(self, end_s: float, z: Floats) -> Floats:
        """CPU of periodic jobs: two to six samples once a period."""
        period = np.maximum(self.p["cron_period_s"], 1.0)
        into = (end_s + self.phase[:, 1] * period) % period
        lasts = 20 + 40 * self.phase[:, 3]
        on = (self.p["cron_period_s"] > 0) & (into <= lasts)
        return np.where(on, self.p["cron_cpu"] * np.exp(0.15 * z), 0.0)

    def _pressure(self, s: Setting) -> Floats:
        """How hard the kernel has to look for memory (0 to 1): from eight tenths of the limit on."""
        rss = self.p["rss_bytes"] * (1 + 0.03 * self.walk) + self.leak
        return np.asarray(np.clip((rss / s.memory_limit - 0.8) / 0.2, 0, 1))

    def _memory(
        self, end_s: float, s: Setting, d: Disturbance, ok: Floats, z: Floats
    ) -> tuple[Floats, NDArray[np.bool_]]:
        p = self.p
        self.walk = 0.97 * self.walk + np.sqrt(1 - 0.97**2) * z
        self.leak = np.where(s.restarted, 0.0, self.leak)
        # A leak fills up in about a minute and is given back as fast.
        self.leak += (d.leak_bytes - self.leak) * 0.35
        saw = (end_s / p["gc_period_s"] + self.phase[:, 0]) % 1.0 - 0.5
        rss = (p["rss_bytes"] + p["rss_per_rps"] * ok / s.replicas) * (
            1 + 0.03 * self.walk + p["gc_fraction"] * saw - 0.2 * self.warm
        ) + self.leak
        oom = rss > s.memory_limit
        rss = np.minimum(rss, s.memory_limit)
        self.leak = np.where(oom, 0.0, self.leak)
        return rss, oom


def _queue(rho: Floats) -> Floats:
    """Growth of latency with utilisation: gentle, then steep, then as long as the queue may grow."""
    waiting = np.minimum(0.25 * rho**4 / (1.03 - np.minimum(rho, 1.0)), QUEUE_MOST)
    return np.asarray(1 + waiting + 0.8 * np.clip(rho - 1, 0, 2))


def _counts(mean: Floats, z: Floats) -> Floats:
    """Whole numbers with a Poisson's mean and variance, from normal noise (Anscombe's transform).

    A function of `z` alone, so that a changed mean does not shift anybody else's stream.
    """
    return np.asarray(np.where(mean > 0, np.maximum(np.round((np.sqrt(mean + 0.375) + z / 2) ** 2 - 0.375), 0), 0))
