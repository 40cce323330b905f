"""The ideal of the migration benchmark: the same dump, transfer and restore by hand, one after the other, and alone.

What somebody would type who has prepared everything: the container's cgroup is frozen, then `runc checkpoint`, `rsync`
through an SSH connection that is open already, `runc restore`; with the bundle, the CRIU settings, the images on tmpfs
and the network namespaces that ours have. No journal, no state machine, no agent, no check of what arrived. The total
is the sum of these commands and nothing else:

    cold        dump, dump transfer, restore
    pre-copy    rounds x (pre-dump, pre-dump transfer), dump, dump transfer, restore
    post-copy   dump until the pages are served, dump transfer, restore (with the start of the lazy-pages daemon),
                lazy pages until the last one has arrived
    hybrid      the rounds of pre-copy, then post-copy

As many pre-copy rounds as we made last time. Where the container has data in its volume, `volume transfer` is a further
command after the dump; where it has none, nobody would send it, and it is left out. What is not counted: making the
target's bundle and namespace, opening connections and tunnels, moving the address, deleting what is left on the source.

The address moves at our bridge, so a client sees these moves as well. The root file system always gets over, outside
the count if need be: a restore without it would not be one.

    phases = await IdealMove(record, tools, ports).move(spec, "node-0", "node-1", MigrationMethod.COLD, rounds=0)
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from natwork_ray.adapters.container_cgroup import ContainerCgroup
from natwork_ray.adapters.container_network import ContainerNetwork, free_port
from natwork_ray.adapters.subprocesses import SubprocessRunner
from natwork_ray.adapters.testbed_layout import NodeLayout
from natwork_ray.adapters.testbed_network import NETNS
from natwork_ray.adapters.testbed_requirements import Toolchain
from natwork_ray.adapters.testbed_sshd import CLIENT_CONFIG, environment
from natwork_ray.adapters.testbed_state import TestbedRecord
from natwork_ray.adapters.testbed_world import NodePorts
from natwork_ray.domain.phases import MigrationMethod, Phase
from natwork_ray.domain.runtime import ContainerSpec
from natwork_ray.errors import ActionError, TimedOutError
from natwork_ray.limi.steps import Verb

T = TypeVar("T")
_TIMEOUT_S = 120.0
_ROUNDS = (MigrationMethod.PRE_COPY, MigrationMethod.HYBRID)
_LAZY = (MigrationMethod.POST_COPY, MigrationMethod.HYBRID)
_IMAGES = ("--recursive", "--links", "--perms", "--owner", "--group", "--numeric-ids", "--ignore-times", "--delete")
_VOLUME = ("--archive", "--hard-links", "--numeric-ids", "--checksum", "--delete", "--sparse", "--no-whole-file")


class IdealMove:
    """Moves a container of a testbed by hand. Needs root. `volume_bytes`: what its volume holds, 0 for none."""

    def __init__(
        self, record: TestbedRecord, tools: Toolchain, ports: dict[str, NodePorts], *, volume_bytes: float = 0.0
    ) -> None:
        self._record, self._tools, self._ports, self._volume_bytes = record, tools, ports, volume_bytes
        self._env = environment(record.id)
        self._masters: dict[tuple[str, str], list[str]] = {}
        self._number = 0
        self._tunnel = ""
        self._phases: list[Phase] = []
        self._began_s = 0.0

    async def move(
        self, spec: ContainerSpec, source: str, target: str, method: MigrationMethod, *, rounds: int
    ) -> tuple[Phase, ...]:
        """Move it; every command as a phase, in the order in which they ran.

        Raises:
            ActionError: a command failed; the container may stand still.
        """
        self._number += 1
        key = f"hand-{self._number}"
        here, there = self._ports[source], self._ports[target]
        await there.bridge.prepare(spec, key=key)
        await there.runtime.prepare(spec, key=key)
        await asyncio.to_thread(self._open, here.layout, there.layout)
        await asyncio.to_thread(self._send_volume, here.layout, there.layout, spec.name)
        self._phases, self._began_s = [], time.monotonic()
        basis = None
        for number in range(1, (rounds if method in _ROUNDS else 0) + 1):
            images = f"pre-{number}"
            await self._pre_dump(here.layout, spec.name, key, images)
            await self._timed(Verb.PRE_DUMP_TRANSFER, self._send, here.layout, there.layout, key, images, basis)
            basis = images
        lazy = method in _LAZY
        await here.bridge.detach(spec.name)
        server = await self._dump(here.layout, spec.name, key, lazy=lazy)
        if self._volume_bytes:
            await self._timed(Verb.VOLUME_TRANSFER, self._send_volume, here.layout, there.layout, spec.name)
        else:
            await asyncio.to_thread(self._send_volume, here.layout, there.layout, spec.name)
        await self._timed(Verb.DUMP_TRANSFER, self._send, here.layout, there.layout, key, "final", basis)
        daemon = await self._restore(here.layout, there.layout, spec.name, key, server)
        await there.bridge.attach(spec.name)
        if server is not None and daemon is not None:
            await self._timed(Verb.PAGES_FETCHED, _end, daemon, server[0])
            await asyncio.to_thread(self._unforward, here.layout, there.layout)
        phases = tuple(self._phases)
        await here.runtime.destroy(spec.name, key=key)
        await here.bridge.remove(spec.name)
        for layout in (here.layout, there.layout):
            shutil.rmtree(layout.image_set(key, "final").parent, ignore_errors=True)
        return phases

    async def close(self) -> None:
        """End the connections."""
        for argv in self._masters.values():
            with suppress(ActionError):
                await asyncio.to_thread(self._run, argv)
        self._masters.clear()

    # One command after the other.

    async def _timed(self, verb: Verb, command: Callable[..., object], *arguments: object) -> None:
        began = time.monotonic()
        await asyncio.to_thread(command, *arguments)
        self._note(verb, began)

    def _note(self, verb: Verb, began: float) -> None:
        now = time.monotonic()
        self._phases.append(Phase(name=verb, starts_s=began - self._began_s, duration_s=now - began))

    async def _pre_dump(self, here: NodeLayout, container: str, key: str, images: str) -> None:
        cgroup = ContainerCgroup(here.cgroup(container))
        network = ContainerNetwork(here.container_netns(container), self._tools, SubprocessRunner(), self._env)
        began = time.monotonic()
        await cgroup.freeze()
        # CRIU is told not to lock the network, and fails when its sockets change under its hands.
        await network.close()
        await asyncio.to_thread(self._checkpoint, here, container, key, images)
        await network.open()
        cgroup.thaw()
        self._note(Verb.PRE_DUMP, began)

    async def _dump(
        self, here: NodeLayout, container: str, key: str, *, lazy: bool
    ) -> tuple[subprocess.Popen[bytes], int] | None:
        """The checkpoint; with `lazy` the process that serves pages, and its port."""
        cgroup = ContainerCgroup(here.cgroup(container))
        port = free_port(NETNS / here.netns) if lazy else 0
        began = time.monotonic()
        await cgroup.freeze()
        if not lazy:
            await asyncio.to_thread(self._checkpoint, here, container, key, "final")
            self._note(Verb.DUMP, began)
            return None
        process = await asyncio.to_thread(self._serve, here, container, key, port)
        self._note(Verb.DUMP, began)
        return process, port

    def _checkpoint(self, here: NodeLayout, container: str, key: str, images: str) -> None:
        self._run([*self._enter(here), *self._checkpoint_words(here, key, images), container])

    def _checkpoint_words(self, here: NodeLayout, key: str, images: str) -> list[str]:
        folder = here.image_set(key, images)
        folder.mkdir(mode=0o700, parents=True)
        work = folder.with_name(f"{images}-work")
        work.mkdir(mode=0o700)
        words = [*self._runc(here), "checkpoint", "--leave-running", "--tcp-established", "--file-locks"]
        return [*words, "--image-path", str(folder), "--work-path", str(work)]

    def _serve(self, here: NodeLayout, container: str, key: str, port: int) -> subprocess.Popen[bytes]:
        ready, sign = os.pipe()
        words = self._checkpoint_words(here, key, "final")
        lazy = ["--lazy-pages", "--page-server", f"127.0.0.1:{port}", "--status-fd", str(sign)]
        try:
            process = self._begin([*self._enter(here), *words, *lazy, container], pass_fds=(sign,))
        finally:
            os.close(sign)
        try:
            if not os.read(ready, 1):
                _end(process)
                raise ActionError(f"the page server of {container} did not start", hint="see dump.log")
        finally:
            os.close(ready)
        return process

    async def _restore(
        self, here: NodeLayout, there: NodeLayout, container: str, key: str,
        server: tuple[subprocess.Popen[bytes], int] | None,
    ) -> subprocess.Popen[bytes] | None:  # fmt: skip
        daemon = None
        if server is not None:
            port = await asyncio.to_thread(self._forward, here, there, server[1])
        began = time.monotonic()
        if server is not None:
            daemon = await asyncio.to_thread(self._fetch, there, key, port)
        await asyncio.to_thread(self._resume, there, container, key, lazy=server is not None)
        self._note(Verb.RESTORE, began)
        return daemon

    def _resume(self, there: NodeLayout, container: str, key: str, *, lazy: bool) -> None:
        folder = there.image_set(key, "final")
        work = folder.with_name("restore-work")
        work.mkdir(mode=0o700, exist_ok=True)
        words = [*self._runc(there), "restore", "--detach", "--tcp-established", "--file-locks"]
        words += ["--lazy-pages"] if lazy else []
        words += ["--image-path", str(folder), "--work-path", str(work), "--bundle", str(there.bundle(container))]
        # Its streams would become the container's.
        _end(self._begin([*self._enter(there), *words, container]))

    def _fetch(self, there: NodeLayout, key: str, port: int) -> subprocess.Popen[bytes]:
        folder = there.image_set(key, "final")
        work = folder.with_name("restore-work")  # runC's own: CRIU looks for the daemon's socket there
        work.mkdir(mode=0o700)
        ready, sign = os.pipe()
        words = [str(self._tools.criu), "lazy-pages", "--page-server", "--address", "127.0.0.1", "--port", str(port)]
        words += ["--images-dir", str(folder), "--work-dir", str(work), "--status-fd", str(sign)]
        try:
            process = self._begin([*self._enter(there), *words], pass_fds=(sign,))
        finally:
            os.close(sign)
        os.read(ready, 1)
        os.close(ready)
        return process

    # rsync and SSH.

    def _open(self, here: NodeLayout, there: NodeLayout) -> None:
        """A master connection, once, as the agents keep theirs."""
        if (here.name, there.name) not in self._masters:
            ssh = self._ssh(here, there)
            self._run([*self._enter(here), *ssh, "-N", "-f", "-M", there.address])
            self._masters[here.name, there.name] = [*ssh, "-O", "exit", there.address]

    def _forward(self, here: NodeLayout, there: NodeLayout, port: int) -> int:
        said = self._control("forward", here, there, f"127.0.0.1:0:127.0.0.1:{port}")
        self._tunnel = f"127.0.0.1:{int(said)}:127.0.0.1:{port}"
        return int(said)

    def _unforward(self, here: NodeLayout, there: NodeLayout) -> None:
        # Only the tunnel: a fresh connection would be slower at first, and the next move would pay for it.
        self._control("cancel", here, there, self._tunnel)

    def _control(self, command: str, here: NodeLayout, there: NodeLayout, forward: str) -> str:
        return self._run([*self._ssh(here, there), "-O", command, "-R", forward, there.address])

    def _send(self, here: NodeLayout, there: NodeLayout, key: str, images: str, basis: str | None) -> None:
        difference = ["--no-whole-file", f"--copy-dest=../{basis}"] if basis else ["--whole-file"]
        self._rsync(here, there, here.image_set(key, images), there.image_set(key, images), [*_IMAGES, *difference])

    def _send_volume(self, here: NodeLayout, there: NodeLayout, container: str) -> None:
        self._rsync(here, there, here.rootfs(container), there.rootfs(container), list(_VOLUME))

    def _rsync(self, here: NodeLayout, there: NodeLayout, folder: Path, aim: Path, options: list[str]) -> None:
        aim.mkdir(mode=0o755, parents=True, exist_ok=True)
        shell = " ".join(f'"{word}"' for word in self._ssh(here, there))
        ends = ["--rsh", shell, "--", f"{folder}/", f"root@{there.address}:{aim}/"]
        self._run([str(self._tools.rsync), *options, *ends])

    def _ssh(self, here: NodeLayout, there: NodeLayout) -> list[str]:
        config = ["-F", str(here.ssh / CLIENT_CONFIG)]
        return [str(self._tools.ssh), *config, "-o", f"ControlPath={here.ssh}/hand-{there.name}"]

    # Programs.

    def _enter(self, layout: NodeLayout) -> list[str]:
        return [str(self._tools.nsenter), f"--net={NETNS / layout.netns}", "--"]

    def _runc(self, layout: NodeLayout) -> list[str]:
        return [str(self._tools.runc), "--criu", str(self._tools.criu), "--root", str(layout.runc_root)]

    def _begin(self, argv: Sequence[str], pass_fds: tuple[int, ...] = ()) -> subprocess.Popen[bytes]:
        null = subprocess.DEVNULL
        return subprocess.Popen(list(argv), stdin=null, stdout=null, stderr=null, env=self._env, pass_fds=pass_fds)

    def _run(self, argv: Sequence[str]) -> str:
        try:
            done = subprocess.run(
                list(argv), stdin=subprocess.DEVNULL, capture_output=True, timeout=_TIMEOUT_S, check=False,
                env=self._env,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise TimedOutError(f"{argv[0]}: no answer within {_TIMEOUT_S:g} s", hint="natwork doctor") from error
        said = (done.stderr or done.stdout).decode("utf-8", errors="replace").strip()
        if done.returncode != 0:
            raise ActionError(f"{' '.join(argv[:6])}: {said[-300:]}", hint="natwork doctor")
        return done.stdout.decode("utf-8", errors="replace").strip()


def _end(*processes: subprocess.Popen[bytes]) -> None:
    """Wait for programs that have to succeed.

    Raises:
        ActionError: one did not.
        TimedOutError: one goes on; it was killed.
    """
    for process in processes:
        try:
            status = process.wait(_TIMEOUT_S)
        except subprocess.TimeoutExpired as error:
            process.kill()
            process.wait()
            raise TimedOutError(f"process {process.pid} did not end", hint="see its log in the work folder") from error
        if status != 0:
            raise ActionError(f"{process.args!r} ended with {status}", hint="see its log in the work folder")
