"""A container's cgroup in version 1 or 2 of the kernel's interface: freezing, members, use of resources, removal.

CRIU polls the version 1 freezer every 100 ms, which is a third of the downtime that is wanted. A cgroup that is frozen
already when CRIU comes is taken as it is, and CRIU leaves it frozen in the end (`origin_freezer_state` in its
seize.c). Freezing by ourselves, with a look at the state every half a millisecond, takes about one.

Rules kept: a frozen process is not killed by a signal before it is thawed, so `kill` sends the signal first and thaws
then: not one instruction of the container runs in between.

    cgroup = ContainerCgroup("/nw3f9a/node-0/web")
    await cgroup.freeze()
    cgroup.thaw()
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from pathlib import Path

from natwork_ray.errors import ActionError, ConflictError

CGROUPS = Path("/sys/fs/cgroup")
FREEZE_S, KILL_S = 10.0, 20.0
_LOOK_S = 0.0005


class ContainerCgroup:
    """The cgroup `path` (runC's `linux.cgroupsPath`) in every hierarchy. `root` is where they are mounted."""

    def __init__(self, path: str, root: Path = CGROUPS) -> None:
        self._relative = path.lstrip("/")
        self._root = root
        self.unified = (root / "cgroup.controllers").exists()

    def folder(self, controller: str) -> Path:
        """Where the controller keeps this cgroup (version 2: one folder for all)."""
        return self._root / self._relative if self.unified else self._root / controller / self._relative

    @property
    def freezer(self) -> Path:
        """The file that freezes."""
        return self.folder("freezer") / ("cgroup.freeze" if self.unified else "freezer.state")

    @property
    def frozen_word(self) -> str:
        """What is written to it."""
        return "1" if self.unified else "FROZEN"

    def state(self) -> str:
        """`absent`, `thawed`, `freezing` or `frozen`."""
        try:
            text = self.freezer.read_text(encoding="ascii").strip()
            events = (self.folder("") / "cgroup.events").read_text(encoding="ascii") if self.unified else ""
        except OSError:
            return "absent"
        if not self.unified:
            return text.lower()
        if text == "0":
            return "thawed"
        return "frozen" if "frozen 1" in events else "freezing"

    async def freeze(self) -> None:
        """Stop all its processes; returns when the last stands still.

        Raises:
            ConflictError: there is no such cgroup.
            ActionError: they would not stop in time; they run again.
        """
        deadline = time.monotonic() + FREEZE_S
        while True:
            try:
                # Written again each time: a process that was just being started misses the first.
                self.freezer.write_text(self.frozen_word, encoding="ascii")
            except OSError as error:
                raise ConflictError(
                    f"{self._relative} cannot be frozen: {error.strerror}", hint="does it run?"
                ) from error
            if (state := self.state()) == "frozen":
                return
            if time.monotonic() > deadline:
                self.thaw()
                raise ActionError(
                    f"{self._relative} is still {state} after {FREEZE_S:g} s",
                    hint="a process waits for a device: see its stack",
                )
            await asyncio.sleep(_LOOK_S)

    def thaw(self) -> bool:
        """Let them go on; whether they stood still."""
        stood = self.state() in ("frozen", "freezing")
        if stood:
            with contextlib.suppress(FileNotFoundError):
                self.freezer.write_text("0" if self.unified else "THAWED", encoding="ascii")
        return stood

    def members(self) -> tuple[int, ...]:
        """Process numbers, of this cgroup and those below, in whichever hierarchy they are found."""
        found: set[int] = set()
        for folder in self._folders():
            with contextlib.suppress(OSError):
                found.update(int(word) for word in (folder / "cgroup.procs").read_text(encoding="ascii").split())
        found.discard(0)  # a process of another process namespace
        return tuple(sorted(found))

    async def kill(self) -> None:
        """End every member.

        Raises:
            ActionError: one does not die.
        """
        deadline = time.monotonic() + KILL_S
        while living := self.members():
            for pid in living:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.thaw()
            if time.monotonic() > deadline:
                raise ActionError(
                    f"process {living[0]} of {self._relative} does not die", hint=f"see /proc/{living[0]}/stack"
                )
            await asyncio.sleep(0.001)

    async def remove(self) -> None:
        """Take the empty cgroup away in every hierarchy; harmless when there is none.

        Raises:
            ActionError: it would not go.
        """
        deadline = time.monotonic() + KILL_S
        for folder in self._folders():
            while folder.is_dir():
                try:
                    folder.rmdir()
                except FileNotFoundError:
                    break
                except OSError as error:
                    # A process that was killed is a member until it is gone for good.
                    if time.monotonic() > deadline:
                        raise ActionError(f"cgroup {folder}: {error.strerror}", hint="who is still in it?") from error
                    await asyncio.sleep(0.002)

    def number(self, controller: str, name: str) -> float | None:
        """A number that the controller tells, None where it does not."""
        try:
            return float((self.folder(controller) / name).read_text(encoding="ascii").split()[0])
        except (OSError, ValueError, IndexError):
            return None

    def cpu_s(self) -> float:
        """Processor time used so far, in seconds; 0 where nobody counts."""
        if not self.unified:
            return (self.number("cpuacct", "cpuacct.usage") or 0.0) / 1e9
        return self._keyed("cpu.stat", "usage_usec") / 1e6

    def written_bytes(self) -> float | None:
        """Bytes written to disks so far, None where nobody counts."""
        if self.unified:
            return None if not (self.folder("") / "io.stat").exists() else self._keyed("io.stat", "wbytes")
        try:
            lines = (self.folder("blkio") / "blkio.throttle.io_service_bytes").read_text(encoding="ascii").splitlines()
        except OSError:
            return None
        return float(sum(int(words[2]) for line in lines if len(words := line.split()) == 3 and words[1] == "Write"))

    def _keyed(self, name: str, key: str) -> float:
        try:
            words = (self.folder("") / name).read_text(encoding="ascii").replace("=", " ").split()
        except OSError:
            return 0.0
        return float(sum(int(words[i + 1]) for i, word in enumerate(words[:-1]) if word == key))

    def _folders(self) -> tuple[Path, ...]:
        """This cgroup and those below it in every hierarchy, deepest first."""
        roots = [self._root] if self.unified else [entry for entry in self._root.iterdir() if entry.is_dir()]
        tops = [root / self._relative for root in roots if (root / self._relative).is_dir()]
        found = [folder for top in tops for folder in (top, *(p for p in top.rglob("*") if p.is_dir()))]
        return tuple(sorted(found, key=lambda folder: len(folder.parts), reverse=True))
