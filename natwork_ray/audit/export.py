"""The export of an audit log: one text file that proves itself (docs/audit.md, format `natwork-audit/1`).

    {"format":"natwork-audit/1","origin":"natwork.example/audit","key":"natwork.example/audit+a1b2c3d4+AY..."}
    {"seq":0,"prev":"000...","at_s":0.0,"kind":"run","subject":"demo","body":{}}
    ...
    <empty line>
    <signed checkpoint over exactly these entries>

Lines end in a single newline, the last one too. Entries and header are ASCII; the note is UTF-8. The header
has one spelling only (`parse_header` compares), because every byte of the file counts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import BinaryIO

from pydantic_core import from_json

from natwork_ray.audit.notes import VerifierKey
from natwork_ray.errors import VerificationError

FORMAT = "natwork-audit/1"


def header_line(key: VerifierKey) -> bytes:
    """The first line of an export, without newline."""
    header = {"format": FORMAT, "origin": key.name, "key": str(key)}
    return json.dumps(header, separators=(",", ":")).encode("ascii")


def parse_header(line: bytes) -> VerifierKey:
    """The key that the first line of an export names.

    Raises:
        VerificationError: not a header, of another version, or not in its one spelling.
        InputError: the key is malformed.
    """
    hint = f"the file is not a {FORMAT} export, or its first line was altered"
    try:
        header = from_json(line)
    except ValueError as error:
        raise VerificationError(f"header: not JSON: {error}", hint=hint) from error
    if not isinstance(header, dict) or header.get("format") != FORMAT or not isinstance(header.get("key"), str):
        raise VerificationError(f"header: not that of a {FORMAT} export: {line[:80]!r}", hint=hint)
    key = VerifierKey.parse(header["key"])
    if header_line(key) != line:
        raise VerificationError(f"header: expected {header_line(key)!r}", hint=hint)
    return key


def write_export(stream: BinaryIO, key: VerifierKey, lines: Iterable[bytes], checkpoint: bytes) -> int:
    """Write an export as it streams in; return the number of entries.

    `lines` are the entries from 0 on, without newlines; `checkpoint` the signed note over exactly these.
    """
    stream.write(header_line(key) + b"\n")
    count = 0
    for line in lines:
        stream.write(line + b"\n")
        count += 1
    stream.write(b"\n" + checkpoint)
    return count
