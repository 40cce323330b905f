"""The dynamic containerised workload: what it burns is set by level, what it answers proves that it lives (D3.3, 2.1).

It runs inside a container with the standard library alone:

    python3 -I -S service.py '{"memory_bytes": 67108864, "dirty_bytes_per_s": 1048576, ...}'

One thread answers, one burns. On port 7007 each line `n` is answered by `n count instance`: the count lives in memory
and grows by one with every request, the instance is drawn once at the start. A client that sees its own numbers come
back, the count without a gap and one instance, knows that nothing was lost, answered twice, or started afresh. On port
8080 the same goes by HTTP/1.1 (`GET /` with keep-alive), as JSON.

The burning thread ticks a hundred times a second. Whatever takes long in it (hashing, writing) lets other threads run,
so that answers do not wait for it; it makes up for time that it lost, up to a tenth of a second, so that a frozen
container does not come back with a burst.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import secrets
import socket
import sys
import threading
import time
from typing import Any

ECHO_PORT, HTTP_PORT = 7007, 8080
PAGE = 4096
_TICK_S, _CATCH_UP_S = 0.01, 0.1
_BLOCK = 1 << 20
_DATAGRAM = 1400
_MAX_LINE = 8192
_MAX_HEADERS = 100

LOADS = {
    "memory_bytes": 0,
    "working_set_bytes": 0,
    "dirty_bytes_per_s": 0,
    "cpu_cores": 0.0,
    "storage_bytes_per_s": 0,
    "storage_file_bytes": 0,
    "network_bytes_per_s": 0,
}
FOLDER = "/data"


class Burner:
    """Spends processor, memory, storage and network at the given rates."""

    def __init__(self, loads: dict[str, float], *, folder: str = FOLDER, peer: str = "") -> None:
        self.loads = {**LOADS, **loads}
        self.memory = bytearray(int(self.loads["memory_bytes"]))
        for start in range(0, len(self.memory), _BLOCK):
            end = min(start + _BLOCK, len(self.memory))
            self.memory[start:end] = os.urandom(end - start)  # pages of zeroes would not be dumped
        self._pages = min(int(self.loads["working_set_bytes"]), len(self.memory)) // PAGE
        self._page = 0
        self._offset = 0
        self._owed = dict.fromkeys(("dirty", "storage", "network"), 0.0)
        self._buffer = os.urandom(65_536)
        self._file = -1
        if self.loads["storage_bytes_per_s"] > 0:
            self._file = os.open(os.path.join(folder, "ring"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)  # noqa: PTH118
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._peer = (peer, 9)  # discard

    def tick(self, elapsed_s: float) -> None:
        """What is due after `elapsed_s` seconds, all but the processor time."""
        for name, rate in (("dirty", "dirty_bytes_per_s"), ("storage", "storage_bytes_per_s"),
                           ("network", "network_bytes_per_s")):  # fmt: skip
            self._owed[name] += self.loads[rate] * elapsed_s
        self._dirty()
        self._store()
        self._talk()

    def burn(self, until_s: float) -> None:
        """Keep one core busy until then."""
        while time.monotonic() < until_s:
            hashlib.sha256(self._buffer).digest()

    def close(self) -> None:
        """Let go of file and socket."""
        self._socket.close()
        if self._file >= 0:
            os.close(self._file)

    def _dirty(self) -> None:
        due = min(int(self._owed["dirty"] / PAGE), self._pages)
        self._owed["dirty"] -= due * PAGE
        while due > 0:
            # One byte per page, page after page: every page is written once before any is written again.
            count = min(due, self._pages - self._page)
            start = self._page * PAGE
            self.memory[start : start + count * PAGE : PAGE] = os.urandom(count)
            self._page = (self._page + count) % self._pages
            due -= count

    def _store(self) -> None:
        ring = max(int(self.loads["storage_file_bytes"]), len(self._buffer))
        while self._file >= 0 and self._owed["storage"] >= len(self._buffer):
            os.pwrite(self._file, self._buffer, self._offset)
            self._offset = (self._offset + len(self._buffer)) % ring
            self._owed["storage"] -= len(self._buffer)

    def _talk(self) -> None:
        while self._peer[0] and self._owed["network"] >= _DATAGRAM:
            self._owed["network"] -= _DATAGRAM
            try:
                self._socket.sendto(self._buffer[:_DATAGRAM], self._peer)
            except OSError:
                self._owed["network"] = 0.0  # nobody there at the moment: this is load, not data
                return

    def run(self, stop: threading.Event) -> None:
        """Until told to stop."""
        last = time.monotonic()
        while not stop.is_set():
            now = time.monotonic()
            elapsed, last = min(now - last, _CATCH_UP_S), now
            self.tick(elapsed)
            self.burn(now + self.loads["cpu_cores"] * _TICK_S)
            stop.wait(max(now + _TICK_S - time.monotonic(), 0.0))


class Service:
    """Counts and answers."""

    def __init__(self) -> None:
        self.instance = secrets.token_hex(8)
        self.count = 0

    def next(self) -> int:
        """The number of this request."""
        self.count += 1
        return self.count

    async def echo(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One session of numbered lines."""
        try:
            while line := await reader.readline():
                writer.write(b"%s %d %s\n" % (line.strip()[:20], self.next(), self.instance.encode()))
                await writer.drain()
        except (ValueError, ConnectionError):
            return  # a line without end, or a client that went away
        finally:
            writer.close()

    async def http(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection of HTTP/1.1: as many GETs as the client likes."""
        try:
            while line := await reader.readline():
                words = line.split()
                keep = len(words) == 3 and words[2] == b"HTTP/1.1"
                for _ in range(_MAX_HEADERS):
                    header = (await reader.readline()).strip().lower()
                    if header == b"connection: close":
                        keep = False
                    if not header:
                        break
                else:
                    return
                if len(words) != 3 or words[0] != b"GET":
                    writer.write(b"HTTP/1.1 405 Method Not Allowed\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                    return
                body = json.dumps({"count": self.next(), "instance": self.instance}).encode()
                head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n" % len(body)
                writer.write(head + (b"\r\n" if keep else b"Connection: close\r\n\r\n") + body)
                await writer.drain()
                if not keep:
                    return
        except (ValueError, ConnectionError):
            return
        finally:
            writer.close()


async def serve(service: Service, host: str, echo_port: int, http_port: int) -> None:
    """Answer on both ports until cancelled."""
    echo = await asyncio.start_server(service.echo, host, echo_port, limit=_MAX_LINE)
    http = await asyncio.start_server(service.http, host, http_port, limit=_MAX_LINE)
    async with echo, http:
        await asyncio.gather(echo.serve_forever(), http.serve_forever())


def main(arguments: list[str]) -> None:
    """Burn and serve until killed."""
    told: dict[str, Any] = json.loads(arguments[0]) if arguments else {}
    peer = str(told.pop("peer", ""))
    burner = Burner({name: float(told[name]) for name in LOADS if name in told}, peer=peer)
    threading.Thread(target=burner.run, args=(threading.Event(),), daemon=True).start()
    asyncio.run(serve(Service(), "0.0.0.0", ECHO_PORT, HTTP_PORT))  # noqa: S104 - the container has one address


if __name__ == "__main__":
    main(sys.argv[1:])
