"""Offline verification: any altered byte or line of an export is found, and the message says where."""

from __future__ import annotations

import io
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from natwork_ray.audit.export import header_line, parse_header, write_export
from natwork_ray.audit.log import MAX_LINE_BYTES, AuditLog
from natwork_ray.audit.merkle import EMPTY_ROOT, inclusion_proof, leaf_hash
from natwork_ray.audit.notes import Signer, sign_checkpoint
from natwork_ray.audit.proofs import ConsistencyProof, InclusionProof, verify_entry, verify_extension
from natwork_ray.audit.verify import AuditReport, verify_export
from natwork_ray.domain.auditing import AuditKind, AuditRecord
from natwork_ray.errors import VerificationError

SIGNER = Signer.from_seed("natwork.test/audit", bytes(range(32)))
KEY = SIGNER.verifier_key
N = 6
RECORDS = [
    AuditRecord(at_s=float(10 * i), kind=AuditKind.VERDICT, subject=f"upf-{i}", body={"n": i, "w": "cpu"})
    for i in range(N)
]
GROWN = AuditLog().append(RECORDS)
NODES = {(n.level, n.position): n.hash for n in GROWN.nodes}


def checkpoint(size: int, signer: Signer = SIGNER) -> bytes:
    return sign_checkpoint(signer, size, AuditLog().append(RECORDS[:size]).log.root())


def export(lines: tuple[bytes, ...] = GROWN.lines, note: bytes | None = None) -> bytes:
    out = io.BytesIO()
    assert write_export(out, KEY, lines, note or checkpoint(len(lines))) == len(lines)
    return out.getvalue()


def verify(data: bytes, **kwargs: Any) -> AuditReport:
    return verify_export(io.BytesIO(data), **kwargs)


GOOD = export()
START = [GOOD.index(line) for line in GROWN.lines]


def test_a_good_export_and_its_report() -> None:
    report = verify(GOOD, pinned_key=KEY, witness=checkpoint(4))
    assert (report.entries, report.bytes, report.pinned, report.witnessed) == (N, len(GOOD), True, 4)
    assert (report.first_at_s, report.last_at_s, report.key_id) == (0.0, 50.0, KEY.key_id)
    assert report.root == GROWN.log.root().hex()
    own_word = verify(GOOD)
    assert (own_word.pinned, own_word.witnessed) == (False, None)


def test_an_empty_log() -> None:
    report = verify(export(()), pinned_key=KEY, witness=checkpoint(0))
    assert (report.entries, report.first_at_s, report.witnessed) == (0, None, 0)
    with pytest.raises(VerificationError, match="root"):
        verify(export((), sign_checkpoint(SIGNER, 0, bytes(32))))


def test_every_byte_counts() -> None:
    """Exhaustive: each byte flipped (lowest bit), dropped, doubled; each prefix of the file."""
    for at in range(len(GOOD)):
        head, byte, tail = GOOD[:at], GOOD[at : at + 1], GOOD[at + 1 :]
        for altered in (head + bytes([byte[0] ^ 1]) + tail, head + tail, head + byte + byte + tail, head):
            if altered != GOOD:
                with pytest.raises(VerificationError):
                    verify(altered)


@settings(max_examples=120)
@given(st.data())
def test_any_edit_fails(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["flip", "insert", "delete", "swap bytes", "lines", "append"]))
    at = data.draw(st.integers(0, len(GOOD) - 1))
    end = data.draw(st.integers(at, len(GOOD)))
    altered = bytearray(GOOD)
    if kind == "flip":
        altered[at] ^= data.draw(st.integers(1, 255))
    elif kind == "insert":
        altered[at:at] = data.draw(st.binary(min_size=1, max_size=9))
    elif kind == "delete":
        del altered[at:end]
    elif kind == "swap bytes" and end < len(GOOD):
        altered[at], altered[end] = altered[end], altered[at]
    elif kind == "append":
        altered += data.draw(st.binary(min_size=1, max_size=9))
    elif kind == "lines":
        lines = GOOD.splitlines(keepends=True)
        picked = data.draw(st.lists(st.sampled_from(range(len(lines))), max_size=len(lines) + 2))
        altered = bytearray(b"".join(lines[i] for i in picked))
    if bytes(altered) != GOOD:
        with pytest.raises(VerificationError) as caught:
            verify(bytes(altered))
        assert caught.value.hint


