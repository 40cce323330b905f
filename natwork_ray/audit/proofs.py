"""Proofs that travel without the log: one entry is in it, and a later log extends an earlier one.

Each carries the signed checkpoint that it leads to, so that the entry's line (or the older checkpoint), the
proof and the log's public key are all that a verifier needs.
"""

from __future__ import annotations

from dataclasses import dataclass

from natwork_ray.audit.log import AuditEntry, parse_entry
from natwork_ray.audit.merkle import leaf_hash, verify_consistency, verify_inclusion
from natwork_ray.audit.notes import Checkpoint, VerifierKey, open_checkpoint
from natwork_ray.errors import VerificationError


@dataclass(frozen=True)
class InclusionProof:
    """Entry `seq` is among the `size` entries of `checkpoint` (a signed note). 32-byte hashes, lowest first."""

    seq: int
    size: int
    hashes: tuple[bytes, ...]
    checkpoint: bytes


@dataclass(frozen=True)
class ConsistencyProof:
    """The log of `size` entries under `checkpoint` (a signed note) begins with its first `old_size`."""

    old_size: int
    size: int
    hashes: tuple[bytes, ...]
    checkpoint: bytes


def verify_entry(line: bytes, proof: InclusionProof, key: VerifierKey) -> AuditEntry:
    """Check that `line` is entry `proof.seq` of the log that `key` signs; return the entry.

    Raises:
        VerificationError: signature, size, number or hashes do not fit.
        InputError: the line is proved, but of a kind that this version cannot read.
    """
    head = _signed_head(proof.checkpoint, proof.size, key)
    verify_inclusion(leaf_hash(line), proof.seq, head.size, proof.hashes, head.root)
    entry = parse_entry(line)
    if entry.seq != proof.seq:
        raise VerificationError(
            f"entry at place {proof.seq} calls itself {entry.seq}", hint="the log was written by a faulty program"
        )
    return entry


def verify_extension(old_checkpoint: bytes, proof: ConsistencyProof, key: VerifierKey) -> Checkpoint:
    """Check that the log still begins with what `old_checkpoint` (a signed note) covered; return the new head.

    Raises:
        VerificationError: signatures, sizes or hashes do not fit: the log was rewritten or rolled back.
    """
    old = _signed_head(old_checkpoint, proof.old_size, key)
    head = _signed_head(proof.checkpoint, proof.size, key)
    verify_consistency(old.size, head.size, old.root, head.root, proof.hashes)
    return head


def _signed_head(note: bytes, size: int, key: VerifierKey) -> Checkpoint:
    head = open_checkpoint(note, key)
    if head.size != size:
        raise VerificationError(
            f"the proof is for {size} entries, its checkpoint for {head.size}", hint="fetch proof and checkpoint again"
        )
    return head
