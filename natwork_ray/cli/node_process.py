"""A LiMi node in a process of its own, for the fault campaign: what is to be killed has to be a process.

The node's server listens twice: on its node's own address, inside the node's network namespace, where the other nodes
reach it over the bridge (a cut link cuts this as well); and on a Unix socket in the node's folder, for the operator.
Both carry JSON lines, the same requests and answers:

    {"id": 1, "do": "perform", "body": "<step>"}     ->  {"id": 1, "kind": "done", "body": "<report>"}
    {"id": 2, "do": "drive", "body": "<started>"}    ->  {"id": 2, "kind": "progress", ...}, ...

Rules kept: over the bridge a connection begins with the campaign's token (a file that only root reads), else it is
closed; what comes in is parsed strictly and bounded; a node that does not answer, or whose connection breaks, is
"nobody knows" (`TimedOutError`) to the driver, an error that it reports is a failure without effect.

Left out: encryption between agents (Ray's own TLS does that on a cluster), discovery, supervision: the campaign itself
starts a killed node again, as Ray does with an actor.

    python -m natwork_ray.cli.node_process STATE_DIR node-0
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import hmac
import signal
import socket
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from natwork_ray.adapters import testbed
from natwork_ray.adapters.testbed_layout import NodeLayout
from natwork_ray.adapters.testbed_network import NETNS
from natwork_ray.adapters.testbed_requirements import toolchain
from natwork_ray.adapters.testbed_state import TestbedRecord
from natwork_ray.adapters.testbed_world import build_node, build_ports
from natwork_ray.domain.migrations import MigrationProgress, MigrationRecord
from natwork_ray.domain.runtime import ContainerStatus
from natwork_ray.domain.values import decode, encode, value
from natwork_ray.errors import ActionError, InputError, NatworkError, TimedOutError, UsageError
from natwork_ray.limi.driver import drive, recover, unfinished
from natwork_ray.limi.retries import Timeouts
from natwork_ray.limi.steps import MigrationStarted, Step, StepReport

MAX_LINE = 1_048_576
TOKEN = "agents.token"  # noqa: S105 - a file's name
PORT = 2223
_CLONE_NEWNET = 0x40000000
_CONNECT_S = 3.0
# A peer that acknowledges nothing for so long is gone: TCP alone would wait for a quarter of an hour.
_SILENCE_MS = 4000


@value
class Request:
    """What is asked of a node; `body` is the JSON text of the value that goes with it."""

    id: int
    do: str
    body: str = ""


@value
class Answer:
    """What it says: progress (any number of them), then done or failed."""

    id: int
    kind: str
    body: str = ""
    hint: str = ""
    lost: bool = False


@value
class Standing:
    """One container on one node, as the node sees it: the runtime's word and the bridge's."""

    status: ContainerStatus
    attached: bool
    open_keys: tuple[str, ...]


def socket_path(layout: NodeLayout) -> Path:
    """Where the operator reaches the node."""
    return layout.folder / "agent.sock"


def inside(netns: str, action: Callable[[], socket.socket]) -> socket.socket:
    """Make a socket in a network namespace: where it was made is where it stays, whoever uses it.

    Raises:
        OSError: there is no such namespace, or the action raised it.
    """

    def work() -> socket.socket:
        with (NETNS / netns).open("rb") as stream:
            if ctypes.CDLL(None, use_errno=True).setns(stream.fileno(), _CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), f"cannot enter {netns}")
        return action()

    # A namespace belongs to a thread: one that ends with the action takes it along.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(work).result()


def _patient(connection: socket.socket) -> socket.socket:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _SILENCE_MS)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, number in ((socket.TCP_KEEPIDLE, 1), (socket.TCP_KEEPINTVL, 1), (socket.TCP_KEEPCNT, 3)):
        connection.setsockopt(socket.IPPROTO_TCP, option, number)
    return connection


class NodeCalls:
    """The calling side: one connection to a node, opened when it is needed and again after it broke."""

    def __init__(self, name: str, connect: Callable[[], socket.socket], token: str) -> None:
        self._name, self._connect, self._token = name, connect, token
        self._writer: asyncio.StreamWriter | None = None
        self._reader: asyncio.Task[None] | None = None
        self._waiting: dict[int, tuple[asyncio.Future[Answer], Callable[[MigrationProgress], None] | None]] = {}
        self._number = 0
        self._opening = asyncio.Lock()

    async def perform(self, step: Step) -> StepReport:
        """Have a step done; see `natwork_ray.limi.driver.Performer`."""
        return decode(StepReport, await self.call("perform", encode(step)))

    async def call(
        self, do: str, body: bytes = b"", progress: Callable[[MigrationProgress], None] | None = None
    ) -> str:
        """Ask, and wait for the answer as long as the connection holds.

        Raises:
            TimedOutError: the node is gone; nobody knows what it did.
            ActionError: the node says that it failed.
        """
        self._number += 1
        number = self._number
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting[number] = (future, progress)
        try:
            await self._open()
            if self._writer is None:
                raise TimedOutError(f"no connection to {self._name}", hint="ask again")
            self._writer.write(encode(Request(id=number, do=do, body=body.decode())) + b"\n")
            await self._writer.drain()
            answer = await future
        except (OSError, TimeoutError) as error:
            raise TimedOutError(f"{self._name} does not answer: {error}", hint="ask again") from error
        finally:
            self._waiting.pop(number, None)
        if answer.kind == "done":
            return answer.body
        kind = TimedOutError if answer.lost else ActionError
        raise kind(answer.body, hint=answer.hint)

    async def close(self) -> None:
        """Break the connection; calls under way end with `TimedOutError`."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        if self._reader is not None:
            self._reader.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reader
            self._reader = None

    async def _open(self) -> None:
        async with self._opening:
            if self._writer is not None and self._reader is not None and not self._reader.done():
                return
            await self.close()
            connection = await asyncio.to_thread(self._connect)
            reader, self._writer = await asyncio.open_connection(sock=connection, limit=MAX_LINE)
            self._writer.write(self._token.encode() + b"\n")
            self._reader = asyncio.create_task(self._read(reader))

    async def _read(self, reader: asyncio.StreamReader) -> None:
        try:
            while line := await reader.readline():
                answer: Answer = decode(Answer, line)
                future, progress = self._waiting.get(answer.id, (None, None))
                if answer.kind == "progress" and progress is not None:
                    progress(decode(MigrationProgress, answer.body))
                elif answer.kind != "progress" and future is not None and not future.done():
                    future.set_result(answer)
        except (OSError, ValueError, InputError):
            pass  # broken in either sense: whoever waits is told below
        finally:
            for future, _ in self._waiting.values():
                if not future.done():
                    future.set_exception(TimedOutError(f"the connection to {self._name} broke", hint="ask again"))


