"""The one-machine cluster's record: what is ours, what is not, and how it is ended. Ray itself is never started."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from agents import cluster
from agents.cluster import CLUSTER_FILE, ClusterRecord, connect, end, environment, running
from agents.naming import HOST_LABEL, NODE_LABEL, limi_name
from natwork_ray.domain.values import decode, encode
from natwork_ray.errors import ConflictError, InputError, NotFoundError, PreconditionError, TimedOutError


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process that stands for Ray's head, with a child of its own."""
    code = "import subprocess, sys; p = subprocess.Popen(['sleep', '60']); print(p.pid, flush=True); p.wait()"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    child = psutil.Process(int(process.stdout.readline()))
    yield process
    for each in (psutil.Process(process.pid) if process.poll() is None else None, child):
        if each is not None and each.is_running():
            each.kill()
    process.wait()
    process.stdout.close()


@pytest.fixture
def record(sleeper: Any, tmp_path: Path) -> ClusterRecord:
    """The record of the sleeper, in `tmp_path`, as `start` would have written it."""
    folder = tmp_path / "natwork-ray"
    (folder / "session").mkdir(parents=True)
    made = ClusterRecord(
        pid=sleeper.pid,
        created_s=psutil.Process(sleeper.pid).create_time(),
        address="127.0.0.1:1",
        dashboard_port=None,
        metrics_port=2,
        temp_dir=str(folder),
    )
    (tmp_path / CLUSTER_FILE).write_bytes(encode(made))
    return made


def test_a_record_is_found_again(record: ClusterRecord, tmp_path: Path) -> None:
    assert running(tmp_path) == record
    assert decode(ClusterRecord, (tmp_path / CLUSTER_FILE).read_bytes()) == record


def test_a_recycled_process_id_is_not_ours(record: ClusterRecord, tmp_path: Path, sleeper: Any) -> None:
    (tmp_path / CLUSTER_FILE).write_bytes(encode(replace(record, created_s=record.created_s - 60)))
    assert running(tmp_path) is None
    assert end(tmp_path) is False
    assert sleeper.poll() is None
    assert not (tmp_path / CLUSTER_FILE).exists()


def test_ending_ends_the_process_and_what_came_from_it(record: ClusterRecord, tmp_path: Path, sleeper: Any) -> None:
    (child,) = psutil.Process(sleeper.pid).children()
    assert end(tmp_path) is True
    assert not child.is_running()
    assert sleeper.poll() is not None
    assert not Path(record.temp_dir).exists()
    assert running(tmp_path) is None
    assert end(tmp_path) is False


def test_a_process_that_outlives_everything_is_told(
    record: ClusterRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster.psutil, "wait_procs", lambda family, timeout: ([], family))
    monkeypatch.setattr(cluster.psutil.Process, "send_signal", lambda *_: None)
    with pytest.raises(TimedOutError, match=str(record.pid)):
        end(tmp_path)
    assert (tmp_path / CLUSTER_FILE).exists()


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b"[1]", b'{"pid":"1"}'])
def test_a_damaged_record_is_an_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / CLUSTER_FILE).write_bytes(content)
    for ask in (running, end):
        with pytest.raises(InputError):
            ask(tmp_path)


@pytest.mark.parametrize("pid", [-1, 0, 2**22 + 1, 2**40])
def test_impossible_process_ids_run_nothing(record: ClusterRecord, tmp_path: Path, pid: int) -> None:
    (tmp_path / CLUSTER_FILE).write_bytes(encode(replace(record, pid=pid)))
    assert running(tmp_path) is None


