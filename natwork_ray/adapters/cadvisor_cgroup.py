"""What the kernel counts for a cgroup, version 1 or 2, as cAdvisor understands it.

Everything is None where this kernel or this cgroup does not count it: absent, not 0. Definitions are cAdvisor's:
resident memory is anonymous memory of the cgroup and those below (v1 `total_rss`, v2 `anon`), the working set is usage
less what the kernel could drop at once (`inactive_file`), and a quota is there only where one is set.

    >>> counts = read_cgroup(ContainerCgroup("/nw3f9a/node-0/web"))
    >>> counts.cpu_s, counts.memory_rss_bytes
    (12.25, 8388608.0)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from natwork_ray.adapters.container_cgroup import ContainerCgroup
from natwork_ray.domain.values import value

_MAX_BYTES = 1_048_576
_TICKS = 100.0  # USER_HZ, the same on every architecture that Linux has kept
# Version 1 writes "no limit" as the largest multiple of a page.
_UNLIMITED = 2**62


@value
class DiskCounts:
    """Of one device, `major:minor`."""

    device: str
    read_bytes: float
    written_bytes: float
    reads: float
    writes: float


@value
class CgroupCounts:
    """Counters and gauges of one cgroup; None where not counted or not limited.

    `disks` is empty where they are counted and none was used.
    """

    cpu_s: float | None = None
    cpu_user_s: float | None = None
    cpu_system_s: float | None = None
    periods: float | None = None
    throttled_periods: float | None = None
    throttled_s: float | None = None
    quota_us: float | None = None
    period_us: float | None = None
    memory_usage_bytes: float | None = None
    memory_max_usage_bytes: float | None = None
    memory_working_set_bytes: float | None = None
    memory_rss_bytes: float | None = None
    memory_cache_bytes: float | None = None
    memory_mapped_bytes: float | None = None
    memory_swap_bytes: float | None = None
    memory_limit_bytes: float | None = None
    memory_failures: float | None = None
    oom_kills: float | None = None
    processes_limit: float | None = None
    disks: tuple[DiskCounts, ...] | None = None


def read_cgroup(cgroup: ContainerCgroup) -> CgroupCounts | None:
    """Everything at one moment; None when there is no such cgroup (any more)."""
    if cgroup.unified:
        folder = cgroup.folder("")
        return _version_2(folder) if folder.is_dir() else None
    folders = {name: cgroup.folder(name) for name in ("cpu", "cpuacct", "memory", "blkio", "pids")}
    return _version_1(folders) if any(folder.is_dir() for folder in folders.values()) else None


def _version_2(folder: Path) -> CgroupCounts:
    cpu, memory = _keyed(folder / "cpu.stat"), _keyed(folder / "memory.stat")
    usage, swap = _number(folder / "memory.current"), _number(folder / "memory.swap.current")
    quota, _, period = _text(folder / "cpu.max").partition(" ")
    events = _keyed(folder / "memory.events")
    disks = []
    for line in _text(folder / "io.stat").splitlines():
        device, *words = line.split()
        parts = dict(word.partition("=")[::2] for word in words)
        got = [_float(parts.get(key, "")) for key in ("rbytes", "wbytes", "rios", "wios")]
        disks.append(_disk(device, got))
    return CgroupCounts(
        cpu_s=_scaled(cpu.get("usage_usec"), 1e-6),
        cpu_user_s=_scaled(cpu.get("user_usec"), 1e-6),
        cpu_system_s=_scaled(cpu.get("system_usec"), 1e-6),
        periods=cpu.get("nr_periods"),
        throttled_periods=cpu.get("nr_throttled"),
        throttled_s=_scaled(cpu.get("throttled_usec"), 1e-6),
        quota_us=_limit(_float(quota)),
        period_us=_float(period),
        memory_usage_bytes=usage,
        memory_max_usage_bytes=_number(folder / "memory.peak"),
        memory_working_set_bytes=_working_set(usage, memory.get("inactive_file")),
        memory_rss_bytes=memory.get("anon"),
        memory_cache_bytes=memory.get("file"),
        memory_mapped_bytes=memory.get("file_mapped"),
        memory_swap_bytes=swap,
        memory_limit_bytes=_limit(_number(folder / "memory.max")),
        memory_failures=events.get("max"),
        oom_kills=events.get("oom_kill"),
        processes_limit=_limit(_number(folder / "pids.max")),
        disks=tuple(disks) if (folder / "io.stat").exists() else None,
    )


def _version_1(folders: Mapping[str, Path]) -> CgroupCounts:
    cpu, account, memory = folders["cpu"], folders["cpuacct"], folders["memory"]
    throttling, used, stat = _keyed(cpu / "cpu.stat"), _keyed(account / "cpuacct.stat"), _keyed(memory / "memory.stat")
    usage = _number(memory / "memory.usage_in_bytes")
    return CgroupCounts(
        cpu_s=_scaled(_number(account / "cpuacct.usage"), 1e-9),
        cpu_user_s=_scaled(used.get("user"), 1 / _TICKS),
        cpu_system_s=_scaled(used.get("system"), 1 / _TICKS),
        periods=throttling.get("nr_periods"),
        throttled_periods=throttling.get("nr_throttled"),
        throttled_s=_scaled(throttling.get("throttled_time"), 1e-9),
        quota_us=_limit(_number(cpu / "cpu.cfs_quota_us")),
        period_us=_number(cpu / "cpu.cfs_period_us"),
        memory_usage_bytes=usage,
        memory_max_usage_bytes=_number(memory / "memory.max_usage_in_bytes"),
        memory_working_set_bytes=_working_set(usage, stat.get("total_inactive_file")),
        memory_rss_bytes=stat.get("total_rss"),
        memory_cache_bytes=stat.get("total_cache"),
        memory_mapped_bytes=stat.get("total_mapped_file"),
        memory_swap_bytes=stat.get("total_swap"),
        memory_limit_bytes=_limit(_number(memory / "memory.limit_in_bytes")),
        memory_failures=_number(memory / "memory.failcnt"),
        oom_kills=_keyed(memory / "memory.oom_control").get("oom_kill"),
        processes_limit=_limit(_number(folders["pids"] / "pids.max")),
        disks=_disks_1(folders["blkio"]),
    )


def _disks_1(folder: Path) -> tuple[DiskCounts, ...] | None:
    if not (folder / "blkio.throttle.io_service_bytes").exists():
        return None
    found: dict[str, dict[str, float]] = {}
    for file, suffix in (("io_service_bytes", "bytes"), ("io_serviced", "times")):
        # Recursive files, where the kernel has them, count what cgroups below do as well.
        recursive = _text(folder / f"blkio.throttle.{file}_recursive")
        for line in (recursive or _text(folder / f"blkio.throttle.{file}")).splitlines():
            words = line.split()
            if len(words) == 3 and words[1] in ("Read", "Write"):
                found.setdefault(words[0], {})[words[1] + suffix] = _float(words[2]) or 0.0
    keys = ("Readbytes", "Writebytes", "Readtimes", "Writetimes")
    return tuple(_disk(device, [parts.get(key) for key in keys]) for device, parts in found.items())


def _disk(device: str, counts: Iterable[float | None]) -> DiskCounts:
    read_bytes, written_bytes, reads, writes = (count or 0.0 for count in counts)
    return DiskCounts(device=device, read_bytes=read_bytes, written_bytes=written_bytes, reads=reads, writes=writes)


def _working_set(usage: float | None, droppable: float | None) -> float | None:
    return None if usage is None or droppable is None else max(0.0, usage - droppable)


def _scaled(number: float | None, factor: float) -> float | None:
    return None if number is None else number * factor


def _limit(number: float | None) -> float | None:
    """A limit that is one. For none, version 1 has -1 or 2^63 less a page, version 2 the word `max`, no number."""
    return number if number is not None and 0 < number < _UNLIMITED else None


def _keyed(path: Path) -> dict[str, float]:
    found = {}
    for line in _text(path).splitlines():
        key, _, word = line.partition(" ")
        number = _float(word)
        if number is not None:
            found[key] = number
    return found


def _number(path: Path) -> float | None:
    return _float(_text(path))


def _float(word: str) -> float | None:
    word = word.strip()
    return float(word) if word.removeprefix("-").isascii() and word.removeprefix("-").isdigit() else None


def _text(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            return stream.read(_MAX_BYTES).decode("ascii", errors="replace")
    except OSError:
        return ""  # not counted here, or gone just now
