"""Files that CRIU writes and reads: statistics, logs, the cache of what the kernel can do, image sets.

Statistics are a protobuf message behind two magic numbers and a length (criu.org, "Images"; criu's
`images/stats.proto`). Only the few numbers that are wanted are read, with bounds; a schema compiler would be a
dependency for six integers.

The cache: CRIU tries out the kernel's features at every start, 45 ms here, unless it finds what an earlier start has
written to /run/criu.kdat, and it writes that only where /run is a tmpfs, since features must not survive a reboot.
Where it is none, `share_cache` has CRIU write it in a mount namespace of its own and lays a symbolic link to the copy,
which lies on a tmpfs of ours; `drop_cache` takes the link away again.

    >>> decisive_line("(00.1) ok\\nError (criu/page-pipe.c:418): page-pipe: tee: Operation not permitted\\n")
    'page-pipe: tee: Operation not permitted'
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import subprocess
from pathlib import Path
from typing import Any

from natwork_ray.domain.values import value
from natwork_ray.errors import InputError

KERNEL_CACHE = Path("/run/criu.kdat")
CACHE_NAME = "criu.kdat"
_IMG_SERVICE, _STATS = 0x55105940, 0x57093306
_MAX_STATS, _MAX_LOG, _MAX_CACHE = 65_536, 4 * 2**20, 1_048_576
_PAGE = 4096
_START_S = 10.0

_DUMP = {1: "freezing_us", 2: "frozen_us", 3: "memdump_us", 4: "memwrite_us", 7: "pages_written"}
_RESTORE = {4: "restore_us", 5: "pages_restored"}

# What stands in CRIU's log: what to do about it.
_HINTS = (
    ("No space left", "the folder of the images is full: free it, or give the testbed more memory for them"),
    ("tee:", "set fs.pipe-max-size=1073741824 and fs.pipe-user-pages-soft=0; `natwork testbed up` does"),
    ("Can't get 1:34", "this CRIU is too old for the kernel: scripts/install_testbed"),
    ("vdso", "this CRIU is too old for the kernel: scripts/install_testbed"),
    ("iptables", "install iptables: scripts/install_testbed"),
    ("Can't lock", "the container's processes are traced by somebody else"),
    ("page server", "the source's page server has ended: see the source's log"),
)


@value
class CriuTimes:
    """CRIU's own account of a dump or a restore, times in microseconds, 0 for what it does not tell."""

    freezing_us: int = 0
    frozen_us: int = 0
    memdump_us: int = 0
    memwrite_us: int = 0
    pages_written: int = 0
    restore_us: int = 0
    pages_restored: int = 0


def varint(data: bytes, at: int) -> tuple[int, int]:
    """A protobuf number that begins at a place, and the place behind it.

    Raises:
        InputError: it does not end within ten bytes, or within the data.
    """
    number = 0
    for i in range(10):
        if at + i >= len(data):
            break
        number |= (data[at + i] & 0x7F) << (7 * i)
        if not data[at + i] & 0x80:
            return number, at + i + 1
    raise InputError("a number in CRIU's file does not end", hint="the file is damaged")


def _fields(data: bytes) -> list[tuple[int, int | bytes]]:
    """(field number, integer or bytes) of a protobuf message; fields of other wire types are refused."""
    found: list[tuple[int, int | bytes]] = []
    at = 0
    while at < len(data):
        tag, at = varint(data, at)
        number, at = varint(data, at)
        if tag & 7 == 0:
            found.append((tag >> 3, number))
        elif tag & 7 == 2 and at + number <= len(data):
            found.append((tag >> 3, data[at : at + number]))
            at += number
        else:
            raise InputError(f"CRIU's statistics hold a field of wire type {tag & 7}", hint="the file is damaged")
    return found


def parse_times(data: bytes) -> CriuTimes:
    """The contents of `stats-dump` or `stats-restore`.

    Raises:
        InputError: it is neither, cut off, or too long.
    """
    if len(data) > _MAX_STATS or len(data) < 12 or int.from_bytes(data[4:8], "little") != _STATS:
        raise InputError("not CRIU's statistics", hint="stats-dump or stats-restore of criu 3 or 4")
    if int.from_bytes(data[:4], "little") != _IMG_SERVICE or int.from_bytes(data[8:12], "little") != len(data) - 12:
        raise InputError("CRIU's statistics are cut off", hint="the disk may be full")
    found: dict[str, int] = {}
    for number, body in _fields(data[12:]):
        names = {1: _DUMP, 2: _RESTORE}.get(number)
        if names is None or not isinstance(body, bytes):
            continue
        for inner, count in _fields(body):
            if inner in names and isinstance(count, int):
                found[names[inner]] = count
    return CriuTimes(**found)


def read_times(folder: Path) -> CriuTimes | None:
    """The statistics in a work folder; None where there are none (yet)."""
    for name in ("stats-dump", "stats-restore"):
        with contextlib.suppress(FileNotFoundError), (folder / name).open("rb") as stream:
            return parse_times(stream.read(_MAX_STATS + 1))
    return None