def test_only_a_folder_of_our_making_is_removed(record: ClusterRecord, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (tmp_path / CLUSTER_FILE).write_bytes(encode(replace(record, pid=2**22 + 1, temp_dir=str(precious))))
    assert end(tmp_path) is False
    assert precious.is_dir()


def test_the_environment_names_files_of_the_state_directory(tmp_path: Path) -> None:
    variables = environment(tmp_path)
    assert variables["RAY_AUTH_MODE"] == "token"
    assert variables["RAY_AUTH_TOKEN_PATH"] == str(tmp_path / "ray-token")
    assert variables["NATWORK_CONFIG"] == str(tmp_path / "natwork.toml")
    assert all(isinstance(text, str) for text in variables.values())


def test_connecting_needs_a_cluster_and_its_environment(
    tmp_path: Path, record: ClusterRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(NotFoundError, match="no cluster"):
        connect(tmp_path / "elsewhere")
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    with pytest.raises(ConflictError, match="token"):
        connect(tmp_path)


def test_a_second_start_is_refused(record: ClusterRecord, tmp_path: Path) -> None:
    with pytest.raises(ConflictError, match="is running"):
        cluster.start(tmp_path, dashboard=False)


def test_ports_are_free_and_differ() -> None:
    ports = cluster._free_ports(20)
    assert len(set(ports)) == 20
    for port in ports:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", port))


class FakeRay:
    """Replaces the process that `start` would make."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
        self.arguments: list[str] = []
        self.environment: dict[str, str] = {}
        self.process: subprocess.Popen[bytes]
        real = subprocess.Popen

        def popen(arguments: list[str], **options: Any) -> Any:
            self.arguments, self.environment = arguments, options["env"]
            self.process = real([sys.executable, "-c", code, *arguments[2:]], **options)
            return self.process

        monkeypatch.setattr(cluster.subprocess, "Popen", popen)


ANSWERS = f"""
import pathlib, sys, time
folder = next(a.split("=", 1)[1] for a in sys.argv if a.startswith("--temp-dir="))
(pathlib.Path(folder) / {cluster.ADDRESS_FILE!r}).write_text("127.0.0.1:6379")
time.sleep(60)
"""


def test_starting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NATWORK_LOOP__MODE", "act")
    fake = FakeRay(monkeypatch, ANSWERS)
    state = tmp_path / "state"
    made = cluster.start(state, dashboard=True, cpus=3)
    try:
        assert running(state) == made
        assert made.address == "127.0.0.1:6379"
        assert made.dashboard_port
        assert "--cpus=3" in fake.arguments
        assert f"--dashboard-port={made.dashboard_port}" in fake.arguments
        assert (state / "ray-token").stat().st_mode & 0o777 == 0o600
        assert len((state / "ray-token").read_text()) == 64
        assert state.stat().st_mode & 0o077 == 0
        # Settled in natwork.toml already: variables must not override it in the cluster.
        assert [name for name in fake.environment if name.startswith("NATWORK_")] == ["NATWORK_CONFIG"]
    finally:
        assert end(state) is True
        fake.process.wait()
    assert not Path(made.temp_dir).exists()


def test_a_start_that_fails_ends_with_the_last_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FakeRay(monkeypatch, "print('first'); print('no room'); raise SystemExit(9)")
    with pytest.raises(PreconditionError, match="Ray ended with 9: no room"):
        cluster.start(tmp_path, dashboard=False)
    assert not (tmp_path / CLUSTER_FILE).exists()


def test_a_start_that_says_nothing_times_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRay(monkeypatch, "import time; time.sleep(60)")
    monkeypatch.setattr(cluster, "START_PATIENCE_S", 0.3)
    with pytest.raises(TimedOutError, match="did not answer"):
        cluster.start(tmp_path, dashboard=False)
    fake.process.wait()
    assert not (tmp_path / CLUSTER_FILE).exists()


def test_an_agents_home_is_its_nodes_machine_or_the_emulations_host() -> None:
    from agents.limi import home_of

    machines = [{HOST_LABEL: "yes", NODE_LABEL: "control"}, {NODE_LABEL: "edge-2"}, {}]
    assert home_of("edge-2", machines) == {NODE_LABEL: "edge-2"}
    assert home_of("edge-1", machines) == {HOST_LABEL: "yes"}
    assert home_of("edge-1", []) == {HOST_LABEL: "yes"}
    assert limi_name("edge-1") == "natwork-limi-edge-1"
    assert limi_name("edge-1") != limi_name("edge-2")


def test_a_balancer_that_outlived_its_actor_is_ended_with_the_cluster(record: ClusterRecord, tmp_path: Path) -> None:
    """HAProxy's parent is an actor of Serve; when that dies, only its command line says whose it is."""
    wait = "import time; time.sleep(60)"
    stray = subprocess.Popen([sys.executable, "-c", wait, "-f", f"{record.temp_dir}/ha/node/haproxy.cfg"])
    other = subprocess.Popen([sys.executable, "-c", wait, "-f", f"{record.temp_dir}-2/ha/node/haproxy.cfg"])
    try:
        assert end(tmp_path) is True
        assert not psutil.pid_exists(stray.pid)
        assert other.poll() is None
    finally:
        for each in (stray, other):
            each.kill()
            each.wait()