def lines_with(edit: dict[int, bytes | None]) -> bytes:
    kept = [edit.get(i, line) for i, line in enumerate(GROWN.lines)]
    return export(tuple(line for line in kept if line is not None), checkpoint(N))


@pytest.mark.parametrize(
    ("data", "where"),
    [
        (GOOD.replace(b'"n":2', b'"n":7'), f"entry 2 at byte {START[2]}: it was altered; entry 3"),
        (GOOD.replace(b'"n":5', b'"n":7'), f"entry 5 at byte {START[5]}: the links hold"),
        (GOOD.replace(b'"n":4', b'"n":7'), f"entry 4 at byte {START[4]}: it was altered, or entry 5"),
        (GOOD[: START[3] + 20] + b"x" + GOOD[START[3] + 21 :], f"entry 3 at byte {START[3]}: it was altered: prev"),
        (GOOD[: START[5] + 20] + b"x" + GOOD[START[5] + 21 :], f"entry 5 at byte {START[5]}: its link was"),
        (GOOD[: START[0] + 20] + b"1" + GOOD[START[0] + 21 :], "entry 0 at byte .*expected zeros"),
        (lines_with({2: None}), f"entry 2 at byte {START[2]}: found entry 3: entries 2 to 2 were dropped"),
        (lines_with({2: GROWN.lines[3], 3: GROWN.lines[2]}), "entry 2 .*found entry 3"),
        (lines_with({3: GROWN.lines[2]}), "entry 3 .*found entry 2 again"),
        (lines_with({5: None}), "entry 5: entries 5 to 5 are missing"),
        (GOOD.replace(b'{"seq":3,', b'{"seq": 3,'), "entry 3 .*first bytes"),
        (GOOD.replace(b'"n":3', b'"n":!'), f"entry 3 at byte {START[3]}: not JSON"),
        (export(GROWN.lines, checkpoint(4)), "entry 4: the checkpoint covers 4"),
        (GOOD[: START[2]] + b"\n" + GOOD[START[2] :], "entry 2 at byte .*empty line"),
        (GOOD[: START[2] + 9], f"entry 2 at byte {START[2]}: the file ends at byte {START[2] + 9}"),
        (GOOD[: GOOD.index(b"\n\n") + 2], "checkpoint at byte .*after 6 entries"),
        (GOOD.replace(b"\n", b"\r\n"), "header"),
        (GOOD.replace(b"}\n{", b"}\r\n{"), "header"),
        (GOOD.replace(b"audit/1", b"audit/2"), "header: not that of"),
        (b"", "header at byte 0: the file ends"),
        (b"x" * (MAX_LINE_BYTES + 5), "header at byte 0: longer"),
        (GOOD + b"\n", "checkpoint at byte"),
        (GOOD + GOOD, "checkpoint at byte"),
        (header_line(KEY).replace(b'","', b'", "') + b"\n", "header: expected"),
        (header_line(KEY).replace(KEY.key_id.encode(), b"00000000") + b"\n", "header at byte 0: verifier key"),
    ],
)
def test_it_says_where(data: bytes, where: str) -> None:
    with pytest.raises(VerificationError, match=where):
        verify(data)


def test_the_entry_after_an_altered_link_may_be_garbage() -> None:
    data = GOOD[: START[3] + 20] + b"x" + GOOD[START[3] + 21 :].replace(b'"n":4', b'"n":!')
    with pytest.raises(VerificationError, match=r"entry 3 .*it was altered: prev"):
        verify(data)


def test_a_forger_with_another_key_needs_the_pin_to_be_found() -> None:
    forger = Signer.from_seed(KEY.name, bytes(32))
    out = io.BytesIO()
    write_export(out, forger.verifier_key, GROWN.lines, checkpoint(N, forger))
    assert not verify(out.getvalue()).pinned
    with pytest.raises(VerificationError, match="pinned"):
        verify(out.getvalue(), pinned_key=KEY)
    mixed = io.BytesIO()
    write_export(mixed, KEY, GROWN.lines, checkpoint(N, forger))
    with pytest.raises(VerificationError, match="signed by key"):
        verify(mixed.getvalue())


