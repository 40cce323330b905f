"""The migration laboratory: the agents' own code in virtual time, contention, noise, faults, and capacity."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from natwork_ray.domain.migrations import MigrationRecord, MigrationState
from natwork_ray.domain.phases import MigrationMethod
from natwork_ray.domain.topology import Link
from natwork_ray.emulation.lab_dice import Dice
from natwork_ray.emulation.lab_values import ContainerProfile, LabContainer, LabNode
from natwork_ray.emulation.migration_lab import VERBS, MigrationLab
from natwork_ray.emulation.migration_nodes import (
    LabAgents,
    Planned,
    lab_of,
    run_many,
    run_migration,
)
from natwork_ray.errors import ActionError, ConflictError, NotFoundError, TimedOutError, UsageError
from natwork_ray.limi.durations import MigrationInputs, predict, predict_p95
from natwork_ray.limi.load_classes import FEASIBLE_CLASSES, draw_load
from natwork_ray.limi.phase_times import DEFAULT_PARAMETERS, MIB
from natwork_ray.limi.steps import Step, Verb

COLD, PRE, POST, HYBRID = MigrationMethod
DEEP = bool(os.environ.get("LIMI_DEEP"))
GIGABIT = 125e6
QUIET = replace(DEFAULT_PARAMETERS, noise_sigma=0.0)
USUAL = ContainerProfile(
    memory_bytes=100 * MIB,
    dirty_bytes_per_s=5 * MIB,
    working_set_bytes=40 * MIB,
    volume_bytes=60 * MIB,
    volume_delta_bytes=20 * MIB,
    volume_write_bytes_per_s=1 * MIB,
    cpu_cores=0.5,
    cpu_limit_cores=1.0,
    request_rate=100.0,
    service_rate=200.0,
)


def lab(*names: str, profile: ContainerProfile = USUAL, quiet: bool = True, seed: int = 3) -> MigrationLab:
    """Nodes a, b and c in a triangle, and containers on a."""
    return MigrationLab(
        [LabNode(name=name) for name in "abc"],
        [Link(a=x, b=y, bandwidth_bytes_per_s=GIGABIT, rtt_s=0.001) for x, y in ("ab", "bc", "ac")],
        [LabContainer(name=name, node="a", profile=profile) for name in names or ("web",)],
        seed=seed,
        parameters=QUIET if quiet else DEFAULT_PARAMETERS,
    )


def settled(where: MigrationLab, record: MigrationRecord) -> None:
    """Exactly one runs, its address is there, and whatever lies about was told of."""
    assert where.runs_on(record.container) == where.address_on(record.container) == (record.runs_on,)
    assert where.violations == []
    assert where.leftovers(record.container) == () or "left behind" in record.error


def phase(record: MigrationRecord, verb: Verb) -> tuple[float, float]:
    found = next(p for p in record.phases if p.name == verb)
    return found.starts_s, found.starts_s + found.duration_s


# As predicted.


@pytest.mark.parametrize("method", MigrationMethod)
@pytest.mark.parametrize("number", range(0, 34, 3))
def test_without_noise_the_closed_form_comes_out(method: MigrationMethod, number: int) -> None:
    load = draw_load(FEASIBLE_CLASSES[number], np.random.default_rng(number))
    record = run_migration(lab_of(load, seed=1, parameters=QUIET), "container", "target", method, observe_s=None)
    predicted = predict(method, MigrationInputs.of(load), QUIET)
    # The closed form leaves out that replies stop, and make room on the link, while the container stands still.
    assert record.total_s == pytest.approx(predicted.total_s, rel=0.03)
    assert record.downtime_s == pytest.approx(predicted.downtime_s, rel=0.03)
    assert record.pre_copy_rounds == sum(p.name == Verb.PRE_DUMP for p in predicted.phases)


@pytest.mark.parametrize("method", [COLD, HYBRID])
def test_noise_is_as_in_the_data(method: MigrationMethod) -> None:
    records = [run_migration(lab(quiet=False, seed=s), "web", "b", method, observe_s=None) for s in range(150)]
    dumps = np.array([p.duration_s for r in records for p in r.phases if p.name == Verb.DUMP])
    totals = np.array([r.total_s for r in records])
    downs = np.array([r.downtime_s for r in records])
    assert 0.10 <= dumps.std() / dumps.mean() <= 0.14
    assert 0.04 <= totals.std() / totals.mean() <= 0.14
    asked = MigrationInputs(
        dump_bytes=100 * MIB, dirty_bytes_per_s=5 * MIB, working_set_bytes=40 * MIB, bandwidth_bytes_per_s=GIGABIT,
        volume_delta_bytes=20 * MIB, volume_bytes=60 * MIB, volume_write_bytes_per_s=MIB, rtt_s=0.001,
        cpu_cores=0.5, cpu_limit_cores=1.0,
    )  # fmt: skip
    slow = predict_p95(method, asked)
    assert 0.88 <= np.mean(totals <= slow.total_s) <= 0.99
    assert 0.88 <= np.mean(downs <= slow.downtime_s) <= 0.99


def test_dump_and_volume_travel_side_by_side() -> None:
    big = replace(USUAL, volume_bytes=256 * MIB, volume_delta_bytes=256 * MIB)
    record = run_migration(lab(profile=big), "web", "b", COLD)
    volume, dump, sent = (phase(record, v) for v in (Verb.VOLUME_TRANSFER, Verb.DUMP, Verb.DUMP_TRANSFER))
    assert volume[0] <= dump[0] < volume[1]
    assert volume[0] < sent[1] < volume[1]
    assert record.downtime_s > 256 * MIB / GIGABIT


def test_what_is_written_meanwhile_has_to_be_sent_again() -> None:
    busy = replace(USUAL, volume_bytes=200 * MIB, volume_write_bytes_per_s=20 * MIB)
    calm = run_migration(lab(), "web", "b", PRE)
    full = run_migration(lab(profile=busy), "web", "b", PRE)
    again = next(p.transferred_bytes for p in full.phases if p.name == Verb.VOLUME_TRANSFER)
    assert again > 10 * next(p.transferred_bytes for p in calm.phases if p.name == Verb.VOLUME_TRANSFER)


def test_without_dirty_tracking_dumps_stay_whole_and_transfers_shrink() -> None:
    where = MigrationLab(
        [LabNode(name="a"), LabNode(name="b")],
        [Link(a="a", b="b", bandwidth_bytes_per_s=GIGABIT, rtt_s=0.001)],
        [LabContainer(name="web", node="a", profile=USUAL)],
        seed=1,
        parameters=QUIET,
        dirty_tracking=False,
    )
    record = run_migration(where, "web", "b", PRE)
    dumps = [p.size_bytes for p in record.phases if p.name == Verb.PRE_DUMP]
    sent = [p.transferred_bytes for p in record.phases if p.name == Verb.PRE_DUMP_TRANSFER]
    assert dumps == [100 * MIB] * len(dumps)
    assert sent[0] == 100 * MIB
    assert all(later < 0.3 * sent[0] for later in sent[1:])


def test_clients_wait_longer_than_the_container_stands() -> None:
    record = run_migration(lab(), "web", "b", COLD)
    assert record.client_downtime_s is not None
    queue = min(QUIET.queue_bound, 100 * record.downtime_s)
    assert record.client_downtime_s == pytest.approx(record.downtime_s + queue / 100, rel=0.02)
    nobody = run_migration(lab(profile=replace(USUAL, request_rate=0.0)), "web", "b", COLD)
    assert nobody.client_downtime_s == pytest.approx(nobody.downtime_s, rel=0.02)
    # Lazy pages slow the queue's end.
    lazy = run_migration(lab(), "web", "b", POST)
    assert lazy.client_downtime_s is not None
    assert lazy.client_downtime_s > lazy.downtime_s + 100 * lazy.downtime_s / 100


def test_clients_traffic_takes_from_the_link() -> None:
    loud = replace(USUAL, network_tx_bytes_per_s=60e6)
    assert (
        phase(run_migration(lab(profile=loud), "web", "b", PRE), Verb.PRE_DUMP_TRANSFER)[1]
        > 1.5 * (phase(run_migration(lab(), "web", "b", PRE), Verb.PRE_DUMP_TRANSFER)[1])
    )


# Many at once.


def test_two_at_once_share_the_link_and_other_ways_do_not() -> None:
    alone = run_many(lab("x"), [Planned(0, "x", "b", COLD)])[0]
    both = run_many(lab("x", "y"), [Planned(0, "x", "b", COLD), Planned(0, "y", "b", COLD)])
    apart = run_many(lab("x", "y"), [Planned(0, "x", "b", COLD), Planned(0, "y", "c", COLD)])
    sends_s = 100 * MIB / (0.9 * GIGABIT)
    for record in both:
        assert record.total_s > alone.total_s + 0.5 * sends_s
    for record in apart:
        assert record.total_s == pytest.approx(alone.total_s, rel=1e-6)


def test_a_later_one_slows_the_earlier_one_from_then_on() -> None:
    alone = run_many(lab("x"), [Planned(0, "x", "b", COLD)])[0]
    early, late = run_many(lab("x", "y"), [Planned(0, "x", "b", COLD), Planned(0.8, "y", "b", COLD)])
    both, _ = run_many(lab("x", "y"), [Planned(0, "x", "b", COLD), Planned(0, "y", "b", COLD)])
    assert alone.total_s < early.total_s < both.total_s
    assert late.started_at_s == pytest.approx(0.8)


def test_other_traffic_slows_a_migration() -> None:
    where = lab()
    where.background("a", "b", 500 * MIB)
    slowed = run_migration(where, "web", "b", COLD, observe_s=None)
    assert slowed.total_s > run_migration(lab(), "web", "b", COLD, observe_s=None).total_s + 0.5
    where = lab()
    where.background("b", "a", 500 * MIB)  # the other way is another way
    free = run_migration(where, "web", "b", COLD, observe_s=None)
    assert free.total_s == pytest.approx(run_migration(lab(), "web", "b", COLD, observe_s=None).total_s)


@settings(max_examples=8, deadline=None)
@given(st.permutations(["u", "v", "w"]), st.sampled_from(MigrationMethod))
def test_the_order_of_others_changes_nothing(order: list[str], method: MigrationMethod) -> None:
    where = lab("u", "v", "w", quiet=False)
    starts = {"u": 0.0, "v": 100.0, "w": 200.0}
    records = run_many(where, [Planned(starts[c], c, "b", method, f"key-{c}") for c in order])
    for record in records:
        own = lab("u", "v", "w", quiet=False)
        expected = run_many(own, [Planned(starts[record.container], record.container, "b", method, record.key)])[0]
        assert record.total_s == pytest.approx(expected.total_s, rel=1e-9)
        assert [p.name for p in record.phases] == [p.name for p in expected.phases]


def test_the_same_seed_gives_the_same_records() -> None:
    plans = [Planned(0.3 * n, c, "b", m) for n, (c, m) in enumerate(zip("stuv", MigrationMethod, strict=True))]
    first = run_many(lab(*"stuv", quiet=False), plans, observe_s=1.0)
    assert run_many(lab(*"stuv", quiet=False), plans, observe_s=1.0) == first
    assert run_many(lab(*"stuv", quiet=False, seed=4), plans, observe_s=1.0) != first


def test_back_and_forth_within_one_laboratory() -> None:
    where = lab(quiet=False)
    before = 0.0
    for number in range(12):
        method = list(MigrationMethod)[number % 4]
        record = run_migration(where, "web", "b" if number % 2 == 0 else "a", method)
        assert record.state is MigrationState.MIGRATED
        settled(where, record)
        assert where.counter("web") >= before
        before = where.counter("web")


def test_room_is_claimed_by_who_comes_first() -> None:
    where = MigrationLab(
        [LabNode(name="a"), LabNode(name="b", cpu_cores=1.5)],
        [Link(a="a", b="b", bandwidth_bytes_per_s=GIGABIT, rtt_s=0.001)],
        [LabContainer(name=name, node="a", profile=USUAL) for name in "xy"],
        seed=1,
    )
    first, second = run_many(where, [Planned(0, "x", "b", COLD), Planned(0.01, "y", "b", COLD)])
    assert (first.state, second.state) == (MigrationState.MIGRATED, MigrationState.ROLLED_BACK)
    assert "cores" in second.error
    for record in (first, second):
        settled(where, record)


@pytest.mark.parametrize("node", ["a", "b"])
def test_a_full_disk_rolls_back(node: str) -> None:
    where = MigrationLab(
        [LabNode(name=name, disk_bytes=50 * MIB if name == node else 1e12) for name in "ab"],
        [Link(a="a", b="b", bandwidth_bytes_per_s=GIGABIT, rtt_s=0.001)],
        [LabContainer(name="web", node="a", profile=USUAL)],
        seed=1,
    )
    record = run_migration(where, "web", "b", COLD)
    assert record.state is MigrationState.ROLLED_BACK
    assert "room" in record.error
    settled(where, record)
    assert run_migration(where, "web", "b", POST).state is MigrationState.MIGRATED


# Faults.


ONLY_WHEN_ROLLING_BACK = {"thaw", "revive"}


@pytest.mark.parametrize("method", MigrationMethod)
@pytest.mark.parametrize("after", [False, True])
def test_verbs_that_fail(method: MigrationMethod, after: bool) -> None:
    missed = set()
    for verb in VERBS:
        for times in (1, 4) if method in (COLD, HYBRID) else (4,):
            where = lab()
            where.fail(verb, "web", times, after=after)
            settled(where, run_migration(where, "web", "b", method, observe_s=None))
            if not where.struck:
                missed.add(verb)
    # A fault that never hits shows nothing: these are the verbs that the method has no use for.
    unused = ONLY_WHEN_ROLLING_BACK | {"load"}
    unused |= set() if method in (PRE, HYBRID) else {"pre_dump"}
    unused |= set() if method in (POST, HYBRID) else {"await_pages_served", "await_pages_fetched"}
    assert missed == unused


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(("blow", "verb"), [("dump", "thaw"), ("dump", "revive"), ("restore", "revive")])
def test_verbs_that_fail_while_rolling_back(blow: str, verb: str, after: bool) -> None:
    where = lab()
    where.fail(blow, "web", 9)
    where.fail(verb, "web", 2, after=after)
    record = run_migration(where, "web", "b", COLD, observe_s=None)
    assert where.struck >= 2
    assert record.state is MigrationState.ROLLED_BACK
    settled(where, record)


@pytest.mark.parametrize("after", [False, True])
def test_a_measurement_that_fails_is_told(after: bool) -> None:
    where = lab()
    where.fail("load", "web", after=after)
    with pytest.raises(TimedOutError if after else ActionError, match="load"):
        run_migration(where, "web", "b", COLD)
    assert where.runs_on("web") == ("a",)


@settings(max_examples=2000 if DEEP else 25, deadline=None)
@given(
    st.sampled_from(MigrationMethod),
    st.sampled_from("ab"),
    st.floats(0.01, 5),
    st.sampled_from([0.2, 5.0]),
)
def test_agents_that_die(method: MigrationMethod, node: str, at_s: float, for_s: float) -> None:
    where = lab()
    where.kill_agent(node, at_s=at_s, for_s=for_s)
    settled(where, run_migration(where, "web", "b", method, observe_s=None))


@pytest.mark.parametrize("method", [POST, HYBRID])
def test_no_memory_is_lost_to_an_agent_that_dies_while_pages_arrive(method: MigrationMethod) -> None:
    """The daemon that fetches them outlives it, and its next life asks again; also after the page server is done."""
    usual = run_migration(lab(), "web", "b", method, observe_s=None)
    began_s, ended_s = phase(usual, Verb.PAGES_FETCHED)
    struck = 0
    for number in range(24):
        where = lab()
        at_s, for_s = began_s + (ended_s - began_s) * (number + 0.5) / 24, (0.2, 1.0, 5.0, 90.0)[number % 4]
        where.kill_agent("b", at_s=at_s, for_s=for_s)
        record = run_migration(where, "web", "b", method, observe_s=None)
        settled(where, record)
        assert (record.state, record.lost_s) == (MigrationState.MIGRATED, None), record
        assert record.downtime_s == pytest.approx(usual.downtime_s)  # it served all the time
        struck += phase(record, Verb.PAGES_FETCHED)[1] > at_s
    assert struck == 24


def test_pages_that_do_not_arrive_cost_what_was_done_since_and_the_record_says_how_much() -> None:
    began_s, ended_s = phase(run_migration(lab(), "web", "b", POST, observe_s=None), Verb.PAGES_FETCHED)
    where = lab()
    where.cut_link("a", "b", (began_s + ended_s) / 2, 60.0)
    record = run_migration(where, "web", "b", POST, observe_s=None)
    settled(where, record)
    assert record.state is MigrationState.ROLLED_BACK
    assert record.lost_s is not None
    assert record.lost_s > 3.0
    assert f"{record.lost_s:.3f} s is lost" in record.error
    assert record.hint


@settings(max_examples=2000 if DEEP else 25, deadline=None)
@given(st.sampled_from(MigrationMethod), st.floats(0.01, 5), st.sampled_from([0.2, 5.0, 40.0]))
def test_links_that_are_cut(method: MigrationMethod, at_s: float, for_s: float) -> None:
    where = lab()
    where.cut_link("a", "b", at_s, at_s + for_s)
    record = run_migration(where, "web", "b", method, observe_s=None)
    settled(where, record)
    assert record.client_downtime_s is None or 0 <= record.client_downtime_s < 1000


def test_a_short_cut_only_delays() -> None:
    where = lab()
    where.cut_link("a", "b", 0.8, 2.3)
    record = run_migration(where, "web", "b", PRE, observe_s=None)
    assert record.state is MigrationState.MIGRATED
    usual = run_migration(lab(), "web", "b", PRE, observe_s=None)
    assert usual.total_s + 1 < record.total_s


def test_pages_that_end_too_early_are_noticed() -> None:
    where = lab()

    async def main() -> None:
        agents = LabAgents(where)
        task = asyncio.create_task(agents.migrate("web", "b", POST))
        await asyncio.sleep(1.0)
        assert where.runs_on("web") == ("b",)
        where.end_page_server("web", "a")
        await task

    where.run(main)
    assert "pages of web ended" in where.violations[0]


# The door for schedules, and what is refused.


def test_a_step_can_be_held() -> None:
    where = lab()
    held: list[Verb] = []

    async def gate(step: Step) -> None:
        if step.verb is Verb.FREEZE:
            held.append(step.verb)
            await asyncio.sleep(5)

    async def main() -> MigrationRecord:
        return await LabAgents(where).migrate("web", "b", PRE, before=gate)

    record = where.run(main)
    assert held == [Verb.FREEZE]
    assert record.state is MigrationState.MIGRATED
    assert record.total_s > 5
    assert record.downtime_s < 2
    assert next(p.duration_s for p in record.phases if p.name == "hold before freeze") == pytest.approx(5)


def test_measured_loads_are_near_the_truth() -> None:
    load = draw_load(FEASIBLE_CLASSES[20], np.random.default_rng(2))
    measured = run_migration(lab_of(load, seed=1), "container", "target", COLD).load
    exact = run_migration(lab_of(load, seed=1, parameters=QUIET), "container", "target", COLD).load
    assert measured is not None
    assert exact is not None
    assert exact.memory_bytes == load.memory_bytes
    assert exact.rtt_s == load.rtt_s
    assert exact.bandwidth_bytes_per_s == pytest.approx(load.bandwidth_bytes_per_s, rel=0.05)
    assert measured.memory_bytes != load.memory_bytes
    assert measured.memory_bytes == pytest.approx(load.memory_bytes, rel=0.04)
    assert measured.dirty_bytes_per_s == pytest.approx(load.dirty_bytes_per_s, rel=0.3)
    assert measured.working_set_bytes <= measured.memory_bytes


def test_dice_depend_on_their_names_only() -> None:
    dice = Dice(5)
    drawn = np.array([dice.deviation("key", str(n)) for n in range(4000)])
    assert abs(drawn.mean()) < 0.06
    assert drawn.std() == pytest.approx(1, abs=0.04)
    assert np.abs(drawn).max() <= DEFAULT_PARAMETERS.noise_bound_sigmas
    assert Dice(5).deviation("key", "7") == drawn[7]
    assert Dice(6).deviation("key", "7") != drawn[7]


def test_what_makes_no_sense_is_refused() -> None:
    where = lab()
    with pytest.raises(NotFoundError, match="ghost"):
        where.state("ghost")
    with pytest.raises(UsageError, match="no port"):
        where.fail("explode", "web")
    with pytest.raises(UsageError, match="no port"):
        where.fail("open", "web")  # names no container, and would never be hit
    with pytest.raises(UsageError, match="web"):
        where.add(LabContainer(name="web", node="a", profile=USUAL))
    with pytest.raises(ActionError, match="no link"):
        where.cut_link("a", "mars", 0, 1)
    with pytest.raises(UsageError, match="link between"):
        MigrationLab([LabNode(name="a")], [Link(a="a", b="b", bandwidth_bytes_per_s=1, rtt_s=0)], [], seed=1)
    with pytest.raises(UsageError, match="memory_bytes"):
        ContainerProfile(memory_bytes=-1)
    with pytest.raises(UsageError, match="at most"):
        ContainerProfile(memory_bytes=1, working_set_bytes=2)
    nowhere = run_migration(lab(), "web", "a", COLD, observe_s=None)
    assert nowhere.state is MigrationState.REFUSED


def test_a_container_that_stands_still_cannot_be_moved_again() -> None:
    where = lab()

    async def main() -> None:
        agents = LabAgents(where)
        task = asyncio.create_task(agents.migrate("web", "b", COLD))
        await asyncio.sleep(0.5)
        assert where.runs_on("web") == ()
        with pytest.raises(ConflictError, match="just now"):
            await agents.migrate("web", "c", COLD)
        await task

    where.run(main)
    assert where.runs_on("web") == ("b",)


def test_methods_that_a_node_lacks_are_refused() -> None:
    where = MigrationLab(
        [LabNode(name="a"), LabNode(name="b")],
        [Link(a="a", b="b", bandwidth_bytes_per_s=GIGABIT, rtt_s=0.001)],
        [LabContainer(name="web", node="a", profile=USUAL)],
        seed=1,
        methods=(COLD, PRE),
    )
    record = run_migration(where, "web", "b", POST)
    assert record.state is MigrationState.REFUSED
    assert "opened without it" in record.error
    settled(where, record)
