"""The audit log as server-sent events (WHATWG HTML, section 9.2): resumable, bounded, patient with a restart.

Each entry is one event: `id` its number, `event` its kind, `data` the line that is hashed. A stream starts at an entry,
follows the log, sends a comment when it is quiet, and ends by itself after `StreamLimits.stream_s`, which must be
shorter than the request timeout of the server in front (Serve counts a whole stream as one request). While the control
service restarts the stream stays open; the log is durable, so nothing is lost in between.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass

from fastapi.responses import StreamingResponse

from natwork_ray.audit.log import AuditEntry
from natwork_ray.control.api import ControlApi
from natwork_ray.errors import (
    ConflictError,
    InputError,
    PreconditionError,
    StoreError,
    TimedOutError,
)

_BATCH = 500
_DIGITS = 18  # more cannot be the number of an entry


@dataclass(frozen=True)
class StreamLimits:
    """Bounds of the event stream. Times in seconds.

    `poll_s` lies between two looks at the log, `heartbeat_s` between two comments on a quiet stream, `stream_s` is the
    life of one stream, `streams` how many may be open at a time (each holds a place of Serve's ongoing requests).
    """

    poll_s: float = 0.5
    heartbeat_s: float = 10.0
    stream_s: float = 50.0
    streams: int = 32


class EventStream:
    """Opens streams over the audit log and counts them."""

    def __init__(self, control_provider: Callable[[], Awaitable[ControlApi]], limits: StreamLimits) -> None:
        self._provider = control_provider
        self._limits = limits
        self._open = 0

    async def respond(self, first: int | None, *, follow: bool) -> StreamingResponse:
        """A response that streams from entry `first` (None: from the present end) on.

        Raises:
            ConflictError: `first` lies beyond the end of the log.
            TimedOutError: too many streams are open, or the control service does not answer.
        """
        if self._open >= self._limits.streams:
            raise TimedOutError(
                f"{self._open} event streams are open, as many as allowed", hint="close one, or read /api/v1/audit"
            )
        size = await (await self._provider()).audit_size()
        if first is not None and first > size:
            raise ConflictError(
                f"there is no entry {first - 1} to go on from, the log has {size}",
                hint="the log is shorter than you knew it: compare checkpoints at /api/v1/audit/consistency",
            )
        start = size if first is None else first
        return StreamingResponse(
            self.events(start, until=None if follow else size),
            media_type="text/event-stream",
            headers={"X-Accel-Buffering": "no"},
        )

    async def events(self, seq: int, *, until: int | None) -> AsyncGenerator[bytes, None]:
        """Frames from entry `seq` on; up to `until` (exclusive), or following the log."""
        self._open += 1
        try:
            loop = asyncio.get_running_loop()
            now = loop.time()
            end, heartbeat = now + self._limits.stream_s, now + self._limits.heartbeat_s
            yield b"retry: 1000\n\n"
            while until is None or seq < until:
                batch = _BATCH if until is None else min(_BATCH, until - seq)
                try:
                    entries = await (await self._provider()).audit_entries(seq, batch)
                except (TimedOutError, StoreError, PreconditionError):
                    entries = ()
                    yield b": the control service does not answer\n\n"
                for entry in entries:
                    yield _frame(entry)
                seq += len(entries)
                if loop.time() >= end:
                    return
                if entries:
                    continue
                if loop.time() >= heartbeat:
                    heartbeat = loop.time() + self._limits.heartbeat_s
                    yield b": quiet\n\n"
                await asyncio.sleep(self._limits.poll_s)
        finally:
            self._open -= 1


def resume_point(start: int | None, last_event_id: str | None) -> int | None:
    """The first entry to send. A browser that reconnects repeats `start`, so what it saw last outranks it.

    Raises:
        InputError: `last_event_id` is not the number of an entry.
    """
    if last_event_id is None or last_event_id == "":
        return start
    if not (last_event_id.isascii() and last_event_id.isdigit() and len(last_event_id) <= _DIGITS):
        raise InputError(
            f"Last-Event-ID {last_event_id[:40]!r} is not the number of an entry",
            hint="send back the id of the last event that you received",
        )
    return int(last_event_id) + 1


def _frame(entry: AuditEntry) -> bytes:
    # A line is ASCII JSON without newlines, so one data field holds it byte for byte.
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (entry.seq, entry.kind.encode("ascii"), entry.line)
