"""How long a turn takes from telemetry window to committed decision, and which part of it is the longest.

The same `LoopCycle` turns twice over the same worlds: in this process, and across Ray actors and Serve. Parts are
timed by wrapping the Protocols, so nothing in the loop knows that it is measured. Mode is observe: carrying out
is not part of the path.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Awaitable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from natwork_ray.adapters.sqlite_journal import SqliteJournal
from natwork_ray.backends import LocalJudge, World, build_world, load_detector
from natwork_ray.cli.demo import free_port, write_effective
from natwork_ray.cli.settings import settle
from natwork_ray.config import Config
from natwork_ray.control.cycle import Control, Judge, Judgement, LoopCycle
from natwork_ray.control.direct import DirectControl
from natwork_ray.control.events import Event, RunStarted
from natwork_ray.control.moving import predict_move
from natwork_ray.control.service import Answer
from natwork_ray.domain.actions import ActionOutcome, Instruction
from natwork_ray.domain.decisions import Mode
from natwork_ray.domain.telemetry import TelemetryWindow
from natwork_ray.domain.topology import Topology
from natwork_ray.domain.values import Backend
from natwork_ray.errors import ConflictError
from natwork_ray.ports import Orchestrator, TelemetrySource
from natwork_ray.profiling.profile import ProfileBook

T = TypeVar("T")
WARM_UP_TURNS = 5


class Stopwatch:
    """Seconds spent in each part, turn by turn."""

    def __init__(self) -> None:
        self.parts: dict[str, list[float]] = defaultdict(list)

    async def time(self, part: str, work: Awaitable[T]) -> T:
        """Await `work` and note how long it took."""
        begin = time.perf_counter()
        result = await work
        self.parts[part].append(time.perf_counter() - begin)
        return result


class TimedJudge:
    """A judge under the stopwatch."""

    def __init__(self, judge: Judge, watch: Stopwatch) -> None:
        self._judge, self._watch = judge, watch

    async def judge(self, window: TelemetryWindow) -> Judgement:
        """See `Judge`."""
        return await self._watch.time("detection", self._judge.judge(window))


class TimedControl:
    """A control service under the stopwatch."""

    def __init__(self, control: Control, watch: Stopwatch) -> None:
        self._control, self._watch = control, watch

    async def submit(self, events: Sequence[Event]) -> tuple[Answer, ...]:
        """See `Control`."""
        return await self._watch.time("decision", self._control.submit(events))

    async def outbox(self) -> tuple[Instruction, ...]:
        """See `Control`."""
        return await self._control.outbox()


class NoHands:
    """Nobody carries anything out in mode observe."""

    async def execute(self, instruction: Instruction) -> ActionOutcome:
        """Never called."""
        raise ConflictError(f"{instruction.key} was issued in mode observe", hint="this is a bug")


def run(sizes: Sequence[int], *, turns: int, with_ray: bool, bar: Any) -> dict[str, Any]:
    """Measure every size on every path; a document for JSON."""
    rows: list[dict[str, Any]] = []
    task = bar.add_task("measuring", total=len(sizes) * (2 if with_ray else 1))
    with tempfile.TemporaryDirectory(prefix="natwork-bench-") as folder:
        for size in sizes:
            bar.update(task, description=f"{size} containers in process")
            rows.append(asyncio.run(_in_process(size, turns, Path(folder) / f"local-{size}")))
            bar.advance(task)
        if with_ray:
            with _cluster(Path(folder) / "ray"):
                for size in sizes:
                    bar.update(task, description=f"{size} containers through Ray")
                    rows.append(asyncio.run(_through_ray(size, turns, Path(folder) / f"ray-{size}")))
                    bar.advance(task)
    limits = max(rows, key=lambda row: (row["containers"], row["path"] == "ray", row["p50_ms"]))
    return {
        "backend": str(Backend.EMULATED),
        "cores": os.cpu_count(),
        "turns": turns,
        "interval_s": Config().loop.step_s,
        "rows": rows,
        "limit": f"{limits['slowest_part']} takes {limits['slowest_part_share']:.0%} of a turn of "
        f"{limits['containers']} containers ({limits['path']}); one turn uses {limits['share_of_interval']:.1%} "
        "of the interval at p99",
    }


def _config(size: int, turns: int) -> Config:
    config = settle()
    length_s = (turns + WARM_UP_TURNS + 1) * config.loop.step_s
    emulation = config.emulation.model_copy(
        update={"scenario": f"grid-{size}", "duration_s": max(length_s, config.emulation.duration_s)}
    )
    return config.model_copy(update={"emulation": emulation})


async def _in_process(size: int, turns: int, state_dir: Path) -> dict[str, Any]:
    config = _config(size, turns)
    world: World = build_world(config)
    facts = world.facts()
    hour = await world.telemetry.window(end_s=facts.begins_s, length=round(facts.begins_s / facts.step_s))
    judge = LocalJudge(load_detector(config), ProfileBook.learn(hour))
    journal = SqliteJournal.open(state_dir, origin="natwork-ray/bench")
    try:
        control = DirectControl(journal, predict_move)
        await control.submit((_start(config, await world.orchestrator.topology(), facts.begins_s),))

        async def advance(to_s: float) -> None:
            world.advance(to_s)

        return await _measure(
            size, turns, "in process", config, advance, world.telemetry, judge, control, world.orchestrator
        )
    finally:
        journal.close()


async def _through_ray(size: int, turns: int, state_dir: Path) -> dict[str, Any]:
    from agents.control import start_control
    from agents.judging import ServeJudge
    from agents.naming import SERVE_ANOMALY
    from agents.world import start_world

    config = _config(size, turns)
    namespace = f"bench-{size}"
    world = start_world(config, namespace=namespace)
    control = start_control(state_dir, config=config, namespace=namespace)
    facts = await world.facts()
    hour = await world.window(end_s=facts.begins_s, length=round(facts.begins_s / facts.step_s))
    judge = ServeJudge(ProfileBook.learn(hour), app=SERVE_ANOMALY)
    await control.submit((_start(config, await world.topology(), facts.begins_s),))
    return await _measure(size, turns, "ray", config, world.advance, world, judge, control, world)


def _start(config: Config, topology: Topology, at_s: float) -> RunStarted:
    return RunStarted(
        id="run:bench",
        at_s=at_s,
        backend=Backend.EMULATED,
        mode=Mode.OBSERVE,
        scenario=config.emulation.scenario,
        seed=config.emulation.seed,
        step_s=config.loop.step_s,
        approval_lapse_s=config.loop.approval_lapse_s,
        topology=topology,
        alarm=config.alarm,
        sla=config.sla,
    )


async def _measure(
    size: int,
    turns: int,
    path: str,
    config: Config,
    advance: Any,
    telemetry: TelemetrySource,
    judge: Judge,
    control: Control,
    orchestrator: Orchestrator,
) -> dict[str, Any]:
    watch = Stopwatch()
    cycle = LoopCycle(
        telemetry=telemetry,
        judge=TimedJudge(judge, watch),
        control=TimedControl(control, watch),
        orchestrator=orchestrator,
        node_hands={},
        cluster_hands=NoHands(),
        window_length=config.loop.window,
    )
    at_s = config.loop.commissioning_s
    for number in range(WARM_UP_TURNS + turns):
        if number == WARM_UP_TURNS:
            watch.parts.clear()
        at_s += config.loop.step_s
        await advance(at_s)
        await watch.time("whole turn", cycle.turn(at_s))
    whole = np.array(watch.parts.pop("whole turn"))
    means = {part: float(np.sum(times)) / turns for part, times in watch.parts.items()}
    means["telemetry and evidence"] = float(whole.mean()) - sum(means.values())
    slowest = max(means, key=lambda part: means[part])
    p50, p99 = (float(np.percentile(whole, q)) for q in (50, 99))
    return {
        "containers": size,
        "path": path,
        "p50_ms": 1000 * p50,
        "p99_ms": 1000 * p99,
        "windows_per_s": size / p50,
        "share_of_interval": p99 / config.loop.step_s,
        "parts_mean_ms": {part: 1000 * seconds for part, seconds in means.items()},
        "slowest_part": slowest,
        "slowest_part_share": means[slowest] / float(whole.mean()),
    }


@contextlib.contextmanager
def _cluster(state_dir: Path) -> Iterator[None]:
    from agents import cluster

    config = settle()
    config = config.model_copy(
        update={"state_dir": state_dir, "http": config.http.model_copy(update={"port": free_port()})}
    )
    state_dir.mkdir(mode=0o700, parents=True)
    write_effective(config)
    os.environ.update(cluster.environment(state_dir))
    cluster.start(state_dir, dashboard=False)
    try:
        cluster.connect(state_dir)
        from serve_apps.deploy import deploy

        deploy(config.http, gateway_too=False)
        yield
    finally:
        cluster.disconnect()
        cluster.end(state_dir)
