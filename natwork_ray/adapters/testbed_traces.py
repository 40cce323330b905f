"""What of a testbed is on the machine, found by its id alone, and how all of it is removed.

Nothing here believes the record alone: a killed `up` or agent may have made more than was written down. A testbed's
processes are those that carry its id in their environment, sit in one of its cgroups, live in one of its namespaces, or
were recorded (process number and start time). Links, namespaces and cgroups carry the id in their names; mounts and
folders lie below the testbed's folder.

Rules kept: nothing is deleted below a folder in which anything is still mounted. The caller's own process and its
ancestors are never ended, whatever they carry. What is no id of a testbed is refused
(InputError), never looked for. Frozen cgroups are thawed first, since a frozen process does not die.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from collections.abc import Iterable
from pathlib import Path

from natwork_ray.adapters.machine import Machine
from natwork_ray.adapters.testbed_network import NETNS
from natwork_ray.adapters.testbed_sshd import MARKER
from natwork_ray.adapters.testbed_state import OwnProcess, check_id, started_ticks
from natwork_ray.domain.values import value
from natwork_ray.errors import ActionError

# CRIU's cache of what the kernel can do: the runtime links it to a testbed's tmpfs where /run is on a disk.
KERNEL_CACHE = Path("/run/criu.kdat")
PROC, CGROUPS, LINKS = Path("/proc"), Path("/sys/fs/cgroup"), Path("/sys/class/net")
_END_S = 10.0


@value
class Trace:
    """One thing that carries a testbed's id: process, cgroup, mount, namespace, link or folder."""

    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


def cgroups(testbed: str) -> tuple[Path, ...]:
    """The testbed's cgroup folders, one per hierarchy, with all below them, deepest first."""
    check_id(testbed)
    roots = [CGROUPS / testbed, *(entry / testbed for entry in CGROUPS.iterdir() if entry.is_dir())]
    found = [
        folder for root in roots if root.is_dir() for folder in (root, *(p for p in root.rglob("*") if p.is_dir()))
    ]
    return tuple(sorted(found, key=lambda path: len(path.parts), reverse=True))


def namespaces(testbed: str) -> tuple[str, ...]:
    """Names of its network namespaces."""
    check_id(testbed)
    if not NETNS.is_dir():
        return ()
    return tuple(sorted(entry.name for entry in NETNS.iterdir() if entry.name.startswith(f"{testbed}-")))


def links(testbed: str) -> tuple[str, ...]:
    """Names of its links in the root namespace."""
    check_id(testbed)
    return tuple(sorted(entry.name for entry in LINKS.iterdir() if entry.name.startswith(testbed)))


