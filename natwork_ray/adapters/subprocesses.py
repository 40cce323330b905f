"""Programs started from an event loop: bounded, awaited through pidfds, and found again when their starter is dead.

Rules kept: argument vectors and no shell; a plain environment; output goes to a file, so that a container which
inherits it holds nobody up; every program is the head of a session of its own, and a call that times out or is
cancelled kills that session before it returns. A child is waited for by descriptor and reaped: no threads, no zombies.
Nothing here is killed when the loop ends: a page server has to outlive the agent that started it. Instead, what is
started carries a marker in its environment, and its session is noted, by which `family` finds it after the agent's
death, too.

    >>> asyncio.run(SubprocessRunner().run(["true"], env={}, timeout_s=5.0)).status
    0
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Protocol

from natwork_ray.adapters.testbed_state import OwnProcess, started_ticks
from natwork_ray.adapters.testbed_traces import kill
from natwork_ray.domain.values import decode, encode, value
from natwork_ray.errors import ActionError, InputError, PreconditionError, TimedOutError

MARKER = "NATWORK_MIGRATION"
MAX_OUTPUT_BYTES = 65_536
PROC = Path("/proc")
_GONE_S, _GENTLE_S = 10.0, 5.0


@value
class Finished:
    """How a program ended: exit status (negative: the signal that killed it) and the first 64 KiB of what it said."""

    status: int
    text: str


class Child(Protocol):
    """A program that goes on while others work."""

    @property
    def pid(self) -> int:
        """Its process number."""
        ...

    async def wait(self) -> int:
        """Its exit status, once it has ended. Can be asked by several, and again."""
        ...

    async def kill(self, *, alone: bool = False) -> None:
        """End it with all that it has started, or it `alone`, and wait until it is gone. Harmless when it has ended."""
        ...


class Runner(Protocol):
    """Who starts programs."""

    async def run(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        timeout_s: float,
        stdin: bytes = b"",
        quiet: bool = False,
        alone: bool = False,
    ) -> Finished:
        """Run a program to its end. `quiet`: its streams are /dev/null, as a container's have to be that it leaves.

        When it takes too long, or the caller is cancelled, it is killed with all that it has started; `alone`: only it,
        and the caller sees to the rest.

        Raises:
            TimedOutError: it took too long.
            PreconditionError: it cannot be started.
        """
        ...

    def start(
        self, argv: Sequence[str], *, env: Mapping[str, str], said: Path, pass_fds: tuple[int, ...] = ()
    ) -> Child:
        """Start a program that goes on; what it says is written to the file `said`.

        Raises:
            PreconditionError: it cannot be started.
        """
        ...


class ChildProcess:
    """`Child` of this process. `note`: the file that tells of its session; it goes when the child ends well."""

    def __init__(self, process: subprocess.Popen[bytes], note: Path | None = None) -> None:
        self._process = process
        self._note = note

    @property
    def pid(self) -> int:
        """Its process number."""
        return self._process.pid

    async def wait(self) -> int:
        """Its exit status; the zombie is reaped."""
        if self._process.returncode is None:
            await ended(self._process.pid)
        status = self._process.wait()
        if status == 0 and self._note is not None:
            self._note.unlink(missing_ok=True)
        return status

    async def kill(self, *, alone: bool = False) -> None:
        """SIGKILL, then reap."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                (os.kill if alone else os.killpg)(self._process.pid, signal.SIGKILL)
            # The kernel ends it in a moment; a second cancellation must not leave a zombie.
            await asyncio.shield(self.wait())


class SubprocessRunner:
    """`Runner` of this machine. In the folder `notes` it writes which sessions it has started under a marker."""

    def __init__(self, notes: Path | None = None) -> None:
        self._notes = notes

    async def run(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        timeout_s: float,
        stdin: bytes = b"",
        quiet: bool = False,
        alone: bool = False,
    ) -> Finished:
        """See `Runner`."""
        with tempfile.TemporaryFile() as source, tempfile.TemporaryFile() as output:
            source.write(stdin)
            source.seek(0)
            streams = subprocess.DEVNULL if quiet else output
            child = self._popen(argv, env, stdin=source if stdin else subprocess.DEVNULL, out=streams)
            try:
                status = await asyncio.wait_for(child.wait(), timeout_s)
            except TimeoutError:
                await child.kill(alone=alone)
                raise TimedOutError(
                    f"{' '.join(argv[:3])} did not end within {timeout_s:g} s", hint="it was killed; look at the load"
                ) from None
            except asyncio.CancelledError:
                await child.kill(alone=alone)
                raise
            output.seek(0)
            text = output.read(MAX_OUTPUT_BYTES).decode("utf-8", errors="replace").strip()
        return Finished(status=status, text=text)

    def start(
        self, argv: Sequence[str], *, env: Mapping[str, str], said: Path, pass_fds: tuple[int, ...] = ()
    ) -> Child:
        """See `Runner`."""
        with said.open("wb") as output:
            return self._popen(argv, env, stdin=subprocess.DEVNULL, out=output, pass_fds=pass_fds)

    def _popen(
        self,
        argv: Sequence[str],
        env: Mapping[str, str],
        *,
        stdin: int | IO[bytes],
        out: int | IO[bytes],
        pass_fds: tuple[int, ...] = (),
    ) -> ChildProcess:
        try:
            process = subprocess.Popen(
                list(argv),
                env=dict(env),
                stdin=stdin,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=pass_fds,
            )
        except OSError as error:
            raise PreconditionError(
                f"{argv[0]} cannot be started: {error.strerror}", hint="natwork doctor says what is missing"
            ) from error
        return ChildProcess(process, self._note(process.pid, env.get(MARKER, "")))

    def _note(self, pid: int, marker: str) -> Path | None:
        ticks = started_ticks(pid)
        if self._notes is None or not marker or ticks is None:
            return None
        note = OwnProcess(pid=pid, started_ticks=ticks, what=marker)
        path = self._notes / _note_name(note)
        # A full disk must not end a rollback: the marker in the environment remains.
        with contextlib.suppress(OSError):
            self._notes.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.write_bytes(encode(note))
        return path


