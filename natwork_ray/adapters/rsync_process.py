"""One rsync that is under way: what it says per file, how it ends.

rsync tells by line what crossed the link for each file (`--out-format`), as soon as the file has left; so what it has
sent is known before it has ended, which takes it 50 ms more: its parts look for each other's end every 20 ms only.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
from collections.abc import Mapping, Sequence

from natwork_ray.errors import ActionError, InputError

FORMAT = ("--out-format=%b:%i", "--outbuf=L", "--no-human-readable")
# Bytes of the file and all that belongs to it, then rsync's itemised change: direction and kind first.
_LINE = re.compile(r"(\d{1,19}):[<>ch.*].{1,10}")
_MAX_ERROR = 65_536
# By rsync's manual, section EXIT VALUES.
VANISHED = 24
_REASONS = {
    10: "socket error",
    11: "file error",
    12: "the connection broke",
    20: "it was interrupted",
    23: "some files could not be sent",
    VANISHED: "files vanished while they were sent",
    30: "time-out",
    255: "ssh failed",
}


class RsyncProcess:
    """A running rsync. `finish` is awaited or `kill` is called: nothing is left behind.

    Attributes:
        sent_bytes: what has crossed the link towards the target so far.
    """

    def __init__(self, process: asyncio.subprocess.Process, target: str, *, live: bool = False) -> None:
        self._process = process
        self._live = live
        self._target = target
        self.sent_bytes = 0
        self._task = asyncio.create_task(self._follow())

    @classmethod
    async def start(
        cls, argv: Sequence[str], *, env: Mapping[str, str], target: str, live: bool = False
    ) -> RsyncProcess:
        """Start it; `argv` contains FORMAT. `live`: somebody writes to the source, so that files may vanish."""
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            *argv, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe, env=dict(env), start_new_session=True
        )
        return cls(process, target, live=live)

    @property
    def ending(self) -> asyncio.Task[None]:
        """Done when rsync has ended; raises what `finish` raises."""
        return self._task

    async def finish(self) -> None:
        """Wait for its end.

        Raises:
            ActionError: it failed; the message holds its own first words.
            InputError: it said something that rsync does not say.
        """
        try:
            await asyncio.shield(self._task)
        except asyncio.CancelledError:
            await self.kill()
            raise

    async def kill(self) -> None:
        """End it now, with all that it started: its ssh holds the same pipes, and may wait on a link that is cut."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        with contextlib.suppress(ActionError, InputError):
            await self._task

    async def _follow(self) -> None:
        errors = asyncio.create_task(_read_bounded(self._process.stderr))
        problem: InputError | None = None
        while self._process.stdout is not None and (line := await self._process.stdout.readline()):
            match = _LINE.fullmatch(line.decode("utf-8", errors="replace").rstrip("\n"))
            if match is None:
                problem = problem or InputError(
                    f"rsync says {line[:80].decode(errors='replace').strip()!r}", hint="rsync 3.2 or newer is needed"
                )
                continue
            self.sent_bytes += int(match[1])
        words = await errors
        status = await self._process.wait()
        if status != 0 and not (status == VANISHED and self._live):
            reason = _REASONS.get(status, f"exit status {status}")
            said = words.splitlines()[0] if words else "no word of why"
            raise ActionError(f"rsync to {self._target}: {reason}: {said}", hint="natwork testbed status")
        if problem is not None:
            raise problem


async def _read_bounded(stream: asyncio.StreamReader | None) -> str:
    """The beginning of what is said; the rest is read and dropped, so that nobody waits for a full pipe."""
    kept = b""
    while stream is not None and (data := await stream.read(_MAX_ERROR)):
        kept = (kept + data)[:_MAX_ERROR]
    return kept.decode("utf-8", errors="replace").strip()
