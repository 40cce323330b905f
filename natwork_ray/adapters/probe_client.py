"""A client of its own: the prober in a process and a network namespace of its own, beside a testbed.

A prober that shares its event loop with what it watches measures the loop as well. And a client on the bridge itself
loses its carrier, and with it its ARP table, when the last container leaves the bridge; behind a link of its own it
sees what a client in the network sees. Namespace, link and process carry the testbed's id and go with `down`.

    client = ProbeClient(record, tools)
    client.open()
    await client.start("10.77.3.50")
    report = await client.stop()
    client.close()

The process itself: `python -m natwork_ray.adapters.probe_client HOST EVERY_S`; it says `ready`, probes until its
standard input says how patient to be with what is still due, or ends, and says the report as one line of JSON.
"""

from __future__ import annotations

import asyncio
import sys
import time

from natwork_ray.adapters.machine import Machine
from natwork_ray.adapters.prober import Prober, ProbeReport
from natwork_ray.adapters.testbed_network import NETNS, checked
from natwork_ray.adapters.testbed_requirements import Toolchain
from natwork_ray.adapters.testbed_sshd import environment
from natwork_ray.adapters.testbed_state import TestbedRecord
from natwork_ray.domain.values import decode, encode
from natwork_ray.errors import ActionError, ConflictError, NatworkError, TimedOutError

_HOST_NUMBER = 250  # the client's address in the testbed's network; containers have those from 50 on
_READY_S, _END_S = 15.0, 30.0


class ProbeClient:
    """One client beside a testbed; one session at a time."""

    def __init__(self, record: TestbedRecord, tools: Toolchain, machine: Machine | None = None) -> None:
        self._record, self._tools, self._machine = record, tools, machine or Machine()
        self._netns, self._link = f"{record.id}-client", f"{record.id}cli"
        self._process: asyncio.subprocess.Process | None = None

    def open(self) -> None:
        """Make the namespace and its link to the bridge.

        Raises:
            ActionError: they cannot be made.
        """
        ip, record = str(self._tools.ip), self._record
        base, _, prefix = record.network.partition("/")
        address = f"{base.rpartition('.')[0]}.{_HOST_NUMBER}/{prefix}"
        inside = [ip, "-n", self._netns]
        for argv in (
            [ip, "netns", "add", self._netns],
            [ip, "link", "add", self._link, "type", "veth", "peer", "name", "eth0", "netns", self._netns],
            [*inside, "link", "set", "lo", "up"],
            [*inside, "address", "add", address, "dev", "eth0"],
            [*inside, "link", "set", "eth0", "up"],
            [ip, "link", "set", self._link, "master", record.bridge, "up"],
        ):
            checked(self._machine, argv)

    def close(self) -> None:
        """Take the namespace away; harmless when there is none."""
        if (NETNS / self._netns).exists():
            checked(self._machine, [str(self._tools.ip), "netns", "delete", self._netns])

    async def start(self, host: str, *, every_s: float = 0.005) -> None:
        """Open a session and begin to ask; returns after the first reply.

        Raises:
            ConflictError: a session is open already.
            ActionError, TimedOutError: nobody answered.
        """
        if self._process is not None:
            raise ConflictError("the client has a session already", hint="stop it first")
        program = [sys.executable, "-m", __name__, host, str(every_s)]
        self._process = await asyncio.create_subprocess_exec(
            str(self._tools.nsenter), f"--net={NETNS / self._netns}", "--", *program,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, env=environment(self._record.id),
        )  # fmt: skip
        said = await self._line(_READY_S)
        if said != b"ready\n":
            await self._reap()
            raise ActionError(f"no session with {host}: {said.decode(errors='replace').strip()}", hint="is it served?")

    async def until_served(self, host: str, *, patience_s: float = 20.0) -> None:
        """Wait until somebody answers there; a workload first fills its memory.

        Raises:
            TimedOutError: nobody did.
        """
        deadline = time.monotonic() + patience_s
        while True:
            try:
                await self.start(host)
            except (ActionError, TimedOutError) as error:
                if time.monotonic() > deadline:
                    raise TimedOutError(f"{host} is not served within {patience_s:g} s", hint="is it up?") from error
                await asyncio.sleep(0.1)
            else:
                await self.stop()
                return

    async def stop(self, *, patience_s: float = 5.0) -> ProbeReport:
        """End the session; what it saw.

        Raises:
            ConflictError: there is no session.
            ActionError: the client died.
        """
        if self._process is None or self._process.stdin is None:
            raise ConflictError("the client has no session", hint="start one first")
        self._process.stdin.write(f"{patience_s}\n".encode())
        self._process.stdin.close()
        said = await self._line(patience_s + _END_S)
        await self._reap()
        if not said:
            raise ActionError("the client ended without a report", hint="see its words on standard error")
        return decode(ProbeReport, said)

    async def _line(self, timeout_s: float) -> bytes:
        if self._process is None or self._process.stdout is None:
            return b""
        try:
            async with asyncio.timeout(timeout_s):
                return await self._process.stdout.readline()
        except TimeoutError as error:
            await self._reap()
            raise TimedOutError(f"the client said nothing for {timeout_s:g} s", hint="try again") from error

    async def _reap(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            if process.returncode is None and process.stdin is not None and not process.stdin.is_closing():
                process.kill()
            try:
                async with asyncio.timeout(_END_S):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()


async def _probe(host: str, every_s: float) -> None:
    prober = Prober(host, every_s=every_s)
    try:
        await prober.start()
    except NatworkError as error:
        sys.stdout.write(f"{error}\n")
        return
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    line = await asyncio.to_thread(sys.stdin.readline)
    report = await prober.stop(patience_s=float(line or 0.0))
    sys.stdout.write(encode(report).decode() + "\n")


if __name__ == "__main__":
    asyncio.run(_probe(sys.argv[1], float(sys.argv[2])))
