"""Images and volumes between nodes by rsync through SSH, verified by digest on arrival (D3.3 section 2.1).

Rules kept:

- rsync's quick check (equal size, equal second: equal file) never decides: two checkpoints within a second have page
  files of equal size and second, and the restore of a skipped one succeeds with old memory. Images go with
  `--ignore-times`, volumes with `--checksum`.
- What arrived is compared with what was sent, by a SHA-256 over everything (`natwork_ray.adapters.arrival`). The source
  hashes its side while rsync is at work. A difference is sent once more, whole; then it is a VerificationError.
- With a basis only differences cross the link (`--copy-dest`, `--no-whole-file`); without one, files go whole.
- Images are there when their digest is, which is 50 ms before rsync has ended. It ends by itself in the background.
- The machine's own folders are no part of a volume, whatever is mounted over them at the moment (`MACHINES`).
- No compression and the fastest cipher: memory pages are not worth a processor on links of this speed.

Left out: extended attributes and access lists where this rsync was built without them (asked once, not guessed).

    transfer = RsyncSsh(node, {peer.name: peer}, tools)
    await transfer.open("node-1")
    await transfer.send_images("web", target="node-1", key="m1", images="final", basis=None)
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from natwork_ray.adapters.arrival import digest
from natwork_ray.adapters.rsync_process import FORMAT, RsyncProcess
from natwork_ray.adapters.ssh_way import SshWay, run
from natwork_ray.adapters.testbed_layout import NodeLayout
from natwork_ray.adapters.testbed_requirements import Toolchain
from natwork_ray.adapters.testbed_sshd import environment
from natwork_ray.adapters.testbed_traces import CGROUPS
from natwork_ray.domain.runtime import PageServer, PathReport, SendReport
from natwork_ray.errors import ActionError, NotFoundError, UsageError, VerificationError

_FRESH_S, _END_S = 300.0, 5.0
# Volumes up to this size are hashed again and again until they are right; for larger ones, the end of rsync is awaited.
_EARLY_BYTES = 16 * 2**20
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:-]{0,199}")
_IMAGES = ("--recursive", "--links", "--perms", "--owner", "--group", "--numeric-ids", "--ignore-times", "--delete")
# What a runtime mounts over folders of a root file system is the machine's: neither read, nor written, nor deleted.
MACHINES = ("dev", "proc", "sys", "usr")
_VOLUME = ("--archive", "--hard-links", "--numeric-ids", "--delete", "--sparse", "--one-file-system",
           *(f"--exclude=/{name}/*" for name in MACHINES))  # fmt: skip


def stands_still(layout: NodeLayout, container: str, cgroups: Path = CGROUPS) -> bool:
    """Whether nobody in the container can write: its cgroup is frozen, or there is none."""
    path = layout.cgroup(container).lstrip("/")
    for file, frozen in ((cgroups / "freezer" / path / "freezer.state", "FROZEN"),
                         (cgroups / path / "cgroup.freeze", "1")):  # fmt: skip
        try:
            return file.read_text(encoding="ascii").strip() == frozen
        except OSError:
            continue  # no such hierarchy, or no such container
    return True


@dataclass(frozen=True)
class _Errand:
    """What goes where. `early`: whatever its size, it has arrived when its digest is there, before rsync has ended."""

    way: SshWay
    source: Path
    aim: Path
    options: Sequence[str]
    skip: tuple[str, ...] = ()
    early: bool = False


class RsyncSsh:
    """ImageTransfer of one node of a testbed.

    Args:
        here: the source node.
        peers: layouts of the other nodes by name.
        bwlimit_bytes_per_s: hold rsync to a rate where the link itself cannot be shaped; 0 does not.
    """

    def __init__(
        self, here: NodeLayout, peers: Mapping[str, NodeLayout], tools: Toolchain, *, bwlimit_bytes_per_s: float = 0.0
    ) -> None:
        if bwlimit_bytes_per_s < 0:
            raise UsageError(f"bwlimit_bytes_per_s = {bwlimit_bytes_per_s} is negative", hint="0 means no limit")
        self._here = here
        self._peers = {name: peer for name, peer in peers.items() if name != here.name}
        self._tools = tools
        self._limit = [f"--bwlimit={max(int(bwlimit_bytes_per_s / 1024), 1)}"] if bwlimit_bytes_per_s else []
        self._env = environment(here.testbed)
        self._ways: dict[str, SshWay] = {}
        self._opening: dict[str, asyncio.Lock] = {}
        self._attributes: tuple[str, ...] | None = None
        self._measured: dict[str, tuple[object, float, PathReport]] = {}
        self._measuring: dict[str, asyncio.Lock] = {}
        self._ending: set[RsyncProcess] = set()

    async def open(self, target: str) -> PathReport:
        """Have the way ready and measure it, unless that was done on the same connection within five minutes."""
        way = await self._way(target)
        async with self._measuring.setdefault(target, asyncio.Lock()):  # two at once would each see half of it
            known = self._measured.get(target)
            now_s = time.monotonic()
            if known is None or known[0] is not way.session or now_s - known[1] > _FRESH_S:
                known = self._measured[target] = (way.session, now_s, await way.measure())
            return known[2]

    async def send_images(self, container: str, *, target: str, key: str, images: str, basis: str | None) -> SendReport:
        """Send one set of images; see ImageTransfer. A set that names a CRIU parent holds differences already and goes
        whole, since the restore needs the parent's files unchanged beside it.

        Raises:
            NotFoundError: there is no such set, or no such node.
            ActionError: rsync or the way failed.
            VerificationError: what arrived is not what was sent, twice.
        """
        _check_names(container, key, images, *([basis] if basis else []))
        way = await self._way(target)
        source = self._here.image_set(key, images)
        difference = ["--whole-file"]
        if basis and not (source / "parent").is_symlink():
            difference = ["--no-whole-file", f"--copy-dest=../{basis}"]
        return await self._send(_Errand(way, source, way.there.image_set(key, images), _IMAGES, early=True), difference)

    async def send_volume(self, container: str, *, target: str, key: str) -> SendReport:
        """Send the difference of the container's writable root file system, which is made where it is missing.

        While the container runs it goes on writing, so what arrives equals no moment of the source; then only rsync's
        own checks hold, and the digest is of what arrived. Once it is frozen, all is verified as images are.
        """
        _check_names(container, key)
        way = await self._way(target)
        options = [*_VOLUME, *await self._kept_attributes()]
        # Not early: a volume often has its final size from the start, and would be hashed over and over.
        errand = _Errand(way, self._here.rootfs(container), way.there.rootfs(container), options, skip=MACHINES)
        difference = ["--no-whole-file", "--checksum"]
        if await asyncio.to_thread(stands_still, self._here, container):
            return await self._send(errand, difference)
        return await self._send_live(errand, difference)

    async def open_page_tunnel(self, *, target: str, key: str, port: int) -> PageServer:
        """A port on the target's loopback, in the target node's namespace, that leads to this node's loopback."""
        if not 0 < port < 65_536:
            raise UsageError(f"port = {port} is not 1 to 65535", hint="the page server's port")
        way = await self._way(target)
        return PageServer(host="127.0.0.1", port=await way.forward(key, port))

    async def close(self, *, target: str, key: str) -> None:
        """End the tunnel of a migration. The way stays open for the next one."""
        way = self._ways.get(target)
        if way is not None:
            await way.unforward(key)

    async def shut(self) -> None:
        """End all ways, and wait for every rsync to end."""
        if self._ending:
            await asyncio.wait([process.ending for process in self._ending], timeout=_END_S)
        for process in tuple(self._ending):
            await process.kill()
        for way in self._ways.values():
            await way.close()
        self._ways.clear()

    async def _way(self, target: str) -> SshWay:
        peer = self._peers.get(target)
        if peer is None:
            raise NotFoundError(f"{self._here.name} knows no node {target!r}", hint=f"it knows {sorted(self._peers)}")
        way = self._ways.setdefault(target, SshWay(self._here, peer, self._tools))
        async with self._opening.setdefault(target, asyncio.Lock()):
            await way.open()
        return way

    async def _kept_attributes(self) -> tuple[str, ...]:
        if self._attributes is None:
            _, version, _ = await run([str(self._tools.rsync), "--version"], self._env, 10.0)
            # "no ACLs" stands there where they are missing.
            lines = re.sub(r"\bno (\w+)", "", version)
            pairs = (("ACLs", "--acls"), ("xattrs", "--xattrs"))
            self._attributes = tuple(option for word, option in pairs if re.search(rf"\b{word}\b", lines))
        return self._attributes

    async def _send_live(self, errand: _Errand, difference: Sequence[str]) -> SendReport:
        await errand.way.ask("make", folder=str(errand.aim))
        rsync = await self._start(errand, difference, live=True)
        await rsync.finish()
        answer = await errand.way.ask("digest", folder=str(errand.aim), skip=list(errand.skip))
        size, name = errand.way.size_and_digest(answer)
        return SendReport(size_bytes=float(size), sent_bytes=float(rsync.sent_bytes), digest=name)

    async def _start(self, errand: _Errand, difference: Sequence[str], *, live: bool = False) -> RsyncProcess:
        way = errand.way
        ends = [f"{errand.source}/", f"root@{way.there.address}:{errand.aim}/"]
        fixed = [*FORMAT, "--no-compress", "--secluded-args", *self._limit, "--rsh", way.shell, "--", *ends]
        argv = [str(self._tools.rsync), *errand.options, *difference, *fixed]
        return await RsyncProcess.start(argv, env=self._env, target=way.there.name, live=live)

    async def _send(self, errand: _Errand, difference: Sequence[str]) -> SendReport:
        if not await asyncio.to_thread(errand.source.is_dir):
            raise NotFoundError(f"{errand.source} is not there to be sent", hint="dump first")
        way, aim = errand.way, errand.aim
        await way.ask("make", folder=str(aim))
        own = asyncio.create_task(asyncio.to_thread(digest, errand.source, errand.skip))
        sent = 0
        try:
            for attempt in (difference, ["--whole-file", "--ignore-times"]):
                rsync = await self._start(errand, attempt)
                arrived = await self._arrived(rsync, errand, own)
                sent += rsync.sent_bytes
                wanted = await own
                if arrived == wanted:
                    size, name = wanted
                    return SendReport(size_bytes=float(size), sent_bytes=float(sent), digest=name)
        except OSError as error:
            raise ActionError(f"cannot read what is to be sent: {error}", hint="look at the source node") from error
        finally:
            own.cancel()
        raise VerificationError(
            f"what arrived at {way.there.name} in {aim} is not what {self._here.name} sent, twice",
            hint="does something write there? nothing was restored from it",
        )

    async def _arrived(
        self, rsync: RsyncProcess, errand: _Errand, own: asyncio.Task[tuple[int, str]]
    ) -> tuple[int, str]:
        """Size and digest of what is there: as soon as they are right, at the latest when rsync has ended."""
        folder = str(errand.aim)
        try:
            size, wanted = await asyncio.shield(own)
            if errand.early or size <= _EARLY_BYTES:
                arrived = await errand.way.arrival(folder, size, wanted, skip=errand.skip, until=rsync.ending)
                if arrived == (size, wanted):
                    self._ending.add(rsync)
                    rsync.ending.add_done_callback(lambda task: self._ended(rsync, task))
                    return arrived
            await rsync.finish()
            return errand.way.size_and_digest(await errand.way.ask("digest", folder=folder, skip=list(errand.skip)))
        except BaseException:
            await rsync.kill()
            raise

    def _ended(self, rsync: RsyncProcess, task: asyncio.Task[None]) -> None:
        # What it carried was verified: how it ended does not matter any more.
        self._ending.discard(rsync)
        if not task.cancelled():
            task.exception()


def _check_names(*names: str) -> None:
    for name in names:
        if not _NAME.fullmatch(name) or ".." in name:
            raise UsageError(f"{name!r} is not a name", hint="letters, digits, dots, dashes; no ..")
