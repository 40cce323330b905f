"""`natwork testbed` as far as it goes without root: what is parsed, said, and handed on."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from natwork_ray.adapters import testbed as testbeds
from natwork_ray.adapters import testbed_containers, testbed_orphans
from natwork_ray.adapters.prober import ProbeReport
from natwork_ray.adapters.testbed_containers import Placed
from natwork_ray.adapters.testbed_layout import NodeLayout
from natwork_ray.adapters.testbed_orphans import Owner, Standing
from natwork_ray.adapters.testbed_state import TestbedRecord
from natwork_ray.adapters.testbed_traces import Trace
from natwork_ray.adapters.workload import IDLE, workload_spec
from natwork_ray.cli import testbed as command
from natwork_ray.domain.migrations import LoadLevel
from natwork_ray.domain.runtime import ContainerState
from natwork_ray.errors import ExitCode, NotFoundError, UsageError

REPORT = ProbeReport(
    sent=9, answered=9, duration_s=1.0, longest_gap_s=0.25, longest_gap_at_s=0.5, latency_p50_s=0.001,
    latency_max_s=0.3, lost=0, duplicated=0, reordered=0, count_breaks=0, instances=1,
)  # fmt: skip

STANDING = (
    Standing(id="nw0001", folder=Path("/elsewhere/testbed"), owner=Owner.NONE),
    Standing(id="nw0002", folder=Path("/one/testbed"), owner=Owner.ALIVE),
    Standing(id="nw0003", folder=Path("/two/testbed"), owner=Owner.DEAD),
)


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TestbedRecord:
    """A testbed that is there, and what is asked of it noted instead of done."""
    nodes = tuple(
        NodeLayout(testbed="nw1234", name=f"node-{i}", folder=tmp_path / f"node-{i}", images=tmp_path / "images",
                   netns=f"nw1234-node-{i}", address=f"10.77.3.{i + 2}", ssh_port=2222, bridge="nw1234br")
        for i in range(2)
    )  # fmt: skip
    made = TestbedRecord(
        id="nw1234", folder=tmp_path / "testbed", network="10.77.3.0/24", gateway="10.77.3.1", bridge="nw1234br",
        nodes=nodes, started_at_s=1.0, complete=True,
    )  # fmt: skip
    spec = workload_spec("web", address="10.77.3.50/24", mac="02:00:00:00:00:01", load=IDLE)
    placed = Placed(spec=spec, node="node-0", state=ContainerState.RUNNING, pid=7)

    async def containers(*_: object, **__: object) -> tuple[Placed, ...]:
        return (placed,)

    async def find(_: object, name: str, **__: object) -> Placed:
        if name != "web":
            raise NotFoundError(f"no container {name}", hint="look")
        return placed

    async def start(*_: object, **__: object) -> Placed:
        return placed

    async def probe(host: str, **_: object) -> ProbeReport:
        assert host == "10.77.3.50"
        return REPORT

    for module, name, stand_in in (
        (command, "require", lambda: None),
        (command, "toolchain", lambda: None),
        (command, "probe_once", probe),
        (testbed_orphans, "standing", lambda: STANDING),
        (testbeds, "plan", lambda *_, **__: made),
        (testbeds, "up", lambda *_, told, **__: (told("node-0 at 10.77.3.2"), made)[1]),
        (testbeds, "current", lambda _: made),
        (testbeds, "down", lambda _: "nw1234"),
        (testbeds, "traces_of", lambda _: (Trace(kind="link", name="nw1234br"),)),
        (testbed_containers, "containers", containers),
        (testbed_containers, "find", find),
        (testbed_containers, "start", start),
    ):
        monkeypatch.setattr(module, name, stand_in)
    return made


def test_up_says_what_it_makes(natwork: Any, record: TestbedRecord) -> None:
    ended = natwork("testbed", "up", "--bandwidth", "1Gbit", "--images", "512MiB")
    assert (ended.code, ended.out) == (0, "")
    assert "node-0 at 10.77.3.2" in ended.err
    assert "made testbed nw1234: 2 nodes on 10.77.3.0/24" in ended.err
    planned = json.loads(natwork("testbed", "up", "--dry-run", "--json").out)
    assert planned["done"] is False
    assert planned["testbed"]["id"] == "nw1234"
    for wrong in (("--bandwidth", "fast"), ("--bandwidth", "0Mbit"), ("--images", "0"), ("--images", "")):
        assert natwork("testbed", "up", *wrong).code == ExitCode.USAGE


@pytest.mark.parametrize("whole", [True, False])
def test_status_ends_with_3_when_a_node_is_not_whole(
    natwork: Any, record: TestbedRecord, monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    node = testbeds.NodeStatus(
        name="node-0", address="10.77.3.2", namespace=True, sshd=whole, images_used_bytes=0, images_bytes=1,
        containers=("web",),
    )  # fmt: skip
    monkeypatch.setattr(testbeds, "status", lambda _: testbeds.TestbedStatus(record=record, nodes=(node,)))
    ended = natwork("testbed", "status", "--json")
    assert ended.code == (0 if whole else ExitCode.PRECONDITION)
    assert json.loads(ended.out)["healthy"] is whole
    assert [other["owner"] for other in json.loads(ended.out)["others"]] == ["none", "alive", "dead"]
    table = natwork("testbed", "status")
    assert "node-0" in table.out
    assert "nw0001 in /elsewhere (natwork --set state_dir=/elsewhere testbed down)" in table.err
    assert "nw0003 in /two, its owner is dead (natwork testbed down --orphans)" in table.err


def test_status_names_the_others_where_there_is_none(
    natwork: Any, record: TestbedRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(_: Path) -> None:
        raise NotFoundError("there is no testbed", hint="natwork testbed up")

    monkeypatch.setattr(testbeds, "status", none)
    ended = natwork("testbed", "status")
    assert ended.code == ExitCode.FAILED
    assert "nw0002 in /one, its owner is alive" in ended.err


def test_orphans_are_removed_or_listed(natwork: Any, record: TestbedRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(testbed_orphans, "take_down_orphans", lambda: ("nw0003",))
    assert "would remove nw0003" in natwork("testbed", "down", "--orphans", "--dry-run").err
    assert "removed nw0003" in natwork("testbed", "down", "--orphans").err
    assert json.loads(natwork("testbed", "down", "--orphans", "--json").out) == {
        "orphans": ["nw0003"],
        "dry_run": False,
    }
    monkeypatch.setattr(testbed_orphans, "take_down_orphans", lambda: ())
    assert "there was no orphan" in natwork("testbed", "down", "--orphans").err


def test_down_is_refused_while_the_system_runs_on_it(
    natwork: Any, record: TestbedRecord, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("agents.cluster.running", lambda _: object())
    monkeypatch.setattr(command, "_backend_of", lambda _: "testbed")
    refused = natwork("testbed", "down")
    assert refused.code == ExitCode.FAILED
    assert "runs on this testbed" in refused.err
    assert natwork("testbed", "down", "--dry-run").code == 0
    assert natwork("testbed", "down", "--force").code == 0
    monkeypatch.setattr(command, "_backend_of", lambda _: "emulated")
    assert natwork("testbed", "down").code == 0


def test_the_backend_of_a_running_system_is_read_from_its_configuration(tmp_path: Path) -> None:
    assert command._backend_of(tmp_path) is None
    (tmp_path / "natwork.toml").write_text('backend = "emulated"\n')
    assert command._backend_of(tmp_path) == "emulated"
    (tmp_path / "natwork.toml").write_text("backend = [")
    assert command._backend_of(tmp_path) is None


def test_sigterm_unwinds_so_that_a_half_made_container_goes() -> None:
    before, cleared = signal.getsignal(signal.SIGTERM), []

    def half_way() -> None:
        with command._cleared_when_ended():
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            finally:
                cleared.append(signal.getsignal(signal.SIGTERM))

    with pytest.raises(SystemExit) as ended:
        half_way()
    assert ended.value.code == 143
    assert cleared == [signal.SIG_IGN]  # a second one does not keep it from clearing up
    assert signal.getsignal(signal.SIGTERM) is before


def test_down_removes_or_lists(natwork: Any, record: TestbedRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "would remove link nw1234br" in natwork("testbed", "down", "--dry-run").err
    said = json.loads(natwork("testbed", "down", "--json").out)
    assert said == {"testbed": "nw1234", "dry_run": False, "traces": ["link nw1234br"]}
    assert "removed testbed nw1234, 1 traces" in natwork("testbed", "down").err
    monkeypatch.setattr(testbeds, "down", lambda _: None)
    assert "there was no testbed" in natwork("testbed", "down").err


def test_containers_are_listed(natwork: Any, record: TestbedRecord) -> None:
    (row,) = json.loads(natwork("testbed", "containers", "--json").out)["containers"]
    assert (row["name"], row["node"], row["state"], row["pid"]) == ("web", "node-0", "running", 7)


def test_run_starts_or_plans(natwork: Any, record: TestbedRecord) -> None:
    ended = natwork("testbed", "run", "web", "--node", "node-0", "--memory", "64MiB")
    assert "running: web on node-0 at 10.77.3.50/24" in ended.err
    planned = json.loads(
        natwork("testbed", "run", "db", "--node", "node-1", "--load", "cpu-high", "--dry-run", "--json").out
    )
    assert planned == {"name": "db", "node": "node-1", "state": "planned", "address": "10.77.3.50/24", "pid": 0}
    assert natwork("testbed", "run", "db", "--node", "node-9").code == ExitCode.FAILED
    assert natwork("testbed", "run", "db", "--node", "node-1", "--memory", "much").code == ExitCode.USAGE
    assert natwork("testbed", "run", "db", "--node", "node-1", "--cpu-limit", "5000").code == ExitCode.USAGE
    for option in ("--memory", "--volume"):
        refused = natwork("testbed", "run", "db", "--node", "node-1", option, "900000000GiB", "--dry-run")
        assert refused.code == ExitCode.REFUSED, option


def test_probe_tells_and_ends_with_1_when_the_session_is_not_whole(
    natwork: Any, record: TestbedRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "9 of 9 answered, longest gap 250.0 ms" in natwork("testbed", "probe", "web").err
    assert json.loads(natwork("testbed", "probe", "web", "--json").out)["whole"] is True
    assert natwork("testbed", "probe", "db").code == ExitCode.FAILED

    async def broken(*_: object, **__: object) -> ProbeReport:
        return ProbeReport(**{**vars(REPORT), "lost": 2})

    monkeypatch.setattr(command, "probe_once", broken)
    ended = natwork("testbed", "probe", "web", "--json")
    assert ended.code == ExitCode.FAILED
    assert json.loads(ended.out)["lost"] == 2


def test_sizes_rates_and_levels() -> None:
    assert [command.size_of(text, "--x") for text in ("5", "1KiB", "1.5GB", " 64 MiB ")] == [5, 1024, 1.5e9, 64 * 2**20]
    assert [command.rate_of(text) for text in ("8Mbit", "1Gbit")] == [1e6, 1.25e8]
    levels = command.levels_of("memory-high_network-low")
    assert (levels.cpu, levels.memory, levels.network) == (LoadLevel.LOW, LoadLevel.HIGH, LoadLevel.LOW)
    for text in ("", "x", "-1", "1e5", "1 TiB", "9" * 20):
        with pytest.raises(UsageError, match="no size"):
            command.size_of(text, "--x")
    with pytest.raises(UsageError, match="no level"):
        command.levels_of("memory-huge")
