"""What is known of a testbed on disk: its record, and the register of all testbeds of the machine.

The record (`testbed.json` in the testbed's folder) is written before anything is made, so that whatever a killed `up`
left can be found and removed. It is replaced whole (draft, fsync, rename) and readable by its owner only.

Some settings belong to the whole machine and not to one testbed: the pipe limits that post-copy needs, the size of the
kernel's table of connections, and sshd's folder for privilege separation. The register in /run keeps what they were
before the first testbed and puts them back with the last one; it holds one file per testbed and is locked while it is
read and changed. A reboot empties it, as it resets the settings.

    >>> identify(os.getpid(), "this").pid == os.getpid()
    True
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from collections.abc import Iterator
from pathlib import Path

from natwork_ray.adapters.testbed_layout import NodeLayout
from natwork_ray.domain.values import decode, encode, value
from natwork_ray.errors import InputError, NotFoundError, PreconditionError, StoreError, VerificationError

RECORD = "testbed.json"
MAX_RECORD_BYTES = 262_144
_ID = re.compile(r"nw[0-9a-f]{4}")

REGISTER = Path("/run/natwork-testbed")
PRIVSEP = Path("/run/sshd")
# CRIU's lazy pages go through pipes as large as the memory (docs/testbed.md).
PIPES = {Path("/proc/sys/fs/pipe-max-size"): 2**30, Path("/proc/sys/fs/pipe-user-pages-soft"): 0}
# CRIU walks through the machine's whole table of connections twice per dump: 18 ms at its usual size.
CONNECTIONS = Path("/proc/sys/net/netfilter/nf_conntrack_buckets")
_CONNECTIONS_AT_MOST = 16_384


@value
class OwnProcess:
    """A process that was started for a testbed. The start time (in clock ticks since boot) tells it from a later
    process with the same number.
    """

    pid: int
    started_ticks: int
    what: str


@value
class TestbedRecord:
    """A testbed as it was made.

    Attributes:
        id: carried by the name of everything that lies outside the folder.
        network: its IPv4 range, for example 10.77.3.0/24; gateway: the bridge's own address in it.
        bandwidth_bytes_per_s: what each node's link lets through; 0 means unshaped.
        complete: false while `up` is at work, and after it was killed.
    """

    id: str
    folder: Path
    network: str
    gateway: str
    bridge: str
    nodes: tuple[NodeLayout, ...]
    started_at_s: float
    bandwidth_bytes_per_s: float = 0.0
    images_bytes: int = 0
    processes: tuple[OwnProcess, ...] = ()
    complete: bool = False

    __test__ = False  # its name is not meant for pytest

    def node(self, name: str) -> NodeLayout:
        """One node's layout.

        Raises:
            NotFoundError: there is no such node.
        """
        for layout in self.nodes:
            if layout.name == name:
                return layout
        names = ", ".join(layout.name for layout in self.nodes)
        raise NotFoundError(f"the testbed has no node {name!r}", hint=f"it has {names}")


def check_id(testbed: str) -> str:
    """The id, if it is one that `up` makes: whatever carries it in its name is ended and deleted.

    Raises:
        InputError: it is none; an empty one would be carried by everything on the machine.
    """
    if not _ID.fullmatch(testbed):
        raise InputError(f"{testbed!r} is no id of a testbed", hint="such as nw3f9a; nothing was removed")
    return testbed


def write_whole(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Replace a file whole: a kill leaves the old one or the new one."""
    draft = path.with_name(f".{path.name}.new")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    draft.replace(path)


def save(record: TestbedRecord) -> None:
    """Write the record to its folder.

    Raises:
        StoreError: the disk refused.
    """
    try:
        write_whole(record.folder / RECORD, encode(record))
    except OSError as error:
        raise StoreError(
            f"cannot write {record.folder / RECORD}: {error.strerror}", hint="check the free space and the permissions"
        ) from error


def load(folder: Path) -> TestbedRecord | None:
    """The record in that folder; None when there is none.

    Raises:
        InputError: it is damaged, or names what no testbed of this folder has.
        PreconditionError: it cannot be read, or somebody else could write it.
        VerificationError: it belongs to somebody else.
    """
    path = folder / RECORD
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise PreconditionError(
            f"cannot read {path}: {error.strerror}", hint="a testbed belongs to root: use sudo"
        ) from error
    with os.fdopen(descriptor, "rb") as stream:
        found = os.fstat(stream.fileno())
        if found.st_uid not in (0, os.geteuid()):
            raise VerificationError(
                f"{path} belongs to user {found.st_uid}, and `down` deletes what it names",
                hint="it is not one that you made: look at it, and move it away",
            )
        if found.st_mode & 0o022:
            raise PreconditionError(
                f"{path} can be written by others, and `down` deletes what it names",
                hint=f"look at it, then: chmod 600 {path}",
            )
        data = stream.read(MAX_RECORD_BYTES + 1)
    if len(data) > MAX_RECORD_BYTES:
        raise InputError(f"{path} is larger than {MAX_RECORD_BYTES} bytes", hint="natwork testbed down")
    record: TestbedRecord = decode(TestbedRecord, data)
    if record.folder != folder:
        raise InputError(
            f"{path} is the record of a testbed in {record.folder}", hint="name the state directory it was made with"
        )
    _check_names(record, path)
    return record


