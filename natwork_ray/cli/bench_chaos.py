"""The kill campaign: one run of the loop across Ray, its processes killed with SIGKILL at random points.

A run of the same configuration in one process, which nobody disturbs, says what has to come out: the same decisions,
outcomes, quota, placement, state of the world and audit log; every event once in the journal, every instruction once in
the world. The victims are the control actor, the LiMi agents and the replicas of the anomaly model. Half of the points
are drawn from all turns, the other half from those in which something is carried out, where a kill could hurt most.
The world is not among the victims: it stands for the network itself.

Only processes of the cluster that the campaign started are killed, by process id.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil

from natwork_ray.cli.demo import free_port, write_effective
from natwork_ray.cli.in_process import Ending, ending, run_in_process
from natwork_ray.config import Config
from natwork_ray.control.cycle import Turn
from natwork_ray.domain.actions import NODE_LOCAL, Migrate
from natwork_ray.errors import NatworkError, TimedOutError

if TYPE_CHECKING:
    from agents.supervisor import Supervisor

RECOVERY_LIMIT_S = 30.0
REPLICAS = 2  # with one, each kill would cost the seconds that a new process needs to load the networks
CONTROL, LIMI, ANOMALY = "control", "limi", "anomaly"
_BEFORE = 0.2  # share of the kills that hit before a turn begins; the others fall into it


@dataclass(frozen=True)
class KillPoint:
    """One kill: in which turn (from 1), who, and when.

    Attributes:
        node: whose LiMi agent; empty for the others.
        moment: 0 before the turn begins, else when in it, as a share of a typical turn of that sort.
    """

    turn: int
    victim: str
    node: str
    moment: float


@dataclass(frozen=True)
class BusyTurn:
    """A turn of the undisturbed run in which something was carried out, and the nodes whose agents did it."""

    turn: int
    nodes: tuple[str, ...]


def draw(
    rng: random.Random, *, kills: int, turns: int, nodes: Sequence[str], busy: Sequence[BusyTurn]
) -> list[KillPoint]:
    """Points of a campaign, in the order of their turns."""
    points = []
    for number in range(kills):
        at_work = rng.choice(busy) if busy and number % 2 else None
        victim = rng.choice((CONTROL, LIMI, ANOMALY))
        node = ""
        if victim == LIMI:
            node = rng.choice(at_work.nodes if at_work is not None and at_work.nodes else nodes)
        moment = 0.0 if rng.random() < _BEFORE else rng.uniform(0.0, 1.2)
        points.append(KillPoint(at_work.turn if at_work else rng.randint(1, turns), victim, node, moment))
    return sorted(points, key=lambda point: point.turn)


@dataclass
class Toll:
    """What the kills did, as it was seen."""

    kills: Counter[str] = field(default_factory=Counter)
    in_flight: int = 0
    repeated_turns: int = 0
    recovery_s: list[float] = field(default_factory=list)  # from a kill to the end of the next turn
    # From a kill until the victim answers again, or until the model has all its replicas: later kills prolong that.
    return_s: list[float] = field(default_factory=list)


def run(config: Config, *, kills: int, bar: Any) -> dict[str, Any]:
    """The campaign; a document for JSON, whose `passed` says whether everything held."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="natwork-chaos-") as folder:
        turns: list[Turn] = []
        task = bar.add_task("undisturbed, in process", total=None)
        facts, expected = asyncio.run(run_in_process(config, Path(folder) / "undisturbed", on_turn=turns.append))
        nodes = [node.name for node in expected.topology.nodes]
        points = draw(
            random.Random(facts.seed),  # noqa: S311 - repeatable on purpose
            kills=kills,
            turns=len(turns),
            nodes=nodes,
            busy=busy_turns(turns, expected),
        )
        bar.update(task, description="under fire", total=len(turns))
        config = config.model_copy(
            update={
                "state_dir": Path(folder) / "state",
                "http": config.http.model_copy(update={"port": free_port()}),
            }
        )
        with _cluster(config) as head:
            actual, toll = asyncio.run(_under_fire(config, points, head, lambda: bar.advance(task)))
    document = verdict(expected, actual, toll)
    busy = {turn.turn for turn in busy_turns(turns, expected)}
    return {
        "backend": str(facts.backend),
        "seed": facts.seed,
        "turns": len(turns),
        "kills": kills,
        "kills_in_busy_turns": sum(point.turn in busy for point in points),
        **document,
        "wall_s": round(time.monotonic() - began, 3),
    }


