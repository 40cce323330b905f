"""One way from a node to another: an SSH connection that is opened once and carries everything (D3.3 section 2.1).

Opening an SSH connection costs two round trips and a tenth of a second of key exchange; nobody waits for that while a
container stands still. The master connection is started in the node's network namespace; rsync and forwards reach it
through its control socket. Its own session runs the program that says what has arrived
(`natwork_ray.adapters.arrival`), so that a way that answers is a way that works, and that ends with its owner: when the
agent dies, the session's input ends, and with it the connection.

    way = SshWay(node, peer, tools)
    await way.open()
    await way.ask("digest", folder="...")
    await way.close()
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import secrets
import shlex
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from natwork_ray.adapters.testbed_layout import NodeLayout
from natwork_ray.adapters.testbed_network import NETNS
from natwork_ray.adapters.testbed_requirements import Toolchain
from natwork_ray.adapters.testbed_sshd import ARRIVAL, CLIENT_CONFIG, environment
from natwork_ray.domain.runtime import PathReport
from natwork_ray.errors import ActionError, InputError, PreconditionError, TimedOutError

OPEN_S, ASK_S, END_S = 15.0, 120.0, 2.0
_MAX_ANSWER = 65_536
_PINGS = 5
_FIRST_BYTES, _MOST_BYTES, _LONG_ENOUGH_S = 262_144, 4 * 2**20, 0.008
_PIPE_BYTES = 2**20


def system_python() -> Path:
    """The Python that every node has.

    Raises:
        PreconditionError: there is none below /usr.
    """
    found = shutil.which("python3", path="/usr/bin:/usr/local/bin")
    if found is None:
        raise PreconditionError("there is no python3 in /usr/bin", hint="install the package python3")
    return Path(found)


class SshWay:
    """The way from `here` to `there`. Belongs to one event loop."""

    def __init__(self, here: NodeLayout, there: NodeLayout, tools: Toolchain) -> None:
        self.here = here
        self.there = there
        self._tools = tools
        self._env = environment(here.testbed)
        self._control = here.ssh / f"ctl-{there.name}"
        self._master: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._asked = 0
        self._forwards: dict[str, tuple[int, int]] = {}  # by migration key: port there, port here
        self._loop: asyncio.AbstractEventLoop | None = None
        self._writing = asyncio.Lock()

    @property
    def alive(self) -> bool:
        """Whether the connection stands, as far as can be known without using it."""
        return (
            self._master is not None
            and self._master.returncode is None
            and self._reader is not None
            and not self._reader.done()
            and self._loop is asyncio.get_running_loop()
        )

    @property
    def session(self) -> object:
        """The connection that stands now; another object after it was opened again."""
        return self._master

    @property
    def shell(self) -> str:
        """The remote shell for rsync: a further session on the open connection, never a connection of its own."""
        words = [str(self._tools.ssh), "-F", str(self.here.ssh / CLIENT_CONFIG), "-S", str(self._control)]
        # Without a master, ssh would open a connection of its own, from the wrong network namespace.
        return " ".join(f'"{word}"' for word in [*words, "-o", "ControlMaster=no", "-o", "ProxyCommand=false"])

    async def open(self) -> None:
        """Open the way; harmless when it stands.

        Raises:
            ActionError: the other node refuses, or is not whom its pinned key says; the message holds ssh's words.
            TimedOutError: no answer within 15 s.
        """
        if self.alive:
            return
        await self.close()
        self._loop = asyncio.get_running_loop()
        self._writing = asyncio.Lock()
        self._control = self.here.ssh / f"ctl-{self.there.name}-{secrets.token_hex(4)}"
        program = [str(system_python()), "-I", "-S", str(self.there.ssh / ARRIVAL)]
        program += [str(self.there.images), str(self.there.bundles)]
        enter = [str(self._tools.nsenter), f"--net={NETNS / self.here.netns}", "--"]
        ssh = [str(self._tools.ssh), "-F", str(self.here.ssh / CLIENT_CONFIG), "-M", "-S", str(self._control), "-T"]
        self._master = await asyncio.create_subprocess_exec(
            *enter,
            *ssh,
            self.there.address,
            shlex.join(program),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=self._env,
            limit=_MAX_ANSWER,
        )
        if self._master.stdin is not None:
            # Of the kernel's usual 64 KiB, every one would be a turn of this loop.
            fcntl.fcntl(self._master.stdin.get_extra_info("pipe"), fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        try:
            ready = self._expect(0)
            self._reader = asyncio.create_task(self._read(self._master))
            async with asyncio.timeout(OPEN_S):
                await ready
        except TimeoutError as error:
            await self.close()
            raise TimedOutError(
                f"{self.there.name} does not answer {self.here.name} within {OPEN_S:g} s", hint="natwork testbed status"
            ) from error
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """End the connection with all that runs on it; harmless when there is none."""
        master, self._master = self._master, None
        reader, self._reader = self._reader, None
        self._forwards.clear()
        foreign = self._loop is not asyncio.get_running_loop()
        if master is not None and not foreign and master.returncode is None:
            if master.stdin is not None:
                master.stdin.close()
            try:
                async with asyncio.timeout(END_S):
                    await master.wait()
            except TimeoutError:
                master.kill()
                await master.wait()
        if reader is not None and not foreign:
            with contextlib.suppress(ActionError, asyncio.CancelledError):
                await reader
        self._control.unlink(missing_ok=True)

    async def ask(self, what: str, **fields: object) -> dict[str, Any]:
        """Ask the program at the other end.

        Raises:
            ActionError: it could not do it, or the way ended.
            TimedOutError: no answer within two minutes.
        """
        return await self._send(what, fields, b"")

    async def arrival(
        self, folder: str, size: int, digest: str, *, skip: Sequence[str] = (), until: asyncio.Task[None]
    ) -> tuple[int, str]:
        """Wait until a folder of the other node has this size and digest, at the longest until a transfer has ended;
        size and digest of what is there then.

        Raises:
            ActionError: the transfer failed, or the way ended.
        """
        number, answer = await self._say("await", {"folder": folder, "size": size, "digest": digest, "skip": skip})
        try:
            futures: list[asyncio.Future[Any]] = [answer, until]
            await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                await self._send("settle", {"of": number}, b"")
            return self.size_and_digest(await self._heard("await", answer))
        except asyncio.CancelledError:
            if self.alive and self._master is not None and self._master.stdin is not None:
                # Nobody will hear the answer: the other end need not look any longer.
                self._master.stdin.write(json.dumps({"id": -1, "do": "settle", "of": number}).encode() + b"\n")
            raise
        finally:
            self._waiting.pop(number, None)

    def size_and_digest(self, answer: dict[str, Any]) -> tuple[int, str]:
        """The two, out of an answer.

        Raises:
            InputError: they are not there.
        """
        size, digest = answer.get("size"), answer.get("digest")
        if not isinstance(size, int) or not isinstance(digest, str):
            raise InputError(f"{self.there.name} answers without a digest", hint="is it the same version?")
        return size, digest

    async def measure(self) -> PathReport:
        """Round trip (the shortest of five) and bandwidth (of up to 5 MiB through SSH; the first ones are slow)."""
        trips = []
        for _ in range(_PINGS):
            began = time.perf_counter()
            await self._send("take", {"bytes": 0}, b"")
            trips.append(time.perf_counter() - began)
        size, rtt_s, best = _FIRST_BYTES, min(trips), 0.0
        while True:
            data = os.urandom(size)
            began = time.perf_counter()
            await self._send("take", {"bytes": size}, data)
            took_s = max(time.perf_counter() - began - rtt_s, 1e-6)
            best = max(best, size / took_s)
            if took_s >= _LONG_ENOUGH_S or size >= _MOST_BYTES:
                return PathReport(bandwidth_bytes_per_s=best, rtt_s=rtt_s)
            size *= 4

    async def forward(self, key: str, port: int) -> int:
        """Let the other node reach `port` of this one's loopback; the port of its own loopback that leads there.

        Raises:
            ActionError: ssh refuses.
        """
        if key in self._forwards:
            there, here = self._forwards[key]
            if here == port:
                return there
            await self.unforward(key)
        said = await self._control_command("forward", f"127.0.0.1:0:127.0.0.1:{port}")
        if not said.isdecimal() or not 0 < int(said) < 65_536:
            raise InputError(f"ssh names no forwarded port: {said[:80]!r}", hint="is it OpenSSH?")
        self._forwards[key] = (int(said), port)
        return int(said)

    async def unforward(self, key: str) -> None:
        """Take a forward back; harmless when there is none."""
        ports = self._forwards.pop(key, None)
        if ports is not None and self.alive:
            # As it was asked for, with port 0: the master knows which one that became.
            await self._control_command("cancel", f"127.0.0.1:0:127.0.0.1:{ports[1]}")

    async def _control_command(self, command: str, forward: str) -> str:
        config = ["-F", str(self.here.ssh / CLIENT_CONFIG), "-S", str(self._control)]
        words = [str(self._tools.ssh), *config, "-O", command, "-R", forward, self.there.address]
        status, out, err = await run(words, self._env, ASK_S)
        if status != 0:
            raise ActionError(f"ssh -O {command} to {self.there.name}: {err or out}", hint="natwork testbed status")
        return out

    def _expect(self, number: int) -> asyncio.Future[dict[str, Any]]:
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        return future

    async def _send(self, what: str, fields: dict[str, object], data: bytes) -> dict[str, Any]:
        number, answer = await self._say(what, fields, data)
        try:
            return await self._heard(what, answer)
        finally:
            self._waiting.pop(number, None)

    async def _say(
        self, what: str, fields: dict[str, object], data: bytes = b""
    ) -> tuple[int, asyncio.Future[dict[str, Any]]]:
        if not self.alive or self._master is None or self._master.stdin is None:
            raise ActionError(f"there is no way to {self.there.name}", hint="open it first")
        self._asked += 1
        number = self._asked
        answer = self._expect(number)
        try:
            async with asyncio.timeout(ASK_S), self._writing:
                self._master.stdin.write(json.dumps({"id": number, "do": what, **fields}).encode() + b"\n" + data)
                await self._master.stdin.drain()
        except TimeoutError as error:
            self._waiting.pop(number, None)
            raise TimedOutError(f"{self.there.name} does not listen: {what}", hint="natwork testbed status") from error
        except ConnectionError as error:
            self._waiting.pop(number, None)
            raise ActionError(f"the way to {self.there.name} is cut", hint="natwork testbed status") from error
        return number, answer

    async def _heard(self, what: str, answer: asyncio.Future[dict[str, Any]]) -> dict[str, Any]:
        try:
            async with asyncio.timeout(ASK_S):
                said = await answer
        except TimeoutError as error:
            raise TimedOutError(f"{self.there.name} does not answer: {what}", hint="natwork testbed status") from error
        if "error" in said:
            raise ActionError(f"{self.there.name}: {what}: {str(said['error'])[:300]}", hint="look at that node")
        return said

    async def _read(self, master: asyncio.subprocess.Process) -> None:
        problem = ""
        try:
            while master.stdout is not None and (line := await master.stdout.readline()):
                said = json.loads(line)
                future = self._waiting.get(said["id"])
                if future is not None and not future.done():
                    future.set_result(said)
        except (ValueError, KeyError, TypeError) as error:  # also an endless line
            problem = f"speaks no JSON: {error}"
            master.kill()
        finally:
            words = await master.stderr.read(_MAX_ANSWER) if master.stderr is not None else b""
            await master.wait()
            last = words.decode("utf-8", errors="replace").strip().splitlines()
            problem = problem or (last[-1] if last else "the connection ended")
            for future in self._waiting.values():
                if not future.done():
                    future.set_exception(
                        ActionError(f"way from {self.here.name} to {self.there.name}: {problem}",
                                    hint="natwork testbed status")
                    )  # fmt: skip


async def run(argv: list[str], env: dict[str, str], timeout_s: float | None) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of a program; killed when the caller is cancelled.

    Raises:
        TimedOutError: it did not end in time, and was killed.
    """
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=env,
    )
    try:
        async with asyncio.timeout(timeout_s):
            out, err = await process.communicate()
    except TimeoutError as error:
        raise TimedOutError(f"{Path(argv[0]).name} did not end within {timeout_s:g} s", hint="try again") from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    status = process.returncode if process.returncode is not None else -1
    return status, out.decode("utf-8", errors="replace").strip(), err.decode("utf-8", errors="replace").strip()
