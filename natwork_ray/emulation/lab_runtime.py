"""The laboratory behind `ContainerRuntime`: one node's containers, images and page servers.

A verb first costs its time, then has its effect, at once: cancelled half-way (time-out,
death of an agent) it had none, as with CRIU, which lets processes go on when it is ended. What each costs is
`natwork_ray.limi.phase_times`, with the noise of the laboratory.
"""

from __future__ import annotations

import asyncio
import hashlib

from natwork_ray.domain.migrations import ContainerLoad
from natwork_ray.domain.phases import MigrationMethod
from natwork_ray.domain.runtime import (
    ContainerSpec,
    ContainerState,
    ContainerStatus,
    DumpReport,
    PageServer,
    Revival,
    RuntimeAbilities,
)
from natwork_ray.emulation.lab_state import Image, Presence
from natwork_ray.emulation.migration_lab import MigrationLab
from natwork_ray.errors import ActionError, ConflictError, NotFoundError, VerificationError
from natwork_ray.limi import phase_times

_PAGE_PORT = 27
# Errors of what is measured beforehand (assumed): memory is counted, rates are sampled.
_COUNTED, _SAMPLED = 0.01, 0.08


class LabRuntime:
    """`ContainerRuntime` of one node of the laboratory."""

    def __init__(self, lab: MigrationLab, node: str) -> None:
        self._lab, self._node = lab, node

    def _here(self, container: str, *states: ContainerState) -> Presence:
        presence = self._lab.presence(container, self._node)
        if states and presence.state not in states:
            raise ActionError(
                f"{container} is {presence.state} on {self._node}, not {' or '.join(states)}",
                hint="ask for the container's status on both nodes",
            )
        return presence

    async def abilities(self) -> RuntimeAbilities:
        """All that the laboratory was opened with."""
        methods = self._lab.methods
        missing = tuple((m, "the laboratory was opened without it") for m in MigrationMethod if m not in methods)
        return RuntimeAbilities(methods=methods, dirty_tracking=self._lab.dirty_tracking, reasons=missing)

    async def status(self, container: str) -> ContainerStatus:
        """The state here."""
        self._lab.strike("status", container)
        await asyncio.sleep(self._lab.p.check_s)
        presence = self._here(container)
        alive = presence.state in (ContainerState.RUNNING, ContainerState.FROZEN)
        self._lab.strike("status", container, after=True)
        return ContainerStatus(container=container, state=presence.state, pid=1 if alive else 0)

    async def load(self, container: str, *, observe_s: float) -> ContainerLoad:
        """What can be seen of the container in `observe_s`: the truth with errors of measurement."""
        self._lab.strike("load", container)
        self._here(container, ContainerState.RUNNING)
        await asyncio.sleep(observe_s)
        lab, truth = self._lab, self._lab.state(container).profile
        at = f"{lab.now_s():.6f}"

        def seen(value: float, sigma: float, what: str) -> float:
            return lab.dice.measured(value, sigma, container, at, what)

        memory = seen(truth.memory_bytes, _COUNTED, "memory")
        written = phase_times.residual_bytes(
            working_set_bytes=truth.working_set_bytes,
            dirty_bytes_per_s=truth.dirty_bytes_per_s,
            elapsed_s=observe_s,
        )
        volume = seen(truth.volume_bytes, _COUNTED, "volume")
        lab.strike("load", container, after=True)
        return ContainerLoad(
            memory_bytes=memory,
            dirty_bytes_per_s=seen(truth.dirty_bytes_per_s, _SAMPLED, "dirty"),
            working_set_bytes=min(memory, seen(written, _SAMPLED, "working set")),
            cpu_cores=seen(truth.cpu_cores, _SAMPLED, "cpu"),
            cpu_limit_cores=truth.cpu_limit_cores,
            volume_bytes=volume,
            volume_delta_bytes=min(volume, seen(lab.volume_behind(container, None), _COUNTED, "delta")),
            volume_write_bytes_per_s=seen(truth.volume_write_bytes_per_s, _SAMPLED, "writes"),
            network_rx_bytes_per_s=seen(truth.network_rx_bytes_per_s, _SAMPLED, "rx"),
            network_tx_bytes_per_s=seen(truth.network_tx_bytes_per_s, _SAMPLED, "tx"),
            bandwidth_bytes_per_s=0.0,
            rtt_s=0.0,
            observed_s=observe_s,
        )

    async def describe(self, container: str) -> ContainerSpec:
        """The spec, from the node that has the container."""
        self._lab.strike("describe", container)
        if self._here(container).state is ContainerState.ABSENT:
            raise NotFoundError(f"there is no container {container!r} on {self._node}", hint="name its own node")
        self._lab.strike("describe", container, after=True)
        return self._lab.state(container).spec

    async def prepare(self, spec: ContainerSpec, *, key: str) -> None:
        """Bundle and folders; refused where the node has no room."""
        self._lab.strike("prepare", spec.name)
        presence, lab = self._here(spec.name), self._lab
        if not presence.prepared:
            cores, memory = lab.state(spec.name).given.claims
            free_cores, free_memory = lab.free(self._node)
            if not presence.namespace and (cores > free_cores + 1e-9 or memory > free_memory):
                raise ActionError(
                    f"{self._node} has {free_cores:.2f} cores and {free_memory / 2**20:.0f} MiB free, "
                    f"{spec.name} takes {cores:.2f} cores and {memory / 2**20:.0f} MiB",
                    hint="choose another node, or free room on this one",
                )
            presence.prepared = True  # claimed before the time passes, so that no two can have the same room
            try:
                await asyncio.sleep(lab.p.prepare_s * lab.dice.factor(key, "prepare"))
            except asyncio.CancelledError:
                presence.prepared = False
                raise
        presence.key = key
        lab.strike("prepare", spec.name, after=True)

    async def pre_dump(self, container: str, *, key: str, images: str, parent: str | None) -> DumpReport:
        """A round of pre-copy: all memory, or what was written since the parent where the kernel tracks it."""
        self._lab.strike("pre_dump", container)
        presence = self._here(container, ContainerState.RUNNING)
        lab, truth = self._lab, self._lab.state(container).profile
        counter = lab.counted(presence)
        pages = self._pages(container, presence, key, parent, counter)
        cost_s = phase_times.pre_dump_s(
            pages, cpu_cores=truth.cpu_cores, cpu_limit_cores=truth.cpu_limit_cores, p=lab.p
        )
        await asyncio.sleep(cost_s * lab.dice.factor(key, f"pre-dump {images}"))
        image = Image(counter=counter, size_bytes=pages, pages_bytes=pages, parent=parent)
        self._keep(presence, container, key, images, image)
        lab.strike("pre_dump", container, after=True)
        return DumpReport(size_bytes=pages, pages_bytes=pages, frozen_s=lab.p.predump_freeze_s)

    async def freeze(self, container: str) -> None:
        """Nobody is served from here on."""
        self._lab.strike("freeze", container)
        self._here(container, ContainerState.RUNNING, ContainerState.FROZEN)
        await asyncio.sleep(self._lab.p.freeze_s)
        self._lab.set_state(container, self._node, ContainerState.FROZEN)
        self._lab.strike("freeze", container, after=True)

    async def thaw(self, container: str) -> None:
        """Undo `freeze`."""
        self._lab.strike("thaw", container)
        if self._here(container).state is ContainerState.FROZEN:
            await asyncio.sleep(self._lab.p.thaw_s)
            self._lab.set_state(container, self._node, ContainerState.RUNNING)
        self._lab.strike("thaw", container, after=True)

    async def dump(self, container: str, *, key: str, images: str, parent: str | None, lazy: bool) -> DumpReport:
        """The checkpoint that ends the container here; with `lazy` its pages stay with a page server."""
        self._lab.strike("dump", container)
        presence = self._here(container, ContainerState.FROZEN, ContainerState.RUNNING, ContainerState.STOPPED)
        lab, truth = self._lab, self._lab.state(container).profile
        known = presence.images.get((key, images))
        if presence.state is ContainerState.STOPPED:
            if known is None:
                raise ConflictError(f"{container} has stopped on {self._node}", hint="there is nothing to dump")
            return self._dumped(known)
        counter = lab.counted(presence)
        pages = self._pages(container, presence, key, parent, counter)
        written = 0.0 if lazy else pages
        cost_s = phase_times.dump_s(written, cpu_limit_cores=truth.cpu_limit_cores, p=lab.p)
        await asyncio.sleep(cost_s * lab.dice.factor(key, "dump"))
        image = Image(
            counter=counter,
            size_bytes=lab.p.minimal_dump_bytes + written,
            pages_bytes=written,
            parent=parent,
            ends=True,
            lazy=lazy,
            lazy_bytes=pages if lazy else 0.0,
        )
        self._keep(presence, container, key, images, image)
        presence.serves = image if lazy else None
        lab.set_state(container, self._node, ContainerState.STOPPED, counter=counter)
        lab.strike("dump", container, after=True)
        return self._dumped(image)

    def _dumped(self, image: Image) -> DumpReport:
        port = _PAGE_PORT if image.lazy else 0
        return DumpReport(
            size_bytes=image.size_bytes, pages_bytes=image.pages_bytes, frozen_s=0.0, page_server_port=port
        )

    def _pages(self, container: str, presence: Presence, key: str, parent: str | None, counter: float) -> float:
        """Memory that a dump has to write: what changed since the parent, or all of it."""
        truth = self._lab.state(container).profile
        before = presence.images.get((key, parent)) if parent is not None else None
        if before is None or not self._lab.dirty_tracking:
            return truth.memory_bytes
        return self._lab.changed_bytes(container, before, counter)

    def _keep(self, presence: Presence, container: str, key: str, images: str, image: Image) -> None:
        old = presence.images.get((key, images))
        room = self._lab.disk_free(self._node) + (old.size_bytes if old is not None else 0.0)
        if image.size_bytes > room:
            raise ActionError(
                f"no room for {image.size_bytes / 2**20:.0f} MiB of images on {self._node}",
                hint=f"{room / 2**20:.0f} MiB are free: make room, or choose post-copy",
            )
        image.digest = hashlib.sha256(f"{container} {key} {images} {image.counter!r}".encode()).hexdigest()
        presence.images[key, images] = image

    async def await_pages_served(self, container: str, *, key: str) -> float:
        """Until the target has them all."""
        self._lab.strike("await_pages_served", container)
        for node, there in self._lab.state(container).presences.items():
            if node != self._node and there.key == key and there.fetched is not None:
                served = await _arrived(there.fetched, container)
                self._here(container).serves = None
                self._lab.strike("await_pages_served", container, after=True)
                return served
        return 0.0

    async def restore(self, container: str, *, key: str, images: str, page_server: PageServer | None) -> None:
        """Let it run from verified images; with `page_server`, its pages come afterwards."""
        lab, presence = self._lab, self._here(container)
        lab.strike("restore", container)
        if presence.state is ContainerState.RUNNING and presence.key == key:
            return
        image = self._whole(presence, key, images)
        if not presence.prepared or presence.state is not ContainerState.ABSENT:
            raise ActionError(f"{self._node} is not prepared for {container}", hint="prepare comes before restore")
        if image.lazy != (page_server is not None):
            raise ActionError(
                f"images of {container} were dumped {'lazily' if image.lazy else 'whole'}",
                hint="a page server belongs to lazy images, and to no others",
            )
        truth = lab.state(container).profile
        cost_s = phase_times.restore_s(
            truth.memory_bytes, lazy=image.lazy, cpu_limit_cores=truth.cpu_limit_cores, p=lab.p
        )
        await asyncio.sleep(cost_s * lab.dice.factor(key, "restore"))
        source = lab.page_server(container) if image.lazy else None
        if image.lazy and source is None:
            raise ActionError(
                f"nobody serves the pages of {container}", hint="the page server has to outlive the restore"
            )
        lab.set_state(container, self._node, ContainerState.RUNNING, counter=image.counter)
        presence.key, presence.fetched = key, None
        if source is not None:
            presence.fetched = asyncio.get_running_loop().create_task(self._fetch(container, key, source, image))
            presence.fetched.add_done_callback(_seen)
        lab.strike("restore", container, after=True)

    def _whole(self, presence: Presence, key: str, images: str) -> Image:
        """The image with all that it builds on."""
        name: str | None = images
        while name is not None:
            image = presence.images.get((key, name))
            if image is None or not image.digest:
                raise VerificationError(
                    f"images {name} of {key} are not complete on {self._node}", hint="send them again, whole"
                )
            name = image.parent
        return presence.images[key, images]

    async def _fetch(self, container: str, key: str, source: str, image: Image) -> float:
        lab, truth = self._lab, self._lab.state(container).profile
        began_s = lab.now_s()
        noise = lab.dice.factor(key, "lazy pages")
        rtt_s = lab.network.link(source, self._node).rtt_s
        waits_s = phase_times.demand_faults_s(image.lazy_bytes, truth.working_set_bytes, rtt_s, lab.p)
        span = [began_s, float("inf")]
        lab.state(container).degraded.append(span)
        try:
            await lab.network.carry(source, self._node, image.lazy_bytes * noise, share=lab.p.lazy_share)
            await asyncio.sleep(waits_s * noise)
        finally:
            span[1] = lab.now_s()
        return image.lazy_bytes

    async def await_pages_fetched(self, container: str, *, key: str) -> float:
        """Until all memory is here."""
        self._lab.strike("await_pages_fetched", container)
        presence = self._here(container, ContainerState.RUNNING)
        if presence.fetched is None or presence.key != key:
            return 0.0
        fetched = await _arrived(presence.fetched, container)
        self._lab.strike("await_pages_fetched", container, after=True)
        return fetched

    async def revive(self, container: str, *, key: str) -> Revival:
        """As well as can be: what is frozen goes on, what has ended is restored, and only then started afresh."""
        lab, presence = self._lab, self._here(container)
        lab.strike("revive", container)
        match presence.state:
            case ContainerState.RUNNING:
                lab.strike("revive", container, after=True)
                return Revival.STILL_RUNNING
            case ContainerState.FROZEN:
                await self.thaw(container)
                lab.strike("revive", container, after=True)
                return Revival.THAWED
            case ContainerState.STOPPED | ContainerState.ABSENT:
                final = next((i for (k, n), i in presence.images.items() if k == key and i.ends), None)
        truth = lab.state(container).profile
        if presence.serves is not None:
            # The processes still stand behind their page server, as they were when they were dumped.
            await asyncio.sleep(lab.p.thaw_s)
            revival, counter = Revival.THAWED, presence.serves.counter
        elif final is not None and not final.lazy:
            await asyncio.sleep(
                phase_times.restore_s(truth.memory_bytes, lazy=False, cpu_limit_cores=truth.cpu_limit_cores, p=lab.p)
                * lab.dice.factor(key, "revive")
            )
            revival, counter = Revival.RESTORED, final.counter
        else:
            await asyncio.sleep(lab.p.prepare_s + lab.p.restore_fixed_s)
            revival, counter = Revival.RESTARTED, 0.0
        presence.serves = None
        presence.prepared = presence.namespace = True
        lab.set_state(container, self._node, ContainerState.RUNNING, counter=counter)
        lab.strike("revive", container, after=True)
        return revival

    async def destroy(self, container: str, *, key: str) -> None:
        """The container and its volume are gone from this node."""
        lab, presence = self._lab, self._here(container)
        lab.strike("destroy", container)
        await asyncio.sleep(lab.p.settle_s * lab.dice.factor(key, "destroy"))
        lab.end_page_server(container, self._node)
        if presence.fetched is not None:
            presence.fetched.cancel()
        presence.fetched, presence.prepared, presence.copied_at = None, False, None
        if presence.state is not ContainerState.ABSENT:
            lab.set_state(container, self._node, ContainerState.ABSENT, counter=0.0)
        lab.strike("destroy", container, after=True)

    async def clean(self, container: str, *, key: str) -> None:
        """Images and daemons of the migration are gone from this node."""
        lab, presence = self._lab, self._here(container)
        lab.strike("clean", container)
        await asyncio.sleep(lab.p.check_s)
        for name in [n for n in presence.images if n[0] == key]:
            del presence.images[name]
        lab.end_page_server(container, self._node)
        if presence.fetched is not None and presence.fetched.done():
            presence.fetched = None
        lab.strike("clean", container, after=True)


async def _arrived(pages: asyncio.Task[float], container: str) -> float:
    """Wait for pages on their way, which go on when the one who waits is gone."""
    await asyncio.wait({pages})
    if pages.cancelled():
        raise ActionError(f"the pages of {container} were ended", hint="its memory is not whole: it has to go back")
    return pages.result()


def _seen(task: asyncio.Task[float]) -> None:
    """Whoever awaits the pages hears of a failure; when nobody does, the roll-back that follows has heard already."""
    if not task.cancelled():
        task.exception()
