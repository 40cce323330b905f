"""Entries: what is written, what is refused, and that appending is one law however it is batched."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from natwork_ray.audit.log import FIRST_PREV, MAX_LINE_BYTES, AuditLog, parse_entry, parse_line
from natwork_ray.audit.merkle import CompactTree, leaf_hash
from natwork_ray.domain.auditing import AuditKind, AuditRecord
from natwork_ray.errors import InputError


def record(body: Any = None, *, at_s: float = 0.0, subject: str = "upf") -> AuditRecord:
    return AuditRecord(at_s=at_s, kind=AuditKind.VERDICT, subject=subject, body=body or {})


def test_an_entry_is_this_line_exactly() -> None:
    grown = AuditLog().append([record({"b": 1, "a": [0.1, "ä", None]}, at_s=12)])
    assert grown.lines == (
        b'{"seq":0,"prev":"' + b"0" * 64 + b'","at_s":12.0,"kind":"verdict","subject":"upf",'
        b'"body":{"a":[0.1,"\\u00e4",null],"b":1}}',
    )
    assert grown.log.last_hash == sha256(grown.lines[0]).hexdigest()
    entry = parse_entry(grown.lines[0])
    assert (entry.seq, entry.at_s, entry.kind, entry.subject) == (0, 12.0, AuditKind.VERDICT, "upf")
    assert entry.body == {"a": [0.1, "ä", None], "b": 1}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
RECORDS = st.lists(
    st.builds(
        AuditRecord,
        at_s=st.floats(allow_nan=False, allow_infinity=False),
        kind=st.sampled_from(AuditKind),
        subject=st.text(max_size=20),
        body=st.dictionaries(st.text(), JSON, max_size=3),
    ),
    max_size=12,
)


@given(RECORDS, st.integers(0, 12))
def test_batches_do_not_matter_and_every_record_comes_back(records: list[AuditRecord], cut: int) -> None:
    start = AuditLog()
    whole = start.append(records)
    first = start.append(records[:cut])
    second = first.log.append(records[cut:])
    assert second.log == whole.log
    assert first.lines + second.lines == whole.lines
    assert first.nodes + second.nodes == whole.nodes
    assert start == AuditLog()
    prev, tree = FIRST_PREV, CompactTree()
    for seq, (line, made) in enumerate(zip(whole.lines, records, strict=True)):
        assert line.isascii()
        assert parse_line(line)["prev"] == prev
        entry = parse_entry(line)
        assert (entry.seq, entry.at_s, entry.kind, entry.subject) == (seq, made.at_s, made.kind, made.subject)
        assert entry.body == made.body
        prev = sha256(line).hexdigest()
        tree.add(leaf_hash(line))
    assert whole.log.root() == tree.root()


def nested(depth: int) -> dict[str, Any]:
    body: dict[str, Any] = {}
    for _ in range(depth):
        body = {"a": body}
    return body


@pytest.mark.parametrize(
    "refused",
    [
        record({"x": float("nan")}),
        record({"x": float("inf")}),
        record(at_s=float("nan")),
        record(at_s=float("-inf")),
        record({"x": {1, 2}}),
        record({"x": b"bytes"}),
        record({1: 1, "1": 2}),
        record({"x": "y" * MAX_LINE_BYTES}),
        record(nested(250)),
        record(nested(100_000)),
        record({"x": "\ud800"}),
        record(subject="\udfff"),
    ],
    ids=lambda r: f"{r.at_s} {r.body!r:.20}" if len(r.body) < 5 and "a" not in r.body else "nested",
)
def test_what_could_not_be_verified_is_refused(refused: AuditRecord) -> None:
    with pytest.raises(InputError, match="audit entry 1") as caught:
        AuditLog().append([record(), refused])
    assert caught.value.hint


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"[]",
        b"{}",
        b"{",
        b'{"seq":0}',
        b" " + AuditLog().append([record()]).lines[0],
        AuditLog().append([record()]).lines[0] + b"\r",
        AuditLog().append([record()]).lines[0].replace(b'"seq":0', b'"seq":0.0'),
        AuditLog().append([record()]).lines[0].replace(b'"seq":0', b'"seq":true'),
        AuditLog().append([record()]).lines[0].replace(b'"at_s":0.0', b'"at_s":1e999'),
        AuditLog().append([record()]).lines[0].replace(b'"body":{}', b'"body":{},"more":{}'),
        AuditLog().append([record()]).lines[0].replace(b'"verdict"', b'"gossip"'),
    ],
)
def test_what_is_not_an_entry_is_refused(line: bytes) -> None:
    with pytest.raises(InputError):
        parse_entry(line)
