"""Downtime as a client sees it: one TCP session of numbered requests, a new one every few milliseconds (D3.3, 2.1).

Requests are sent at their times whether the ones before were answered or not, as independent users would; so a reply
that had to queue counts with all the time that it waited. The longest gap between two replies is the downtime that the
record of a migration holds as `client_downtime_s`.

Rules kept: nothing is sent again by the prober, TCP alone repeats. A reply that is missing, comes twice, or out of its
order, a count that is not one more than the one before, or another instance is counted and not forgiven.

    prober = Prober("10.77.3.50")
    await prober.start()
    ...
    report = await prober.stop()
    report.whole, report.longest_gap_s
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import Callable

from natwork_ray.adapters.workload.service import ECHO_PORT
from natwork_ray.domain.values import value
from natwork_ray.errors import ActionError, ConflictError, TimedOutError, UsageError

_REPLY = re.compile(rb"(\d{1,19}) (\d{1,19}) ([0-9a-f]{16})\n")
_CONNECT_S = 10.0


@value
class ProbeReport:
    """What one session saw.

    Attributes:
        longest_gap_s: the longest time without a reply while one was due; longest_gap_at_s: when it began, since the
            first request.
        latency_p50_s, latency_max_s: from the time at which a request was due to its reply.
        lost: requests never answered; duplicated, reordered: replies that came twice or not in their order.
        count_breaks: replies whose count was not one more than the one before; only a lone client sees none.
        instances: how many different servers answered; 1 when the state survived.
        error: how the session ended, if not by `stop`.
    """

    sent: int
    answered: int
    duration_s: float
    longest_gap_s: float
    longest_gap_at_s: float
    latency_p50_s: float
    latency_max_s: float
    lost: int
    duplicated: int
    reordered: int
    count_breaks: int
    instances: int
    error: str = ""

    @property
    def whole(self) -> bool:
        """Whether the session lived and every reply came once, in its order, from one instance that lost nothing."""
        faults = self.lost + self.duplicated + self.reordered + self.count_breaks
        return not self.error and faults == 0 and self.instances == 1 and self.answered > 0


class Tally:
    """Replies against requests; no clock and no socket of its own. Times in seconds, any origin."""

    def __init__(self) -> None:
        self.due_s: list[float] = []
        self.instance = b""
        self.instances: set[bytes] = set()
        self.duplicated = self.reordered = self.count_breaks = 0
        self._seen: set[int] = set()
        self._latencies: list[float] = []
        self._next = 0
        self._count: int | None = None
        self._last_s: float | None = None
        self._gap = (0.0, 0.0)

    def request(self, due_s: float) -> int:
        """The number of the request that was due then."""
        self.due_s.append(due_s)
        return len(self.due_s) - 1

    def reply(self, line: bytes, at_s: float) -> None:
        """A line came.

        Raises:
            ActionError: it is no answer to anything that was asked.
        """
        match = _REPLY.fullmatch(line)
        if match is None or int(match[1]) >= len(self.due_s):
            raise ActionError(f"no reply of a workload: {line[:60]!r}", hint="is the port that of its echo?")
        number, count = int(match[1]), int(match[2])
        self.gap_until(at_s)
        self._last_s = at_s
        if number in self._seen:
            self.duplicated += 1
            return
        self.reordered += number != self._next
        self._next = number + 1
        self._seen.add(number)
        self.count_breaks += self._count is not None and count != self._count + 1
        self._count = count
        self.instances.add(match[3])
        self._latencies.append(at_s - self.due_s[number])

    def gap_until(self, at_s: float) -> None:
        """Nothing came between the last reply (or the first request) and now."""
        since = self._last_s if self._last_s is not None else self.due_s[0] if self.due_s else at_s
        if at_s - since > self._gap[0]:
            self._gap = (at_s - since, since)

    @property
    def unanswered(self) -> int:
        """Requests without a reply so far."""
        return len(self.due_s) - len(self._seen)

    def report(self, *, error: str = "") -> ProbeReport:
        """All of it."""
        first = self.due_s[0] if self.due_s else 0.0
        ordered = sorted(self._latencies)
        return ProbeReport(
            sent=len(self.due_s),
            answered=len(self._seen),
            duration_s=max((self._last_s or first) - first, 0.0),
            longest_gap_s=self._gap[0],
            longest_gap_at_s=max(self._gap[1] - first, 0.0),
            latency_p50_s=ordered[len(ordered) // 2] if ordered else 0.0,
            latency_max_s=ordered[-1] if ordered else 0.0,
            lost=self.unanswered,
            duplicated=self.duplicated,
            reordered=self.reordered,
            count_breaks=self.count_breaks,
            instances=len(self.instances),
            error=error,
        )


class Prober:
    """One session.

    Args:
        every_s: time between two requests, 1 ms to 10 s.
        clock: seconds, monotonic.
    """

    def __init__(
        self, host: str, port: int = ECHO_PORT, *, every_s: float = 0.005, clock: Callable[[], float] = time.monotonic
    ) -> None:
        if not 0.001 <= every_s <= 10:
            raise UsageError(f"every_s = {every_s} is not 0.001 to 10", hint="0.005 asks two hundred times a second")
        self._host, self._port, self._every_s, self._clock = host, port, every_s, clock
        self._tally = Tally()
        self._error = ""
        self._stopping = self._all_sent = False
        self._writer: asyncio.StreamWriter | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Connect and begin; returns after the first reply.

        Raises:
            TimedOutError: nobody answered within 10 s.
            ActionError: the connection was refused, or what answers is no workload.
        """
        try:
            async with asyncio.timeout(_CONNECT_S):
                reader, self._writer = await asyncio.open_connection(self._host, self._port)
                await self._ask(self._clock())
                self._tally.reply(await reader.readline(), self._clock())
        except TimeoutError as error:
            await self._close()
            raise TimedOutError(
                f"{self._host}:{self._port} does not answer", hint="natwork testbed containers"
            ) from error
        except OSError as error:
            await self._close()
            raise ActionError(f"{self._host}:{self._port}: {error}", hint="natwork testbed containers") from error
        except ActionError:
            await self._close()
            raise
        self._tasks = [asyncio.create_task(self._send()), asyncio.create_task(self._receive(reader))]

    async def stop(self, *, patience_s: float = 5.0) -> ProbeReport:
        """Ask no more, wait for replies that are due, and tell.

        Args:
            patience_s: what is not answered by then is lost.

        Raises:
            ConflictError: it was not started.
        """
        if not self._tasks:
            raise ConflictError("the prober was not started", hint="start it first")
        self._stopping = True
        sender, receiver = self._tasks
        await sender
        self._all_sent = True
        if self._tally.unanswered and not receiver.done():
            await asyncio.wait([receiver], timeout=patience_s)
            if self._tally.unanswered:
                self._tally.gap_until(self._clock())
        receiver.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await receiver
        await self._close()
        return self._tally.report(error=self._error)

    async def _ask(self, due_s: float) -> None:
        if self._writer is not None:
            self._writer.write(b"%d\n" % self._tally.request(due_s))

    async def _send(self) -> None:
        # No drain: a client that waits for the network would ask less while nobody answers, and see a smaller gap.
        due_s = self._clock()
        while not self._stopping and not self._error:
            due_s += self._every_s
            await asyncio.sleep(max(due_s - self._clock(), 0.0))
            await self._ask(due_s)

    async def _receive(self, reader: asyncio.StreamReader) -> None:
        try:
            while not self._all_sent or self._tally.unanswered:
                line = await reader.readline()
                if not line:
                    self._error = "the server closed the session"
                    return
                self._tally.reply(line, self._clock())
        except (OSError, ActionError, ValueError) as error:
            self._error = str(error) or type(error).__name__

    async def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            with contextlib.suppress(OSError):  # it was cut already
                await self._writer.wait_closed()


async def probe(host: str, *, seconds: float, port: int = ECHO_PORT, every_s: float = 0.005) -> ProbeReport:
    """One session of so many seconds."""
    prober = Prober(host, port, every_s=every_s)
    await prober.start()
    await asyncio.sleep(seconds)
    return await prober.stop()