def mounts(folder: Path) -> tuple[Path, ...]:
    """What is mounted below the folder, the last mounted first."""
    folder = folder.resolve()  # the kernel names mounts without symbolic links
    found = []
    for line in (PROC / "self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        point = line.split(" ")[4].encode("utf-8", "surrogateescape").decode("unicode_escape")
        path = Path(point.encode("latin-1", "surrogateescape").decode("utf-8", "surrogateescape"))
        if path == folder or folder in path.parents:
            found.append(path)
    return tuple(reversed(found))


def processes(testbed: str, recorded: Iterable[OwnProcess] = ()) -> tuple[OwnProcess, ...]:
    """Its living processes, without the caller and its ancestors."""
    check_id(testbed)
    spared = _ancestors()
    inodes = set()
    for name in namespaces(testbed):
        with contextlib.suppress(OSError):
            inodes.add((NETNS / name).stat().st_ino)
    members = {pid for folder in cgroups(testbed) for pid in _cgroup_members(folder)}
    known = {(process.pid, process.started_ticks) for process in recorded}
    mark = f"{MARKER}={testbed}".encode()
    found = []
    for entry in PROC.iterdir():
        if not entry.name.isdecimal() or int(entry.name) in spared:
            continue
        pid = int(entry.name)
        ticks = started_ticks(pid)
        if ticks is None:
            continue
        if pid in members or (pid, ticks) in known or _network(entry) in inodes or mark in _environment(entry):
            found.append(OwnProcess(pid=pid, started_ticks=ticks, what=_command(entry)))
    return tuple(found)


def leftovers(testbed: str, folder: Path | None = None, recorded: Iterable[OwnProcess] = ()) -> tuple[Trace, ...]:
    """Everything on the machine that carries the testbed's id; empty after `down`."""
    found = [Trace(kind="process", name=f"{p.pid} {p.what}") for p in processes(testbed, recorded)]
    found += [Trace(kind="cgroup", name=str(path)) for path in cgroups(testbed)]
    found += [Trace(kind="namespace", name=name) for name in namespaces(testbed)]
    found += [Trace(kind="link", name=name) for name in links(testbed)]
    if folder is not None:
        found += [Trace(kind="link", name=str(KERNEL_CACHE))] if _leads_into(KERNEL_CACHE, folder) else []
        found += [Trace(kind="mount", name=str(path)) for path in mounts(folder)]
        found += [Trace(kind="folder", name=str(folder))] if folder.exists() else []
    return tuple(found)


def remove(machine: Machine, testbed: str, folder: Path, recorded: Iterable[OwnProcess] = ()) -> None:
    """Take away all of it, whatever is there.

    Raises:
        InputError: that is no id of a testbed; nothing was touched.
        ActionError: something would not go; all else is gone.
    """
    check_id(testbed)
    end_processes(testbed, tuple(recorded))
    troubles = []
    umount, ip = machine.which("umount"), machine.which("ip")
    for path in mounts(folder):
        # Lazy: whoever still holds a file of it keeps only that file.
        troubles += _trouble(machine, [str(umount), "--lazy", str(path)])
    for name in namespaces(testbed):
        troubles += _trouble(machine, [str(ip), "netns", "delete", name])
    for name in links(testbed):
        if (LINKS / name).exists():  # the other end of a pair goes with the first
            troubles += _trouble(machine, [str(ip), "link", "delete", name], gone=LINKS / name)
    for path in cgroups(testbed):
        troubles += _remove_cgroup(path)
    if _leads_into(KERNEL_CACHE, folder):
        KERNEL_CACHE.unlink(missing_ok=True)
    troubles += delete_tree(folder)
    if troubles:
        raise ActionError(
            f"testbed {testbed}: {len(troubles)} things would not go, the first: {troubles[0]}",
            hint="natwork testbed down, once more",
        )


def delete_tree(folder: Path) -> list[str]:
    """Delete a folder with all below it, and nothing that is mounted there; what would not go, in words.

    A container's bind mount of /usr looks like a folder of the testbed, and what is below it is the machine's.
    """
    troubles: list[str] = []
    held = mounts(folder)
    if held:
        troubles.append(f"{held[0]} is still mounted, so nothing below {folder} was deleted")
    elif folder.exists():
        shutil.rmtree(folder, onerror=lambda _f, path, problem: troubles.append(f"{path}: {problem[1]}"))
    return troubles


def end_processes(testbed: str, recorded: tuple[OwnProcess, ...] = ()) -> None:
    """Kill all of the testbed's processes and wait until they are gone.

    Raises:
        InputError: that is no id of a testbed.
        ActionError: one does not die.
    """
    check_id(testbed)
    deadline = time.monotonic() + _END_S
    while True:
        _thaw(testbed)
        living = processes(testbed, recorded)
        if not living:
            return
        if time.monotonic() > deadline:
            names = ", ".join(f"{p.pid} {p.what}" for p in living[:3])
            raise ActionError(f"testbed {testbed}: processes do not die: {names}", hint="look what they wait for")
        for process in living:
            kill(process)
        time.sleep(0.01)


def kill(process: OwnProcess) -> None:
    """Kill a process for good, if it is still the one that was meant; reap it if it is a child of ours."""
    # A pidfd pins the process: between the comparison and the signal its number cannot pass to another.
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return
    try:
        if started_ticks(process.pid) == process.started_ticks:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
    finally:
        os.close(descriptor)


def _leads_into(link: Path, folder: Path) -> bool:
    try:
        return folder.resolve() in link.readlink().parents
    except OSError:  # not there, or no link
        return False


def _ancestors() -> set[int]:
    spared, pid = set(), os.getpid()
    while pid > 0:
        spared.add(pid)
        try:
            text = (PROC / str(pid) / "stat").read_text(encoding="ascii", errors="replace")
        except OSError:
            break
        pid = int(text.rpartition(")")[2].split()[1])
    return spared


def _cgroup_members(folder: Path) -> list[int]:
    try:
        return [int(word) for word in (folder / "cgroup.procs").read_text(encoding="ascii").split()]
    except OSError:  # it went away, or is a threaded one that lists none
        return []


def _network(entry: Path) -> int | None:
    try:
        return (entry / "ns/net").stat().st_ino
    except OSError:
        return None


def _environment(entry: Path) -> list[bytes]:
    try:
        return (entry / "environ").read_bytes().split(b"\0")
    except OSError:
        return []


def _command(entry: Path) -> str:
    try:
        return (entry / "comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return "?"


def _thaw(testbed: str) -> None:
    for folder in cgroups(testbed):
        for name, word in (("freezer.state", "THAWED"), ("cgroup.freeze", "0")):
            with contextlib.suppress(OSError):  # not there in this hierarchy
                if (folder / name).exists():
                    (folder / name).write_text(word, encoding="ascii")


def _remove_cgroup(path: Path) -> list[str]:
    for _ in range(200):
        try:
            path.rmdir()
        except FileNotFoundError:
            return []
        except OSError as error:
            problem = f"{path}: {error.strerror}"
            time.sleep(0.005)  # its dead are still being buried
        else:
            return []
    return [problem]


def _trouble(machine: Machine, argv: list[str], gone: Path | None = None) -> list[str]:
    answer = machine.run(argv)
    if answer.status == 0 or (gone is not None and not gone.exists()):
        return []
    return [f"{' '.join(argv[1:])}: {answer.text}"]
