"""Many users of a container, each with a session: what a migration costs them, queueing included (D3.3, 2.1).

The users are Locust's (`natwork_ray.adapters.locust_user`, extra `testbed`). Locust replaces the standard library's
sockets when it is imported, so it runs as a process of its own; this module starts it and reads what it says: a line
when every user was answered once, and a report at its end.

    traffic = Traffic("10.77.3.50", users=20, every_s=0.1)
    await traffic.start()
    ...
    report = await traffic.stop()
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import sys

from natwork_ray.adapters.workload.service import HTTP_PORT
from natwork_ray.domain.values import decode, value
from natwork_ray.errors import ActionError, ConflictError, PreconditionError, TimedOutError, UsageError

READY = b"ready\n"
_START_S, _STOP_S = 30.0, 60.0
_MAX_REPORT = 65_536


@value
class TrafficReport:
    """What all users saw together.

    Attributes:
        latency_p50_s, latency_p95_s, latency_max_s: from the time at which a request was due, so that waiting behind
            an earlier one counts.
        longest_gap_s: the longest time in which nobody got an answer.
        instances: how many different servers answered.
    """

    users: int
    requests: int
    failures: int
    duration_s: float
    longest_gap_s: float
    latency_p50_s: float
    latency_p95_s: float
    latency_max_s: float
    instances: int


class Traffic:
    """A process of Locust users.

    Args:
        users: 1 to 1000; every_s: each asks so often, 0.01 to 60 s.
        limit_s: it ends by itself after that long.
    """

    def __init__(
        self, host: str, port: int = HTTP_PORT, *, users: int = 10, every_s: float = 0.1, limit_s: float = 3600.0
    ) -> None:
        if not 1 <= users <= 1000:
            raise UsageError(f"users = {users} is not 1 to 1000", hint="one process carries about a thousand")
        if not 0.01 <= every_s <= 60:
            raise UsageError(f"every_s = {every_s} is not 0.01 to 60", hint="0.1 is ten requests a second per user")
        options = {"--users": users, "--every": every_s, "--limit": limit_s}
        words = [word for name, given in options.items() for word in (name, str(given))]
        self._argv = [sys.executable, "-m", "natwork_ray.adapters.locust_user", f"http://{host}:{port}", *words]
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Begin; returns when every user was answered once.

        Raises:
            PreconditionError: Locust is not installed.
            ActionError: the process ended; the message holds its last words.
            TimedOutError: not every user was answered within 30 s.
        """
        if importlib.util.find_spec("locust") is None:
            raise PreconditionError("Locust is not installed", hint="pip install -c constraints.txt -e '.[testbed]'")
        pipe = asyncio.subprocess.PIPE
        self._process = await asyncio.create_subprocess_exec(
            *self._argv, stdin=pipe, stdout=pipe, stderr=pipe, env=dict(os.environ), limit=_MAX_REPORT
        )
        try:
            async with asyncio.timeout(_START_S):
                said = await _out(self._process).readline()
        except TimeoutError as error:
            await self._end()
            raise TimedOutError("not every user got an answer", hint="natwork testbed probe") from error
        except BaseException:
            await self._end()
            raise
        if said != READY:
            problem = await self._end()
            raise ActionError(f"the users did not start: {problem or said!r}", hint="natwork testbed probe")

    async def stop(self) -> TrafficReport:
        """End it and tell.

        Raises:
            ConflictError: it was not started.
            InputError: what it says is no report.
            TimedOutError: it does not end within a minute.
        """
        process = self._process
        if process is None or process.stdin is None:
            raise ConflictError("the traffic was not started", hint="start it first")
        process.stdin.close()
        try:
            async with asyncio.timeout(_STOP_S):
                said = await _out(process).read(_MAX_REPORT)
                await process.wait()
        except TimeoutError as error:
            raise TimedOutError("the users do not end", hint="look at the process of locust_user") from error
        finally:
            await self._end()
        return decode(TrafficReport, said)

    async def _end(self) -> str:
        """Make sure that it has ended; its last words."""
        process, self._process = self._process, None
        if process is None:
            return ""
        if process.returncode is None:
            process.kill()
        _, err = await process.communicate()
        lines = err.decode("utf-8", errors="replace").strip().splitlines()
        return lines[-1] if lines else ""


def _out(process: asyncio.subprocess.Process) -> asyncio.StreamReader:
    if process.stdout is None:
        raise ConflictError("the traffic has no output", hint="it is started with pipes")
    return process.stdout
