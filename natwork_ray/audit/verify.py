"""Verify an exported log offline, and say where it was altered (docs/audit.md).

One pass over the file, in the order of the format, with memory for one line, the frontier of the tree and
nothing that grows: a file of any size can be checked. What holds when `verify_export` returns:

1. the header is in its one spelling, and its key is the pinned one where a key was pinned;
2. every entry has the number of its line, names the hash of the line before, and is an entry's JSON;
3. the checkpoint is signed by that key, over exactly these entries (Merkle root and number);
4. where a witness (an older checkpoint, kept elsewhere) was given, the log begins with what it covered;
5. there is no byte before, between or after these.

It does not show that what an entry says is true, nor that the holder of the key did not write another log:
without a pinned key anybody can sign a forgery with a key of their own, and without a witness a shorter older
export verifies. The report says which of the two were given.

    with open(path, "rb") as stream:
        report = verify_export(stream, pinned_key=VerifierKey.parse(trusted))
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from typing import BinaryIO, NoReturn

from natwork_ray.audit.export import parse_header
from natwork_ray.audit.log import FIRST_PREV, MAX_LINE_BYTES, parse_line
from natwork_ray.audit.merkle import CompactTree, leaf_hash
from natwork_ray.audit.notes import MAX_NOTE_BYTES, Checkpoint, VerifierKey, open_checkpoint
from natwork_ray.domain.values import value
from natwork_ray.errors import InputError, VerificationError

_ALTERED = "the file was altered after it was exported: compare with another copy"
_CUT = "the file was cut or is still being written: export it again"


@value
class AuditReport:
    """What was verified.

    Attributes:
        entries: number of entries.
        bytes: length of the file.
        root: Merkle root, 64 hexadecimal digits.
        origin: name of the log.
        key: the verifier key that signed the checkpoint.
        key_id: its short id.
        pinned: true when the caller named the key; false when it was taken from the file itself.
        witnessed: entries covered by the witness checkpoint that was given, None without one.
        first_at_s: time of the first entry on the backend's clock, None in an empty log.
        last_at_s: time of the last entry.
    """

    entries: int
    bytes: int
    root: str
    origin: str
    key: str
    key_id: str
    pinned: bool
    witnessed: int | None
    first_at_s: float | None
    last_at_s: float | None


class _Lines:
    """Lines of a stream with their offsets, each of bounded length."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream
        self._readline = stream.readline
        self.start = 0  # offset of the line returned last
        self.end = 0

    def next(self, what: str) -> bytes:
        """The next line without its newline.

        Raises:
            VerificationError: there is none, it does not end in a newline, or it is too long.
        """
        line = self._readline(MAX_LINE_BYTES + 1)
        self.start = self.end
        self.end += len(line)
        if line[-1:] != b"\n":
            if len(line) > MAX_LINE_BYTES:
                raise VerificationError(
                    f"{what} at byte {self.start}: longer than {MAX_LINE_BYTES} bytes", hint=_ALTERED
                )
            raise VerificationError(
                f"{what} at byte {self.start}: the file ends at byte {self.end}, within or before it", hint=_CUT
            )
        return line[:-1]


@dataclass
class _Walk:
    """Where the walk along the entries stands."""

    tree: CompactTree
    last_hash: str = FIRST_PREV
    last_start: int = 0
    first_at_s: float | None = None
    last_at_s: float | None = None
    witness_root: bytes | None = None


def verify_export(
    stream: BinaryIO, *, pinned_key: VerifierKey | None = None, witness: bytes | None = None
) -> AuditReport:
    """Verify an export from its first byte to its last.

    Args:
        stream: the export, opened in binary mode.
        pinned_key: the log's key as known from elsewhere; without it the key in the file is used.
        witness: an older signed checkpoint of the same log, kept elsewhere.

    Raises:
        VerificationError: anything at all is wrong; the message names the entry and the byte.
    """
    lines = _Lines(stream)
    # 1. Header.
    key = _header_key(lines.next("header"), pinned_key)
    old = None if witness is None else _open_witness(witness, key)
    # 2. Entries.
    walk = _walk_entries(lines, key, old)
    # 3. Checkpoint, and 5. nothing after it.
    head = _read_checkpoint(lines, key, walk.tree.size)
    _compare_head(head, walk)
    # 4. Witness.
    if old is not None:
        _compare_witness(old, walk)
    return AuditReport(
        entries=walk.tree.size,
        bytes=lines.end,
        root=head.root.hex(),
        origin=key.name,
        key=str(key),
        key_id=key.key_id,
        pinned=pinned_key is not None,
        witnessed=None if old is None else old.size,
        first_at_s=walk.first_at_s,
        last_at_s=walk.last_at_s,
    )


def _header_key(line: bytes, pinned_key: VerifierKey | None) -> VerifierKey:
    try:
        key = parse_header(line)
    except InputError as error:
        raise VerificationError(f"header at byte 0: {error.what}", hint=_ALTERED) from error
    if pinned_key is not None and key != pinned_key:
        raise VerificationError(
            f"header at byte 0: it names key {key}, the pinned key is {pinned_key}",
            hint="this is another log, or somebody else signed it",
        )
    return key