def test_a_rolled_back_or_rewritten_log_is_found_by_its_witness() -> None:
    old = export(GROWN.lines[:3])
    verify(old, witness=checkpoint(3))
    with pytest.raises(VerificationError, match="rolled back"):
        verify(old, witness=checkpoint(4))
    other = AuditLog().append([*RECORDS[:2], *RECORDS[3:], RECORDS[2]])
    rewritten = export(other.lines, sign_checkpoint(SIGNER, N, other.log.root()))
    verify(rewritten, witness=checkpoint(2))
    with pytest.raises(VerificationError, match="first 4 entries"):
        verify(rewritten, witness=checkpoint(4))
    with pytest.raises(VerificationError, match="witness: "):
        verify(GOOD, witness=b"nonsense")


def test_entry_proofs_and_extension_proofs_travel_alone() -> None:
    hashes = inclusion_proof(2, N, lambda level, position: NODES[level, position])
    proof = InclusionProof(2, N, hashes, checkpoint(N))
    assert verify_entry(GROWN.lines[2], proof, KEY).subject == "upf-2"
    for line, bad in (
        (GROWN.lines[3], proof),
        (GROWN.lines[2], InclusionProof(2, N - 1, hashes, checkpoint(N))),
        (GROWN.lines[2], InclusionProof(2, N - 1, hashes, checkpoint(N - 1))),
    ):
        with pytest.raises(VerificationError):
            verify_entry(line, bad, KEY)
    # A signer that put a wrongly numbered line into its tree is found out too.
    line = GROWN.lines[1]
    single = InclusionProof(0, 1, (), sign_checkpoint(SIGNER, 1, leaf_hash(line)))
    with pytest.raises(VerificationError, match="calls itself 1"):
        verify_entry(line, single, KEY)
    same = ConsistencyProof(0, N, (), checkpoint(N))
    assert verify_extension(sign_checkpoint(SIGNER, 0, EMPTY_ROOT), same, KEY).size == N
    with pytest.raises(VerificationError):
        verify_extension(checkpoint(3), ConsistencyProof(3, N, (), checkpoint(N)), KEY)


@pytest.mark.parametrize("line", [b"[1]", b"{", b"{}", b'{"format":"natwork-audit/1","key":1}'])
def test_malformed_headers(line: bytes) -> None:
    with pytest.raises(VerificationError):
        parse_header(line)


def test_memory_does_not_grow_with_the_file() -> None:
    """A file of 20,000 entries is verified in its own process, with a stream that cannot be rewound."""
    lines = AuditLog().append(RECORDS[:1] * 20_000)
    out = io.BytesIO()
    write_export(out, KEY, lines.lines, sign_checkpoint(SIGNER, 20_000, lines.log.root()))
    program = (
        "import sys, tracemalloc; from natwork_ray.audit.verify import verify_export; tracemalloc.start();"
        "print(verify_export(sys.stdin.buffer).root, tracemalloc.get_traced_memory()[1] < 2_000_000)"
    )
    done = subprocess.run([sys.executable, "-c", program], input=out.getvalue(), capture_output=True, check=True)
    assert done.stdout.decode().split() == [lines.log.root().hex(), "True"]
    assert sha256(lines.lines[-1]).hexdigest() == lines.log.last_hash


@pytest.mark.parametrize("size", [0, 1, 2, 5, 6])
def test_the_program_in_the_docs_verifies_by_hand(size: int, tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "audit.md").read_text(encoding="utf-8")
    program = page.split("```python\n")[1].split("```")[0]
    file = tmp_path / "export"

    def run(data: bytes) -> subprocess.CompletedProcess[str]:
        file.write_bytes(data)
        command = [sys.executable, "-c", program, str(file)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    done = run(export(GROWN.lines[:size]))
    assert done.stdout == f"verified {size} entries\n", done.stderr
    if size > 3:
        assert "AssertionError: entry 3" in run(export(GROWN.lines[:size]).replace(b'"n":2', b'"n":7')).stderr
