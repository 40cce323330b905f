"""The peer of the migration benchmark: podman's checkpoint and restore of the same workload, between two stores.

Two podman stores stand for two hosts. A move is what podman offers for one: `podman container checkpoint --export`,
the archive sent to the other node, `podman container restore --import` (docs/testbed.md). It has no live methods of
its own but one pre-checkpoint, which needs dirty tracking, and does not move addresses; so it is compared with what it
is: the cold method.

Rules kept, so that the peer meets what we meet, and rather better than worse:

- the same workload, memory, CRIU, runC and client; CRIU is found by way of PATH, since podman names none;
- everything that podman writes (stores, archive, state) lies on a tmpfs, as our checkpoints do;
- the archive travels with the same rsync through the same nodes' sshd, over a master connection that is open already,
  and is not verified on arrival, as ours are;
- the address moves at our own bridge (`L2Bridge`), off the source before the checkpoint and onto the target after the
  restore: what clients send meanwhile waits instead of being lost, and the TCP session lives. podman takes the
  container's network namespace by path (`--network ns:`); the name is part of the checkpoint, so the target's namespace
  is mounted over it.

Podman's own settings are those of the recipe: `--runtime runc --cgroup-manager cgroupfs`, storage driver vfs, limits of
files and processes within what a container without CAP_SYS_RESOURCE may set. Locks lie in files of its own, so that no
other podman of the machine is met. All that is made carries the testbed's id and goes with `down`.

    peer = PodmanPeer(record, ("node-0", "node-1"), tools=tools, podman=Path("/usr/bin/podman"))
    await peer.prepare(rootfs)
    await peer.start(spec)
    move = await peer.move()
    await peer.remove()
"""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import tarfile
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from natwork_ray.adapters.l2_bridge import L2Bridge
from natwork_ray.adapters.machine import Machine
from natwork_ray.adapters.testbed_layout import NodeLayout
from natwork_ray.adapters.testbed_network import NETNS, checked
from natwork_ray.adapters.testbed_requirements import Toolchain
from natwork_ray.adapters.testbed_sshd import CLIENT_CONFIG, environment
from natwork_ray.adapters.testbed_state import TestbedRecord
from natwork_ray.adapters.testbed_traces import cgroups
from natwork_ray.domain.runtime import ContainerSpec
from natwork_ray.domain.values import value
from natwork_ray.errors import ActionError, ConflictError, TimedOutError

IMAGE = "localhost/natwork-peer:1"
_TIMEOUT_S = 60.0
NAME = "peer"
_CHECKPOINT = ("container", "checkpoint", "--tcp-established", "--compress", "none")
_RESTORE = ("container", "restore", "--tcp-established")


@value
class PeerMove:
    """One move by podman: seconds of each command in their order (`address_s`: off the source and onto the target)."""

    source: str
    target: str
    checkpoint_s: float
    transfer_s: float
    restore_s: float
    address_s: float
    total_s: float
    size_bytes: float


