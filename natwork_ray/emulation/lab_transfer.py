"""The laboratory behind `ImageTransfer` and `AddressBridge`, and a `MigrationJournal` in memory.

Held by one node each, as on a testbed. Transfers share the laboratory's links with all others that are under way; what
arrives is whole or not there at all.
"""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import replace

from natwork_ray.domain.runtime import ContainerSpec, PageServer, PathReport, SendReport
from natwork_ray.emulation.migration_lab import MigrationLab
from natwork_ray.errors import ActionError, NotFoundError
from natwork_ray.limi import phase_times

_PATH_SIGMA = 0.05  # assumed: error of a measured path


class LabTransfer:
    """`ImageTransfer` of one node of the laboratory: the ways that begin there."""

    def __init__(self, lab: MigrationLab, node: str) -> None:
        self._lab, self._node = lab, node

    async def open(self, target: str) -> PathReport:
        """Have the way ready, and measure it."""
        lab = self._lab
        link = lab.network.link(self._node, target)
        await asyncio.sleep(lab.p.open_path_s)
        await lab.network.carry(self._node, target, 0.0, share=1.0)  # notices a cut link
        at = f"{lab.now_s():.6f}"
        return PathReport(
            bandwidth_bytes_per_s=lab.dice.measured(
                lab.network.offered(self._node, target), _PATH_SIGMA, self._node, target, at, "rate"
            ),
            rtt_s=lab.dice.measured(link.rtt_s, _PATH_SIGMA, self._node, target, at, "rtt"),
        )

    async def send_images(self, container: str, *, target: str, key: str, images: str, basis: str | None) -> SendReport:
        """Send one set, or what differs from an earlier one on the target."""
        lab = self._lab
        lab.strike("send_images", container)
        image = lab.presence(container, self._node).images.get((key, images))
        if image is None:
            raise NotFoundError(f"there are no images {images} of {key} on {self._node}", hint="dump comes before send")
        there = lab.presence(container, target)
        earlier = there.images.get((key, basis)) if basis is not None else None
        sent = image.size_bytes
        if earlier is not None and not image.lazy:
            sent = min(
                sent, lab.changed_bytes(container, earlier, image.counter) + lab.p.minimal_dump_bytes * image.ends
            )
        if image.size_bytes > lab.disk_free(target):
            raise ActionError(f"no room for images of {container} on {target}", hint="make room there")
        noise = lab.dice.factor(key, f"transfer {images}")
        await asyncio.sleep(phase_times.transfer_start_s(lab.network.link(self._node, target).rtt_s, lab.p) * noise)
        await lab.network.carry(self._node, target, sent * noise, share=lab.p.transfer_share)
        there.images[key, images] = replace(image)
        lab.strike("send_images", container, after=True)
        return SendReport(size_bytes=image.size_bytes, sent_bytes=sent, digest=image.digest)

    async def send_volume(self, container: str, *, target: str, key: str) -> SendReport:
        """Send what the target's copy of the writable file system lacks."""
        lab = self._lab
        lab.strike("send_volume", container)
        here, there = lab.presence(container, self._node), lab.presence(container, target)
        truth = lab.state(container).profile
        counter = lab.counted(here)
        lacking = lab.volume_behind(container, there.copied_at)
        noise = lab.dice.factor(key, f"volume {'again' if there.copied_at is not None else 'first'}")
        start_s = phase_times.volume_start_s(truth.volume_bytes, lab.network.link(self._node, target).rtt_s, lab.p)
        await asyncio.sleep(start_s * noise)
        await lab.network.carry(self._node, target, lacking * noise, share=lab.p.transfer_share)
        there.copied_at = counter
        lab.strike("send_volume", container, after=True)
        digest = hashlib.sha256(f"{container} volume {counter!r}".encode()).hexdigest()
        return SendReport(size_bytes=truth.volume_bytes, sent_bytes=lacking, digest=digest)

    async def open_page_tunnel(self, *, target: str, key: str, port: int) -> PageServer:
        """One more channel of the open connection."""
        lab = self._lab
        await asyncio.sleep(lab.p.page_tunnel_s * lab.dice.factor(key, "page tunnel"))
        await lab.network.carry(self._node, target, 0.0, share=1.0)
        return PageServer(host="127.0.0.1", port=port)

    async def close(self, *, target: str, key: str) -> None:
        """Tunnels live and die with the page server here."""


class LabBridge:
    """`AddressBridge` as seen from one node of the laboratory."""

    def __init__(self, lab: MigrationLab, node: str) -> None:
        self._lab, self._node = lab, node

    async def prepare(self, spec: ContainerSpec, *, key: str) -> None:
        """The namespace, not on the bridge yet."""
        lab, presence = self._lab, self._lab.presence(spec.name, self._node)
        lab.strike("prepare_address", spec.name)
        await asyncio.sleep(lab.p.check_s)
        presence.namespace, presence.key = True, key
        lab.strike("prepare_address", spec.name, after=True)

    async def detach(self, container: str) -> None:
        """Off the bridge."""
        lab, presence = self._lab, self._lab.presence(container, self._node)
        lab.strike("detach", container)
        if presence.attached:
            await asyncio.sleep(lab.p.address_detach_s)
            presence.attached = False
            lab.changed(lab.state(container))
        lab.strike("detach", container, after=True)

    async def attach(self, container: str) -> None:
        """On the bridge, and announced."""
        lab, presence = self._lab, self._lab.presence(container, self._node)
        lab.strike("attach", container)
        if not presence.namespace:
            raise ActionError(f"{container} has no namespace on {self._node}", hint="prepare comes before attach")
        if not presence.attached:
            await asyncio.sleep(lab.p.address_move_s * lab.dice.factor(presence.key, "address move"))
            presence.attached = True
            lab.changed(lab.state(container))
        lab.strike("attach", container, after=True)

    async def attached(self, container: str) -> bool:
        """Whether it is on the bridge here."""
        return self._lab.presence(container, self._node).attached

    async def remove(self, container: str) -> None:
        """The namespace is gone, and the address with it."""
        lab, presence = self._lab, self._lab.presence(container, self._node)
        lab.strike("remove", container)
        presence.namespace = False
        if presence.attached:
            presence.attached = False
            lab.changed(lab.state(container))
        lab.strike("remove", container, after=True)


class LabJournal:
    """`MigrationJournal` in memory: outlives its agent, as a disk would, but not the laboratory."""

    def __init__(self) -> None:
        self._open: dict[str, list[bytes]] = {}
        self._records: list[bytes] = []

    def append(self, key: str, event: bytes) -> None:
        """Kept when it returns."""
        self._open.setdefault(key, []).append(event)

    def read(self, key: str) -> tuple[bytes, ...]:
        """All events of one migration."""
        return tuple(self._open.get(key, ()))

    def open_keys(self) -> tuple[str, ...]:
        """Begun and not closed."""
        return tuple(self._open)

    def close(self, key: str, record: bytes) -> None:
        """File the record."""
        self._open.pop(key, None)
        self._records.append(record)

    def records(self) -> tuple[bytes, ...]:
        """Oldest first."""
        return tuple(self._records)
