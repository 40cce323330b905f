"""Agents with a node and a journal of their own, across Ray: killed in the middle of a migration, they end it well.

The nodes are folders: a container is a file that says `running` or `frozen`, and every verb takes a moment, so that a
kill lands in the middle of one.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray

from agents.limi import LimiAgent, LimiClient, LimiOffice, NodeHome
from agents.naming import limi_name
from natwork_ray.adapters.migration_journal import FileMigrationJournal
from natwork_ray.domain.actions import Migrate, MigrationMethod, Restart
from natwork_ray.domain.migrations import ContainerLoad, MigrationOutlook
from natwork_ray.domain.runtime import (
    ContainerSpec,
    ContainerState,
    ContainerStatus,
    DumpReport,
    PathReport,
    Revival,
    RuntimeAbilities,
    SendReport,
)
from natwork_ray.domain.values import Backend
from natwork_ray.errors import ActionError
from natwork_ray.limi.agent import MigrationAgent
from natwork_ray.limi.choosing import ByEquations
from natwork_ray.limi.node import LimiNode

MOMENT_S = 0.1
SPEC = ContainerSpec(name="echo", image="base", address="10.0.0.9/24", mac="02:00:00:00:00:09", command=("echo",))


class WallClock:
    def now_s(self) -> float:
        return time.time()


class FolderPorts:
    """ContainerRuntime, ImageTransfer, AddressBridge and ContainerControl of one node, on files."""

    def __init__(self, folder: Path, node: str) -> None:
        self.home = folder / node
        self.home.mkdir(exist_ok=True)
        self.address = folder / "address"
        self.node = node

    def _file(self, container: str) -> Path:
        return self.home / container

    def _write(self, container: str, state: str) -> None:
        draft = self._file(f".{container}")
        draft.write_text(state)
        draft.replace(self._file(container))

    async def abilities(self) -> RuntimeAbilities:
        methods = (MigrationMethod.COLD, MigrationMethod.PRE_COPY)
        return RuntimeAbilities(methods=methods, dirty_tracking=False)

    async def status(self, container: str) -> ContainerStatus:
        try:
            state = ContainerState(self._file(container).read_text())
        except FileNotFoundError:
            return ContainerStatus(container=container, state=ContainerState.ABSENT)
        return ContainerStatus(container=container, state=state, pid=1)

    async def load(self, container: str, *, observe_s: float) -> ContainerLoad:
        return ContainerLoad(
            memory_bytes=1e8, dirty_bytes_per_s=1e6, working_set_bytes=1e7, cpu_cores=0.1, cpu_limit_cores=0.0,
            volume_bytes=0.0, volume_delta_bytes=0.0, volume_write_bytes_per_s=0.0, network_rx_bytes_per_s=0.0,
            network_tx_bytes_per_s=0.0, bandwidth_bytes_per_s=0.0, rtt_s=0.0, observed_s=observe_s,
        )  # fmt: skip

    async def describe(self, container: str) -> ContainerSpec:
        return SPEC

    async def prepare(self, spec: ContainerSpec, *, key: str) -> None:
        await asyncio.sleep(MOMENT_S)

    async def pre_dump(self, container: str, *, key: str, images: str, parent: str | None) -> DumpReport:
        await asyncio.sleep(MOMENT_S)
        return DumpReport(size_bytes=10.0, pages_bytes=10.0, frozen_s=0.0)

    async def freeze(self, container: str) -> None:
        self._write(container, "frozen")

    async def thaw(self, container: str) -> None:
        self._write(container, "running")

    async def dump(self, container: str, *, key: str, images: str, parent: str | None, lazy: bool) -> DumpReport:
        await asyncio.sleep(MOMENT_S)
        return DumpReport(size_bytes=10.0, pages_bytes=10.0, frozen_s=0.1)

    async def restore(self, container: str, *, key: str, images: str, page_server: object) -> None:
        await asyncio.sleep(MOMENT_S)
        self._write(container, "running")

    async def revive(self, container: str, *, key: str) -> Revival:
        self._write(container, "running")
        return Revival.THAWED

    async def destroy(self, container: str, *, key: str) -> None:
        self._file(container).unlink(missing_ok=True)

    async def clean(self, container: str, *, key: str) -> None:
        await asyncio.sleep(0)

    async def open(self, target: str) -> PathReport:
        return PathReport(bandwidth_bytes_per_s=1e8, rtt_s=0.001)

    async def send_images(self, container: str, *, target: str, key: str, images: str, basis: str | None) -> SendReport:
        await asyncio.sleep(MOMENT_S)
        return SendReport(size_bytes=10.0, sent_bytes=10.0, digest="d")

    async def send_volume(self, container: str, *, target: str, key: str) -> SendReport:
        return SendReport(size_bytes=0.0, sent_bytes=0.0, digest="d")

    async def close(self, *, target: str, key: str) -> None:
        await asyncio.sleep(0)

    async def detach(self, container: str) -> None:
        await asyncio.sleep(0)

    async def attach(self, container: str) -> None:
        self.address.write_text(self.node)

    async def attached(self, container: str) -> bool:
        return self.address.read_text() == self.node

    async def remove(self, container: str) -> None:
        await asyncio.sleep(0)

    async def restart(self, instruction: Restart) -> Any:
        raise ActionError("it will not", hint="leave it")


class FolderAgent(LimiAgent):
    """A LiMi agent whose node is a folder."""

    def __init__(self, node: str, namespace: str, folder: Path) -> None:
        self.node = node
        ports: Any = FolderPorts(folder, node)
        limi = LimiNode(node, ports, ports, ports, FileMigrationJournal(folder / f"j-{node}"), WallClock())
        agent = MigrationAgent(
            limi, backend=Backend.REAL, peer=lambda name: LimiClient(name, namespace, 600.0), chooser=ByEquations()
        )
        self._home = NodeHome(agent, ports)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "echo").write_text("running")
    (tmp_path / "address").write_text("a")
    return tmp_path


@pytest.fixture
def agents(ray_cluster: Any, namespace: str, folder: Path) -> dict[str, LimiClient]:
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import this module
    try:
        for node in ("a", "b"):
            ray.remote(FolderAgent).options(
                name=limi_name(node), namespace=namespace, lifetime="detached", max_restarts=-1, max_concurrency=100,
                num_cpus=0,
            ).remote(node, namespace, folder)  # fmt: skip
    finally:
        ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    return {node: LimiClient(node, namespace, 120.0) for node in ("a", "b")}


def where(folder: Path) -> list[str]:
    return [node for node in ("a", "b") if (f := folder / node / "echo").exists() and f.read_text() == "running"]


def left(folder: Path) -> int:
    """On how many nodes something of the container is."""
    return len(list(folder.glob("?/echo")))


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(60.0):
        while not true():  # noqa: ASYNC110 - what is waited for happens in another process
            await asyncio.sleep(0.005)


def order(key: str = "k/0", method: MigrationMethod | None = MigrationMethod.PRE_COPY) -> Migrate:
    return Migrate(key=key, container="echo", source="a", target="b", method=method)


@pytest.mark.parametrize(
    ("stage", "victims"),
    [
        ("pre-dump", ("a",)),
        ("dump", ("a", "b")),
        ("dump transfer", ("b",)),
        ("restore", ("a",)),
        ("restore", ("b",)),
        ("restore", ("a", "b")),
    ],
)
def test_killed_in_the_middle_it_comes_to_its_end(
    agents: dict[str, LimiClient], folder: Path, namespace: str, stage: str, victims: tuple[str, ...]
) -> None:
    async def scene() -> None:
        pids = {node: await agent.pid() for node, agent in agents.items()}
        asked = asyncio.create_task(agents["a"].execute(order()))
        office = LimiOffice(namespace)
        while not asked.done():
            progress = await office.progress("k/0", source="a")
            if progress is not None and stage in progress.under_way:
                break
        for victim in victims:
            os.kill(pids[victim], signal.SIGKILL)
        outcome = await asked
        record = outcome.record
        assert record is not None
        assert where(folder) == [record.runs_on]
        assert left(folder) == 1
        assert (folder / "address").read_text() == record.runs_on
        assert outcome.done == (record.runs_on == "b")
        assert await agents["a"].execute(order()) == outcome
        assert await agents["a"].progress("k/0") is None

    asyncio.run(scene())


def test_an_agent_that_nobody_calls_recovers_by_itself(agents: dict[str, LimiClient], folder: Path) -> None:
    async def scene() -> None:
        pid = await agents["a"].pid()
        asked = asyncio.create_task(agents["a"].execute(order(method=MigrationMethod.COLD)))
        await until(lambda: where(folder) == [])  # it stands still
        asked.cancel()  # nobody waits for it any more
        os.kill(pid, signal.SIGKILL)
        await until(lambda: len(where(folder)) == 1 and not list((folder / "j-a" / "open").glob("k*.jsonl")))

    asyncio.run(scene())


def test_it_measures_chooses_and_refuses(agents: dict[str, LimiClient], folder: Path, namespace: str) -> None:
    async def scene() -> None:
        found: MigrationOutlook = await LimiOffice(namespace).outlook("echo", source="a", target="b", weight=0.1)
        assert found.load is not None
        assert found.load.bandwidth_bytes_per_s == 1e8
        assert (found.weight, len(found.forecasts), len(found.impossible)) == (0.1, 2, 2)
        moved = await agents["a"].execute(order(method=None))
        assert moved.record is not None
        assert (moved.done, moved.record.chosen_by) == (True, "rule")
        refused = await agents["b"].execute(Restart(key="r/0", container="echo"))
        assert (refused.done, "it will not" in refused.error) == (False, True)
        assert await LimiOffice(namespace, patience_s=0.5).progress("k/0", source="nowhere") is None

    asyncio.run(scene())
    assert where(folder) == ["b"]