class PodmanPeer:
    """One container that podman moves back and forth between two nodes of a testbed. Needs root."""

    def __init__(
        self,
        record: TestbedRecord,
        nodes: tuple[str, str],
        *,
        tools: Toolchain,
        podman: Path,
        machine: Machine | None = None,
    ) -> None:
        self._record, self._tools, self._podman = record, tools, podman
        self._machine = machine or Machine()
        self._nodes = tuple(record.node(name) for name in nodes)
        self._folder = record.folder / NAME
        self._bridges = {node.name: L2Bridge(node) for node in self._nodes}
        self._env = environment(record.id)
        # Podman names no CRIU: the first on the PATH is taken, and it has to be the one that fits the kernel.
        self._env["PATH"] = f"{tools.criu.parent}:{self._env['PATH']}"
        self._spec: ContainerSpec | None = None
        self._home = 0
        self._masters: list[Sequence[str]] = []

    # Before anything is measured.

    async def prepare(self, rootfs: Path) -> None:
        """Stores on tmpfs, the image in both of them, the way between the nodes open.

        Args:
            rootfs: what `podman import` makes the image of.

        Raises:
            ActionError: podman or SSH would not work.
        """
        await asyncio.to_thread(self._prepare, rootfs)

    def _prepare(self, rootfs: Path) -> None:
        self._folder.mkdir(mode=0o700)
        mount = self._machine.which("mount")
        checked(self._machine, [str(mount), "-t", "tmpfs", "-o", "mode=0700", self._record.id, str(self._folder)])
        archive = self._folder / "image.tar"
        with tarfile.open(archive, "w") as tar:
            tar.add(rootfs, arcname=".")
        for node in self._nodes:
            store = self._store(node)
            for name in ("root", "run", "tmp", "runc", "archives"):
                (store / name).mkdir(mode=0o700, parents=True)
            (store / "containers.conf").write_text('[engine]\nlock_type = "file"\nevents_logger = "none"\n')
            (store / "storage.conf").write_text(
                f'[storage]\ndriver = "vfs"\ngraphroot = "{store / "root"}"\nrunroot = "{store / "run"}"\n'
            )
            self._podman_of(node, "import", str(archive), IMAGE)
        archive.unlink()
        for source, target in (self._nodes, self._nodes[::-1]):
            # It goes to the background once it stands.
            self._run([*self._enter(source), *self._ssh(source, target), "-N", "-f", "-M", target.address])
            self._masters.append([*self._enter(source), *self._ssh(source, target), "-O", "exit", target.address])

    async def start(self, spec: ContainerSpec, *, binds: Sequence[tuple[Path, str]] = ()) -> None:
        """Start the container on the first node.

        Args:
            spec: command, environment, address and MAC are taken from it, so that they are the same as ours.
            binds: folders of the machine that the image needs, read-only.
        """
        self._spec, self._home = replace(spec, name=NAME), 0
        for node in self._nodes:
            await self._bridges[node.name].prepare(self._spec, key="peer")
        first = self._nodes[0]
        self._show(first)
        words = ["create", "--name", NAME, "--network", f"ns:{NETNS / self._shared}", "--log-driver", "none"]
        words += ["--ulimit", "nofile=20000:20000", "--ulimit", "nproc=10000:10000"]
        words += ["--cgroup-parent", f"/{self._record.id}/{NAME}"]
        for host, inside in binds:
            words += ["--volume", f"{host}:{inside}:ro"]
        for name, text in spec.environment:
            words += ["--env", f"{name}={text}"]
        await asyncio.to_thread(self._podman_of, first, *words, IMAGE, *spec.command)
        await asyncio.to_thread(self._podman_of, first, "start", NAME)
        await self._bridges[first.name].attach(NAME)

    # What is measured.

    async def move(self) -> PeerMove:
        """Checkpoint on the node where it runs, send, restore on the other one.

        Raises:
            ConflictError: it was not started.
            ActionError: a command failed; the container may be gone.
        """
        if self._spec is None:
            raise ConflictError("the peer's container was not started", hint="call start first")
        source, target = self._nodes[self._home], self._nodes[1 - self._home]
        out, arrived = self._store(source) / "archives" / "out.tar", self._store(target) / "archives" / "in.tar"
        marks = [time.monotonic()]
        await self._bridges[source.name].detach(NAME)
        marks.append(time.monotonic())
        await asyncio.to_thread(self._podman_of, source, *_CHECKPOINT, "--export", str(out), NAME)
        marks.append(time.monotonic())
        await asyncio.to_thread(self._send, source, target, out, arrived)
        marks.append(time.monotonic())
        self._show(target)
        await asyncio.to_thread(self._podman_of, target, *_RESTORE, "--import", str(arrived))
        marks.append(time.monotonic())
        await self._bridges[target.name].attach(NAME)
        marks.append(time.monotonic())
        size = out.stat().st_size
        await self._clear(source, out, arrived)
        self._home = 1 - self._home
        detach_s, checkpoint_s, transfer_s, restore_s, attach_s = (b - a for a, b in pairwise(marks))
        return PeerMove(
            source=source.name, target=target.name, checkpoint_s=checkpoint_s, transfer_s=transfer_s,
            restore_s=restore_s, address_s=detach_s + attach_s, total_s=marks[-1] - marks[0], size_bytes=float(size),
        )  # fmt: skip

    async def _clear(self, source: NodeLayout, *archives: Path) -> None:
        """What the source keeps would stand in the way of the move back. Nobody waits for it, so it is not timed."""
        await asyncio.to_thread(self._podman_of, source, "rm", "--force", "--time", "0", NAME)
        for archive in archives:
            archive.unlink()
        if self._spec is not None:
            await self._bridges[source.name].remove(NAME)
            await self._bridges[source.name].prepare(self._spec, key="peer")

    async def version(self) -> str:
        """What podman says that it is."""
        match = re.search(r"\d+(?:\.\d+)+", await asyncio.to_thread(self._run, [str(self._podman), "--version"]))
        return match[0] if match else "unknown"

    async def remove(self) -> None:
        """End the container and take away stores, namespaces and connections. Harmless when nothing is there."""
        for node in self._nodes:
            if (self._store(node) / "storage.conf").exists():
                await asyncio.to_thread(self._podman_of, node, "rm", "--all", "--force", "--time", "0")
        for end in self._masters:
            self._machine.run(end)
        self._masters.clear()
        shared = NETNS / self._shared
        self._hide(shared)
        shared.unlink(missing_ok=True)
        for bridge in self._bridges.values():
            await bridge.remove(NAME)
            await bridge.shut()
        for path in cgroups(self._record.id):  # the deepest first
            if NAME in path.parts:
                path.rmdir()
        if self._folder.is_mount():
            checked(self._machine, [str(self._machine.which("umount")), "--lazy", str(self._folder)])
        if self._folder.is_dir():
            self._folder.rmdir()
        self._spec = None

    # Podman, rsync and SSH.

    def _store(self, node: NodeLayout) -> Path:
        return self._folder / node.name

    def _podman_of(self, node: NodeLayout, *words: str) -> str:
        store = self._store(node)
        options = ["--root", str(store / "root"), "--runroot", str(store / "run"), "--tmpdir", str(store / "tmp")]
        options += ["--storage-driver", "vfs", "--cgroup-manager", "cgroupfs", "--events-backend", "none"]
        options += ["--runtime", str(self._tools.runc), "--runtime-flag", f"root={store / 'runc'}"]
        settings = {
            "CONTAINERS_CONF": str(store / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(store / "storage.conf"),
            "TMPDIR": str(store / "tmp"),
        }
        return self._run([str(self._podman), *options, *words], settings)

    def _enter(self, node: NodeLayout) -> list[str]:
        return [str(self._tools.nsenter), f"--net={NETNS / node.netns}", "--"]

    def _ssh(self, source: NodeLayout, target: NodeLayout) -> list[str]:
        control = f"ControlPath={source.ssh}/peer-{target.name}"
        return [str(self._tools.ssh), "-F", str(source.ssh / CLIENT_CONFIG), "-o", control]

    def _send(self, source: NodeLayout, target: NodeLayout, out: Path, arrived: Path) -> None:
        words = ["--ignore-times", "--whole-file", "--inplace", "--rsh", " ".join(self._ssh(source, target))]
        rsync = str(self._tools.rsync)
        self._run([*self._enter(source), rsync, *words, str(out), f"root@{target.address}:{arrived}"])

    def _run(self, argv: Sequence[str], more: dict[str, str] | None = None) -> str:
        try:
            done = subprocess.run(
                list(argv), stdin=subprocess.DEVNULL, capture_output=True, timeout=_TIMEOUT_S, check=False,
                env={**self._env, **(more or {})},
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise TimedOutError(f"{argv[0]}: no answer within {_TIMEOUT_S:g} s", hint="natwork doctor") from error
        if done.returncode != 0:
            words = (done.stderr or done.stdout).decode("utf-8", errors="replace").strip().splitlines()
            raise ActionError(
                f"{Path(argv[0]).name} ended with {done.returncode}: {words[-1] if words else 'without a word'}",
                hint="natwork doctor --testbed says whether podman and CRIU fit the machine",
            )
        return done.stdout.decode("utf-8", errors="replace")

    # The namespace that the container's configuration names.

    @property
    def _shared(self) -> str:
        return f"{self._record.id}-{NAME}"

    def _show(self, node: NodeLayout) -> None:
        """Let the name in the container's configuration mean this node's namespace."""
        shared = NETNS / self._shared
        self._hide(shared)
        shared.touch(mode=0o400)
        there = NETNS / node.container_netns(NAME)
        checked(self._machine, [str(self._machine.which("mount")), "--bind", str(there), str(shared)])

    def _hide(self, shared: Path) -> None:
        while os.path.ismount(shared):  # pathlib looks at folders only
            checked(self._machine, [str(self._machine.which("umount")), str(shared)])
