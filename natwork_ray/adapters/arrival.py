"""The program at the far end of an SSH way: says what has arrived, by digest (D3.3 section 2.1).

It runs on the target node in the session that holds the way open, with the standard library alone, and ends when the
way does. Requests and answers are JSON, one per line; requests are served at the same time, so an answer names its
request:

    {"id": 1, "do": "digest", "folder": "/.../images/k1/final"}   ->   {"id": 1, "size": 67183864, "digest": "5f..."}
    {"id": 5, "do": "await", "folder": ..., "size": 67183864, "digest": "5f..."}   ->   as `digest`, once both are so
    {"id": 6, "do": "settle", "of": 5}   ->   {"id": 6}: nothing more will come, say how it is now
    {"id": 2, "do": "take", "bytes": 1048576} and as many bytes   ->   {"id": 2}            (measures the way)
    {"id": 4, "do": "make", "folder": ...}   ->   {"id": 4}

Rules kept: only folders below the roots given as arguments; nothing is deleted; a request is at most 64 KiB; what it
cannot do, it says (`{"id": 1, "error": "..."}`). The digest is a SHA-256 over every entry's name, kind, owner,
permissions, size and content; the content of a large file is hashed in pieces by several threads. Times are left out:
rsync may restore them later. Folders of the top level that are named in `skip` count, but not what is in them.

`await` exists because rsync looks only every 20 ms, three times over, whether its own parts have ended: what it carried
is there long before it says so. The size is compared first, so that nothing is hashed that cannot be whole yet.

The same `digest` is computed on the source: two trees with one digest hold the same.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import sys
import threading
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

MAX_LINE = 65_536
_PIECE = 2 * 2**20
_THREADS = min(4, os.cpu_count() or 1)
_REQUESTS = 16  # at the same time
_LOOK_S = 0.002
_KINDS = {stat.S_IFREG: "f", stat.S_IFDIR: "d", stat.S_IFLNK: "l", stat.S_IFCHR: "c", stat.S_IFBLK: "b",
          stat.S_IFIFO: "p", stat.S_IFSOCK: "s"}  # fmt: skip


def digest(folder: Path, skip: Collection[str] = ()) -> tuple[int, str]:
    """Size of all regular files below a folder in bytes, and the digest (hexadecimal) of everything below it.

    Raises:
        OSError: something cannot be read, or changed while it was.
    """
    root = os.fspath(folder)
    entries = sorted(_entries(root, "", skip), key=lambda entry: entry[0])
    total = 0
    with ThreadPoolExecutor(_THREADS) as pool:
        pieces = []
        for name, status in entries:
            if stat.S_ISREG(status.st_mode):
                total += status.st_size
                path = os.path.join(root, name)  # noqa: PTH118 - millions of entries would pay for Path
                offsets = range(0, status.st_size, _PIECE)
                pieces.append([pool.submit(_piece, path, o, min(_PIECE, status.st_size - o)) for o in offsets])
            else:
                pieces.append([])
        whole = hashlib.sha256()
        for (name, status), parts in zip(entries, pieces, strict=True):
            kind = _KINDS[stat.S_IFMT(status.st_mode)]
            size = status.st_size if kind == "f" else 0
            device = status.st_rdev if kind in "bc" else 0
            link = os.readlink(os.path.join(root, name)) if kind == "l" else ""  # noqa: PTH115, PTH118
            mode = 0 if kind == "l" else stat.S_IMODE(status.st_mode)
            line = [name, kind, mode, status.st_uid, status.st_gid, size, device, link]
            whole.update(json.dumps(line).encode())
            for part in parts:
                whole.update(part.result())
    return total, whole.hexdigest()


def total_size(folder: Path, skip: Collection[str] = ()) -> int:
    """Size of all regular files below a folder in bytes."""
    return sum(status.st_size for _, status in _entries(os.fspath(folder), "", skip) if stat.S_ISREG(status.st_mode))


def _entries(root: str, inside: str, skip: Collection[str] = ()) -> Iterator[tuple[str, os.stat_result]]:
    with os.scandir(os.path.join(root, inside)) as found:  # noqa: PTH118
        for entry in found:
            name = f"{inside}/{entry.name}" if inside else entry.name
            status = entry.stat(follow_symlinks=False)
            yield name, status
            if stat.S_ISDIR(status.st_mode) and name not in skip:
                yield from _entries(root, name)


def _piece(path: str, offset: int, length: int) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        data = os.pread(descriptor, length, offset)
    finally:
        os.close(descriptor)
    if len(data) != length:
        raise OSError(f"{path} changed while it was read")
    return hashlib.sha256(data).digest()


class Arrivals:
    """Serves one way: requests in, answers out."""

    def __init__(self, roots: list[Path], requests: BinaryIO, answers: BinaryIO) -> None:
        self._roots = [root.resolve() for root in roots]
        self._requests = requests
        self._answers = answers
        self._lock = threading.Lock()
        self._settled: dict[int, threading.Event] = {}

    def serve(self) -> None:
        """Until the way ends."""
        try:
            with ThreadPoolExecutor(_REQUESTS) as pool:
                self._say({"id": 0})
                while True:
                    line = self._requests.readline(MAX_LINE + 1)
                    if not line.endswith(b"\n"):
                        break  # the end of the way, or no request of ours: nothing after it could be trusted
                    request = json.loads(line)
                    if request["do"] == "take":
                        self._take(int(request["bytes"]))
                        self._say({"id": request["id"]})
                    elif request["do"] == "settle":
                        self._settled.setdefault(int(request["of"]), threading.Event()).set()
                        self._say({"id": request["id"]})
                    else:
                        if request["do"] == "await":
                            self._settled.setdefault(int(request["id"]), threading.Event())
                        pool.submit(self._serve, request)
                for event in tuple(self._settled.values()):
                    event.set()
        except (ValueError, KeyError, TypeError, BrokenPipeError):
            os._exit(1)  # no request of ours, or nobody listens: threads that wait must not keep this process

    def _serve(self, request: dict[str, Any]) -> None:
        answer: dict[str, Any] = {"id": request["id"]}
        try:
            folder = self._inside(request["folder"])
            if request["do"] == "digest":
                answer["size"], answer["digest"] = digest(folder, request.get("skip", ()))
            elif request["do"] == "await":
                answer["size"], answer["digest"] = self._await(folder, request)
            elif request["do"] == "make":
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            else:
                answer["error"] = f"{request['do']}: no such request"
        except (OSError, ValueError, KeyError, TypeError) as error:
            answer["error"] = f"{type(error).__name__}: {error}"
        self._say(answer)

    def _await(self, folder: Path, request: dict[str, Any]) -> tuple[int, str]:
        settled, wanted = self._settled[request["id"]], (request["size"], request["digest"])
        skip = request.get("skip", ())
        try:
            while not settled.wait(_LOOK_S):
                try:
                    found = digest(folder, skip) if total_size(folder, skip) == wanted[0] else (0, "")
                except OSError:
                    continue  # a file was renamed while it was looked at
                if found == wanted:
                    return found
            return digest(folder, skip)
        finally:
            del self._settled[request["id"]]

    def _inside(self, folder: str) -> Path:
        path = Path(folder).resolve()
        if not any(root in path.parents for root in self._roots):
            raise ValueError(f"{folder} is not below a folder of this node")
        return path

    def _take(self, size: int) -> None:
        while size > 0:
            data = self._requests.read(min(size, 1 << 20))
            if not data:
                return
            size -= len(data)

    def _say(self, answer: dict[str, Any]) -> None:
        with self._lock:
            self._answers.write(json.dumps(answer).encode() + b"\n")
            self._answers.flush()


if __name__ == "__main__":
    Arrivals([Path(root) for root in sys.argv[1:]], sys.stdin.buffer, sys.stdout.buffer).serve()
