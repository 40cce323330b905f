"""The composition root: from the configuration, the world that the loop acts on and the detector that judges it.

Nobody else writes `if emulated`. A `World` bundles one implementation of each port; whoever holds it (a Ray actor, a
benchmark, a test) cannot tell an emulation from the real thing but by the label that every record carries.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from natwork_ray.adapters.model_directory import ModelDirectory
from natwork_ray.adapters.replay import ReplayTelemetry
from natwork_ray.config import AlarmConfig, Config
from natwork_ray.control.alarms import calibrated
from natwork_ray.control.api import LimiAgents
from natwork_ray.control.cycle import Judgement
from natwork_ray.control.events import RunStarted
from natwork_ray.control.executor import Executor
from natwork_ray.control.moving import LearntMovesLater, predict_move
from natwork_ray.control.planner import MovePredictor
from natwork_ray.control.service_moves import ConductedMoves, ServiceHands
from natwork_ray.domain.actions import ActionOutcome, Instruction
from natwork_ray.domain.forecasts import LoadForecast
from natwork_ray.domain.labelled import LabelledEvent
from natwork_ray.domain.phases import MigrationMethod
from natwork_ray.domain.telemetry import TelemetryWindow
from natwork_ray.domain.topology import Topology
from natwork_ray.domain.values import Backend, value
from natwork_ray.emulation.injections import KINDS, Injection, draw_schedule
from natwork_ray.emulation.ports import (
    EmulatedClock,
    EmulatedFirewall,
    EmulatedOrchestrator,
    EmulatedRuntime,
    EmulatedSdn,
    EmulatedServiceHands,
    EmulatedTelemetry,
)
from natwork_ray.emulation.prospect import EmulatedAgents
from natwork_ray.emulation.scenarios import Scenario, scenario
from natwork_ray.emulation.services import ServiceProfile
from natwork_ray.emulation.testbed import Testbed
from natwork_ray.errors import NatworkError, NotFoundError, PreconditionError, UsageError
from natwork_ray.forecasting.bounds import DEFAULT_FORECASTER
from natwork_ray.limi.agent import AgentSettings, MigrationAgent, Peer
from natwork_ray.limi.choosing import ByEquations, ByModel, MethodChooser, SelectorFileLater
from natwork_ray.limi.retries import Timeouts
from natwork_ray.ports import (
    Clock,
    ContainerControl,
    Firewall,
    NodeActions,
    Orchestrator,
    SdnController,
    TelemetrySource,
)
from natwork_ray.profiling.bounds import DEFAULT_MODEL, MAX_MODEL_BYTES
from natwork_ray.profiling.model_card import ModelCard
from natwork_ray.profiling.model_file import loads, read_card
from natwork_ray.profiling.profile import ProfileBook

if TYPE_CHECKING:
    from natwork_ray.adapters.prometheus import PrometheusTelemetry
    from natwork_ray.adapters.testbed_requirements import Toolchain
    from natwork_ray.adapters.testbed_state import TestbedRecord
    from natwork_ray.adapters.testbed_world import TestbedWorld
    from natwork_ray.forecasting.forecaster import Forecaster
    from natwork_ray.profiling.detector import TwoStageDetector

FORECAST_SAMPLES = 64  # samples that the loop shows its forecaster: its window, and some to judge the newest by
SECONDS_PER_ROUND = 5400.0  # each kind of anomaly and attack once in so long


@value
class WorldFacts:
    """What is known of a world from outside the loop. The loop itself never sees this.

    Attributes:
        origin_s: when the world began, on its clock.
        begins_s: end of the commissioning hour; decisions start with the next sample.
        ends_s: end of the run.
        truth: anomalies and attacks that really took place, with the containers that each one also affects.
        digest: hash of the complete state; equal histories have equal digests.
        sdn: whether there is a network controller that flow alerts can be given to.
    """

    backend: Backend
    scenario: str
    seed: int
    step_s: float
    now_s: float
    begins_s: float
    ends_s: float
    truth: tuple[LabelledEvent, ...]
    affected: tuple[tuple[str, ...], ...]
    digest: str
    origin_s: float = 0.0
    sdn: bool = False

    @property
    def commissioning_samples(self) -> int:
        """How many samples the commissioning hour has."""
        return round((self.begins_s - self.origin_s) / self.step_s)


async def _nothing() -> None:
    """What an in-memory world has to recover and to close."""


async def _nothing_then(_: float) -> None:
    """What an in-memory world has to do for a sample: it takes its own."""


@dataclass(frozen=True)
class World:
    """One implementation of every port, and the strings that move an in-memory world.

    `sdn`, where there is one, is told of suspect flows. `agents` answer what the doors ask about migrations;
    `service_hands` move the containers of a service together; `close` gives up connections and threads, and leaves the
    world as it is.
    """

    telemetry: TelemetrySource
    runtime: NodeActions
    firewall: Firewall
    orchestrator: Orchestrator
    clock: Clock
    advance: Callable[[float], None]
    facts: Callable[[], WorldFacts]
    effects: Callable[[str], int]
    agents: LimiAgents
    service_hands: ServiceHands | None = None
    sdn: SdnController | None = None
    backend: Backend = Backend.EMULATED  # of the hands; recorded telemetry has emulated ones
    observe: Callable[[float], Awaitable[None]] = _nothing_then
    recover: Callable[[], Awaitable[object]] = _nothing
    close: Callable[[], Awaitable[None]] = _nothing

    async def reach(self, to_s: float) -> None:
        """Let time pass until `to_s` where it is ours to pass, and have the sample of that moment."""
        self.advance(to_s)
        await self.observe(to_s)

    async def apply(self, instruction: Instruction) -> ActionOutcome:
        """Carry out an instruction through the port that it belongs to; refusals become failed outcomes."""
        executor = Executor(
            runtime=self.runtime,
            firewall=self.firewall,
            orchestrator=self.orchestrator,
            clock=self.clock,
            backend=self.backend,
            sdn=self.sdn,
        )
        return await executor.execute(instruction)


def build_world(config: Config) -> World:
    """The world that the configuration names, its commissioning hour already lived through.

    Raises:
        UsageError, InputError, PreconditionError: the scenario or the recordings cannot be used.
    """
    if config.backend == "testbed":
        return _real(config)
    if config.telemetry != "own":
        raise UsageError(
            f"telemetry = {config.telemetry}, but time in backend {config.backend} is not the clock's",
            hint="leave telemetry out, or set backend to testbed",
        )
    if config.backend == "replay":
        return _replayed(config)
    return _emulated(config)


def _emulated(config: Config) -> World:
    chosen = scenario(config.emulation.scenario)
    begins_s = _whole_steps(config.loop.commissioning_s, config.loop.step_s)
    ends_s = begins_s + _whole_steps(config.emulation.duration_s, config.loop.step_s)
    # The last minutes stay free, so that the end of the last anomaly is seen as well.
    schedule = _schedule(chosen.topology, config.emulation.seed, begins_s + 60.0, ends_s - 120.0)
    chooser = method_chooser(config)
    testbed = Testbed(
        chosen,
        seed=config.emulation.seed,
        schedule=schedule,
        step_s=config.loop.step_s,
        chooser=chooser,
        weight=config.migration.weight,
        observe_s=config.migration.observe_s,
    )
    testbed.commission(begins_s)

    def facts() -> WorldFacts:
        truth = testbed.truth()
        return WorldFacts(
            backend=Backend.EMULATED,
            scenario=chosen.name,
            seed=config.emulation.seed,
            step_s=config.loop.step_s,
            now_s=testbed.now_s,
            begins_s=begins_s,
            ends_s=ends_s,
            truth=truth,
            affected=tuple(testbed.affected(event) for event in truth),
            digest=testbed.digest(),
            sdn=True,
        )

    return World(
        telemetry=EmulatedTelemetry(testbed),
        runtime=EmulatedRuntime(testbed),
        firewall=EmulatedFirewall(testbed),
        orchestrator=EmulatedOrchestrator(testbed),
        clock=EmulatedClock(testbed),
        advance=lambda to_s: testbed.advance(max(to_s, testbed.now_s)),
        facts=facts,
        effects=testbed.effects,
        agents=EmulatedAgents(testbed, chooser, config.migration.weight),
        service_hands=EmulatedServiceHands(testbed),
        sdn=EmulatedSdn(testbed),
    )


def _schedule(topology: Topology, seed: int, start_s: float, end_s: float) -> tuple[Injection, ...]:
    """Every kind of anomaly and attack once an hour and a half; in a short run, as many kinds as find room."""
    rounds = max(1, round((end_s - start_s) / SECONDS_PER_ROUND))
    for count in range(len(KINDS), 0, -1):
        rng = np.random.default_rng(np.random.SeedSequence((seed, 1)))
        with contextlib.suppress(UsageError):  # no room for so many
            return draw_schedule(topology, rng, start_s, end_s, per_kind=dict.fromkeys(KINDS[:count], rounds))
    return ()


def _replayed(config: Config) -> World:
    """Recorded telemetry, emulated hands: actions move emulated containers and cannot change what was recorded."""
    if config.replay.folder is None:
        raise PreconditionError("backend is replay, but no recordings are named", hint="set replay.folder")
    replay = ReplayTelemetry.open(config.replay.folder, run=config.replay.run)
    if replay.step_s != config.loop.step_s:
        raise UsageError(
            f"recorded every {replay.step_s} s, but loop.step_s = {config.loop.step_s}", hint="set them equal"
        )
    if replay.commissioning_s <= 0:
        raise PreconditionError(
            f"run {replay.run} has no normal recording to learn profiles from", hint="replay another run"
        )
    placement = replay.topology()
    stage = Scenario(
        name=f"run-{replay.run}", topology=placement, profiles={c.name: _STAND_IN for c in placement.containers}
    )
    chooser = method_chooser(config)
    testbed = Testbed(
        stage,
        seed=config.emulation.seed,
        step_s=config.loop.step_s,
        chooser=chooser,
        weight=config.migration.weight,
        observe_s=config.migration.observe_s,
    )
    testbed.commission(replay.commissioning_s)

    def facts() -> WorldFacts:
        truth = tuple(e for e in replay.truth() if e.end_s > replay.commissioning_s)
        return WorldFacts(
            backend=Backend.REPLAYED,
            scenario=stage.name,
            seed=config.emulation.seed,
            step_s=replay.step_s,
            now_s=testbed.now_s,
            begins_s=replay.commissioning_s,
            ends_s=replay.end_s,
            truth=truth,
            affected=tuple(() for _ in truth),
            digest=testbed.digest(),
            sdn=True,
        )

    return World(
        telemetry=replay,
        runtime=EmulatedRuntime(testbed),
        firewall=EmulatedFirewall(testbed),
        orchestrator=EmulatedOrchestrator(testbed),
        clock=EmulatedClock(testbed),
        advance=lambda to_s: testbed.advance(max(to_s, testbed.now_s)),
        facts=facts,
        effects=testbed.effects,
        agents=EmulatedAgents(testbed, chooser, config.migration.weight),
        service_hands=EmulatedServiceHands(testbed),
        sdn=EmulatedSdn(testbed),
    )


# What acts in place of a recorded service when it is moved or scaled; its own telemetry is never looked at.
_STAND_IN = ServiceProfile(
    demand_rps=1.0, normal_rps=1.0, cpu_s_per_request=0.2, service_time_s=0.1, rss_bytes=512.0 * 2**20
)


def run_started(config: Config, facts: WorldFacts, topology: Topology) -> RunStarted:
    """The event by which a loop takes charge of a world; the same world and settings give the same id.

    A real world has no beginning of its own: whoever takes charge of it does so now.
    """
    real = facts.backend is Backend.REAL
    return RunStarted(
        id=f"run:{facts.scenario}:{facts.origin_s:.3f}" if real else f"run:{facts.scenario}:{facts.seed}",
        at_s=facts.now_s if real else facts.begins_s,
        backend=facts.backend,
        mode=config.loop.mode,
        scenario=facts.scenario,
        seed=facts.seed,
        step_s=facts.step_s,
        approval_lapse_s=config.loop.approval_lapse_s,
        topology=topology,
        alarm=alarm_settings(config),
        sla=config.sla,
        token=f"{round(facts.origin_s * 1000):x}" if real else "",
        sdn=facts.sdn,
    )


def _real(config: Config) -> World:
    """The testbed of this machine. Its clock is the wall's; nothing is advanced but the telemetry's samples."""
    from natwork_ray.adapters.process_telemetry import ProcessTelemetry
    from natwork_ray.adapters.sdn_controllers import sdn_controller

    testbed = build_testbed(config)
    sdn = sdn_controller(config.sdn, now_s=testbed.clock.now_s, addresses=testbed.addresses)
    telemetry: TelemetrySource
    observe: Callable[[float], Awaitable[None]]
    if config.telemetry == "prometheus":
        telemetry = live = prometheus_telemetry(config)
        started_s, observe = testbed.clock.now_s(), _nothing_then  # the server takes the samples

        async def close() -> None:
            live.close()
            await testbed.shut()
    else:
        telemetry = own = ProcessTelemetry(testbed.running, step_s=config.loop.step_s, now_s=testbed.clock.now_s)
        started_s, observe, close = own.started_s, own.observe, testbed.shut
    begins_s = started_s + _whole_steps(config.loop.commissioning_s, config.loop.step_s)

    def facts() -> WorldFacts:
        return WorldFacts(
            backend=Backend.REAL,
            scenario=testbed.record.id,
            seed=0,
            step_s=config.loop.step_s,
            now_s=testbed.clock.now_s(),
            origin_s=started_s,
            sdn=sdn is not None,
            begins_s=begins_s,
            ends_s=math.inf,
            truth=(),
            affected=(),
            digest="",
        )

    hands = Executor(runtime=testbed, firewall=testbed, orchestrator=testbed, clock=testbed.clock, backend=Backend.REAL)
    return World(
        telemetry=telemetry,
        runtime=testbed,
        firewall=testbed,
        orchestrator=testbed,
        clock=testbed.clock,
        service_hands=ConductedMoves(hands.execute, testbed, testbed.clock, backend=Backend.REAL),
        advance=lambda _: None,  # real time passes by itself
        facts=facts,
        effects=lambda _: 1,  # an agent's journal has each key once
        agents=testbed,
        sdn=sdn,
        backend=Backend.REAL,
        observe=observe,
        recover=testbed.recover,
        close=close,
    )


def prometheus_telemetry(config: Config) -> PrometheusTelemetry:
    """Live telemetry from the Prometheus server that the configuration names. Nothing is asked yet.

    Raises:
        PreconditionError: the packages for it are not installed.
        ConfigError, UsageError: as `PrometheusTelemetry`.
    """
    try:
        from natwork_ray.adapters.prometheus import PrometheusTelemetry
    except ImportError as error:
        raise PreconditionError(
            f"a package for Prometheus is missing: {error}", hint="pip install 'natwork-ray[prometheus]'"
        ) from error
    return PrometheusTelemetry(config.prometheus, step_s=config.loop.step_s)


def build_testbed(config: Config) -> TestbedWorld:
    """Every agent of the real testbed of this machine, in this process.

    Raises:
        PreconditionError: there is no testbed, or not what real migration needs; nothing was changed.
    """
    record, tools = real_testbed(config)
    # What reaches the real machine is loaded where a real machine is wanted.
    from natwork_ray.adapters.testbed_world import TestbedWorld

    return TestbedWorld(record, tools, method_chooser(config), agent_settings(config))


def build_limi_agent(config: Config, node: str, peer: Callable[[str], Peer]) -> tuple[MigrationAgent, ContainerControl]:
    """The agent of one node of the real testbed, which reaches the others through `peer`, and what changes containers
    there in place; for a process of its own.

    Raises:
        PreconditionError, NotFoundError: as `real_testbed`; no such node.
    """
    record, tools = real_testbed(config)
    from natwork_ray.adapters.testbed_world import build_agent, build_ports

    ports = build_ports(record, node, tools)
    agent = build_agent(ports, peer=peer, chooser=method_chooser(config), settings=agent_settings(config))
    return agent, ports.runtime


def node_exporter(config: Config, node: str) -> AbstractContextManager[tuple[str, int]] | None:
    """Scrapes of one testbed node's containers answered, while entered; None when the configuration wants none.

    Raises:
        PreconditionError, NotFoundError: as `real_testbed`; no such node.
    """
    if not config.prometheus.exporter_port:
        return None
    record, _ = real_testbed(config)
    from natwork_ray.adapters.cadvisor_exporter import ContainerExporter, serving
    from natwork_ray.adapters.cadvisor_testbed import exported_of

    layout = record.node(node)
    exporter = ContainerExporter(lambda: exported_of([layout]), nodes=[node])
    port = config.prometheus.exporter_port + record.nodes.index(layout)
    return serving(exporter, host=config.prometheus.exporter_host, port=port)


def real_testbed(config: Config) -> tuple[TestbedRecord, Toolchain]:
    """The testbed of this machine, and the programs that move its containers.

    Raises:
        PreconditionError: there is none, or not what real migration needs.
    """
    from natwork_ray.adapters.testbed import current
    from natwork_ray.adapters.testbed_requirements import require

    try:
        record = current(config.state_dir)
    except NotFoundError as error:
        raise PreconditionError(
            f"{error.what}, so there are no containers to move", hint="sudo natwork testbed up makes one"
        ) from error
    # Cold migration needs the least: what it lacks, all four lack. The others are asked for one by one by the agents.
    return record, require((MigrationMethod.COLD,))


def agent_settings(config: Config) -> AgentSettings:
    """How agents migrate, by the configuration."""
    own = config.migration
    timeouts = Timeouts(
        transfer_s=own.transfer_timeout_s,
        pages_s=own.transfer_timeout_s,
        pre_dump_s=own.checkpoint_timeout_s,
        dump_s=own.checkpoint_timeout_s,
        restore_s=own.checkpoint_timeout_s,
    )
    return AgentSettings(weight=own.weight, observe_s=own.observe_s, max_rounds=own.max_rounds, timeouts=timeouts)


def method_chooser(config: Config) -> MethodChooser:
    """Who picks a method: the learnt selector, or the equations on a testbed that nobody has learnt from yet."""
    if config.migration.selector is None and config.backend == "testbed":
        return ByEquations()
    return ByModel(SelectorFileLater(config.migration.selector))


def move_predictor(config: Config) -> MovePredictor:
    """What the loop asks before it decides to move a container: as `method_chooser`, from what the loop itself sees."""
    if config.migration.selector is None and config.backend == "testbed":
        return predict_move
    return LearntMovesLater(config.migration.selector, weight=config.migration.weight)


class LocalJudge:
    """The detector in this process, as the loop's judge."""

    def __init__(self, detector: TwoStageDetector, profiles: ProfileBook) -> None:
        self._detector, self._profiles = detector, profiles

    def use(self, profiles: ProfileBook) -> None:
        """Judge by these profiles from now on."""
        self._profiles = profiles

    async def judge(self, window: TelemetryWindow) -> Judgement:
        """See `Judge`."""
        verdicts, degraded = self._detector.assess(window, self._profiles)
        return Judgement(verdicts, degraded)


