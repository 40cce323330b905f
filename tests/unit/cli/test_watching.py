"""Watching a live source: rows, what is not judged, what is said, and how it ends. No server and no waiting."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import numpy as np
import pytest

from natwork_ray import backends
from natwork_ray.adapters.prometheus_masks import Observation, Remark
from natwork_ray.cli import watching
from natwork_ray.cli.watching import Watch, seconds_of, watch
from natwork_ray.cli.watching_view import Judged, Row, WatchOptions
from natwork_ray.config import Config, LoopConfig
from natwork_ray.domain.anomaly import STAGE_2_CLASSES, AnomalyKind
from natwork_ray.domain.telemetry import METRICS, N_METRICS, Metric, TelemetryWindow
from natwork_ray.errors import NatworkError, PreconditionError, TimedOutError, UsageError
from natwork_ray.profiling.profile import ProfileBook, deviations
from natwork_ray.profiling.verdicts import Scores

CPU = METRICS.index(Metric.CPU)
STEP = 10.0


class Threshold:
    """A detector that flags a CPU four deviations above the profile; beyond 0.95 it takes it for a false positive."""

    window = 4
    history = 6
    card = None
    book = ProfileBook()

    def score(self, values: Any, references: Any) -> Scores:
        newest = deviations(values, references)[:, -1]
        far = np.nan_to_num(newest[:, CPU], nan=0.0)
        flagged = np.asarray(far > 4)
        wrong = np.nan_to_num(values[:, -1, CPU]) > 0.95
        high, normal = STAGE_2_CLASSES.index(AnomalyKind.HIGH_CPU), STAGE_2_CLASSES.index(AnomalyKind.FALSE_POSITIVE)
        contributions = np.zeros_like(newest)
        contributions[flagged, CPU] = 2.0
        return Scores(
            p_anomalous=np.clip(far / 16, 0, 1).astype(np.float32),
            kinds=np.where(flagged & ~wrong, high, normal).astype(np.int8),
            confidence=np.full(len(values), 0.75, dtype=np.float32),
            deviations=newest,
            flagged=flagged,
            scored=np.asarray(~np.isnan(newest).all(axis=1)),
            contributions=contributions,
        )


class Source:
    """CPU per container by step; a container without an entry is not there, NaN was not measured."""

    def __init__(self, levels: dict[str, dict[int, float]]) -> None:
        self.levels = levels
        self.degraded: tuple[Remark, ...] = ()
        self.asked: list[int] = []
        self.errors: list[NatworkError | None] = []
        self.closed = False

    async def observation(self, *, end_s: float, length: int) -> Observation:
        self.asked.append(length)
        if self.errors and (error := self.errors.pop(0)) is not None:
            raise error
        last = round(end_s / STEP)
        steps = range(last - length + 1, last + 1)
        names = tuple(n for n, series in self.levels.items() if any(step in series for step in steps))
        values = np.full((len(names), length, N_METRICS), np.nan, dtype=np.float32)
        for row, name in enumerate(names):
            values[row, :, CPU] = [self.levels[name].get(step, np.nan) for step in steps]
        window = TelemetryWindow(containers=names, services=names, end_s=end_s, step_s=STEP, values=values)
        return Observation(window, self.degraded, (Remark(container="web", metric="cpu", text="no limit"),))

    def close(self) -> None:
        self.closed = True


def looking(source: Source, *, commissioning_s: float = 200.0) -> Watch:
    return Watch(
        lambda at_s, length: source.observation(end_s=at_s, length=length),
        Threshold(),  # type: ignore[arg-type]
        commissioning_s=commissioning_s,
        step_s=STEP,
    )


def step(look: Watch, number: int) -> Judged:
    return asyncio.run(look.step(number * STEP))


def row(judged: Judged, container: str = "web") -> Row:
    (found,) = [r for r in judged.rows if r.container == container]
    return found


NORMAL = dict.fromkeys(range(1, 30), 0.1)


def test_history_gives_the_profile_and_the_first_verdict() -> None:
    source = Source({"web": {**NORMAL, 20: 0.9}})
    judged = step(looking(source), 20)
    assert source.asked == [21]
    assert judged.learnt[0].service == "web"
    found = row(judged)
    assert (found.anomalous, found.type, found.confidence) == (True, "high_cpu", 0.75)
    assert found.score is not None
    assert found.score > 0.5
    assert found.drivers[0].metric == "cpu_utilization"
    assert found.degraded == ("profile learnt from 200 s, not from an hour",)
    assert judged.notes == ("web: cpu: no limit",)


def test_a_normal_row_and_a_false_positive() -> None:
    look = looking(Source({"web": {**NORMAL, 22: 0.96}}))
    assert (row(step(look, 20)).anomalous, row(step(look, 21)).type) == (False, None)
    found = row(step(look, 22))
    assert (found.anomalous, found.type) == (False, "false_positive")


def test_before_there_is_a_profile_every_row_says_so() -> None:
    source = Source({"web": {1: 0.1, 2: 0.1}})
    look = looking(source, commissioning_s=3600.0)
    found = row(step(look, 2))
    assert (found.anomalous, found.score, found.profile) == (None, None, "fleet")
    assert found.degraded[-1] == "cold start: no profile yet, 20 s of 3600 s"
    source.levels["web"] |= NORMAL
    assert row(step(look, 14)).degraded[0].startswith("commissioning: provisional profile")
    assert source.asked == [361, 13]


def test_a_metric_that_the_profile_does_not_know_cannot_be_judged() -> None:
    source = Source({"web": dict.fromkeys(range(1, 40), 0.1)})
    plain = source.observation

    async def with_memory(*, end_s: float, length: int) -> Observation:
        seen = await plain(end_s=end_s, length=length)
        seen.window.values[:, -1, METRICS.index(Metric.MEMORY_RSS)] = 1e6
        return seen

    look = looking(source)
    step(look, 20)
    source.observation = with_memory  # type: ignore[method-assign]
    found = row(step(look, 21))
    assert found.anomalous is False
    assert "not judged by memory_rss_bytes: too little was seen of it in commissioning" in found.degraded


def test_a_commissioning_holds_a_dozen_samples() -> None:
    with pytest.raises(UsageError, match="fewer than 12 samples"):
        looking(Source({}), commissioning_s=110.0)


def test_an_hour_is_not_degraded() -> None:
    source = Source({"web": dict.fromkeys(range(1, 400), 0.1)})
    assert row(step(looking(source, commissioning_s=3600.0), 380)).degraded == ()


def test_the_models_own_profile_stands_in_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.full((1, 20, N_METRICS), 0.5, dtype=np.float32)
    own = ProfileBook.learn(
        TelemetryWindow(containers=("web",), services=("web",), end_s=0, step_s=STEP, values=values)
    )
    monkeypatch.setattr(Threshold, "book", own)
    found = row(step(looking(Source({"web": {1: 0.1}})), 1))
    assert found.profile == "model"
    assert "the model's profile" in found.degraded[0]


def test_what_is_missing_is_not_judged_and_not_normal() -> None:
    source = Source({"web": {**NORMAL, 21: float("nan")}, "db": {20: 0.1}})
    look = looking(source)
    step(look, 20)
    source.degraded = (Remark(container="web", metric="", text="last scraped 40 s ago"),)
    judged = step(look, 21)
    assert (row(judged).score, row(judged).anomalous, row(judged).type) == (None, None, None)
    assert row(judged).degraded[0] == "last scraped 40 s ago"
    assert row(judged, "db").degraded[0] == "nothing was measured"


def test_a_container_that_is_gone_is_told_once() -> None:
    source = Source({"web": dict.fromkeys(range(1, 99), 0.1), "db": {20: 0.1}})
    look = looking(source)
    step(look, 20)
    step(look, 22)
    assert [r.degraded for r in step(look, 26).rows if r.container == "db"] == [("it is gone",)]
    assert [r.container for r in step(look, 27).rows] == ["web"]


def test_no_container_at_all() -> None:
    judged = step(looking(Source({})), 5)
    assert judged.rows == ()
    assert judged.degraded == ("the server names no container",)


def test_an_outage_is_caught_up_with() -> None:
    source = Source({"web": dict.fromkeys(range(1, 99), 0.1)})
    source.errors = [None, TimedOutError("late", hint="h"), TimedOutError("late", hint="h")]
    look = looking(source, commissioning_s=600.0)
    step(look, 5)
    for number in (6, 7):
        with pytest.raises(TimedOutError):
            step(look, number)
    step(look, 8)
    assert source.asked == [61, 6, 6, 6]
    assert row(step(look, 40)).degraded[0] == "commissioning: provisional profile, 400 s of 600 s"
    assert source.asked[-1] == 33


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("1.5h", 5400), ("250ms", 0.25), ("60", 60), (" 2 m ", 120), ("1d", 86400)]
)
def test_durations(text: str, seconds: float) -> None:
    assert seconds_of(text, "--for") == seconds


@pytest.mark.parametrize("text", ["", "0", "0s", "-5s", "5y", "nan", "inf", "1e3", "five", "1" * 11])
def test_no_durations(text: str) -> None:
    with pytest.raises(UsageError, match="--for"):
        seconds_of(text, "--for")


class Time:
    """A clock that passes only by sleeping; each look at it takes `pace_s`."""

    def __init__(self, at_s: float) -> None:
        self.at_s = at_s

    def time(self) -> float:
        return self.at_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Time:
    clock = Time(200.0)

    async def sleep(seconds: float) -> None:
        clock.at_s += seconds

    monkeypatch.setattr(watching, "time", clock)
    monkeypatch.setattr(watching.asyncio, "sleep", sleep)
    return clock


def follow(monkeypatch: pytest.MonkeyPatch, source: Source, **options: Any) -> None:
    monkeypatch.setattr(backends, "prometheus_telemetry", lambda _: source)
    config = Config(loop=LoopConfig(step_s=STEP))
    given: dict[str, Any] = {"commissioning_s": 200.0, **options}
    watch(config, Threshold(), WatchOptions(**given), model="shipped")  # type: ignore[arg-type]


def test_json_lines(monkeypatch: pytest.MonkeyPatch, clock: Time, capsys: pytest.CaptureFixture[str]) -> None:
    source = Source({"web": {**NORMAL, 22: 0.9}})
    source.errors = [None, TimedOutError("late", hint="wait")]
    follow(monkeypatch, source, as_json=True, for_s=30.0)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["event"] for line in lines] == [
        "began", "learnt", "remarks", "verdict", "failed", "verdict", "verdict", "ended",
    ]  # fmt: skip
    assert lines[4]["error"] == "late"
    assert [line["anomalous"] for line in lines if line["event"] == "verdict"] == [False, True, False]
    assert lines[-1] == {"event": "ended", "steps": 3, "rows": 3, "anomalous": 1, "unjudged": 0, "failures": 1}
    assert source.closed


def test_lines_for_people(monkeypatch: pytest.MonkeyPatch, clock: Time, capsys: pytest.CaptureFixture[str]) -> None:
    source = Source({"web": {**NORMAL, 22: 0.9, 23: 0.9}})
    source.errors = [None, TimedOutError("late", hint="wait"), None, None, None]
    follow(monkeypatch, source, for_s=50.0)
    said = capsys.readouterr()
    # Only what changes: normal, after the outage the anomaly (its second step is nothing new), normal again.
    verdicts = [line.split("  ")[2] for line in said.out.splitlines()]
    assert verdicts == ["normal", "high_cpu", "normal"]
    for text in ("not from an hour", "not judged: late (wait)", "own profile from 200 s", "5 steps", "1 failures"):
        assert text in said.err


def test_a_slow_server_is_told_of(
    monkeypatch: pytest.MonkeyPatch, clock: Time, capsys: pytest.CaptureFixture[str]
) -> None:
    source = Source({"web": NORMAL})
    plain = source.observation

    async def slow(*, end_s: float, length: int) -> Observation:
        clock.at_s += 25.0
        return await plain(end_s=end_s, length=length)

    monkeypatch.setattr(source, "observation", slow)
    follow(monkeypatch, source, as_json=True, for_s=40.0)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["steps"] for line in lines if line["event"] == "skipped"] == [1, 2]
    follow(monkeypatch, source, for_s=1.0)
    assert "slower than the step" in capsys.readouterr().err


def test_a_server_that_never_answers_is_an_error(monkeypatch: pytest.MonkeyPatch, clock: Time) -> None:
    source = Source({})
    source.errors = [TimedOutError("late", hint="h")] * 9
    with pytest.raises(TimedOutError):
        follow(monkeypatch, source, for_s=20.0)
    assert source.closed


def test_once(monkeypatch: pytest.MonkeyPatch, clock: Time, capsys: pytest.CaptureFixture[str]) -> None:
    source = Source({"web": {**NORMAL, 20: 0.9}})
    follow(monkeypatch, source, once=True, as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert (told["model"], told["rows"][0]["type"], told["rows"][0]["container"]) == ("shipped", "high_cpu", "web")
    assert set(told) == {"model", "rows", "at_s", "learnt", "degraded", "notes"}
    follow(monkeypatch, source, once=True)
    said = capsys.readouterr()
    assert "high_cpu" in said.out
    assert "no limit" in said.err


def test_once_with_nothing_to_judge(
    monkeypatch: pytest.MonkeyPatch, clock: Time, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(PreconditionError, match="no container could be judged"):
        follow(monkeypatch, Source({"web": {19: 0.1}}), once=True, as_json=True)
    assert json.loads(capsys.readouterr().out)["rows"][0]["anomalous"] is None


def test_an_interrupt_ends_it(monkeypatch: pytest.MonkeyPatch, clock: Time, capsys: pytest.CaptureFixture[str]) -> None:
    source = Source({"web": NORMAL})

    async def interrupted(*, end_s: float, length: int) -> Observation:
        raise KeyboardInterrupt

    monkeypatch.setattr(source, "observation", interrupted)
    follow(monkeypatch, source)
    assert "interrupted" in capsys.readouterr().err
    assert source.closed
