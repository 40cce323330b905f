"""The supervisor turns the loop: it starts the agents, keeps the pace and carries on after anyone's death.

It holds nothing that cannot be read back: where the loop stands is asked of the control actor, profiles are learnt
again from the same commissioning hour, windows are read from the telemetry source. In a world with a virtual
clock, time stands still until a turn is done (docs/adr/0006); under `natwork up` the same turns follow the wall clock.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import ray

from agents.calls import NamedActor
from agents.control import ControlClient, start_control
from agents.judging import ServeJudge
from agents.limi import LimiClient, LimiOffice, start_limi
from agents.naming import HOST_LABEL, NAMESPACE, SERVE_ANOMALY, SUPERVISOR
from agents.world import WorldClient, start_world
from natwork_ray.backends import FORECAST_SAMPLES, WorldFacts, loop_forecaster, run_started
from natwork_ray.config import Config
from natwork_ray.control.courier import Courier
from natwork_ray.control.cycle import Hands, LoopCycle, Turn
from natwork_ray.control.events import TopologyObserved
from natwork_ray.control.executor import Executor
from natwork_ray.control.profile_keeping import ProfileKeeper
from natwork_ray.control.service_moves import ConductedMoves, ServiceHands
from natwork_ray.domain.actions import ActionOutcome, Instruction, Migrate
from natwork_ray.domain.shown_turn import ShownTurn
from natwork_ray.domain.values import Backend
from natwork_ray.errors import ConflictError, NatworkError, NotFoundError, TimedOutError

# How long an order waits at most before it is delivered, beside the turns.
DELIVERY_PAUSE_S = 0.25

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Crew:
    """Clients of everyone that takes part."""

    control: ControlClient
    world: WorldClient
    limi: dict[str, LimiClient]


class _SteadyClock:
    """Seconds since some moment; never set back."""

    def now_s(self) -> float:
        """Now."""
        return time.monotonic()


class Supervisor:
    """Runs one world's loop from where it stands to its end."""

    def __init__(self, config: Config, crew: Crew, *, namespace: str, patience_s: float) -> None:
        self._config = config
        self._namespace = namespace
        self._patience_s = patience_s
        self.crew = crew
        self.facts: WorldFacts
        self._cycle: LoopCycle

    @classmethod
    async def begin(
        cls,
        config: Config,
        state_dir: Path,
        *,
        namespace: str = NAMESPACE,
        patience_s: float = 60.0,
        make_world: bool = True,
    ) -> Supervisor:
        """Start or find the actors, learn the profiles, and let the loop take charge of the world.

        With `make_world` false the world must be there: one that has died is not replaced behind the loop's back.
        """
        world = start_world(config, namespace=namespace) if make_world else WorldClient(namespace)
        control = start_control(state_dir, config=config, namespace=namespace)
        topology = await world.topology()
        limi = {node.name: start_limi(node.name, namespace=namespace, config=config) for node in topology.nodes}
        supervisor = cls(config, Crew(control, world, limi), namespace=namespace, patience_s=patience_s)
        await supervisor._prepare()
        return supervisor

    async def _prepare(self) -> None:
        self.facts = facts = await self.crew.world.facts()
        self._hands: dict[str, Hands] = dict(self.crew.limi)
        if facts.backend is Backend.REAL:
            # What a run before left under way comes to its end first; then people may order, while profiles are learnt.
            await self._courier().carry_out(await self._left_over(), await self.crew.world.topology(), time.time())
            await self._take_charge()
        else:
            await self.learn()
            await self._take_charge()
            await self.begin_keeping()

    async def _left_over(self) -> tuple[Instruction, ...]:
        try:
            await self.crew.control.status()
        except ConflictError:
            return ()  # no run before
        return await self.crew.control.outbox()

    async def _take_charge(self) -> None:
        start = run_started(self._config, self.facts, await self.crew.world.topology())
        (answer,) = await self.crew.control.submit((start,))
        answer.unwrap()

    async def learn(self) -> None:
        """Learn every service's profile from the commissioning hour, which must be over."""
        world, facts = self.crew.world, self.facts
        hour = await world.window(end_s=facts.begins_s, length=facts.commissioning_samples)
        self._forecaster = loop_forecaster(hour)
        self._keeper = ProfileKeeper(control=self.crew.control, telemetry=world, hour=hour)
        self._judge = ServeJudge(self._keeper.book, app=SERVE_ANOMALY, patience_s=self._patience_s)
        self._cycle = LoopCycle(
            telemetry=world,
            judge=self._judge,
            control=self.crew.control,
            orchestrator=world,
            node_hands=self._hands,
            cluster_hands=self._cluster_hands(),
            window_length=self._config.loop.window,
            service_hands=self._service_hands(),
            forecaster=self._forecaster,
            forecast_length=FORECAST_SAMPLES,
        )

    async def begin_keeping(self) -> None:
        """Tell the loop what was learnt; see `ProfileKeeper.begin`."""
        await self._keeper.begin(await self.stands_at_s())
        self._judge.use(self._keeper.book)

    def _cluster_hands(self) -> Executor:
        world = self.crew.world
        return Executor(
            runtime=world, firewall=world, orchestrator=world, clock=world, backend=self.facts.backend, sdn=world
        )

    def _courier(self) -> Courier:
        return Courier(
            control=self.crew.control,
            orchestrator=self.crew.world,
            node_hands=self._hands,
            cluster_hands=self._cluster_hands(),
            service_hands=self._service_hands(),
        )

    def _service_hands(self) -> ServiceHands:
        """Who conducts a service's schedule: this process on real nodes, the world itself in an emulated one."""
        if self.facts.backend is not Backend.REAL:
            return self.crew.world

        async def execute(instruction: Migrate) -> ActionOutcome:
            hands = self._hands.get(instruction.source)
            if hands is None:
                raise NotFoundError(f"no LiMi agent on node {instruction.source}", hint="it may still be starting")
            return await hands.execute(instruction)

        return ConductedMoves(execute, LimiOffice(self._namespace), _SteadyClock(), backend=Backend.REAL)

    async def keep_delivering(self, trouble: Callable[[str], Awaitable[None]]) -> None:
        """Carry out what is issued while real time passes; see `Courier.keep_delivering`."""
        await self._courier().keep_delivering(time.time, pause_s=DELIVERY_PAUSE_S, trouble=trouble)

    async def commission(self, until_s: float) -> None:
        """Take samples of a real world until its commissioning hour is over, and tell the loop what runs where."""
        step_s, told = self.facts.step_s, None
        at_s = self.facts.origin_s + step_s
        while at_s <= until_s + 1e-6:
            await asyncio.sleep(max(0.0, at_s - time.time()))
            await self.crew.world.advance(at_s)
            topology = await self.crew.world.topology()
            if topology != told:
                news = TopologyObserved(id=f"topology@{at_s:.3f}", at_s=at_s, topology=topology)
                for answer in await self.crew.control.submit((news,)):
                    answer.unwrap()
                told = topology
            at_s += step_s

    async def stands_at_s(self) -> float:
        """Up to where the loop has judged: its newest event's time."""
        return (await self.crew.control.status()).at_s

    async def turn(self, at_s: float, *, deliver: bool = True) -> Turn:
        """Let the world reach `at_s`, and turn the loop once; see `LoopCycle.turn`."""
        await self.crew.world.advance(at_s)
        turn = await self._cycle.turn(at_s, deliver=deliver)
        judged = turn.judgement
        await self.crew.control.show_turn(
            ShownTurn(at_s=at_s, verdicts=judged.verdicts, degraded=judged.degraded, forecasts=self._forecaster.newest)
        )
        self._welcome_new_nodes(turn)
        await self.mind_profiles(at_s)
        return turn

    async def mind_profiles(self, at_s: float) -> None:
        """Look for drift and learn anew what a person ordered, when it is time; see `ProfileKeeper.mind`."""
        if await self._keeper.mind(at_s):
            self._judge.use(self._keeper.book)

    async def drain(self, at_s: float) -> None:
        """Carry out what was issued at `at_s` and cut off by a death, before time goes on."""
        await self._cycle.drain(at_s)

    async def run(self, *, until_s: float | None = None, on_turn: Callable[[Turn], None] | None = None) -> int:
        """Turn the loop to the end of the world's run (or to `until_s`); the number of turns made."""
        turns = 0
        step_s, ends_s = self.facts.step_s, self.facts.ends_s if until_s is None else until_s
        at_s = await self.stands_at_s() + step_s
        await self.drain(at_s - step_s)
        while at_s <= ends_s + 1e-6:
            turn = await self.turn(at_s)
            turns += 1
            if on_turn is not None:
                on_turn(turn)
            at_s += step_s
        return turns

    def _welcome_new_nodes(self, turn: Turn) -> None:
        """A node that joined (cluster autoscaling) gets its agent."""
        for node in turn.topology.nodes:
            if node.name not in self._hands:
                agent = start_limi(node.name, namespace=self._namespace, config=self._config)
                self._hands[node.name] = self.crew.limi[node.name] = agent