def calls_of(record: TestbedRecord, node: str, *, via: str | None = None) -> NodeCalls:
    """Calls to a node: over the bridge out of the namespace of node `via`, or as the operator."""
    layout = record.node(node)
    token = (record.folder / TOKEN).read_text(encoding="ascii").strip()

    def connect() -> socket.socket:
        if via is None:
            connection = socket.socket(socket.AF_UNIX)
            connection.settimeout(_CONNECT_S)
            try:
                connection.connect(str(socket_path(layout)))
            except OSError:
                connection.close()
                raise
        else:
            address = (layout.address, PORT)
            connection = inside(record.node(via).netns, lambda: socket.create_connection(address, timeout=_CONNECT_S))
            _patient(connection)
        connection.setblocking(False)
        return connection

    return NodeCalls(node, connect, token)


class NodeProcess:
    """One node: adapters, LiMi node, the migrations that it coordinates as source."""

    def __init__(self, record: TestbedRecord, name: str) -> None:
        tools, layout = toolchain(), record.node(name)
        self._layout = layout
        self._token = (record.folder / TOKEN).read_text(encoding="ascii").strip()
        self._ports = build_ports(record, name, tools)
        self._node = build_node(self._ports)
        self._others = {
            node: calls_of(record, node, via=name) for node in (n.name for n in record.nodes) if node != name
        }
        # Seconds, not minutes: a campaign waits for what is lost.
        self._timeouts = Timeouts(transfer_s=60.0, pages_s=60.0, dump_s=30.0, restore_s=30.0, withdraw_s=10.0)
        self._tasks: set[asyncio.Task[None]] = set()
        self._callers: dict[asyncio.Task[Any], asyncio.StreamWriter] = {}

    async def serve(self, until: asyncio.Event) -> None:
        """Answer until told to end."""
        address = (self._layout.address, PORT)
        far = inside(self._layout.netns, lambda: socket.create_server(address, reuse_port=False))
        path = socket_path(self._layout)
        path.unlink(missing_ok=True)
        servers = [
            await asyncio.start_server(self._accept, sock=far, limit=MAX_LINE),
            await asyncio.start_unix_server(self._accept, str(path), limit=MAX_LINE),
        ]
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await until.wait()
        for server in servers:
            server.close()
        for task in tuple(self._tasks):
            task.cancel()
        for writer in self._callers.values():
            writer.close()  # who waits for a line gets an end
        if self._callers:
            await asyncio.wait(tuple(self._callers), timeout=_CONNECT_S)
        await self._node.close()
        for other in self._others.values():
            await other.close()
        await self._ports.shut()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        caller = asyncio.current_task()
        if caller is not None:
            self._callers[caller] = writer
            caller.add_done_callback(lambda task: self._callers.pop(task, None))
        connection = writer.get_extra_info("socket")
        if connection is not None and connection.family == socket.AF_INET:
            _patient(connection)
        try:
            token = await reader.readline()
            if not hmac.compare_digest(token.strip(), self._token.encode()):
                return
            while line := await reader.readline():
                task = asyncio.create_task(self._answer(decode(Request, line), writer))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        except (OSError, ValueError, InputError):
            pass  # a caller that speaks nonsense or goes away is a caller less
        finally:
            writer.close()

    async def _answer(self, request: Request, writer: asyncio.StreamWriter) -> None:
        def say(answer: Answer) -> None:
            if not writer.is_closing():
                writer.write(encode(answer) + b"\n")

        def told(progress: MigrationProgress) -> None:
            say(Answer(id=request.id, kind="progress", body=encode(progress).decode()))

        try:
            body = await self._do(request, told)
            say(Answer(id=request.id, kind="done", body=body.decode()))
        except NatworkError as error:
            lost = isinstance(error, TimedOutError)
            say(Answer(id=request.id, kind="failed", body=error.what, hint=error.hint, lost=lost))
        with contextlib.suppress(OSError):
            await writer.drain()

    async def _do(self, request: Request, told: Callable[[MigrationProgress], None]) -> bytes:
        match request.do:
            case "perform":
                return encode(await self._node.perform(decode(Step, request.body)))
            case "drive":
                started: MigrationStarted = decode(MigrationStarted, request.body)
                return encode(await drive(started, progress=told, **self._sides(started)))
            case "recover":
                settled = [
                    await recover(started.key, progress=told, **self._sides(started))
                    for started in unfinished(self._node.journal)
                ]
                return encode(tuple(settled), tuple[MigrationRecord, ...])
            case "standing":
                status = await self._ports.runtime.status(request.body)
                attached = await self._ports.bridge.attached(request.body)
                keys = tuple(started.key for started in unfinished(self._node.journal))
                return encode(Standing(status=status, attached=attached, open_keys=keys))
            case _:
                raise UsageError(f"a node cannot {request.do!r}", hint="perform, drive, recover, standing")

    def _sides(self, started: MigrationStarted) -> dict[str, Any]:
        return {
            "source": self._node,
            "target": self._others[started.target],
            "journal": self._node.journal,
            "clock": self._node.clock,
            "timeouts": self._timeouts,
        }


async def _main(state_dir: Path, node: str) -> None:
    until = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, until.set)
    await NodeProcess(testbed.current(state_dir), node).serve(until)


if __name__ == "__main__":
    asyncio.run(_main(Path(sys.argv[1]), sys.argv[2]))