def busy_turns(turns: Sequence[Turn], end: Ending) -> list[BusyTurn]:
    """The turns that carried something out, and which agents had to do with it."""
    instructions = {i.key: i for i in end.issued}
    home = {c.name: c.node for c in end.topology.containers}
    found = []
    for number, turn in enumerate(turns, start=1):
        local = [i for i in (instructions[o.key] for o in turn.outcomes) if isinstance(i, NODE_LOCAL)]
        nodes = sorted({i.source if isinstance(i, Migrate) else home[i.container] for i in local})
        if turn.outcomes:
            found.append(BusyTurn(number, tuple(nodes)))
    return found


def verdict(expected: Ending, actual: Ending, toll: Toll) -> dict[str, Any]:
    """What the kills cost, against what has to hold."""
    committed, due = Counter(actual.events), Counter(expected.events)
    homes = Counter(c.name for c in actual.topology.containers)
    lost_containers = [c.name for c in expected.topology.containers if homes[c.name] != 1]
    twice = [key for key, times in actual.effects.items() if times > 1]
    lost, doubled = due - committed, [event for event, times in committed.items() if times > 1]
    differences = expected.differences(actual)
    in_time = max(toll.recovery_s, default=0.0) <= RECOVERY_LIMIT_S
    passed = in_time and not (differences or twice or lost or doubled or lost_containers)
    return {
        "by_victim": dict(sorted(toll.kills.items())),
        "kills_in_flight": toll.in_flight,
        "turns_repeated": toll.repeated_turns,
        "recovery_s": _p50_and_max(toll.recovery_s),
        "return_s": _p50_and_max(toll.return_s),
        "events": {
            "expected": due.total(),
            "committed": committed.total(),
            "lost": lost.total(),
            "doubled": len(doubled),
        },
        "instructions": {"issued": len(actual.effects), "done_twice": len(twice)},
        "containers_lost": len(lost_containers),
        "equal_to_undisturbed": not differences,
        "differences": differences,
        "audit_root": actual.audit_root,
        "passed": passed,
    }


def _p50_and_max(seconds: Sequence[float]) -> dict[str, float | None]:
    if not seconds:
        return {"p50": None, "max": None}
    return {"p50": round(float(np.median(seconds)), 3), "max": round(max(seconds), 3)}


async def _under_fire(
    config: Config, points: Sequence[KillPoint], head: psutil.Process, advance: Any
) -> tuple[Ending, Toll]:
    from agents.supervisor import Supervisor

    supervisor = await Supervisor.begin(config, config.state_dir)
    gun = Gun(supervisor, head)
    toll = gun.toll
    by_turn: dict[int, list[KillPoint]] = defaultdict(list)
    for point in points:
        by_turn[point.turn].append(point)
    facts = supervisor.facts
    typical_s = 0.05
    for number in range(1, round((facts.ends_s - facts.begins_s) / facts.step_s) + 1):
        at_s = facts.begins_s + number * facts.step_s
        aimed = [(point, await gun.aim(point)) for point in by_turn[number]]
        for point, pid in aimed:
            if point.moment == 0.0:
                gun.fire(point, pid)
        began = time.monotonic()
        turn = asyncio.create_task(_persistent_turn(supervisor, at_s, toll))
        for point, pid in sorted(aimed, key=lambda shot: shot[0].moment):
            if point.moment > 0.0:
                await asyncio.sleep(max(0.0, began + point.moment * typical_s - time.monotonic()))
                toll.in_flight += not turn.done()
                gun.fire(point, pid)
        await turn
        gun.turn_ended()
        if not aimed:
            typical_s = 0.9 * typical_s + 0.1 * (time.monotonic() - began)
        advance()
    await gun.all_returned()
    return await _ending(supervisor, config), toll


async def _persistent_turn(supervisor: Supervisor, at_s: float, toll: Toll) -> None:
    """As the supervisor actor does: a turn that failed is turned again, which changes nothing twice."""
    deadline = time.monotonic() + 4 * RECOVERY_LIMIT_S
    while True:
        try:
            await supervisor.turn(at_s)
        except NatworkError:
            if time.monotonic() > deadline:
                raise
            toll.repeated_turns += 1
            await asyncio.sleep(0.2)
        else:
            return