class LocalForecaster:
    """The shipped forecaster in this process, as the loop's; it knows the services' normal hour.

    Nothing is read before the first forecast. Where there is no model, each forecast says so, and the loop goes on.
    `newest` are the forecasts of the window asked about last.
    """

    def __init__(self, load: Callable[[], bytes], hour: TelemetryWindow) -> None:
        self._load, self._hour = load, hour
        self._forecaster: Forecaster | NatworkError | None = None
        self.newest: tuple[LoadForecast, ...] = ()

    async def forecast(self, window: TelemetryWindow) -> tuple[LoadForecast, ...]:
        """See `Forecasting`.

        Raises:
            NatworkError: there is no forecaster, or it cannot be used here.
        """
        self.newest = ()
        if self._forecaster is None:
            self._forecaster = self._read()
        if isinstance(self._forecaster, NatworkError):
            raise self._forecaster
        self.newest = self._forecaster.forecast(window)
        return self.newest

    def _read(self) -> Forecaster | NatworkError:
        # LightGBM and torch cost seconds, and most processes that build a world forecast nothing.
        from natwork_ray.forecasting.model_file import loads

        try:
            return loads(self._load()).commissioned(self._hour)
        except NatworkError as error:
            return error


def loop_forecaster(hour: TelemetryWindow) -> LocalForecaster:
    """The forecaster that the loop asks: in its own process, so that the same run forecasts the same, always."""
    return LocalForecaster(lambda: ModelDirectory().load(DEFAULT_FORECASTER), hour)


