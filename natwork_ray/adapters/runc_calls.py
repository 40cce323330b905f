"""One node's runC and CRIU as programs: where their files lie, how they are started, what they say when they fail.

Rules kept:

- dump and restore go through runC; `criu` itself is started for the lazy-pages daemon alone, which runC does not know.
- Every program carries the testbed, the node, the container and the migration in its environment: a later agent finds
  the children of a dead one by that (`natwork_ray.adapters.subprocesses.family`), never by name.
- Logs and statistics lie on disk, beside the node's journal, not with the images: when the images' tmpfs is full, the
  log that says so must still find room.
- A runC that dies in the middle of a restore leaves mounts in this mount namespace: the machine's /usr, writable, in
  the bundle, and the cgroup hierarchy in the work folder. Nothing is deleted before all below it is unmounted; where
  something stays mounted, it is an error.

What runs is read from runC's own state file and /proc: `runc state` takes 15 ms, and waits for a freezer that is
half-way."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import Callable, Coroutine, Iterable, Mapping
from pathlib import Path
from typing import Any

from natwork_ray.adapters.container_cgroup import CGROUPS, ContainerCgroup
from natwork_ray.adapters.container_network import ContainerNetwork
from natwork_ray.adapters.criu_files import decisive_line, hint_for, read_log
from natwork_ray.adapters.runc_bundle import Bundle
from natwork_ray.adapters.subprocesses import MARKER, PROC, Child, Runner, end_family, family, status_pipe, told_ready
from natwork_ray.adapters.testbed_layout import NodeLayout
from natwork_ray.adapters.testbed_network import NETNS
from natwork_ray.adapters.testbed_requirements import Toolchain
from natwork_ray.adapters.testbed_sshd import MARKER as TESTBED_MARKER
from natwork_ray.adapters.testbed_state import OwnProcess, started_ticks
from natwork_ray.adapters.testbed_traces import mounts
from natwork_ray.domain.values import decode, encode
from natwork_ray.errors import ActionError, InputError

_MAX_STATE = 4 * 2**20
_TIMEOUT_S = 10.0
_FOLDER, SESSIONS = "criu", "sessions"
RUNC_LOG, SAID = "runc.log", "said"
LOOK_S, GONE_LOOKS = 0.2, 2


class NodeTools:
    """What the verbs of one node's runtime share."""

    def __init__(self, layout: NodeLayout, tools: Toolchain, runner: Runner, cgroups: Path = CGROUPS) -> None:
        self.layout = layout
        self.tools = tools
        self.runner = runner
        self._cgroups = cgroups
        self.sessions = layout.folder / SESSIONS

    # Where things are.

    def bundle(self, container: str) -> Bundle:
        """The container's bundle."""
        return Bundle(self.layout, container)

    def cgroup(self, container: str) -> ContainerCgroup:
        """The container's cgroup."""
        return ContainerCgroup(self.layout.cgroup(container), self._cgroups)

    def network(self, container: str) -> ContainerNetwork:
        """The container's network namespace."""
        env = self.env(self.marker(container))
        return ContainerNetwork(self.layout.container_netns(container), self.tools, self.runner, env)

    def images(self, key: str, images: str = "") -> Path:
        """The folder of one set, or of all of a migration."""
        return self.layout.image_set(key, images)

    def work(self, key: str, images: str = "") -> Path:
        """Logs, statistics and notes of a migration, or of one set."""
        return self.layout.folder / _FOLDER / key.replace("/", "-") / images

    def marker(self, container: str, key: str = "") -> str:
        """What processes of a migration carry; without a key, what those of all migrations of it begin with."""
        begin = f"{self.layout.testbed}/{self.layout.name}/{container}/"
        return f"{begin}{key}/" if key else begin

    def env(self, marker: str) -> dict[str, str]:
        """The environment of everything that is started. runC finds CRIU by PATH, as CRIU does tar and iptables."""
        first = (self.tools.criu, self.tools.runc, self.tools.iptables_restore)
        folders = dict.fromkeys([*(str(path.parent) for path in first), "/usr/bin", "/usr/sbin", "/bin", "/sbin"])
        return {"PATH": ":".join(folders), "LC_ALL": "C", TESTBED_MARKER: self.layout.testbed, MARKER: marker}

    async def end(self, container: str, key: str = "", *, gently: bool = False) -> None:
        """Kill what runs for a migration, or for all migrations of a container; see `end_family`.

        Raises:
            ActionError: something does not die.
        """
        await end_family(self.marker(container, key), self.sessions, gently=gently)

    def in_node(self) -> list[str]:
        """Beginning of an argument vector that puts a program into the node's network namespace."""
        return [str(self.tools.nsenter), f"--net={NETNS / self.layout.netns}", "--"]

    # What runs.

    def process(self, container: str) -> OwnProcess | None:
        """The container's first process, if it lives."""
        path = self.layout.runc_root / container / "state.json"
        try:
            with path.open("rb") as stream:
                state = json.loads(stream.read(_MAX_STATE))
            pid, ticks = int(state["init_process_pid"]), int(state["init_process_start"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} is not what runC writes", hint="destroy the container") from error
        if pid <= 0 or started_ticks(pid) != ticks:
            return None
        return OwnProcess(pid=pid, started_ticks=ticks, what=container)

    # Programs.

    def runc(self, log: Path, *arguments: str | Path) -> list[str]:
        """An argument vector for runC that writes what it has to say into a log."""
        own = [str(self.tools.runc), "--root", str(self.layout.runc_root), "--log", str(log), "--log-format", "json"]
        return [*own, *(str(argument) for argument in arguments)]

    async def must(
        self,
        argv: list[str],
        *,
        marker: str,
        log: Path,
        what: str,
        timeout_s: float = _TIMEOUT_S,
        criu: Path | None = None,
    ) -> None:
        """Run a program of runC's that has to succeed; its streams are /dev/null, which a container inherits.

        Raises:
            ActionError: it did not; the message quotes what decided, from CRIU's log or runC's.
            TimedOutError: it took too long.
        """
        done = await self.runner.run(argv, env=self.env(marker), timeout_s=timeout_s, quiet=True)
        if done.status != 0:
            raise self.failure(what, log, criu, done.status)

    async def ready(
        self,
        argv_for: Callable[[int], list[str]],
        *,
        marker: str,
        work: Path,
        note: str,
        what: str,
        criu: Path,
        timeout_s: float,
    ) -> Child:
        """Start a program that goes on, and wait until it says, on the descriptor that it is given, that it is ready.

        Args:
            argv_for: the argument vector for a descriptor.
            note: name of a file in the work folder that will tell which process it is.

        Raises:
            ActionError: it has ended instead; see `must`.
            TimedOutError: it took too long.
        """
        with status_pipe() as (reading, writing):
            try:
                argv = argv_for(writing)
                child = self.runner.start(argv, env=self.env(marker), said=work / SAID, pass_fds=(writing,))
            finally:
                os.close(writing)
            try:
                # 0: it has ended already; then nobody will take another for it.
                ticks = started_ticks(child.pid) or 0
                self.note(work / note, OwnProcess(pid=child.pid, started_ticks=ticks, what=what))
                good = False

                async def tell() -> None:
                    nonlocal good
                    good = await told_ready(reading, timeout_s=timeout_s)

                # Without a word, as if it had ended, when CRIU is gone and runC waits on.
                if not await self.while_criu_lives(tell(), marker=marker, criu=criu, done=None):
                    await child.kill(alone=True)
            except BaseException:
                # Alone: CRIU gives back what it holds when its runC is gone.
                await child.kill(alone=True)
                raise
        if not good:
            raise self.failure(what, work / RUNC_LOG, criu, await child.wait())
        return child

    async def while_criu_lives(
        self, work: Coroutine[Any, Any, None], *, marker: str, criu: Path, done: str | None
    ) -> bool:
        """Await a runC that drives CRIU; False, and the wait is ended, when CRIU is gone while runC waits on.

        It does when CRIU is killed while it restores, since what it left keeps their socket open, and when it is killed
        while it only says its version; CRIU then is a zombie. What is over in a fifth of a second is not looked at.

        Args:
            criu: CRIU's log, and `done` what it writes there when all has gone well and it may end.
        """
        running = asyncio.create_task(work)
        watching = asyncio.create_task(self._criu_is_gone(marker, criu, done))
        try:
            await asyncio.wait({running, watching}, return_when=asyncio.FIRST_COMPLETED)
            if not running.done():
                return False
            await running
        finally:
            for task in (running, watching):
                task.cancel()
            await asyncio.gather(running, watching, return_exceptions=True)
        return True

    async def _criu_is_gone(self, marker: str, criu: Path, done: str | None) -> None:
        gone = 0
        while gone < GONE_LOOKS:
            await asyncio.sleep(LOOK_S)
            living = await asyncio.to_thread(family, marker, self.sessions)
            dead = await asyncio.to_thread(dead_criu, [process.pid for process in living])
            well = done is not None and done in read_log(criu)
            gone = gone + 1 if dead and not well else 0

    def failure(self, what: str, log: Path, criu: Path | None, status: int) -> ActionError:
        """The error that a log explains."""
        line = (decisive_line(read_log(criu)) if criu else "") or runc_line(read_log(log))
        line = line or decisive_line(read_log(log.parent / SAID))
        if not line:
            line = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
        return ActionError(f"{what}: {line}", hint=hint_for(line) or f"see {criu or log}")

    # Folders.

    def fresh(self, folder: Path) -> Path:
        """The folder, made anew and empty.

        Raises:
            ActionError: the disk refused.
        """
        self.delete(folder)
        try:
            folder.mkdir(mode=0o700, parents=True)
        except OSError as error:
            raise ActionError(f"{folder}: {error.strerror}", hint="is the disk full?") from error
        return folder

    def delete(self, folder: Path) -> None:
        """Delete a folder with all below it; harmless when there is none. To be called with its mounts gone.

        Raises:
            ActionError: something is still mounted there, or it would not go.
        """
        if not folder.exists():
            return
        if left := mounts(folder):
            raise ActionError(f"{left[0]} is mounted", hint="it would be deleted with the folder: unmount it")
        try:
            shutil.rmtree(folder)
        except OSError as error:
            raise ActionError(f"{folder}: {error}", hint="natwork testbed down removes it") from error

    async def unmount(self, *folders: Path) -> None:
        """Unmount everything below the folders.

        Raises:
            ActionError: something stays mounted.
        """
        for folder in folders:
            # Lazy: whoever still holds a file of it keeps only that file. Several times: mounts can lie on each other.
            for point in mounts(folder):
                argv = ["umount", "--lazy", str(point)]
                await self.runner.run(argv, env=self.env(""), timeout_s=_TIMEOUT_S)
            if left := mounts(folder):
                raise ActionError(f"{left[0]} stays mounted", hint="see who uses it: fuser -vm")

    # Notes.

    def note(self, path: Path, item: object) -> None:
        """Write a small value.

        Raises:
            ActionError: the disk refused.
        """
        try:
            path.write_bytes(encode(item))
        except OSError as error:
            raise ActionError(f"{path}: {error.strerror}", hint="is the disk full?") from error

    def noted(self, path: Path) -> OwnProcess | None:
        """A process that was noted; None when none was."""
        try:
            return decode(OwnProcess, path.read_bytes())
        except (FileNotFoundError, InputError):
            return None


def runc_line(log: str) -> str:
    """The last error in a log that runC wrote as JSON lines; empty when there is none.

    >>> runc_line('{"level":"error","msg":"criu failed: type NOTIFY errno 0","time":"t"}')
    'criu failed: type NOTIFY errno 0'
    """
    for line in reversed(log.splitlines()):
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, Mapping) and entry.get("level") in ("error", "fatal"):
            return str(entry.get("msg", ""))[:300]
    return ""


def dead_criu(parents: Iterable[int]) -> bool:
    """Whether one of these processes has a CRIU that is dead and that it has not taken notice of.

    Those that CRIU has started itself, and that now wait for it, carry the same name and may have the same parent.
    """
    wanted = set(parents)
    for entry in PROC.iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            text = (entry / "stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue  # taken notice of meanwhile
        name, fields = text.partition("(")[2].rpartition(")")[0], text.rpartition(")")[2].split()
        if name == "criu" and fields[0] == "Z" and int(fields[1]) in wanted:
            return True
    return False
