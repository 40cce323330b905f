"""Checkpoints on the source: rounds of pre-copy, the last dump, the page server of post-copy (D3.3 section 2.1).

**The source's processes stay, frozen, until `destroy`.** The last dump is taken with `--leave-running` out of a cgroup
that is frozen already; CRIU then leaves it frozen. So going back is thawing: milliseconds, and no byte of memory lost,
whatever happened to the images. Nothing is served meanwhile, as the namespace is closed before CRIU reads the sockets.

**While lazy pages are served** CRIU holds the processes by ptrace, and would let them run on if it were killed: the
container would run twice. So its cgroup is frozen again as soon as the page server is ready; a traced process can be
frozen, the pages wait in CRIU's pipes, and a killed CRIU leaves the processes frozen (tried out, with CRIU 4.2 on
6.18).

**Rounds of pre-copy**: where the kernel tracks dirty pages, CRIU's own `pre-dump` with parent images. Where it does
not, a whole checkpoint that leaves the container running; the transfer then sends the difference to the round before.
Such an image is never restored, so that connections need not be in it. The container is frozen by a script that CRIU
calls as it begins, and thawed when runC has ended. A lazy dump after such a round leaves to the page server only what
differs from it (`natwork_ray.adapters.criu_difference`).

What kills do (tried out, 40 of each phase at random moments, CRIU 4.2 on Linux 6.18, a client asking all the time):

- runC killed: CRIU notices at its next notification and gives the processes back as they were. That is why a dump is
  ended by killing its runC alone. Nor may anybody freeze the cgroup then: CRIU's code in the processes has to run.
- CRIU killed: its code in the processes sees its socket close, and removes itself. Connections that CRIU was reading
  stay in repair mode; `hold` ends that. A process that reads from one before is refused and resets it: requests that
  were waiting when the dump began cost their connections. Rounds of pre-copy do not touch connections and lose none.
- CRIU killed in the instant in which it puts its code in, or takes it out: the process dies. Then `revive` has what is
  left.
- CRIU killed while it serves pages: nothing happens to the source's processes."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from natwork_ray.adapters.container_network import free_port
from natwork_ray.adapters.criu_difference import (
    MOST_COMPARED_BYTES,
    MOST_EAGER_BYTES,
    Reduced,
    numbers_inside,
    reduce,
    unchanged,
)
from natwork_ray.adapters.criu_files import lazy_bytes, read_log, read_times, size_of
from natwork_ray.adapters.runc_calls import RUNC_LOG, NodeTools
from natwork_ray.adapters.subprocesses import Child, ended
from natwork_ray.adapters.tcp_repair import end_repair
from natwork_ray.adapters.testbed_network import NETNS
from natwork_ray.adapters.testbed_state import identify
from natwork_ray.domain.runtime import DumpReport
from natwork_ray.domain.values import decode
from natwork_ray.errors import ActionError, ConflictError, NotFoundError, PreconditionError

DUMP_S = 100.0
COMPLETE, SERVER, STOOD, REDUCED = "complete", "page-server.json", "stood", "reduced.json"
DUMP_LOG = "dump.log"
_DONE = "Dumping finished successfully"
_PIPE_LIMITS = (Path("/proc/sys/fs/pipe-max-size"), Path("/proc/sys/fs/pipe-user-pages-soft"))
_LEAST_PIPE = 2**26
_CAP_SYS_RESOURCE = 24


class SourceDumps:
    """The source side of one node's runtime."""

    def __init__(self, node: NodeTools) -> None:
        self._node = node
        self._servers: dict[str, Child] = {}

    async def pre_dump(
        self, container: str, *, key: str, images: str, parent: str | None, tracking: bool
    ) -> DumpReport:
        """See ContainerRuntime."""
        node, began = self._node, time.monotonic()
        folder, work = await self._begin(container, key, images)
        bundle, cgroup = node.bundle(container), node.cgroup(container)
        stood = work / STOOD
        script = bundle.freeze_script(cgroup.freezer, cgroup.frozen_word, stood)
        # Such an image is never restored: connections are left alone, and a killed CRIU leaves none in repair mode.
        bundle.configure(f"action-script {script}\ntcp-close\n")
        options: list[str | Path] = ["--image-path", folder, "--work-path", work]
        options.append("--pre-dump" if tracking else "--leave-running")
        if tracking and parent:
            options += ["--parent-path", f"../{parent}"]
        try:
            await self._checkpoint(container, key, work, options)
        except BaseException:
            await asyncio.shield(self.hold(container, key))
            raise
        finally:
            cgroup.thaw()
            bundle.configure("")
        frozen_s = time.time() - stood.stat().st_mtime if stood.exists() else time.monotonic() - began
        return self._report(folder, work, frozen_s)

    async def dump(
        self, container: str, *, key: str, images: str, parent: str | None, lazy: bool, tracking: bool
    ) -> DumpReport:
        """See ContainerRuntime."""
        node, began = self._node, time.monotonic()
        if lazy:
            pipes_must_be_large()
        folder, work = await self._begin(container, key, images)
        cgroup = node.cgroup(container)
        if cgroup.state() != "frozen":
            await cgroup.freeze()
        options: list[str | Path] = [
            "--leave-running",
            "--tcp-established",
            "--image-path",
            folder,
            "--work-path",
            work,
        ]
        if tracking and parent:
            options += ["--parent-path", f"../{parent}"]
        # CRIU leaves out by itself what a parent has, where the kernel tells it.
        basis = parent if lazy and not tracking else None
        locked = asyncio.create_task(self._closed_in_time(container, work))
        try:
            port = await self._take(container, key, folder, options, work=work, lazy=lazy, basis=basis)
            in_time = await locked
        except BaseException:
            locked.cancel()
            await asyncio.gather(locked, return_exceptions=True)
            await asyncio.shield(self.hold(container, key))
            raise
        if not in_time:
            # The machine was so slow that CRIU may have read a socket that still accepted. Closed is closed: once more.
            await self.forget(container, key)
            await node.end(container, key, gently=not lazy)
            for place in (folder, work):
                node.fresh(place)
            await cgroup.freeze()
            port = await self._take(container, key, folder, options, work=work, lazy=lazy, basis=basis)
        if cgroup.state() != "frozen":
            raise ActionError(f"{container} ran on after its dump", hint="its images are not used; roll back")
        (work / COMPLETE).write_text("lazy" if lazy else "whole", encoding="ascii")
        return self._report(folder, work, time.monotonic() - began, port)

    async def hold(self, container: str, key: str) -> None:
        """End what is left of a dump, and have the container stand still with its sockets in order.

        A dump that is under way is ended by its runC's death: CRIU then gives the processes back as they were. A page
        server would not notice; there the processes are frozen, and CRIU can be killed.
        """
        node = self._node
        cgroup = node.cgroup(container)
        ready = any(node.work(key).glob(f"*/{COMPLETE}"))
        await self.forget(container, key)
        await node.end(container, key, gently=not ready)
        if node.process(container) is not None:
            await cgroup.freeze()
            end_repair(cgroup.members())

    async def await_pages_served(self, container: str, *, key: str) -> float:
        """See ContainerRuntime."""
        node = self._node
        notes = sorted(node.work(key).glob(f"*/{SERVER}"))
        if not notes:
            raise NotFoundError(f"no pages of {container} are served under {key}", hint="dump lazily first")
        work = notes[-1].parent
        child, noted = self._servers.pop(self._name(container, key), None), node.noted(notes[-1])
        try:
            if child is not None:
                await child.wait()
            elif noted is not None and identify_same(noted.pid, noted.started_ticks):
                await ended(noted.pid)
        except asyncio.CancelledError:
            if child is not None:
                self._servers[self._name(container, key)] = child
            raise
        log = read_log(work / DUMP_LOG)
        if _DONE not in log:
            raise node.failure(f"page server of {container}", work / RUNC_LOG, work / DUMP_LOG, -9)
        reduced = work / REDUCED
        return float(decode(Reduced, reduced.read_bytes()).lazy_bytes if reduced.exists() else lazy_bytes(log))

    async def forget(self, container: str, key: str) -> None:
        """End the page server of a migration, if this process started one."""
        child = self._servers.pop(self._name(container, key), None)
        if child is not None:
            # CRIU follows with the rest of its family.
            await child.kill(alone=True)

    @staticmethod
    def _name(container: str, key: str) -> str:
        return f"{container}/{key}"

    async def _begin(self, container: str, key: str, images: str) -> tuple[Path, Path]:
        """Fresh folders; what an earlier attempt left under way is ended first."""
        node = self._node
        if node.process(container) is None:
            raise ConflictError(f"{container} does not run on {node.layout.name}", hint="ask where it runs")
        node.network(container).must_exist()
        # Looking for leftovers takes a few milliseconds of downtime: only where there can be some.
        if node.work(key, images).exists():
            await self.forget(container, key)
            await node.end(container, key)
            await node.unmount(node.work(key))
        node.bundle(container).configure("")
        return node.fresh(node.images(key, images)), node.fresh(node.work(key, images))

    async def _closed_in_time(self, container: str, work: Path) -> bool:
        """Close the network while runC starts; whether that was done before CRIU began its log, and its first look."""
        await self._node.network(container).close()
        return not (work / DUMP_LOG).exists()

    async def _take(
        self,
        container: str,
        key: str,
        folder: Path,
        options: list[str | Path],
        *,
        work: Path,
        lazy: bool,
        basis: str | None,
    ) -> int:
        """Dump what is frozen; with `lazy`, the port on which pages are served, and only the difference to a basis."""
        if not lazy:
            await self._checkpoint(container, key, work, options)
            return 0
        if basis is None:
            return await self._serve(container, key, work, options)
        node = self._node
        processes = numbers_inside(node.cgroup(container).members())
        comparing = asyncio.create_task(
            asyncio.to_thread(unchanged, processes, node.images(key, basis), most_bytes=MOST_COMPARED_BYTES)
        )
        try:
            port = await self._serve(container, key, work, options)
        except BaseException:
            comparing.cancel()
            await asyncio.gather(comparing, return_exceptions=True)
            raise
        try:
            same = await comparing
            reducing = asyncio.create_task(
                asyncio.to_thread(reduce, folder, basis, processes, same, most_eager_bytes=MOST_EAGER_BYTES)
            )
            try:
                node.note(work / REDUCED, await asyncio.shield(reducing))
            finally:
                await asyncio.wait([reducing])  # a thread cannot be cancelled, and must not write into a later attempt
        except BaseException:
            # The processes are frozen and the page server stands: CRIU can be killed, and would not end by itself.
            await self.forget(container, key)
            await asyncio.shield(node.end(container, key))
            raise
        return port

    async def _checkpoint(self, container: str, key: str, work: Path, options: list[str | Path]) -> None:
        node, log = self._node, work / RUNC_LOG
        argv = node.runc(log, "checkpoint", *options, container)
        env = node.env(node.marker(container, key))
        status = -9

        async def dump() -> None:
            nonlocal status
            status = (await node.runner.run(argv, env=env, timeout_s=DUMP_S, quiet=True, alone=True)).status

        marker = node.marker(container, key)
        await node.while_criu_lives(dump(), marker=marker, criu=work / DUMP_LOG, done=_DONE)
        if status != 0:
            # First of all: when CRIU was killed, the processes run by now. While it lives, they have to run for it.
            process = node.process(container)
            if process is not None and not traced(process.pid):
                await node.cgroup(container).freeze()
            raise node.failure(f"dump of {container}", log, work / DUMP_LOG, status)

    async def _serve(self, container: str, key: str, work: Path, options: list[str | Path]) -> int:
        """Dump and serve the pages on a port of the node's loopback; returns when the server is ready."""
        node = self._node
        port = free_port(NETNS / node.layout.netns)

        def argv(writing: int) -> list[str]:
            lazy = ["--lazy-pages", "--page-server", f"127.0.0.1:{port}", "--status-fd", str(writing)]
            return [*node.in_node(), *node.runc(work / RUNC_LOG, "checkpoint", *options, *lazy, container)]

        child = await node.ready(
            argv, marker=node.marker(container, key), work=work, note=SERVER, what=f"lazy dump of {container}",
            criu=work / DUMP_LOG, timeout_s=DUMP_S,
        )  # fmt: skip
        # From here on CRIU's death must not let the container run: see above.
        await node.cgroup(container).freeze()
        self._servers[self._name(container, key)] = child
        return port

    @staticmethod
    def _report(folder: Path, work: Path, frozen_s: float, port: int = 0) -> DumpReport:
        size, pages = size_of(folder)
        times = read_times(work)
        if times is not None:
            frozen_s = min(frozen_s, (times.freezing_us + times.frozen_us) / 1e6)
        return DumpReport(size_bytes=float(size), pages_bytes=float(pages), frozen_s=frozen_s, page_server_port=port)