def read_log(path: Path) -> str:
    """A log as text, the first 4 MiB; empty when there is none."""
    try:
        with path.open("rb") as stream:
            return stream.read(_MAX_LOG).decode("utf-8", errors="replace")
    except OSError:
        return ""


def decisive_line(log: str) -> str:
    """The first error in one of CRIU's logs, without the place in its source; empty when there is none.

    The first, since what follows are its consequences. What CRIU calls an error in every dump does not count: it would
    like to raise a limit of its own, which it may not where CAP_SYS_RESOURCE is missing.
    """
    for match in re.finditer(r"Error \([^)]{1,80}\): (.+)", log):
        if not match[1].startswith("rlimit: Can't setup RLIMIT_NOFILE for self"):
            return match[1].strip()[:300]
    return ""


def hint_for(line: str) -> str:
    """What to do about a decisive line; empty when nothing is known."""
    return next((hint for words, hint in _HINTS if words in line), "")


def size_of(folder: Path) -> tuple[int, int]:
    """Bytes of an image set, and of its page images."""
    total = pages = 0
    for entry in folder.iterdir():
        if entry.is_file() and not entry.is_symlink():
            size = entry.stat().st_size
            total += size
            pages += size if re.fullmatch(r"pages-\d+\.img", entry.name) else 0
    return total, pages


def lazy_bytes(log: str) -> int:
    """Memory that a lazy dump has left to its page server, by its log: `Pagemap generated: 9 pages (7 lazy) 0 holes`.

    The statistics of such a dump are of no use: CRIU begins them anew for the page server (seen with 4.2).
    """
    return _PAGE * sum(
        int(count) for count in re.findall(r"Pagemap generated: \d{1,12} pages \((\d{1,12}) lazy\)", log)
    )


def fetched_bytes(log: str) -> int:
    """Memory that a lazy-pages daemon fetched, by its log at verbosity 3: `pr1-1 Read 7fc5435c5000 9 pages`."""
    return _PAGE * sum(int(count) for count in re.findall(r" Read [0-9a-f]{1,16} (\d{1,12}) pages", log))


def share_cache(criu: Path, folder: Path, env: dict[str, str], cache: Path = KERNEL_CACHE) -> bool:
    """Have CRIU find its cache where it would not keep one by itself; whether a cache is there now.

    Args:
        folder: lies on a tmpfs and belongs to us alone.
    """
    if cache.exists() or _keeps(cache.parent):
        return True
    data = _made_apart(criu, cache, env)
    if data is None:
        return False
    copy = folder / CACHE_NAME
    part = folder / f".{CACHE_NAME}-{secrets.token_hex(4)}"
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
        stream.write(data)
    part.replace(copy)
    # A link that dangles is a former testbed's; two that lay it at once point to equal copies.
    link = cache.with_name(f".{cache.name}-{secrets.token_hex(4)}")
    link.symlink_to(copy)
    link.replace(cache)
    return True


def drop_cache(folder: Path, cache: Path = KERNEL_CACHE) -> None:
    """Take the link away if it points into the folder, or to nothing."""
    if cache.is_symlink() and (not cache.exists() or folder in cache.readlink().parents):
        cache.unlink(missing_ok=True)


def _keeps(folder: Path) -> bool:
    """Whether CRIU keeps its cache in this folder by itself."""
    best, kind = -1, ""
    for line in Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace").splitlines():
        words = line.split(" ")
        point = Path(words[1])
        if (point == folder or point in folder.parents) and len(point.parts) > best:
            best, kind = len(point.parts), words[2]
    return kind == "tmpfs"


def _made_apart(criu: Path, cache: Path, env: dict[str, str]) -> bytes | None:
    """Let CRIU write its cache on a tmpfs in a mount namespace that ends with its holder."""
    programs = {name: shutil.which(name, path=env.get("PATH")) for name in ("unshare", "nsenter", "mount", "cat")}
    if not all(programs.values()):
        return None  # slower starts are all that follows
    unshare, nsenter, mount, cat = (str(path) for path in programs.values())
    silent: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    # The holder echoes a line once its namespace is there, and ends with its input.
    with subprocess.Popen(
        [unshare, "--mount", "--propagation", "private", "--", cat],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=env,
    ) as holder:  # fmt: skip
        if holder.stdin is None or holder.stdout is None:
            return None
        try:
            holder.stdin.write(b"\n")
            holder.stdin.flush()
            holder.stdout.read(1)
            enter = [nsenter, f"--mount=/proc/{holder.pid}/ns/mnt", "--"]
            for argv in ([mount, "-t", "tmpfs", "natwork-criu", str(cache.parent)], [str(criu), "check"]):
                subprocess.run([*enter, *argv], env=env, timeout=_START_S, check=False, **silent)
            with Path(f"/proc/{holder.pid}/root", *cache.parts[1:]).open("rb") as stream:
                return stream.read(_MAX_CACHE)
        except (OSError, subprocess.TimeoutExpired):
            return None
        finally:
            holder.kill()
