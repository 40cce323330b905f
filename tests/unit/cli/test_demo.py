"""`natwork demo` from its options to its last line; the loop turns in this process, nothing of Ray is started."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from natwork_ray.adapters.sqlite_journal import SqliteJournal
from natwork_ray.backends import (
    FORECAST_SAMPLES,
    LocalJudge,
    World,
    WorldFacts,
    build_world,
    load_detector,
    loop_forecaster,
    run_started,
)
from natwork_ray.cli.in_process import WorldHands
from natwork_ray.config import Config
from natwork_ray.control.cycle import LoopCycle, Turn
from natwork_ray.control.direct import DirectControl
from natwork_ray.control.moving import predict_move
from natwork_ray.errors import ExitCode
from natwork_ray.profiling.profile import ProfileBook


class LocalSupervisor:
    """What `agents.supervisor.Supervisor` is to the demo, in one process."""

    cycle: LoopCycle

    def __init__(self, config: Config, world: World, journal: SqliteJournal) -> None:
        self.config, self._world, self._journal = config, world, journal
        self.facts = world.facts()
        self.control = DirectControl(journal, predict_move)
        client = SimpleNamespace(
            facts=self._facts_now,
            topology=world.orchestrator.topology,
            window=world.telemetry.window,
            node_usage=world.telemetry.node_usage,
        )
        self.crew = SimpleNamespace(world=client, control=self.control)

    @classmethod
    async def begin(cls, config: Config, state_dir: Path) -> LocalSupervisor:
        self = cls(config, build_world(config), SqliteJournal.open(state_dir, origin="natwork-ray/control"))
        facts, telemetry = self.facts, self._world.telemetry
        hour = await telemetry.window(end_s=facts.begins_s, length=round(facts.begins_s / facts.step_s))
        topology = await self.crew.world.topology()
        (answer,) = await self.control.submit((run_started(config, facts, topology),))
        answer.unwrap()
        hands = WorldHands(self._world)
        self.cycle = LoopCycle(
            telemetry=telemetry,
            judge=LocalJudge(load_detector(config), ProfileBook.learn(hour)),
            control=self.control,
            orchestrator=self._world.orchestrator,
            node_hands={node.name: hands for node in topology.nodes},
            cluster_hands=hands,
            window_length=config.loop.window,
            forecaster=loop_forecaster(hour),
            forecast_length=FORECAST_SAMPLES,
        )
        return self

    async def turn(self, at_s: float) -> Turn:
        self._world.advance(at_s)
        return await self.cycle.turn(at_s)

    async def _facts_now(self) -> WorldFacts:
        return self._world.facts()


@pytest.fixture
def started(without_ray: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Ray noted instead of started, and a supervisor in this process."""
    noted = without_ray()
    import agents.supervisor

    monkeypatch.setattr(agents.supervisor, "Supervisor", LocalSupervisor)
    return noted


SHORT = ("--scenario", "grid-10", "--minutes", "15")


def test_the_demo_as_json(natwork: Any, started: Any, small_run: Any) -> None:
    ended = natwork("demo", *SHORT, "--out", "run", "--json")
    assert ended.code == 0
    summary = json.loads(ended.out)
    assert summary["backend"] == "emulated"
    assert summary["mode"] == "act"
    assert [d["id"] for d in summary["decisions"]] == [d.id for d in small_run.ending.decisions]
    assert summary["audit"]["verified"] is True
    assert started.done == ["start", "connect", "deploy", "disconnect", "end"]
    assert "Audit log:  natwork audit verify" in ended.err
    report = Path("run/report.html").read_text(encoding="utf-8")
    assert report.startswith("<!")
    key = Path("run/state/audit.pub")
    assert natwork("audit", "verify", "run/audit.log", "--public-key", key).code == 0


def test_the_demo_tells_its_story(natwork: Any, started: Any) -> None:
    ended = natwork("demo", *SHORT, "--out", "run", "--mode", "observe", "--keep")
    assert ended.code == 0
    assert started.done == ["start", "connect", "deploy"]
    assert "recommended" in ended.err
    assert "grid-10, seed 7" in ended.out
    assert "End it:     natwork --set state_dir=" in ended.err
    again = natwork("demo", *SHORT, "--out", "run")
    assert again.code == ExitCode.USAGE
    assert "holds a run already" in again.err


def test_a_run_gets_a_folder_of_its_own(natwork: Any, started: Any) -> None:
    assert natwork("--set", "loop.mode=approve", "demo", "--scenario", "grid-10", "--minutes", "2", "--json").code == 0
    (folder,) = Path("runs").iterdir()
    assert folder.name.endswith("-seed7")
    assert 'mode = "approve"' in (folder / "state" / "natwork.toml").read_text(encoding="utf-8")


def test_ray_is_ended_when_the_run_fails(natwork: Any, without_ray: Any) -> None:
    started = without_ray(failing="deploy")
    ended = natwork("demo", *SHORT, "--out", "run", "--keep", "--json")
    assert (ended.code, ended.out) == (ExitCode.TIMED_OUT, "")
    assert started.done == ["start", "connect", "deploy", "disconnect", "end"]


def test_nothing_is_made_for_what_cannot_run(natwork: Any) -> None:
    for arguments in (("--scenario", "moon-base"), ("--telemetry", "replay:.")):
        ended = natwork("demo", *arguments, "--out", "run")
        assert ended.code in (ExitCode.USAGE, ExitCode.PRECONDITION)
        assert not Path("run").exists()
    assert natwork("demo", "--telemetry", "replay:absent").code == ExitCode.PRECONDITION


def test_recordings_are_judged_by_a_model_that_has_not_seen_them(
    natwork: Any, started: Any, recorded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained_on: list[set[str]] = []
    shipped = load_detector(Config())

    def train(runs: Any, *, progress: Any) -> bytes:
        from natwork_ray.profiling.model_file import dumps

        trained_on.append({run.run for run in runs})
        progress(1, 1, "stage 1")
        return dumps(shipped)

    monkeypatch.setattr("natwork_ray.profiling.training.train_profiler", train)
    ended = natwork("demo", "--telemetry", f"replay:{recorded}", "--run", "2", "--out", "run", "--json")
    assert ended.code == 0
    summary = json.loads(ended.out)
    assert (summary["backend"], summary["scenario"]) == ("replayed", "run-2")
    assert trained_on == [{"1", "3"}]
    assert "run 2 was not seen" in ended.err
    assert (Path("run") / "runs-1-3.safetensors").is_file()


def test_a_single_run_is_judged_by_the_shipped_model(natwork: Any, started: Any, recorded: Path) -> None:
    for path in [*recorded.rglob("*1.csv"), *recorded.rglob("*3.csv")]:
        path.unlink()
    ended = natwork("demo", "--telemetry", f"replay:{recorded}", "--out", "run", "--json")
    assert ended.code == 0
    assert "judged by the shipped model" in ended.err
    assert json.loads(ended.out)["scenario"] == "run-2"


def test_an_unknown_run_is_named(natwork: Any, recorded: Path) -> None:
    ended = natwork("demo", "--telemetry", f"replay:{recorded}", "--run", "9", "--out", "run")
    assert ended.code == ExitCode.FAILED
    assert "there are runs 1, 2, 3" in ended.err
    assert not Path("run").exists()
