"""Testbeds that a benchmark or a collection makes for itself, and what is done when it was killed.

Such a testbed lies in a temporary folder that nobody would look into. So the folder also holds who made it (process
number and start time), and the machine's register (natwork_ray.adapters.testbed_state) leads to the folder. Once that
process is dead the testbed is an orphan: the next benchmark or collection takes it down, and so does
`natwork testbed down --orphans`.

Rules kept: a testbed of a state directory that somebody named has no such owner and is never an orphan; a note that
belongs to another user is not believed; two who clear up at once do not meet on one orphan.

    with ephemeral("nwc-") as state_dir:
        record = up(plan(state_dir, ...), ...)
        ...
        down(state_dir)
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path

from natwork_ray.adapters import testbed
from natwork_ray.adapters.machine import Machine
from natwork_ray.adapters.testbed_state import OwnProcess, identify, members, started_ticks, write_whole
from natwork_ray.domain.values import decode, encode, value
from natwork_ray.errors import InputError, NatworkError

OWNER = "owner.json"
_MAX_OWNER_BYTES = 4096


class Owner(StrEnum):
    """What became of the process that a testbed was made for; NONE: it stays until somebody takes it down."""

    NONE = "none"
    ALIVE = "alive"
    DEAD = "dead"


@value
class Standing:
    """A testbed that is on the machine."""

    id: str
    folder: Path
    owner: Owner


@contextlib.contextmanager
def ephemeral(prefix: str) -> Iterator[Path]:
    """An empty state directory for a testbed that ends with this process. Orphans are taken down first.

    Taken away only when no testbed is left in it: what `down` could not remove may hold mounts, and whoever deletes
    through them deletes the machine's own files.

    Args:
        prefix: of its name: short, since SSH's sockets lie below it.

    Raises:
        ActionError: an orphan would not go.
    """
    take_down_orphans()
    folder = Path(tempfile.mkdtemp(prefix=prefix)).resolve()
    try:
        write_whole(folder / OWNER, encode(identify(os.getpid(), "the maker of a testbed")))
        yield folder
    finally:
        _clear(folder)


def standing() -> tuple[Standing, ...]:
    """All testbeds of the machine that were not taken down."""
    return tuple(Standing(id=name, folder=path, owner=_owner(path.parent)) for name, path in members())


def take_down_orphans(machine: Machine | None = None) -> tuple[str, ...]:
    """Take down every testbed whose owner is dead; their ids. One that would not go does not save the others.

    Raises:
        PreconditionError: no root.
        ActionError: something would not go.
    """
    ended = []
    failed: NatworkError | None = None
    for one in standing():
        if one.owner is not Owner.DEAD:
            continue
        state_dir = one.folder.parent
        try:
            descriptor = os.open(state_dir / OWNER, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:  # somebody else has just done it
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if testbed.down(state_dir, machine=machine) is not None:
                ended.append(one.id)
            _clear(state_dir)
        except BlockingIOError:  # somebody else is at it
            continue
        except NatworkError as error:
            failed = failed or error
        finally:
            os.close(descriptor)
    if failed is not None:
        raise failed
    return tuple(ended)


def _owner(state_dir: Path) -> Owner:
    try:
        descriptor = os.open(state_dir / OWNER, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return Owner.NONE
    with os.fdopen(descriptor, "rb") as stream:
        if os.fstat(stream.fileno()).st_uid != os.geteuid():
            return Owner.NONE
        try:
            maker: OwnProcess = decode(OwnProcess, stream.read(_MAX_OWNER_BYTES))
        except InputError:
            return Owner.NONE
    return Owner.ALIVE if started_ticks(maker.pid) == maker.started_ticks else Owner.DEAD


def _clear(state_dir: Path) -> None:
    folder = state_dir / testbed.FOLDER
    if folder.exists() or any(path == folder for _, path in members()):
        return  # `down` failed: the note leads the next one here
    (state_dir / OWNER).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # something else lies there
        state_dir.rmdir()