def _check_names(record: TestbedRecord, path: Path) -> None:
    """Raises InputError where the record names anything that `plan` would have named otherwise."""
    try:
        check_id(record.id)
    except InputError as error:
        raise InputError(f"{path}: {error.what}", hint=error.hint) from None
    named = [(record.bridge, f"{record.id}br")]
    for i, node in enumerate(record.nodes):
        home = record.folder / "nodes" / f"node-{i}"
        named += [
            (node.testbed, record.id), (node.name, f"node-{i}"), (node.netns, f"{record.id}-node-{i}"),
            (node.bridge, record.bridge), (str(node.folder), str(home)), (str(node.images), str(home / "images")),
        ]  # fmt: skip
    for written, right in named:
        if written != right:
            raise InputError(
                f"{path} names {written!r} where testbed {record.id} has {right!r}",
                hint="it was changed: look at it, and move it away",
            )


def started_ticks(pid: int) -> int | None:
    """When the process began, in clock ticks since boot; None when there is none, or it is dead but not reaped."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    # The second field is the program's name in brackets, and may hold blanks and brackets.
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])


def identify(pid: int, what: str) -> OwnProcess:
    """The process of that number, as it is now.

    Raises:
        NotFoundError: it has ended.
    """
    ticks = started_ticks(pid)
    if ticks is None:
        raise NotFoundError(f"process {pid} ({what}) has ended", hint="look at its log")
    return OwnProcess(pid=pid, started_ticks=ticks, what=what)


@contextlib.contextmanager
def _locked(register: Path) -> Iterator[None]:
    lock = register / "lock"
    while True:
        register.mkdir(mode=0o700, exist_ok=True)
        try:
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except FileNotFoundError:  # the last testbed took the register away in this moment
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            # Whoever held it may have removed the file: then others lock a new one, and this lock holds nobody off.
            if _is_open_as(descriptor, lock):
                yield
                return
        finally:
            os.close(descriptor)


def _is_open_as(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


@value
class Before:
    """What the machine's settings were before the first testbed."""

    settings: tuple[tuple[str, str], ...]
    made_privsep: bool


def join(testbed: str, folder: Path, *, register: Path = REGISTER, privsep: Path = PRIVSEP) -> None:
    """Enter a testbed into the register, and the machine's settings as testbeds need them.

    Raises:
        PreconditionError: a setting cannot be changed.
    """
    with _locked(register):
        # First of all: whoever is killed from here on has a testbed that `down` finds, and settings that it puts back.
        write_whole(register / f"{testbed}.testbed", os.fsencode(folder))
        if not (register / "before.json").exists():
            paths = [*PIPES, CONNECTIONS] if CONNECTIONS.exists() else list(PIPES)
            settings = tuple((str(path), path.read_text(encoding="ascii").strip()) for path in paths)
            before = Before(settings=settings, made_privsep=not privsep.exists())
            write_whole(register / "before.json", encode(before))
        privsep.mkdir(mode=0o755, exist_ok=True)
        if CONNECTIONS.exists() and int(CONNECTIONS.read_text(encoding="ascii")) > _CONNECTIONS_AT_MOST:
            with contextlib.suppress(OSError):  # only faster
                CONNECTIONS.write_text(f"{_CONNECTIONS_AT_MOST}\n", encoding="ascii")
        for path, wanted in PIPES.items():
            try:
                path.write_text(f"{wanted}\n", encoding="ascii")
            except OSError as error:
                raise PreconditionError(
                    f"{path} cannot be set to {wanted}: {error.strerror}",
                    hint="natwork doctor says what post-copy needs",
                ) from error


def leave(testbed: str, *, register: Path = REGISTER, privsep: Path = PRIVSEP) -> None:
    """Take a testbed out; the last one puts the machine's settings back. Harmless when it is not there."""
    if not register.exists():
        return
    with _locked(register):
        (register / f"{testbed}.testbed").unlink(missing_ok=True)
        for name, member in members(register):
            # Its folder is gone without a `down`: nothing is left that needs the settings.
            if not member.exists():
                (register / f"{name}.testbed").unlink(missing_ok=True)
        if any(register.glob("*.testbed")):
            return
        saved = register / "before.json"
        if saved.exists():
            before: Before = decode(Before, saved.read_bytes())
            for path in (*PIPES, CONNECTIONS):
                old = dict(before.settings).get(str(path))
                if old is not None:
                    _put_back(path, old)
            if before.made_privsep and privsep.is_dir():
                with contextlib.suppress(OSError):  # in use by somebody who found it there
                    privsep.rmdir()
            saved.unlink()
        (register / "lock").unlink()
        with contextlib.suppress(OSError):  # another `up` took the register over in this moment
            register.rmdir()


def _put_back(path: Path, old: str) -> None:
    with contextlib.suppress(OSError):  # where it could not be changed either
        if path.read_text(encoding="ascii").strip() != old:
            path.write_text(f"{old}\n", encoding="ascii")


def members(register: Path = REGISTER) -> tuple[tuple[str, Path], ...]:
    """All testbeds of the machine that were not taken down: id and folder."""
    found = []
    for entry in sorted(register.glob("*.testbed")):
        with contextlib.suppress(FileNotFoundError):  # it was taken down in this moment
            found.append((entry.name.removesuffix(".testbed"), Path(os.fsdecode(entry.read_bytes()))))
    return tuple(found)
