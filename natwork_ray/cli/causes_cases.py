"""Incidents with known causes for `natwork causes evaluate`: Nezha, Sock Shop, and the emulation.

Each set is cut by when it was recorded. Tuning: Nezha's first day of each application, Sock Shop's repetitions 1 and 2,
the emulation's first worlds; reported: the rest.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from natwork_ray.adapters.nezha import NezhaDay, read_nezha
from natwork_ray.adapters.sockshop import FILE_NAME as SOCK_SHOP_FILE
from natwork_ray.adapters.sockshop import read_sockshop
from natwork_ray.dependencies.evaluation import IncidentCase
from natwork_ray.dependencies.graph import ONLINE_BOUTIQUE, SOCK_SHOP, DependencyGraph, from_calls, from_topology
from natwork_ray.dependencies.inference import infer_graph
from natwork_ray.domain.telemetry import TelemetryWindow
from natwork_ray.emulation.injections import ATTACKS, KINDS, Injection
from natwork_ray.emulation.scenarios import grid
from natwork_ray.emulation.testbed import Testbed
from natwork_ray.errors import PreconditionError

NEZHA_INCIDENT = 4  # samples from the first whole minute after an injection; the shortest faults last three minutes
NEZHA_TROUBLED = 8  # minutes after an injection that count as normal for nobody
SOCK_SHOP_TUNED = 2  # repetitions
_COMMISSIONING = 360
_GAP_S = 300.0
_SERVICES = 16
_PER_KIND = 3
_ATTACKER = "203.0.113.0/24"


def recorded_cases(folder: Path) -> list[IncidentCase]:
    """Cases of every data set that the folder holds.

    Raises:
        PreconditionError: it holds none.
    """
    cases: list[IncidentCase] = []
    if (folder / "nezha").is_dir():
        cases += nezha_cases(folder / "nezha")
    if (folder / SOCK_SHOP_FILE).is_file():
        cases += sock_shop_cases(folder / SOCK_SHOP_FILE)
    if not cases:
        raise PreconditionError(
            f"{folder} holds no recorded incidents",
            hint=f"put nezha/ or {SOCK_SHOP_FILE} there; docs/data.md says where",
        )
    return cases


def nezha_cases(folder: Path) -> list[IncidentCase]:
    """One case per injection; the normal part is every minute of the day that is not troubled by one.

    Online Boutique has the call graph that the application documents; Train Ticket's is inferred from the normal part.
    """
    days = read_nezha(folder)
    first: dict[str, str] = {}
    for day in days:
        first.setdefault(day.application, day.date)
    return [case for day in days for case in _nezha_day(day, "tune" if first[day.application] == day.date else "test")]


def _nezha_day(day: NezhaDay, part: str) -> list[IncidentCase]:
    window = day.telemetry
    minutes = [(fault.at_s - day.starts_s) / window.step_s for fault in day.faults]
    untroubled = np.ones(window.length, dtype=bool)
    for minute in minutes:
        untroubled[max(0, int(minute)) : int(minute) + NEZHA_TROUBLED] = False
    normal = _part(window, untroubled)
    known = day.application == "online-boutique"
    graph = from_calls(window.containers, ONLINE_BOUTIQUE) if known else infer_graph(normal)
    cases = []
    for fault, minute in zip(day.faults, minutes, strict=True):
        during = np.zeros(window.length, dtype=bool)
        during[int(np.ceil(minute)) : int(np.ceil(minute)) + NEZHA_INCIDENT] = True
        if during.any():
            cases.append(
                IncidentCase(
                    data=f"nezha {day.application}",
                    kind=fault.kind,
                    part=part,
                    normal=normal,
                    incident=_part(window, during),
                    graph=graph,
                    cause=fault.service,
                )
            )
    return cases


def sock_shop_cases(file: Path) -> list[IncidentCase]:
    """One case per fault and repetition, each with its own normal part; the whole anomalous segment is the incident."""
    segments = read_sockshop(file)
    normal = {s.case: s.telemetry for s in segments if s.phase == "normal"}
    return [
        IncidentCase(
            data="sock shop",
            kind=s.fault,
            part="tune" if s.repetition <= SOCK_SHOP_TUNED else "test",
            normal=normal[s.case],
            incident=s.telemetry,
            graph=from_calls(s.telemetry.containers, SOCK_SHOP),
            cause=s.cause,
        )
        for s in segments
        if s.phase == "anomalous" and s.case in normal
    ]


def emulated_cases(*, seed: int, worlds: int) -> list[IncidentCase]:
    """Worlds of 16 random services, one injection after the other: all kinds, places and intensities at random."""
    cases: list[IncidentCase] = []
    for world in range(worlds):
        scenario = grid(_SERVICES, seed=seed * 1000 + world)
        schedule = _one_by_one([c.name for c in scenario.topology.containers], np.random.default_rng([seed, world]))
        testbed = Testbed(scenario, seed=seed * 1000 + world, schedule=schedule)
        testbed.advance(max(i.end_s for i in schedule))
        normal = testbed.window(end_s=_COMMISSIONING * testbed.step_s, length=_COMMISSIONING)
        graph: DependencyGraph = from_topology(scenario.topology)
        cases += [
            IncidentCase(
                data="emulated",
                kind=i.kind,
                part="tune" if world < max(1, worlds // 3) else "test",
                normal=normal,
                incident=testbed.window(end_s=i.end_s, length=round((i.end_s - i.start_s) / testbed.step_s)),
                graph=graph,
                cause=i.container,
            )
            for i in schedule
        ]
    return cases


def _one_by_one(containers: list[str], rng: np.random.Generator) -> list[Injection]:
    schedule, at_s = [], _COMMISSIONING * 10.0
    for kind in KINDS * _PER_KIND:
        lasts_s = 30.0 if kind == "traffic_spike" else 120.0
        schedule.append(
            Injection(
                kind=kind,
                container=containers[int(rng.integers(len(containers)))],
                start_s=at_s,
                end_s=at_s + lasts_s,
                intensity=float(rng.uniform(0.25, 1.0)),
                source=_ATTACKER if kind in ATTACKS else "",
            )
        )
        at_s += lasts_s + _GAP_S
    return schedule


def _part(window: TelemetryWindow, chosen: NDArray[np.bool_]) -> TelemetryWindow:
    return TelemetryWindow(
        containers=window.containers,
        services=window.services,
        end_s=window.end_s,
        step_s=window.step_s,
        values=window.values[:, chosen],
    )