def _settle(done: asyncio.Future[None]) -> None:
    if not done.done():
        done.set_result(None)


async def ended(pid: int) -> None:
    """Wait until a process has ended, whoever its parent is."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()
    loop.add_reader(descriptor, _settle, done)
    try:
        await done
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


@contextmanager
def status_pipe() -> Iterator[tuple[int, int]]:
    """A pipe for a program that tells when it is ready: (reading end, writing end). Close the writing end with
    `os.close` once the program has it; the reading end is closed in the end.
    """
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    try:
        yield reading, writing
    finally:
        os.close(reading)


async def told_ready(reading: int, *, timeout_s: float) -> bool:
    """Wait for the first byte (True) or the end (False: who held the other end has ended without a word).

    Raises:
        TimedOutError: neither came in time.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()
    loop.add_reader(reading, _settle, done)
    try:
        await asyncio.wait_for(done, timeout_s)
    except TimeoutError:
        raise TimedOutError(f"no sign of readiness within {timeout_s:g} s", hint="look at the load") from None
    finally:
        loop.remove_reader(reading)
    return bool(os.read(reading, 1))


def family(prefix: str, notes: Path) -> tuple[OwnProcess, ...]:
    """Living processes that were started under a marker which begins with `prefix`, with all that they started.

    A program is found by the marker in its environment, or by the note of its session: CRIU writes over its
    environment, and lives on when the runC that had started it is killed. Environments of members of the testbed's
    cgroups are not read: that of a process whose pages are fetched lazily may wait for them.
    """
    wanted = f"{MARKER}={prefix}".encode()
    ours = f"/{prefix.partition('/')[0]}/".encode()
    began = {noted.pid: noted.started_ticks for noted in _noted(prefix, notes)}
    living: dict[int, tuple[int, int]] = {}
    for entry in PROC.iterdir():
        if not entry.name.isdecimal() or int(entry.name) == os.getpid():
            continue
        pid = int(entry.name)
        ticks = started_ticks(pid)
        if ticks is None:
            continue
        try:
            session = os.getsid(pid)
            if session in began or ours in (entry / "cgroup").read_bytes():
                living[pid] = session, ticks
                continue
            variables = (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue  # it ended meanwhile, or is the kernel's
        if any(variable.startswith(wanted) for variable in variables):
            began[session] = 0  # whoever carries the marker was started in a session of ours
            living[pid] = session, ticks
        elif session != 0:
            living[pid] = session, ticks
    return tuple(
        OwnProcess(pid=pid, started_ticks=ticks, what=prefix)
        for pid, (session, ticks) in living.items()
        # Process numbers come again; whoever is older than the session is not of it.
        if session in began and ticks >= began[session]
    )


async def end_family(prefix: str, notes: Path, *, gently: bool = False) -> int:
    """Kill a family, and what it starts meanwhile; how many there were.

    `gently`: kill only who was started first, runC, and let CRIU notice that nobody listens to it any more, for up to
    five seconds. It then puts the processes that it holds in order; killed, it leaves them as they are.

    Raises:
        ActionError: one does not die.
    """
    begun, seen = time.monotonic(), set()
    while living := await asyncio.to_thread(family, prefix, notes):  # some ms, with all the machine's processes
        spared = gently and time.monotonic() < begun + _GENTLE_S
        if time.monotonic() > begun + _GENTLE_S + _GONE_S:
            raise ActionError(
                f"process {living[0].pid} of {prefix} does not die", hint=f"see /proc/{living[0].pid}/stack"
            )
        for process in living:
            seen.add(process.pid)
            if not spared or _leads(process.pid):
                kill(process)
        waiting = (asyncio.wait_for(ended(process.pid), _GENTLE_S if spared else _GONE_S) for process in living)
        await asyncio.gather(*waiting, return_exceptions=True)
    for over in _noted(prefix, notes):
        (notes / _note_name(over)).unlink(missing_ok=True)
    return len(seen)


def _leads(pid: int) -> bool:
    try:
        return os.getsid(pid) == pid
    except ProcessLookupError:
        return False


def _noted(prefix: str, notes: Path) -> list[OwnProcess]:
    found: list[OwnProcess] = []
    for path in notes.glob("*.json"):
        try:
            note: OwnProcess = decode(OwnProcess, path.read_bytes())
        except (OSError, InputError):
            continue  # just taken away; or cut off by a full disk: the marker in the environment remains
        if note.what.startswith(prefix):
            found.append(note)
    return found


def _note_name(note: OwnProcess) -> str:
    return f"{note.pid}-{note.started_ticks}.json"
