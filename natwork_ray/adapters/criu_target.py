"""Restores on a node: from whole images, or with memory that is fetched page by page (D3.3 section 2.1).

runC restores; for lazy pages CRIU's daemon is started first, in the node's network namespace, and tells by a
descriptor when its socket is there. The restored container is in the bridge's hands from the first instruction: its
port is held until the address is attached.

What goes wrong here, and what is done about it:

- CRIU killed, or giving up late, leaves runC waiting for processes that wait for CRIU: it is looked after
  (`NodeTools.while_criu_lives`), and when it is gone the rest is killed.
- A failed lazy restore leaves runC waiting for a process that waits for pages: the daemon is watched, and when it ends
  before the restore does, the restore's processes are killed.
- When the daemon dies later, the kernel gives *zeros* for the pages that are missing, and the container runs on with
  them. `await_pages_fetched` freezes it at once; whoever decides has to end it (force withdraw).
- A killed runC leaves mounts, its state folder and processes: all are taken away before a restore is tried again."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

from natwork_ray.adapters.criu_files import decisive_line, fetched_bytes, hint_for, read_log
from natwork_ray.adapters.criu_source import identify_same
from natwork_ray.adapters.runc_calls import RUNC_LOG, NodeTools
from natwork_ray.adapters.subprocesses import Child, ended
from natwork_ray.adapters.testbed_traces import mounts
from natwork_ray.domain.runtime import PageServer
from natwork_ray.errors import ActionError, ConflictError, NatworkError, NotFoundError

RESTORE_S = 100.0
DAEMON_S = 20.0
FETCHER, RESTORE_LOG, LAZY_LOG = "page-client.json", "restore.log", "lazy-pages.log"
_DONE, _FETCHED = "Restore finished successfully", "Disconnect from the page server"


class TargetRestores:
    """The restoring side of one node's runtime."""

    def __init__(self, node: NodeTools) -> None:
        self._node = node
        self._fetchers: dict[str, Child] = {}

    async def restore(self, container: str, *, key: str, images: str, page_server: PageServer | None) -> None:
        """See ContainerRuntime. When an earlier attempt had succeeded, nothing is done.

        Raises:
            NotFoundError: no images, bundle or network namespace.
            ConflictError: the container runs here, but not from a restore of this migration.
            ActionError: CRIU or runC failed; what they left is taken away.
        """
        node, work = self._node, self._node.work(key, f"restore-{images}")
        folder = node.images(key, images)
        if not (folder / "inventory.img").exists():
            raise NotFoundError(f"{folder} holds no checkpoint", hint="send the images first")
        node.network(container).must_exist()
        if not node.bundle(container).exists:
            raise NotFoundError(f"there is no bundle of {container}", hint="prepare it first")
        if node.process(container) is not None:
            if _DONE in read_log(work / RESTORE_LOG):
                return
            if not (work / RUNC_LOG).exists():
                raise ConflictError(f"{container} runs on {node.layout.name} already", hint="destroy it first")
        # Looking for leftovers takes a few milliseconds of downtime: only where there can be some.
        if work.exists() or (node.layout.runc_root / container).exists() or mounts(node.layout.bundle(container)):
            await self.sweep(container, key)
        node.fresh(work)
        node.bundle(container).configure("")
        try:
            if page_server is None:
                await self._restore(container, key, folder, work, ())
            else:
                await self._restore_lazily(container, key, folder, work, page_server)
        except BaseException:
            await asyncio.shield(self.sweep(container, key))
            raise

    async def await_pages_fetched(self, container: str, *, key: str) -> float:
        """See ContainerRuntime.

        Raises:
            ActionError: pages are missing; the container is frozen, since it would run with zeros in their place.
        """
        node = self._node
        notes = sorted(node.work(key).glob(f"restore-*/{FETCHER}"))
        if not notes:
            raise NotFoundError(f"no pages of {container} are fetched under {key}", hint="restore it lazily first")
        work, noted = notes[-1].parent, node.noted(notes[-1])
        name = f"{container}/{key}"
        child = self._fetchers.get(name)
        status = 0
        if child is not None:
            status = await child.wait()
        elif noted is not None and identify_same(noted.pid, noted.started_ticks):
            await ended(noted.pid)
        log = read_log(work / LAZY_LOG)
        try:
            self._must_be_well(container, work, status, done=_FETCHED in log)
        except ActionError:
            with contextlib.suppress(NatworkError):
                await node.cgroup(container).freeze()
            raise
        self._fetchers.pop(name, None)
        return float(fetched_bytes(log))

    @staticmethod
    def _must_be_well(container: str, work: Path, status: int, *, done: bool) -> None:
        """Raises ActionError unless a page client that has ended had done its work."""
        line = decisive_line(read_log(work / LAZY_LOG))
        if status == 0 and done and not line:
            return
        line = line or (f"killed by signal {-status}" if status < 0 else "it ended before its work was done")
        raise ActionError(f"lazy pages of {container}: {line}", hint=hint_for(line) or f"see {work / LAZY_LOG}")

    async def sweep(self, container: str, key: str) -> None:
        """Take away what a restore that failed or was killed has left: processes, mounts, cgroup, runC's state."""
        node = self._node
        await self.forget(container, key)
        await node.end(container, key)
        await node.cgroup(container).kill()
        state = node.layout.runc_root / container
        await node.unmount(state, node.layout.bundle(container), node.work(key))
        node.delete(state)
        await node.cgroup(container).remove()

    async def forget(self, container: str, key: str) -> None:
        """End the page client of a migration, if this process started one."""
        child = self._fetchers.pop(f"{container}/{key}", None)
        if child is not None:
            await child.kill()

    async def _restore(self, container: str, key: str, folder: Path, work: Path, options: tuple[str, ...]) -> None:
        node, log = self._node, work / RUNC_LOG
        paths: list[str | Path] = [
            "--image-path",
            folder,
            "--work-path",
            work,
            "--bundle",
            node.layout.bundle(container),
        ]
        marker = node.marker(container, key)
        restoring = node.must(
            node.runc(log, "restore", "--detach", "--tcp-established", *options, *paths, container),
            marker=marker, log=log, what=f"restore of {container}", timeout_s=RESTORE_S, criu=work / RESTORE_LOG,
        )  # fmt: skip
        if not await node.while_criu_lives(restoring, marker=marker, criu=work / RESTORE_LOG, done=_DONE):
            raise node.failure(f"restore of {container}", log, work / RESTORE_LOG, -9)

    async def _restore_lazily(self, container: str, key: str, folder: Path, work: Path, server: PageServer) -> None:
        daemon = await self._fetch(container, key, folder, work, server)
        restoring = asyncio.create_task(self._restore(container, key, folder, work, ("--lazy-pages",)))
        watching = asyncio.create_task(daemon.wait())
        try:
            await asyncio.wait({restoring, watching}, return_when=asyncio.FIRST_COMPLETED)
            if restoring.done() or _DONE in read_log(work / RESTORE_LOG):
                await restoring
            else:
                self._must_be_well(container, work, watching.result(), done=False)
        except BaseException:
            await daemon.kill()
            raise
        finally:
            for task in (restoring, watching):
                task.cancel()
            await asyncio.gather(restoring, watching, return_exceptions=True)
        self._fetchers[f"{container}/{key}"] = daemon

    async def _fetch(self, container: str, key: str, folder: Path, work: Path, server: PageServer) -> Child:
        """Start the daemon that fetches pages; returns when it waits for the restore."""
        node = self._node

        def argv(writing: int) -> list[str]:
            paths = ["--images-dir", str(folder), "--work-dir", str(work), "--log-file", LAZY_LOG, "-v3"]
            source = ["--page-server", "--address", server.host, "--port", str(server.port)]
            return [*node.in_node(), str(node.tools.criu), "lazy-pages", *paths, *source, "--status-fd", str(writing)]

        return await node.ready(
            argv, marker=node.marker(container, key), work=work, note=FETCHER, what=f"lazy pages of {container}",
            criu=work / LAZY_LOG, timeout_s=DAEMON_S,
        )  # fmt: skip
