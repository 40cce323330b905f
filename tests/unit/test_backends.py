"""The composition root: the world that the configuration names, its facts, and the model that judges it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from natwork_ray.adapters import testbed, testbed_requirements
from natwork_ray.adapters.model_directory import ModelDirectory
from natwork_ray.adapters.testbed_layout import NodeLayout
from natwork_ray.adapters.testbed_requirements import Toolchain
from natwork_ray.adapters.testbed_state import TestbedRecord
from natwork_ray.backends import LocalJudge, build_limi_agent, build_world, load_detector, model_bytes, run_started
from natwork_ray.config import Config, load_config
from natwork_ray.domain.actions import Migrate, MigrationMethod, Restart
from natwork_ray.domain.decisions import Mode
from natwork_ray.domain.values import Backend
from natwork_ray.errors import InputError, NatworkError, NotFoundError, PreconditionError, UsageError
from natwork_ray.profiling.bounds import DEFAULT_MODEL, MAX_MODEL_BYTES
from natwork_ray.profiling.profile import ProfileBook


def _config(**flags: object) -> Config:
    small = {"emulation.scenario": "grid-10", "emulation.duration_s": 900}
    return load_config(environ={}, flags={**small, **{k.replace("__", "."): v for k, v in flags.items()}})


def test_an_emulated_world() -> None:
    world = build_world(_config())
    facts = world.facts()
    assert (facts.backend, facts.scenario, facts.seed, facts.step_s) == (Backend.EMULATED, "grid-10", 7, 10.0)
    assert (facts.begins_s, facts.ends_s, facts.now_s) == (3600.0, 4500.0, 3600.0)
    assert facts.truth
    assert len(facts.affected) == len(facts.truth)
    assert all(facts.begins_s <= e.start_s < e.end_s <= facts.ends_s for e in facts.truth)
    window = asyncio.run(world.telemetry.window(end_s=3600.0, length=360))
    assert window.values.shape == (10, 360, 12)


def test_worlds_of_one_configuration_are_equal_and_seeds_make_others() -> None:
    one, two, other = build_world(_config()), build_world(_config()), build_world(_config(emulation__seed=8))
    for world in (one, two, other):
        world.advance(3700.0)
    assert one.facts() == two.facts()
    assert other.facts().digest != one.facts().digest


def test_time_does_not_go_back() -> None:
    world = build_world(_config())
    world.advance(3700.0)
    digest = world.facts().digest
    world.advance(3650.0)
    assert (world.facts().now_s, world.facts().digest) == (3700.0, digest)
    assert world.clock.now_s() == 3700.0


def test_an_action_has_its_effect_once() -> None:
    world = build_world(_config())
    topology = asyncio.run(world.orchestrator.topology())
    container = topology.containers[0]
    target = next(node.name for node in topology.nodes if node.name != container.node)
    move = Migrate(
        key="d-1/0", container=container.name, source=container.node, target=target, method=MigrationMethod.PRE_COPY
    )
    first = asyncio.run(world.apply(move))
    assert first.done
    assert asyncio.run(world.apply(move)) == first
    assert (world.effects("d-1/0"), world.effects("d-2/0")) == (1, 0)


def test_a_refused_action_is_a_failed_outcome() -> None:
    world = build_world(_config())
    outcome = asyncio.run(world.apply(Restart(key="k", container="nobody")))
    assert not outcome.done
    assert outcome.backend is Backend.EMULATED


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        ({"emulation__scenario": "moon-base"}, UsageError),
        ({"emulation__scenario": "grid-0"}, UsageError),
        ({"emulation__scenario": "grid-99999999999"}, UsageError),
        ({"emulation__duration_s": 2_592_001}, UsageError),
        ({"backend": "replay"}, PreconditionError),
        ({"backend": "replay", "replay__folder": "absent"}, PreconditionError),
    ],
)
def test_worlds_that_cannot_be(flags: dict[str, object], error: type[NatworkError]) -> None:
    with pytest.raises(error):
        build_world(_config(**flags))


def test_a_short_run_is_possible() -> None:
    facts = build_world(_config(emulation__duration_s=60)).facts()
    assert facts.ends_s - facts.begins_s == 60.0


def test_a_world_is_taken_charge_of_by_an_event_of_one_name() -> None:
    config = _config(loop__mode="approve")
    world = build_world(config)
    topology = asyncio.run(world.orchestrator.topology())
    start = run_started(config, world.facts(), topology)
    assert (start.id, start.mode, start.at_s, start.topology) == ("run:grid-10:7", "approve", 3600.0, topology)
    assert start == run_started(config, world.facts(), topology)


def _recorded(folder: Path, *, normal: int = 400, anomalous: int = 60) -> Path:
    names = (
        "total_disk_read_throughput,total_disk_write_throughput,rss,vsize,cpu_usage,rx_bytes_per_ns,tx_bytes_per_ns,"
        "latency_p50,latency_p90,latency_p99,request_throughput,errors_per_ns"
    )
    row = "0.004,0.002,4e8,3.0e9,0.5,0.006,0.00002,495457909.0,615332928.0,892965195.0,2.6e-09,0.0"
    labels = [0] * 20 + [1] * 20 + [0] * (anomalous - 40)
    for name, header, rows in (
        ("normal_data/fd_normal.csv", names, [row] * normal),
        ("anomaly_data/fd_usersurge.csv", f"{names},Normal/Attack", [f"{row},{label}" for label in labels]),
    ):
        if rows and normal + anomalous:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return folder


def test_a_replayed_world(tmp_path: Path) -> None:
    world = build_world(_config(backend="replay", replay__folder=_recorded(tmp_path)))
    facts = world.facts()
    assert (facts.backend, facts.scenario) == (Backend.REPLAYED, "run-1")
    assert (facts.begins_s, facts.ends_s) == (3600.0, 4600.0)
    (event,) = facts.truth
    assert (event.container, event.kind, event.end_s - event.start_s) == ("fd", "step_load", 200.0)
    assert facts.affected == ((),)
    # What acts is emulated: a move succeeds, and what was recorded stays as it was.
    before = asyncio.run(world.telemetry.window(end_s=4600.0, length=460)).values
    move = Migrate(key="k", container="fd", source="edge-1", target="core-1", method=MigrationMethod.COLD)
    assert asyncio.run(world.apply(move)).done
    world.advance(3700.0)
    assert world.effects("k") == 1
    assert asyncio.run(world.orchestrator.topology()).containers[0].node == "core-1"
    np.testing.assert_array_equal(before, asyncio.run(world.telemetry.window(end_s=4600.0, length=460)).values)


def test_recordings_that_cannot_be_replayed(tmp_path: Path) -> None:
    folder = _recorded(tmp_path)
    with pytest.raises(UsageError, match=r"recorded every 10.0 s, but loop.step_s = 5.0"):
        build_world(_config(backend="replay", replay__folder=folder, loop__step_s=5))
    with pytest.raises(NotFoundError, match="run '9'"):
        build_world(_config(backend="replay", replay__folder=folder, replay__run="9"))
    (folder / "normal_data" / "fd_normal.csv").unlink()
    with pytest.raises(PreconditionError, match="no normal recording"):
        build_world(_config(backend="replay", replay__folder=folder))


def test_the_model_is_the_shipped_one_or_the_named_one(tmp_path: Path) -> None:
    shipped = ModelDirectory().load(DEFAULT_MODEL)
    assert model_bytes(_config()) == shipped
    (tmp_path / "mine").write_bytes(shipped)
    config = _config(model=tmp_path / "mine")
    assert model_bytes(config) == shipped
    assert load_detector(config).card == load_detector(_config()).card


def test_models_that_cannot_be_used(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(PreconditionError, match="cannot read the model"):
            load_detector(_config(model=path))
    huge = tmp_path / "huge"
    with huge.open("wb") as file:
        file.truncate(2**40)
    assert len(model_bytes(_config(model=huge))) == MAX_MODEL_BYTES + 1
    for content in (b"", b"\0" * 100):
        (tmp_path / "bad").write_bytes(content)
        with pytest.raises(InputError):
            load_detector(_config(model=tmp_path / "bad"))
    with pytest.raises(InputError):
        load_detector(_config(model=huge))


def test_the_judge_in_this_process_says_what_the_detector_says() -> None:
    config = _config()
    world = build_world(config)
    hour = asyncio.run(world.telemetry.window(end_s=3600.0, length=360))
    detector, profiles = load_detector(config), ProfileBook.learn(hour)
    (event, *_) = world.facts().truth
    world.advance(event.end_s)
    window = asyncio.run(world.telemetry.window(end_s=event.end_s, length=config.loop.window))
    judgement = asyncio.run(LocalJudge(detector, profiles).judge(window))
    assert (judgement.verdicts, judgement.degraded) == detector.assess(window, profiles)


def test_the_testbed_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything but the machine: the record is there, and the programs are said to be."""
    config = _config(backend="testbed", state_dir=str(tmp_path), migration__max_rounds=2, migration__observe_s=0.5)
    with pytest.raises(PreconditionError, match="no testbed"):
        build_world(config)
    layout = NodeLayout(
        testbed="nw0000", name="node-0", folder=tmp_path / "n", images=tmp_path / "i", netns="nw0000-0",
        address="10.9.9.2", ssh_port=2222, bridge="nw0000br",
    )  # fmt: skip
    record = TestbedRecord(
        id="nw0000", folder=tmp_path, network="10.9.9.0/24", gateway="10.9.9.1", bridge="nw0000br", nodes=(layout,),
        started_at_s=1.0,
    )  # fmt: skip
    tools = Toolchain(**{name: Path("/bin/true") for name in Toolchain.__dataclass_fields__})
    monkeypatch.setattr(testbed, "current", lambda _: record)
    monkeypatch.setattr(testbed_requirements, "require", lambda _: tools)

    async def scene() -> None:
        world = build_world(config)
        facts = world.facts()
        assert (facts.backend, facts.scenario, facts.commissioning_samples) == (Backend.REAL, "nw0000", 360)
        assert facts.origin_s <= facts.now_s < facts.begins_s < facts.ends_s
        assert (await world.orchestrator.topology()).containers == ()
        await world.reach(facts.origin_s + 10.0)
        window = await world.telemetry.window(end_s=facts.origin_s + 10.0, length=1)
        assert window.containers == ()
        start = run_started(config, facts, await world.orchestrator.topology())
        assert (start.at_s, start.mode, bool(start.token)) == (facts.now_s, Mode.OBSERVE, True)
        refused = await world.apply(Restart(key="r/0", container="ghost"))
        assert (refused.done, refused.backend) == (False, Backend.REAL)
        await world.recover()
        await world.close()
        agent, _ = build_limi_agent(config, "node-0", lambda name: agent)
        assert (agent.node.name, agent._settings.max_rounds, agent._settings.observe_s) == ("node-0", 2, 0.5)

    asyncio.run(scene())
