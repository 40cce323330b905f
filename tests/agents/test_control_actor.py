"""The control actor: durable, restarted for ever, exactly-once by id."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
from ray.util import list_named_actors

from agents.control import ControlClient, connect, start_control
from agents.naming import CONTROL
from natwork_ray import __version__
from natwork_ray.adapters.sqlite_journal import SqliteJournal
from natwork_ray.config import AlarmConfig, Config, SlaConfig
from natwork_ray.control.events import ApprovalAnswered, ModeChanged, RunStarted
from natwork_ray.domain.decisions import Mode
from natwork_ray.domain.values import Backend
from natwork_ray.emulation.scenarios import scenario
from natwork_ray.errors import NotFoundError, TimedOutError

START = RunStarted(
    id="run", at_s=0.0, backend=Backend.EMULATED, mode=Mode.OBSERVE, scenario="smart-city", seed=1, step_s=10.0,
    approval_lapse_s=900.0, topology=scenario("smart-city").topology, alarm=AlarmConfig(), sla=SlaConfig(),
)  # fmt: skip


def changed(number: int) -> ModeChanged:
    return ModeChanged(id=f"mode-{number}", at_s=float(number), mode=Mode.ACT, by="a test")


@pytest.fixture
def control(ray_cluster: object, namespace: str, tmp_path: Path) -> ControlClient:
    return start_control(tmp_path / "state", config=Config(), namespace=namespace)


def committed(state_dir: Path) -> Counter[str]:
    journal = SqliteJournal.open_read_only(state_dir)
    try:
        return Counter(event_id for event_id, _ in journal.events())
    finally:
        journal.close()


def test_it_is_named_and_found_again(control: ControlClient, namespace: str, tmp_path: Path) -> None:
    async def scene() -> None:
        pid = await control.pid()
        again = start_control(tmp_path / "state", config=Config(), namespace=namespace)
        assert await again.pid() == pid
        assert await connect(namespace).version() == __version__

    asyncio.run(scene())
    assert {"name": CONTROL, "namespace": namespace} in list_named_actors(all_namespaces=True)


def test_a_client_of_a_control_actor_that_is_not_there_gives_up_in_time(namespace: str) -> None:
    began = time.monotonic()
    with pytest.raises(TimedOutError, match="control actor: status"):
        asyncio.run(connect(namespace, patience_s=1.0).status())
    assert time.monotonic() - began < 5.0


def test_sigkill_loses_nothing_and_repeats_are_known(control: ControlClient, tmp_path: Path) -> None:
    async def scene() -> None:
        await control.submit((START, changed(1)))
        before, checkpoint, pid = await control.status(), await control.audit_checkpoint(), await control.pid()
        os.kill(pid, signal.SIGKILL)
        assert await control.status() == before
        assert await control.pid() != pid
        assert await control.audit_checkpoint() == checkpoint
        answers = await control.submit((START, changed(1), changed(2)))
        assert [answer.known for answer in answers] == [True, True, False]
        assert await control.audit_size() == 3

    asyncio.run(scene())
    assert committed(tmp_path / "state") == Counter(["run", "mode-1", "mode-2"])


def test_a_kill_under_concurrent_submissions_commits_each_once(control: ControlClient, tmp_path: Path) -> None:
    async def scene() -> None:
        await control.submit((START,))
        pid = await control.pid()
        calls = [asyncio.create_task(control.submit((changed(n),))) for n in range(200)]
        await asyncio.sleep(0.02)
        os.kill(pid, signal.SIGKILL)
        for (answer,) in await asyncio.gather(*calls):
            answer.unwrap()
        assert (await control.status()).mode is Mode.ACT

    asyncio.run(scene())
    assert committed(tmp_path / "state") == Counter(["run", *(f"mode-{n}" for n in range(200))])


def test_when_the_disk_fails_the_process_ends_and_comes_back(control: ControlClient, tmp_path: Path) -> None:
    async def scene() -> None:
        await control.submit((START, changed(1)))
        pid = await control.pid()
        # From now on every write of this process that makes a file longer fails; its successor is not limited.
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))
        (answer,) = await control.submit((changed(2),))
        answer.unwrap()
        assert await control.pid() != pid

    asyncio.run(scene())
    assert committed(tmp_path / "state") == Counter(["run", "mode-1", "mode-2"])


def test_a_refusal_crosses_ray_with_its_hint(control: ControlClient) -> None:
    async def scene() -> None:
        await control.submit((START,))
        (answer,) = await control.submit((ApprovalAnswered(id="a", at_s=1.0, decision="d-9", granted=True, by="x"),))
        with pytest.raises(NotFoundError) as refused:
            answer.unwrap()
        assert refused.value.hint
        with pytest.raises(NotFoundError):
            await control.decision("d-9")

    asyncio.run(scene())