async def _ending(supervisor: Supervisor, config: Config) -> Ending:
    control, world = supervisor.crew.control, supervisor.crew.world
    outcomes = await control.outcomes()
    keys = [o.key for o in outcomes]
    return ending(
        config.state_dir,
        status=await control.status(),
        decisions=await control.decisions(),
        outcomes=outcomes,
        topology=await world.topology(),
        effects=dict(zip(keys, await world.effects(keys), strict=True)),
        world=(await world.facts()).digest,
    )


class Gun:
    """Kills processes of one cluster, and sees how long their work stands still."""

    def __init__(self, supervisor: Supervisor, head: psutil.Process) -> None:
        self._supervisor = supervisor
        self._head = head
        self._fired_s: list[float] = []  # kills since the last turn ended
        self._watches: list[asyncio.Task[None]] = []
        self._random = random.Random(supervisor.facts.seed)  # noqa: S311 - repeatable on purpose
        self.toll = Toll()

    async def aim(self, point: KillPoint) -> int:
        """Process id of the victim as it is now; one that is being made again is waited for."""
        crew = self._supervisor.crew
        if point.victim == CONTROL:
            return await crew.control.pid()
        if point.victim == LIMI:
            return await crew.limi[point.node].pid()
        return self._random.choice(await self._replicas(1))

    def fire(self, point: KillPoint, pid: int) -> None:
        """SIGKILL, when the process is of our cluster and still there."""
        try:
            process = psutil.Process(pid)
            if self._head not in process.parents():
                raise TimedOutError(f"process {pid} is none of the cluster's", hint="this is a bug")
            os.kill(pid, signal.SIGKILL)
        except (psutil.NoSuchProcess, ProcessLookupError):
            # It died by an earlier shot at this turn. The kill still counts: the victim is dead when it falls.
            pass
        now = time.monotonic()
        self.toll.kills[point.victim] += 1
        self._fired_s.append(now)
        self._watches.append(asyncio.create_task(self._until_back(point, pid, now)))

    def turn_ended(self) -> None:
        """A turn was completed: the loop goes on after the kills before it."""
        now = time.monotonic()
        self.toll.recovery_s += [now - fired_s for fired_s in self._fired_s]
        self._fired_s.clear()

    async def all_returned(self) -> None:
        """Wait until every victim answers again."""
        await asyncio.gather(*self._watches)

    async def _until_back(self, point: KillPoint, pid: int, fired_s: float) -> None:
        if point.victim == ANOMALY:
            await self._replicas(REPLICAS, without=pid)
        else:
            while await self.aim(point) == pid:  # noqa: ASYNC110 - what is polled is another process
                await asyncio.sleep(0.05)
        self.toll.return_s.append(time.monotonic() - fired_s)

    async def _replicas(self, count: int, *, without: int | None = None) -> list[int]:
        """Process ids of the anomaly model's replicas, once there are so many."""
        deadline = time.monotonic() + 2 * RECOVERY_LIMIT_S
        while time.monotonic() < deadline:
            found = []
            for process in self._head.children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    title = "".join(process.cmdline()[:1])
                    alive = process.status() != psutil.STATUS_ZOMBIE
                    if title.startswith("ray::ServeReplica:anomaly:") and alive and process.pid != without:
                        found.append(process.pid)
            if len(found) >= count:
                return sorted(found)
            await asyncio.sleep(0.25)
        raise TimedOutError(f"fewer than {count} replicas of the anomaly model", hint="see Serve's logs")


@contextlib.contextmanager
def _cluster(config: Config) -> Iterator[psutil.Process]:
    """A cluster with the anomaly model on it, for this campaign alone; yields its first process."""
    from agents import cluster

    config.state_dir.mkdir(mode=0o700, parents=True)
    write_effective(config)
    os.environ.update(cluster.environment(config.state_dir))
    record = cluster.start(config.state_dir, dashboard=False)
    # Ray tells its clients of every death on stdout, where the result belongs.
    with contextlib.redirect_stdout(sys.stderr):
        try:
            cluster.connect(config.state_dir)
            from serve_apps.deploy import deploy

            deploy(config.http, gateway_too=False, replicas=REPLICAS)
            yield psutil.Process(record.pid)
        finally:
            cluster.disconnect()
            cluster.end(config.state_dir)