def model_bytes(config: Config) -> bytes:
    """The model that the configuration names, else the shipped one.

    Raises:
        PreconditionError, NotFoundError, StoreError: it cannot be read.
    """
    if config.model is None:
        return ModelDirectory().load(DEFAULT_MODEL)
    try:
        with config.model.expanduser().open("rb") as file:
            return file.read(MAX_MODEL_BYTES + 1)  # one more than `loads` accepts
    except OSError as error:
        raise PreconditionError(
            f"cannot read the model {config.model}: {error}", hint="`natwork train profiler` makes one"
        ) from error


def model_card(config: Config) -> ModelCard:
    """The card of that model; reads no weights.

    Raises:
        PreconditionError, NotFoundError, StoreError, InputError: it cannot be read.
    """
    return read_card(model_bytes(config))


def alarm_settings(config: Config) -> AlarmConfig:
    """When a flagged window becomes an alarm: what the operator set, and for the rest what suits the model."""
    return calibrated(config.alarm, model_card(config).alarm)


def model_source(config: Config, store: ModelDirectory, name: str) -> Callable[[], bytes]:
    """Where the bytes of a served model come from while nobody has chosen a version of it: the file that the
    configuration names, else the version last used in that store, else the shipped one.
    """
    if name == DEFAULT_MODEL and config.model is not None:
        return lambda: model_bytes(config)
    return lambda: store.load(name)


def load_detector(config: Config) -> TwoStageDetector:
    """As `model_bytes`, ready to use."""
    return loads(model_bytes(config))


def _whole_steps(seconds: float, step_s: float) -> float:
    return max(1, round(seconds / step_s)) * step_s
