"""`natwork profile`: what the journal says of profiles, and the order to learn one anew through the doors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from natwork_ray.adapters.sqlite_journal import SqliteJournal
from natwork_ray.cli import causes_cases
from natwork_ray.cli.lifecycle import _ahead
from natwork_ray.config import AlarmConfig, SlaConfig
from natwork_ray.control.events import (
    DriftObserved,
    Event,
    ProfilesLearnt,
    RelearnRequested,
    RunStarted,
    VerdictsReached,
)
from natwork_ray.control.moving import predict_move
from natwork_ray.control.service import ControlService
from natwork_ray.domain.anomaly import AnomalyKind, AnomalyVerdict, Driver
from natwork_ray.domain.decisions import Mode
from natwork_ray.domain.profiles import MetricDrift, NormalRange, ProfileDrift, ProfileSummary, Relearning
from natwork_ray.domain.values import Backend
from natwork_ray.emulation.scenarios import smart_city
from natwork_ray.errors import ExitCode

TOPOLOGY = smart_city().topology
CALLER = next(c for c in TOPOLOGY.containers if c.depends_on)
SERVICE = TOPOLOGY.containers[0].service


def _verdict(container: str, at_s: float, deviation: float) -> AnomalyVerdict:
    return AnomalyVerdict(
        container=container, at_s=at_s, score=0.9, kind=AnomalyKind.NETWORK_LATENCY, confidence=0.9,
        drivers=(Driver(metric="latency_p50_s", deviation=deviation),),
    )  # fmt: skip


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A journal: profiles learnt, one drifted, one ordered anew, and a callee that slows its caller."""
    ranges = (NormalRange(metric="cpu_utilization", low=0.1, centre=0.2, high=0.4, samples=360),)
    summary = ProfileSummary(
        service=SERVICE, from_s=0.0, to_s=3600.0, digest="a" * 64, ranges=ranges, unprofiled=("error_rate_per_s",)
    )
    metric = MetricDrift(metric="cpu_utilization", shift=2.6, outside=0.3, psi=0.7)
    callee = CALLER.depends_on[0]
    events: list[Event] = [
        RunStarted(
            id="run", at_s=3600.0, backend=Backend.EMULATED, mode=Mode.OBSERVE, scenario="s", seed=1, step_s=10.0,
            approval_lapse_s=900.0, topology=TOPOLOGY, alarm=AlarmConfig(), sla=SlaConfig(),
        ),
        ProfilesLearnt(id="p", at_s=3600.0, profiles=(summary,)),
        DriftObserved(id="d", at_s=18000.0, drifts=(ProfileDrift(service=SERVICE, at_s=18000.0, metrics=(metric,)),)),
        RelearnRequested(
            id="r", at_s=18000.0, order=Relearning(service=SERVICE, from_s=14400.0, to_s=18000.0, by="ada")
        ),
        *(
            VerdictsReached(
                id=f"v{at_s}", at_s=at_s, scanned=9,
                verdicts=(_verdict(CALLER.name, at_s, 9.0), _verdict(callee, at_s, 8.0)),
            )
            for at_s in (18010.0, 18020.0, 18030.0)
        ),
    ]  # fmt: skip
    journal = SqliteJournal.open(tmp_path / "state", origin="natwork.example/audit")
    try:
        for answer in ControlService(journal, predict_move).submit(events):
            answer.unwrap()
    finally:
        journal.close()
    return tmp_path / "state"


def _run(natwork: Any, state: Path, *arguments: str) -> Any:
    return natwork("--set", f"state_dir={state}", *arguments)


def test_show_and_drift(natwork: Any, state: Path) -> None:
    shown = json.loads(_run(natwork, state, "profile", "show", "--json").out)
    assert [p["service"] for p in shown["profiles"]] == [SERVICE]
    assert shown["relearning"][0]["by"] == "ada"
    table = _run(natwork, state, "profile", "show", "--service", SERVICE)
    assert "cpu_utilization" in table.out
    assert "not measured then, so never deviating: error_rate_per_s" in table.err
    drifts = json.loads(_run(natwork, state, "profile", "drift", "--json").out)["drifts"]
    assert drifts[0]["metrics"][0]["shift"] == 2.6
    assert "2.6" in _run(natwork, state, "profile", "drift").out
    assert "No drift" in _run(natwork, state, "profile", "drift", "--service", "other").err


def test_a_service_without_a_profile_is_told_apart(natwork: Any, state: Path) -> None:
    ended = _run(natwork, state, "profile", "show", "--service", "nobody")
    assert (ended.code, ended.out) == (ExitCode.FAILED, "")
    assert "cold start" in ended.err


def test_an_order_goes_through_the_door_with_the_token(natwork: Any, gateway: Any) -> None:
    gateway.answers(202, {"service": "amf", "from_s": 7200.0, "to_s": 10800.0, "by": "ada", "note": "", "forced": True})
    ended = natwork(
        "--set", f"state_dir={gateway.state_dir}",
        "profile", "relearn", "--service", "a/b", "--from", "7200", "--to", "10800", "--force",
        "--by", "ada", "--json",
    )  # fmt: skip
    assert json.loads(ended.out)["forced"] is True
    asked = gateway.asked[-1]
    assert (asked.method, asked.path) == ("POST", "/api/v1/profiles/a%2Fb/relearn")
    assert asked.body == {"by": "ada", "note": "", "from_s": 7200.0, "to_s": 10800.0, "force": True}


def test_causes_are_ranked_from_the_journal(natwork: Any, state: Path) -> None:
    document = json.loads(_run(natwork, state, "causes", "rank", "--minutes", "5", "--json").out)
    assert (document["from_s"], document["to_s"]) == (17730.0, 18030.0)
    assert document["causes"][0]["container"] == CALLER.depends_on[0]
    assert document["causes"][1]["explained_by"] == CALLER.depends_on[0]
    assert CALLER.depends_on[0] in _run(natwork, state, "causes", "rank").out
    quiet = _run(natwork, state, "causes", "rank", "--at", "17000")
    assert "No verdict between" in quiet.err


def test_evaluation_on_the_emulation(natwork: Any, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(causes_cases, "_PER_KIND", 1)
    ended = _run(natwork, state, "causes", "evaluate", "--emulated", "--worlds", "2", "--json")
    document = json.loads(ended.out)
    rows = {(r["model"], r["kind"]): r for r in document["rows"]}
    ours, random = (rows[m, "all"] for m in ("deviations unexplained by the graph", "chance"))
    assert ours["data"] == "emulated"
    assert ours["top_1"] > 0.7 > 0.1 > random["top_1"]
    assert document["seed"] == 7


def test_without_data_nothing_is_evaluated(natwork: Any, state: Path, tmp_path: Path) -> None:
    assert _run(natwork, state, "causes", "evaluate").code == ExitCode.PRECONDITION
    ended = _run(natwork, state, "causes", "evaluate", "--data", str(tmp_path))
    assert ended.code == ExitCode.PRECONDITION
    assert "no recorded incidents" in ended.err


def test_the_status_says_what_is_expected_and_what_drifted() -> None:
    outlook = {
        "containers": 12, "stable": 9, "rising": ["upf"], "resilience": ["amf"], "advised": [{"reason": "scale upf"}],
        "degraded": "2 containers: no reference",
    }  # fmt: skip
    text = "\n".join(_ahead({"outlook": outlook, "drifted": ["smf"]}))
    for word in ("smf", "12 containers, 9 stable", "rising: upf", "resilience first: amf", "scale upf", "no reference"):
        assert word in text
    assert _ahead({}) == _ahead({"outlook": None, "drifted": []}) == []
