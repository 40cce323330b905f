"""The loop without Ray: the same turns against the same world, in one process.

What runs across Ray must come to the same end as this does; the kill campaign and the tests of the agents compare.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

from natwork_ray.adapters.sqlite_journal import SqliteJournal
from natwork_ray.audit.verify import verify_export
from natwork_ray.backends import (
    FORECAST_SAMPLES,
    LocalJudge,
    World,
    WorldFacts,
    build_world,
    load_detector,
    loop_forecaster,
    move_predictor,
    run_started,
)
from natwork_ray.config import Config
from natwork_ray.control.cycle import Hands, LoopCycle, Turn
from natwork_ray.control.direct import DirectControl
from natwork_ray.control.profile_keeping import ProfileKeeper
from natwork_ray.domain.actions import ActionOutcome, Instruction
from natwork_ray.domain.decisions import Decision
from natwork_ray.domain.quota import QuotaAccount
from natwork_ray.domain.status import LoopStatus
from natwork_ray.domain.topology import Topology


@dataclass(frozen=True)
class Ending:
    """What is left when a run is over, as far as two runs of one configuration must agree on it.

    Attributes:
        events: ids of the journal, in the order of commitment.
        effects: how often each instruction changed the world, by key.
        world: digest of the world's complete state.
        audit_root: Merkle root of the audit log, hex; equal roots, equal entries.
    """

    decisions: tuple[Decision, ...]
    outcomes: tuple[ActionOutcome, ...]
    quota: tuple[QuotaAccount, ...]
    topology: Topology
    events: tuple[str, ...]
    effects: dict[str, int]
    world: str
    audit_root: str

    def differences(self, other: Ending) -> list[str]:
        """Names of the parts in which two endings differ. The order of events does not count, their number does."""
        parts = [f.name for f in fields(self) if f.name != "events" and getattr(self, f.name) != getattr(other, f.name)]
        return parts + ["events"] * (Counter(self.events) != Counter(other.events))

    @property
    def issued(self) -> list[Instruction]:
        """Instructions that were reported on."""
        reported = {o.key for o in self.outcomes}
        return [i for d in self.decisions for i in d.instructions if i.key in reported]


def ending(
    state_dir: Path,
    *,
    status: LoopStatus,
    decisions: tuple[Decision, ...],
    outcomes: tuple[ActionOutcome, ...],
    topology: Topology,
    effects: dict[str, int],
    world: str,
) -> Ending:
    """Put together what services said and what the journal of `state_dir` holds, its audit log verified whole."""
    journal = SqliteJournal.open_read_only(state_dir)
    try:
        events = tuple(event_id for event_id, _ in journal.events())
        stream = io.BytesIO()
        journal.export(stream)
        stream.seek(0)
        root = verify_export(stream, pinned_key=journal.verifier_key).root
    finally:
        journal.close()
    return Ending(decisions, outcomes, status.quota, topology, events, effects, world, root)


async def run_in_process(
    config: Config, state_dir: Path, *, on_turn: Callable[[Turn], None] | None = None
) -> tuple[WorldFacts, Ending]:
    """Build the world that the configuration names and turn the loop to the end of its run, undisturbed."""
    world = build_world(config)
    facts = world.facts()
    hour = await world.telemetry.window(end_s=facts.begins_s, length=facts.commissioning_samples)
    journal = SqliteJournal.open(state_dir, origin="natwork-ray/control")
    try:
        control = DirectControl(journal, move_predictor(config))
        topology = await world.orchestrator.topology()
        (answer,) = await control.submit((run_started(config, facts, topology),))
        answer.unwrap()
        keeper = ProfileKeeper(control=control, telemetry=world.telemetry, hour=hour)
        await keeper.begin(facts.begins_s)
        judge = LocalJudge(load_detector(config), keeper.book)
        hands: dict[str, Hands] = {}
        cycle = LoopCycle(
            telemetry=world.telemetry,
            judge=judge,
            control=control,
            orchestrator=world.orchestrator,
            node_hands=hands,
            cluster_hands=WorldHands(world),
            window_length=config.loop.window,
            forecaster=loop_forecaster(hour),
            forecast_length=FORECAST_SAMPLES,
        )
        for number in range(1, round((facts.ends_s - facts.begins_s) / facts.step_s) + 1):
            at_s = facts.begins_s + number * facts.step_s
            world.advance(at_s)
            hands.update((node.name, WorldHands(world)) for node in (await world.orchestrator.topology()).nodes)
            turn = await cycle.turn(at_s)
            if await keeper.mind(at_s):
                judge.use(keeper.book)
            if on_turn is not None:
                on_turn(turn)
        outcomes = await control.outcomes()
        end = ending(
            state_dir,
            status=await control.status(),
            decisions=await control.decisions(),
            outcomes=outcomes,
            topology=await world.orchestrator.topology(),
            effects={o.key: world.effects(o.key) for o in outcomes},
            world=world.facts().digest,
        )
    finally:
        journal.close()
    return facts, end


class WorldHands:
    """`Hands` straight on the world."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def execute(self, instruction: Instruction) -> ActionOutcome:
        """See `Hands`."""
        return await self._world.apply(instruction)