def _open_witness(witness: bytes, key: VerifierKey) -> Checkpoint:
    try:
        return open_checkpoint(witness, key)
    except VerificationError as error:
        raise VerificationError(f"witness: {error.what}", hint="give a checkpoint of this very log") from error


def _walk_entries(lines: _Lines, key: VerifierKey, old: Checkpoint | None) -> _Walk:
    walk = _Walk(CompactTree())
    tree = walk.tree
    old_size = -1 if old is None else old.size
    seq = 0
    if old_size == 0:
        walk.witness_root = tree.root()
    while line := lines.next(f"entry {seq}"):
        try:
            entry = parse_line(line)
        except InputError as error:
            _fail(seq, lines.start, error.what)
        if not line.startswith(b'{"seq":%d,"prev":"%s","at_s":' % (seq, walk.last_hash.encode())):
            _locate(lines, key, walk, line, entry["seq"], entry["prev"])
        if seq == 0:
            walk.first_at_s = entry["at_s"]
        walk.last_at_s = entry["at_s"]
        walk.last_hash = sha256(line).hexdigest()
        walk.last_start = lines.start
        tree.add(leaf_hash(line))
        seq += 1
        if seq == old_size:
            walk.witness_root = tree.root()
    return walk


def _locate(lines: _Lines, key: VerifierKey, walk: _Walk, line: bytes, found: int, prev: str) -> NoReturn:
    """Entry `seq` does not continue the chain: decide which entry was altered, and raise."""
    seq, start = walk.tree.size, lines.start
    if found > seq:
        _fail(seq, start, f"found entry {found}: entries {seq} to {found - 1} were dropped or moved")
    if found < seq:
        _fail(seq, start, f"found entry {found} again or out of its place")
    if prev == walk.last_hash:
        _fail(seq, start, "its first bytes are not written as an entry's are")
    if seq == 0:
        _fail(seq, start, f"prev is {prev[:80]}, expected zeros: it is the first")
    mismatch = f"prev is {prev[:80]}, expected {walk.last_hash}, the hash of entry {seq - 1}"
    # Which of the two was altered? What comes after knows the hash of this line as it was.
    following = lines.next(f"entry {seq + 1}")
    if following:
        try:
            intact = parse_line(following)["prev"] == sha256(line).hexdigest()
        except InputError:
            intact = False
        if intact:
            _fail(seq - 1, walk.last_start, f"it was altered; entry {seq}, which is intact, disagrees: {mismatch}")
        _fail(seq, start, f"it was altered: {mismatch}")
    # This is the last line: mend its link, and see whether the signed root then comes out.
    head = _read_checkpoint(lines, key, seq + 1)
    mended = line.replace(prev.encode(), walk.last_hash.encode(), 1)
    walk.tree.add(leaf_hash(mended))
    if walk.tree.root() == head.root:
        _fail(seq, start, f"its link was altered: {mismatch}")
    _fail(seq - 1, walk.last_start, f"it was altered, or entry {seq} was: {mismatch}")


def _read_checkpoint(lines: _Lines, key: VerifierKey, entries: int) -> Checkpoint:
    gap, start = lines.start, lines.end
    note = lines.stream.read(MAX_NOTE_BYTES + 1)
    lines.end += len(note)
    if note.startswith(b"{"):
        _fail(entries, gap, "an empty line stands before it, where only the checkpoint may follow")
    if not note:
        raise VerificationError(
            f"checkpoint at byte {start}: the file ends after {entries} entries without one", hint=_CUT
        )
    try:
        return open_checkpoint(note, key)
    except VerificationError as error:
        raise VerificationError(
            f"checkpoint at byte {start}, after {entries} entries: {error.what}", hint=error.hint
        ) from error


def _compare_head(head: Checkpoint, walk: _Walk) -> None:
    entries = walk.tree.size
    if head.size > entries:
        raise VerificationError(
            f"entry {entries}: entries {entries} to {head.size - 1} are missing at the end; "
            f"the checkpoint covers {head.size}",
            hint=_CUT,
        )
    if head.size < entries:
        raise VerificationError(
            f"entry {head.size}: the checkpoint covers {head.size} entries, the file has {entries}",
            hint="entries were added without the key, or the checkpoint is an older one",
        )
    if walk.tree.root() != head.root:
        _fail(
            max(entries - 1, 0),
            walk.last_start,
            f"the links hold, but the Merkle root is {walk.tree.root().hex()}, signed was {head.root.hex()}: "
            "this last entry was altered, or the log was rewritten from some entry on",
        )


def _compare_witness(old: Checkpoint, walk: _Walk) -> None:
    if old.size > walk.tree.size:
        raise VerificationError(
            f"entry {walk.tree.size}: the witness covers {old.size} entries, the file has {walk.tree.size}",
            hint="the log was rolled back to an older state",
        )
    if walk.witness_root != old.root:
        raise VerificationError(
            f"the first {old.size} entries are not those that the witness covers", hint="the log was rewritten"
        )


def _fail(seq: int, start: int, what: str) -> NoReturn:
    raise VerificationError(f"entry {seq} at byte {start}: {what}", hint=_ALTERED)
