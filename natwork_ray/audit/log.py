"""Entries of the audit log, and the state that the next one hangs on (D3.3 section 3.2; docs/audit.md).

An entry is one line of JSON with its keys in this order:

    {"seq":0,"prev":"<64 hex digits>","at_s":12.5,"kind":"verdict","subject":"ran/upf","body":{...}}

Rules: `seq` counts from 0. `prev` is the SHA-256 of the bytes of the line before (zeros for the first),
without its newline. The leaf in the Merkle tree is the RFC 6962 leaf hash of the same bytes. What is hashed
is what was written: nothing has to be put into a canonical form again to verify. Writing is deterministic all
the same (ASCII, sorted keys in the body, no blanks, shortest decimal for floats), so that the same run gives
the same log, byte for byte.

An entry that a verifier would have to refuse (NaN, too long, nested too deeply) is refused here, before it is
written.

`AuditLog` is a frozen value: appending gives a new one, so a journal whose disk refuses simply keeps the old.

    grown = AuditLog().append([AuditRecord(at_s=0.0, kind=AuditKind.RUN, subject="demo", body={})])
    grown.log.size, grown.lines[0]
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from pydantic_core import from_json

from natwork_ray.audit.merkle import CompactTree, Node, leaf_hash
from natwork_ray.domain.auditing import AuditKind, AuditRecord
from natwork_ray.errors import InputError

MAX_LINE_BYTES = 65_536
FIRST_PREV = "0" * 64
KEYS = ["seq", "prev", "at_s", "kind", "subject", "body"]

_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False).encode


@dataclass(frozen=True)
class AuditEntry:
    """One entry as read back. `line` is the bytes that are hashed, without the newline."""

    seq: int
    at_s: float
    kind: AuditKind
    subject: str
    body: dict[str, Any]
    line: bytes


@dataclass(frozen=True)
class Appended:
    """What appending gives: the new log, its new lines (without newline), the subtrees that they complete."""

    log: AuditLog
    lines: tuple[bytes, ...]
    nodes: tuple[Node, ...]


@dataclass(frozen=True)
class AuditLog:
    """The state of a log: number of entries, hash of the last line (hex), frontier of the Merkle tree."""

    size: int = 0
    last_hash: str = FIRST_PREV
    frontier: tuple[bytes, ...] = ()

    def root(self) -> bytes:
        """Root of the Merkle tree over all entries."""
        return CompactTree(self.size, self.frontier).root()

    def append(self, records: Iterable[AuditRecord]) -> Appended:
        """The log with `records` at its end; this one stays as it is.

        Raises:
            InputError: a record that cannot be written as an entry; none of them was taken.
        """
        tree = CompactTree(self.size, self.frontier)
        prev = self.last_hash
        lines: list[bytes] = []
        nodes: list[Node] = []
        for record in records:
            line = encode_entry(tree.size, prev, record)
            prev = sha256(line).hexdigest()
            nodes += tree.append(leaf_hash(line))
            lines.append(line)
        return Appended(AuditLog(tree.size, prev, tree.frontier), tuple(lines), tuple(nodes))


def encode_entry(seq: int, prev: str, record: AuditRecord) -> bytes:
    """The line of a record at a place in the chain.

    Raises:
        InputError: NaN or infinity, something that is not JSON, or more than 65536 bytes.
    """
    where = f"audit entry {seq} ({record.kind} of {record.subject[:80]!r})"
    if not math.isfinite(record.at_s):
        raise InputError(f"{where}: at_s is {record.at_s}", hint="give a finite time in seconds")
    try:
        body = _encode(record.body)
        head = f'{{"seq":{seq},"prev":"{prev}","at_s":{float(record.at_s)!r},"kind":{_encode(str(record.kind))}'
        line = f'{head},"subject":{_encode(record.subject)},"body":{body}}}'.encode("ascii")
    except (ValueError, TypeError, RecursionError) as error:
        raise InputError(
            f"{where}: the body cannot be written as JSON: {error}",
            hint="use finite numbers, strings, lists and dicts only (see natwork_ray.domain.values.plain)",
        ) from error
    if len(line) > MAX_LINE_BYTES:
        raise InputError(
            f"{where}: {len(line)} bytes, at most {MAX_LINE_BYTES} fit",
            hint="record a digest of large data instead",
        )
    # Read it back as a verifier will: what it could not read must never be signed.
    try:
        parse_line(line)
    except InputError as error:
        raise InputError(f"{where}: {error.what}", hint="nest less deeply, and use valid Unicode text") from error
    return line


def parse_line(line: bytes) -> dict[str, Any]:
    """The JSON object of an entry's line, with the six keys in their order and values of the right types.

    Raises:
        InputError: anything else.
    """
    if line[:1] != b"{" or line[-1:] != b"}":
        raise InputError("not a JSON object from the first to the last byte", hint="an entry is one line of JSON")
    try:
        entry = from_json(line, allow_inf_nan=False, cache_strings="keys")
    except ValueError as error:
        raise InputError(f"not JSON: {error}", hint="an entry is one line of JSON") from error
    if not isinstance(entry, dict) or list(entry) != KEYS:
        raise InputError("not a JSON object with the keys " + ", ".join(KEYS), hint="compare with docs/audit.md")
    if (
        type(entry["seq"]) is not int
        or type(entry["prev"]) is not str
        or type(entry["at_s"]) is not float
        or not math.isfinite(entry["at_s"])
        or type(entry["kind"]) is not str
        or type(entry["subject"]) is not str
        or type(entry["body"]) is not dict
    ):
        raise InputError("a value of the wrong type", hint="compare with docs/audit.md")
    return entry


def parse_entry(line: bytes) -> AuditEntry:
    """Read an entry back.

    Raises:
        InputError: not an entry, or of a kind that this version does not know.
    """
    entry = parse_line(line)
    if entry["kind"] not in set(AuditKind):
        raise InputError(f"unknown kind of audit entry {entry['kind'][:40]!r}", hint="read it with a newer version")
    return AuditEntry(entry["seq"], entry["at_s"], AuditKind(entry["kind"]), entry["subject"], entry["body"], line)