def traced(pid: int) -> bool:
    """Whether somebody holds the process by ptrace."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return False
    return any(line.startswith("TracerPid:") and line.split()[1] != "0" for line in lines)


def identify_same(pid: int, ticks: int) -> bool:
    """Whether the process of that number is still the one that began then."""
    try:
        return identify(pid, "").started_ticks == ticks
    except NotFoundError:
        return False


def pipes_must_be_large(limits: tuple[Path, Path] = _PIPE_LIMITS, status: Path = Path("/proc/self/status")) -> None:
    """Lazy pages wait in pipes as large as the memory.

    Raises:
        PreconditionError: the machine's limits would stop the transfer half-way.
    """
    lines = status.read_text(encoding="ascii", errors="replace").splitlines()
    held = next((int(line.split()[1], 16) for line in lines if line.startswith("CapEff:")), 0)
    if held >> _CAP_SYS_RESOURCE & 1:
        return
    size, soft = (int(path.read_text(encoding="ascii")) for path in limits)
    if size < _LEAST_PIPE or soft != 0:
        raise PreconditionError(
            f"post-copy needs large pipes: fs.pipe-max-size is {size} and fs.pipe-user-pages-soft is {soft}",
            hint="set fs.pipe-max-size=1073741824 and fs.pipe-user-pages-soft=0; `natwork testbed up` does",
        )