class SupervisorActor:
    """The supervisor as a detached actor, for `natwork up`: keeps the pace of the wall clock.

    It turns in a thread of its own from the moment it is made, so a restarted one goes on unasked.
    """

    def __init__(self, config: Config, state_dir: Path, namespace: str) -> None:
        self._config, self._state_dir, self._namespace = config, state_dir, namespace
        self._ended = False
        threading.Thread(target=self._turn_or_die, name="loop", daemon=True).start()

    async def pid(self) -> int:
        """Process id."""
        return os.getpid()

    def _turn_or_die(self) -> None:
        try:
            asyncio.run(self._keep_turning())
        except BaseException:
            # An actor whose loop has ended would look alive for ever. Ray makes a new one.
            _log.exception("the loop failed in a way that nobody foresaw")
            os._exit(70)

    async def _keep_turning(self) -> None:
        while not self._ended:
            try:
                await self._turn_to_the_end()
            except NatworkError as error:
                await self._tell(str(error))
                await asyncio.sleep(1.0)

    async def _tell(self, trouble: str) -> None:
        """Let whoever asks for the status know why the loop stands still; empty when it turns."""
        if trouble:
            _log.warning("%s", trouble)
        with contextlib.suppress(NatworkError):  # control may be the one that is away
            await start_control(self._state_dir, config=self._config, namespace=self._namespace).report_trouble(trouble)

    async def _turn_to_the_end(self) -> None:
        supervisor = await Supervisor.begin(self._config, self._state_dir, namespace=self._namespace, make_world=False)
        if supervisor.facts.backend is Backend.REAL:
            await self._watch_real(supervisor)
            return
        step_s, ends_s = supervisor.facts.step_s, supervisor.facts.ends_s
        pace_s = step_s / self._config.emulation.speed
        control = supervisor.crew.control
        await control.expect_turns(pace_s)
        at_s = await supervisor.stands_at_s()
        undelivered = await self._undelivered(supervisor.drain(at_s))
        await self._tell(undelivered)
        due = time.monotonic()
        while at_s + step_s <= ends_s + 1e-6:
            at_s += step_s
            before, undelivered = undelivered, await self._undelivered(supervisor.turn(at_s))
            if undelivered and await supervisor.stands_at_s() < at_s:
                raise TimedOutError(f"no verdicts for {at_s} s: {undelivered}", hint="the turn is made again")
            if undelivered != before:
                await self._tell(undelivered)
            due = max(due + pace_s, time.monotonic())
            undelivered = await self._await_orders(supervisor, at_s, due, undelivered)
        await self._tell("")
        await control.expect_turns(None)
        self._ended = True

    async def _await_orders(self, supervisor: Supervisor, at_s: float, due: float, undelivered: str) -> str:
        """Wait for the next turn, and carry out at once what a person orders or approves meanwhile."""
        seen = {i.key for i in await supervisor.crew.control.outbox()}
        while (left_s := due - time.monotonic()) > 0:
            await asyncio.sleep(min(left_s, DELIVERY_PAUSE_S))
            pending = {i.key for i in await supervisor.crew.control.outbox()}
            if pending - seen:  # what could not be delivered before is tried again with the next turn
                undelivered = await self._undelivered(supervisor.drain(at_s))
            seen |= pending
        return undelivered

    async def _watch_real(self, supervisor: Supervisor) -> None:
        """Turn the loop of a real world: time passes by itself, and actions are delivered beside the turns."""
        facts, control = supervisor.facts, supervisor.crew.control
        courier = asyncio.create_task(supervisor.keep_delivering(self._tell))
        try:
            await supervisor.commission(facts.begins_s)
            await supervisor.learn()
            await supervisor.begin_keeping()
            await control.expect_turns(facts.step_s)
            await self._tell("")
            number = 0
            while not courier.done():
                # A turn that is missed is left out: nobody can look at the past.
                number = max(number + 1, math.ceil((time.time() - facts.begins_s) / facts.step_s))
                at_s = facts.begins_s + number * facts.step_s
                await asyncio.sleep(max(0.0, at_s - time.time()))
                await supervisor.turn(at_s, deliver=False)
            courier.result()
        finally:
            courier.cancel()

    async def _undelivered(self, work: Awaitable[object]) -> str:
        """What went wrong, empty when nothing did.

        An instruction that cannot be delivered stays in the outbox and is tried again in each turn; the loop goes on
        watching everything else meanwhile.
        """
        try:
            await work
        except NatworkError as error:
            return str(error)
        return ""


def start_supervisor(config: Config, state_dir: Path, *, namespace: str = NAMESPACE) -> NamedActor:
    """Make the world and the supervisor actor, or find it; it turns from then on."""
    start_world(config, namespace=namespace)
    ray.remote(SupervisorActor).options(
        name=SUPERVISOR,
        namespace=namespace,
        lifetime="detached",
        get_if_exists=True,
        max_restarts=-1,
        num_cpus=0,
        label_selector={HOST_LABEL: "yes"},
    ).remote(config, state_dir, namespace)
    return NamedActor(SUPERVISOR, namespace=namespace, what="supervisor")
