"""The real container runtime of one node: runC and CRIU behind `ContainerRuntime` and `ContainerControl`.

D3.3 section 2.1: cold, pre-copy, post-copy and hybrid live migration. Dumps are in `criu_source`, restores in
`criu_target`; here are the container's own life, going back, and cleaning up.

Going back (`revive`) is a ladder; each rung is taken only when the one above does not hold:

1. What the migration left under way on this node is ended: runC, CRIU, the page server. CRIU's death detaches it from
   the processes, and the code that it had put into them removes itself.
2. The container's network is opened again (ours and CRIU's rules).
3. It runs: `still running`. It stands still: `thawed`. No memory is lost on these two, and since a dump leaves the
   frozen processes where they are, the rungs below are reached only when they died: with the memory full, for example.
4. There is a whole checkpoint of the last dump on this node: `restored` from it.
5. `restarted` from the bundle: the memory is lost.

All verbs can be repeated, by another process too: nothing that matters is known to this object alone.

Left out: checkpoints of containers with terminals, of more than one container at once (a pod), cgroup namespaces, and
user namespaces. Soft-dirty pre-dumps are built, and could not be tried here: no kernel at hand has
CONFIG_MEM_SOFT_DIRTY.

    runtime = RuncCriu(layout, toolchain())
    await runtime.create_and_start(spec)
    report = await runtime.dump("web", key="m1", images="final", parent=None, lazy=False)
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

from natwork_ray.adapters.container_cgroup import CGROUPS
from natwork_ray.adapters.container_load import measure
from natwork_ray.adapters.criu_files import KERNEL_CACHE, share_cache
from natwork_ray.adapters.criu_source import COMPLETE, SourceDumps, traced
from natwork_ray.adapters.criu_target import TargetRestores
from natwork_ray.adapters.runc_bundle import quota_us
from natwork_ray.adapters.runc_calls import SESSIONS, NodeTools
from natwork_ray.adapters.subprocesses import Runner, SubprocessRunner, ended
from natwork_ray.adapters.testbed_layout import NodeLayout
from natwork_ray.adapters.testbed_requirements import Toolchain, abilities, requirements
from natwork_ray.domain.actions import ActionOutcome, Restart, SetLimits
from natwork_ray.domain.migrations import ContainerLoad
from natwork_ray.domain.runtime import (
    ContainerSpec,
    ContainerState,
    ContainerStatus,
    DumpReport,
    PageServer,
    Revival,
    RuntimeAbilities,
)
from natwork_ray.domain.values import Backend, decode, encode
from natwork_ray.errors import ActionError, ConflictError, NatworkError, UsageError

START_S, UPDATE_S, SURVIVED_S = 30.0, 10.0, 0.25
_ACTIONS = "actions"


class RuncCriu:
    """ContainerRuntime and ContainerControl of one node of a testbed.

    Args:
        runner, cgroups, kernel_cache, ask, now_s: what a test replaces: who starts programs, where cgroups are mounted,
            where CRIU keeps its cache, what the node can do, seconds since the epoch.
    """

    def __init__(
        self,
        layout: NodeLayout,
        tools: Toolchain,
        *,
        runner: Runner | None = None,
        cgroups: Path = CGROUPS,
        kernel_cache: Path = KERNEL_CACHE,
        ask: Callable[[], RuntimeAbilities] = lambda: abilities(requirements()),
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self._node = NodeTools(layout, tools, runner or SubprocessRunner(layout.folder / SESSIONS), cgroups)
        self._source = SourceDumps(self._node)
        self._target = TargetRestores(self._node)
        self._kernel_cache = kernel_cache
        self._ask = ask
        self._now_s = now_s
        self._abilities: RuntimeAbilities | None = None

    # The container's own life.

    async def create_and_start(self, spec: ContainerSpec) -> None:
        """Make the bundle, whose root file system may lie there already, and start the container.

        Raises:
            ConflictError: it runs.
            NotFoundError: the bridge has not prepared its network namespace.
            ActionError: runC refused.
        """
        node = self._node
        if node.process(spec.name) is not None:
            raise ConflictError(f"{spec.name} runs on {node.layout.name} already", hint="destroy it first")
        node.network(spec.name).must_exist()
        await self._target.sweep(spec.name, "run")
        node.bundle(spec.name).write(spec)
        await self._start(spec.name)

    async def abilities(self) -> RuntimeAbilities:
        """What this node's kernel and CRIU can do. Asked once (half a second); programs and kernel do not change."""
        if self._abilities is None:
            node = self._node
            await asyncio.to_thread(share_cache, node.tools.criu, node.layout.images, node.env(""), self._kernel_cache)
            self._abilities = await asyncio.to_thread(self._ask)
        return self._abilities

    async def status(self, container: str) -> ContainerStatus:
        """See ContainerRuntime. A container whose processes CRIU holds stands still as well: it is `frozen`."""
        node = self._node
        process = node.process(container)
        if process is None:
            known = node.bundle(container).exists
            return ContainerStatus(
                container=container, state=ContainerState.STOPPED if known else ContainerState.ABSENT
            )
        still = node.cgroup(container).state() in ("frozen", "freezing") or traced(process.pid)
        state = ContainerState.FROZEN if still else ContainerState.RUNNING
        return ContainerStatus(container=container, state=state, pid=process.pid)

    async def load(self, container: str, *, observe_s: float) -> ContainerLoad:
        """See ContainerRuntime. How memory is observed: `natwork_ray.adapters.container_load`.

        Raises:
            ConflictError: it does not run here.
        """
        node = self._node
        self._must_run(container)
        spec, cgroup = node.bundle(container).describe(), node.cgroup(container)
        return await measure(
            cgroup.members(), cgroup, node.bundle(container).rootfs,
            observe_s=observe_s, cpu_limit_cores=spec.cpu_limit_cores,
        )  # fmt: skip

    async def describe(self, container: str) -> ContainerSpec:
        """See ContainerRuntime.

        Raises:
            NotFoundError: this node has no such container.
        """
        return self._node.bundle(container).describe()

    # Before and while moving.

    async def prepare(self, spec: ContainerSpec, *, key: str) -> None:
        """See ContainerRuntime. CRIU's cache is made ready too.

        Raises:
            ConflictError: a container of that name runs here.
        """
        node = self._node
        if node.process(spec.name) is not None:
            raise ConflictError(f"{spec.name} runs on {node.layout.name} already", hint="destroy it first")
        await self.abilities()
        bundle = node.bundle(spec.name)
        await node.unmount(bundle.folder)
        bundle.write(spec)
        node.images(key).mkdir(mode=0o700, parents=True, exist_ok=True)
        node.work(key).mkdir(mode=0o700, parents=True, exist_ok=True)

    async def pre_dump(self, container: str, *, key: str, images: str, parent: str | None) -> DumpReport:
        """See ContainerRuntime."""
        tracking = (await self.abilities()).dirty_tracking
        return await self._source.pre_dump(container, key=key, images=images, parent=parent, tracking=tracking)

    async def freeze(self, container: str) -> None:
        """See ContainerRuntime; returns when the last process stands still, usually within a millisecond."""
        self._must_run(container)
        await self._node.cgroup(container).freeze()

    async def thaw(self, container: str) -> None:
        """See ContainerRuntime. Opens the network that a dump has closed."""
        await self._node.network(container).open()
        self._node.cgroup(container).thaw()

    async def dump(self, container: str, *, key: str, images: str, parent: str | None, lazy: bool) -> DumpReport:
        """See ContainerRuntime. The processes stay, frozen, until `destroy`; after a failure too, until `revive`."""
        tracking = (await self.abilities()).dirty_tracking
        return await self._source.dump(container, key=key, images=images, parent=parent, lazy=lazy, tracking=tracking)

    async def await_pages_served(self, container: str, *, key: str) -> float:
        """See ContainerRuntime."""
        return await self._source.await_pages_served(container, key=key)

    async def restore(self, container: str, *, key: str, images: str, page_server: PageServer | None) -> None:
        """See ContainerRuntime."""
        await self._target.restore(container, key=key, images=images, page_server=page_server)

    async def await_pages_fetched(self, container: str, *, key: str) -> float:
        """See ContainerRuntime. When pages are missing, the container is frozen before this raises."""
        return await self._target.await_pages_fetched(container, key=key)

    # Going back, and cleaning up.

    async def revive(self, container: str, *, key: str) -> Revival:
        """See ContainerRuntime, and the ladder above.

        Raises:
            NotFoundError: this node never had the container.
            ActionError: not even a restart was possible.
        """
        node = self._node
        stood = node.cgroup(container).state() in ("frozen", "freezing")
        await self._source.hold(container, key)
        await node.unmount(node.work(key), node.layout.runc_root / container, node.layout.bundle(container))
        network, process = node.network(container), node.process(container)
        if process is not None:
            await network.open()
            node.cgroup(container).thaw()
            # After a complete dump CRIU had left the processes; nothing can have happened to them.
            if any(node.work(key).glob(f"*/{COMPLETE}")) or await _survives(process.pid):
                return Revival.THAWED if stood else Revival.STILL_RUNNING
        node.bundle(container).describe()
        for done in sorted(node.work(key).glob(f"*/{COMPLETE}")):
            if done.read_text(encoding="ascii") != "whole":
                continue
            try:
                await network.close()
                await network.forget_connections()
                await self._target.restore(container, key=key, images=done.parent.name, page_server=None)
            except NatworkError:
                continue  # the last rung is left
            await network.open()
            return Revival.RESTORED
        await self._target.sweep(container, key)
        await self._start(container)
        return Revival.RESTARTED

    async def destroy(self, container: str, *, key: str) -> None:
        """See ContainerRuntime. Frozen processes are killed before they are thawed: nothing of them runs again."""
        node = self._node
        await self._source.forget(container, key)
        await node.end(container)
        await self._target.sweep(container, key)
        node.bundle(container).remove()

    async def clean(self, container: str, *, key: str) -> None:
        """See ContainerRuntime."""
        node = self._node
        await self._source.forget(container, key)
        await self._target.forget(container, key)
        await node.end(container, key)
        await node.unmount(node.work(key), node.images(key))
        for folder in (node.images(key), node.work(key)):
            # In a thread: images are many pages, and somebody else's address may be moving just now.
            await asyncio.to_thread(node.delete, folder)

    # ContainerControl.

    async def set_limits(self, instruction: SetLimits) -> ActionOutcome:
        """Change limits in place (`runc update`); they move along with the container.

        Raises:
            UsageError: a limit is negative.
            ActionError: the kernel refused, for example a memory limit below what is used.
        """

        async def act() -> str:
            node, name = self._node, instruction.container
            self._must_run(name)
            cores, memory = instruction.cpu_limit_cores, instruction.memory_limit_bytes
            if (cores or 0) < 0 or (memory or 0) < 0:
                raise UsageError(f"limits {cores}, {memory} of {name}", hint="0 for none, or a positive number")
            options = []
            if cores is not None:
                options += ["--cpu-period", "100000", "--cpu-quota", str(quota_us(cores))]
            if memory is not None:
                options += ["--memory", str(int(memory)) if memory else "-1"]
            if not options:
                return "no limit was to be changed"
            log = self._log("update")
            await node.must(
                node.runc(log, "update", *options, name),
                marker=node.marker(name), log=log, what=f"limits of {name}", timeout_s=UPDATE_S,
            )  # fmt: skip
            bundle = node.bundle(name)
            spec = bundle.describe()
            bundle.write(
                replace(
                    spec,
                    cpu_limit_cores=spec.cpu_limit_cores if cores is None else cores,
                    memory_limit_bytes=spec.memory_limit_bytes if memory is None else memory,
                )
            )
            return "limits changed"

        return await self._once(instruction.key, act, down=False)

    async def restart(self, instruction: Restart) -> ActionOutcome:
        """End the container and start its bundle anew; what it had in memory is gone.

        Raises:
            NotFoundError: this node has no such container.
            ActionError: runC refused.
        """

        async def act() -> str:
            name = instruction.container
            self._node.bundle(name).describe()
            await self._target.sweep(name, instruction.key)
            await self._start(name)
            return "restarted"

        return await self._once(instruction.key, act, down=True)

    async def _once(self, key: str, act: Callable[[], Awaitable[str]], *, down: bool) -> ActionOutcome:
        """The first outcome of a key, kept on disk."""
        name = hashlib.blake2s(key.encode(), digest_size=16).hexdigest()
        path = self._node.layout.folder / _ACTIONS / f"{name}.json"
        if path.exists():
            return decode(ActionOutcome, path.read_bytes())
        began = self._now_s()
        detail = await act()
        over = self._now_s()
        outcome = ActionOutcome(
            key=key, done=True, started_at_s=began, finished_at_s=over, downtime_s=over - began if down else 0.0,
            backend=Backend.REAL, detail=detail,
        )  # fmt: skip
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.write_bytes(encode(outcome))
        except OSError as error:
            raise ActionError(f"{detail}, but it could not be noted: {error}", hint="is the disk full?") from error
        return outcome

    async def _start(self, container: str) -> None:
        node = self._node
        await node.network(container).open()
        log = self._log("run")
        node.layout.runc_root.mkdir(mode=0o700, parents=True, exist_ok=True)
        await node.must(
            node.runc(log, "run", "--detach", "--bundle", node.layout.bundle(container), container),
            marker=node.marker(container), log=log, what=f"start of {container}", timeout_s=START_S,
        )  # fmt: skip

    def _log(self, what: str) -> Path:
        """A fresh log of a call that belongs to no migration."""
        path = self._node.layout.folder / f"runc-{what}.log"
        path.unlink(missing_ok=True)
        return path

    def _must_run(self, container: str) -> None:
        if self._node.process(container) is None:
            raise ConflictError(
                f"{container} does not run on {self._node.layout.name}",
                hint="`natwork testbed status` says where it does",
            )


async def _survives(pid: int) -> bool:
    """Whether a process lives on: one that CRIU was killed over, in the wrong moment, dies at its first instruction."""
    try:
        await asyncio.wait_for(ended(pid), SURVIVED_S)
    except TimeoutError:
        return True
    return False
