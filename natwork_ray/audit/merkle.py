"""The Merkle tree of RFC 6962 section 2.1 (unchanged in RFC 9162), in the order of the RFC.

Implemented: the Merkle tree hash (2.1), inclusion proofs (RFC 6962 2.1.1, verification by RFC 9162 2.1.3.2)
and consistency proofs (RFC 6962 2.1.2, verification by RFC 9162 2.1.4.2), with SHA-256.

A tree of n leaves is kept as its *frontier*: the roots of the complete subtrees that n breaks into, largest
first (one for each bit set in n). That is enough to append and to know the root. Proofs need inner nodes;
those of complete subtrees never change once made, so `CompactTree.append` names each one as it appears by
(level, position) and a store can answer any proof with O(log n) reads through a `NodeReader`.

Left out: RFC 6962 section 3 (certificates, signed timestamps). Proofs over ranges of leaves.

    tree = CompactTree()
    for line in (b"a", b"b"):
        tree.append(leaf_hash(line))
    tree.root().hex()
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from hashlib import sha256
from typing import NamedTuple

from natwork_ray.errors import InputError, VerificationError

HASH_BYTES = 32
# Section 2.1: the hash of an empty list is the hash of an empty string.
EMPTY_ROOT = sha256(b"").digest()


class Node(NamedTuple):
    """Root of a complete subtree: the `2**level` leaves from `position * 2**level` on; `hash` is 32 bytes."""

    level: int
    position: int
    hash: bytes


# Hash of the complete subtree at (level, position); level 0 is a leaf hash.
NodeReader = Callable[[int, int], bytes]


# RFC 6962, 2.1 Merkle hash trees.


def leaf_hash(data: bytes) -> bytes:
    """Hash of a leaf. The prefix keeps leaves and nodes apart, so that neither can pass for the other."""
    return sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Hash of an inner node over the hashes of its two halves."""
    return sha256(b"\x01" + left + right).digest()


class CompactTree:
    """An append-only tree that remembers its frontier only: O(log n) memory, O(1) amortised per leaf.

    Raises:
        InputError: the frontier given does not belong to a tree of that size.
    """

    __slots__ = ("_frontier", "_size")

    def __init__(self, size: int = 0, frontier: Iterable[bytes] = ()) -> None:
        self._size = size
        self._frontier = list(frontier)
        if size < 0 or len(self._frontier) != size.bit_count() or any(len(h) != HASH_BYTES for h in self._frontier):
            raise InputError(
                f"a frontier of {len(self._frontier)} hashes for a tree of {size} leaves",
                hint=f"give one {HASH_BYTES}-byte hash for each bit set in the size, largest subtree first",
            )

    @property
    def size(self) -> int:
        """Number of leaves."""
        return self._size

    @property
    def frontier(self) -> tuple[bytes, ...]:
        """Roots of the complete subtrees, largest first."""
        return tuple(self._frontier)

    def append(self, leaf: bytes) -> list[Node]:
        """Add a leaf hash; return the complete subtrees that it finishes, the leaf itself first."""
        node, level, index = leaf, 0, self._size
        completed = [Node(0, index, leaf)]
        while index & 1:
            node = node_hash(self._frontier.pop(), node)
            level += 1
            index >>= 1
            completed.append(Node(level, index, node))
        self._frontier.append(node)
        self._size += 1
        return completed

    def add(self, leaf: bytes) -> None:
        """`append` for who does not keep the nodes (a verifier), at half the cost."""
        index = self._size
        while index & 1:
            leaf = sha256(b"\x01" + self._frontier.pop() + leaf).digest()
            index >>= 1
        self._frontier.append(leaf)
        self._size += 1

    def root(self) -> bytes:
        """The Merkle tree hash of all leaves."""
        if not self._frontier:
            return EMPTY_ROOT
        *rest, root = self._frontier
        for left in reversed(rest):
            root = node_hash(left, root)
        return root


def frontier_positions(size: int) -> tuple[tuple[int, int], ...]:
    """(level, position) of each subtree in the frontier of a tree of `size` leaves, largest first."""
    levels = [level for level in range(size.bit_length() - 1, -1, -1) if size >> level & 1]
    return tuple((level, (size >> level) - 1) for level in levels)


def root_at(size: int, read: NodeReader) -> bytes:
    """The root that the tree had at an earlier `size`, from O(log n) stored nodes."""
    return CompactTree(size, (read(level, position) for level, position in frontier_positions(size))).root()


def _split(n: int) -> int:
    """k of the RFC: the largest power of two smaller than n (n > 1)."""
    return 1 << (n - 1).bit_length() - 1


def _subtree(start: int, n: int, read: NodeReader) -> bytes:
    """MTH(D[start:start+n]), where `start` is a multiple of the smallest power of two >= n."""
    if n & (n - 1) == 0:
        level = n.bit_length() - 1
        return read(level, start >> level)
    k = _split(n)
    return node_hash(_subtree(start, k, read), _subtree(start + k, n - k, read))


# RFC 6962, 2.1.1 Inclusion (audit) proofs.


def inclusion_proof(index: int, size: int, read: NodeReader) -> tuple[bytes, ...]:
    """PATH(index, D[size]): the hashes that lead from leaf `index` to the root, lowest first.

    Raises:
        InputError: no such leaf in a tree of that size.
    """
    if not 0 <= index < size:
        raise InputError(f"no leaf {index} in a tree of {size} leaves", hint="leaves count from 0")
    path: list[bytes] = []
    start, n = 0, size
    while n > 1:
        k = _split(n)
        if index - start < k:
            path.append(_subtree(start + k, n - k, read))
            n = k
        else:
            path.append(_subtree(start, k, read))
            start, n = start + k, n - k
    return tuple(reversed(path))


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> None:
    """Check that the leaf hash `leaf` is number `index` of the `size` leaves under `root`.

    Raises:
        VerificationError: it is not, or the proof is malformed.
    """
    where = f"inclusion proof of leaf {index} in a tree of {size}"
    if not 0 <= index < size:
        raise VerificationError(f"{where}: there is no such leaf", hint="check the index and the size")
    _check_hashes(where, proof)
    fn, sn, r = index, size - 1, leaf
    for p in proof:
        if sn == 0:
            raise VerificationError(f"{where}: {len(proof)} hashes are too many", hint="fetch the proof again")
        if fn & 1 or fn == sn:
            r = node_hash(p, r)
            while not fn & 1 and fn:
                fn >>= 1
                sn >>= 1
        else:
            r = node_hash(r, p)
        fn >>= 1
        sn >>= 1
    if sn != 0:
        raise VerificationError(f"{where}: {len(proof)} hashes are too few", hint="fetch the proof again")
    if r != root:
        raise VerificationError(
            f"{where}: it leads to root {r.hex()}, expected {root.hex()}",
            hint="the entry is not in that log at that place, or the proof belongs to another checkpoint",
        )


# RFC 6962, 2.1.2 Consistency proofs.


def consistency_proof(old_size: int, size: int, read: NodeReader) -> tuple[bytes, ...]:
    """PROOF(old_size, D[size]): the hashes which show that the tree of `size` extends that of `old_size`.

    Beyond the RFC, which asks for 0 < old_size, a proof for old_size 0 is empty: everything extends nothing.

    Raises:
        InputError: `old_size` is negative or larger than `size`.
    """
    if not 0 <= old_size <= size:
        raise InputError(f"no tree of {old_size} within one of {size} leaves", hint=f"ask for 0 to {size}")
    if old_size in (0, size):
        return ()
    proof: list[bytes] = []
    start, m, n, known = 0, old_size, size, True  # `known` is b of SUBPROOF(m, D[n], b)
    while m != n:
        k = _split(n)
        if m <= k:
            proof.append(_subtree(start + k, n - k, read))
            n = k
        else:
            proof.append(_subtree(start, k, read))
            start, m, n, known = start + k, m - k, n - k, False
    if not known:
        proof.append(_subtree(start, n, read))
    return tuple(reversed(proof))


def verify_consistency(old_size: int, size: int, old_root: bytes, root: bytes, proof: Sequence[bytes]) -> None:
    """Check that the tree of `size` leaves under `root` begins with the `old_size` leaves under `old_root`.

    Raises:
        VerificationError: it does not, or the proof is malformed.
    """
    where = f"consistency proof from {old_size} to {size} entries"
    if not 0 <= old_size <= size:
        raise VerificationError(f"{where}: the log cannot shrink", hint="a shorter log than before was rolled back")
    _check_hashes(where, proof)
    if old_size in (0, size):
        expected = EMPTY_ROOT if old_size == 0 else root
        if proof or old_root != expected:
            raise VerificationError(
                f"{where}: the old root {old_root.hex()} should be {expected.hex()} and the proof empty",
                hint="the log was rewritten, or the checkpoints belong to different logs",
            )
        return
    if not proof:
        raise VerificationError(f"{where}: it is empty", hint="fetch the proof again")
    # RFC 9162 2.1.4.2, steps 1 to 6.
    path = list(proof) if old_size & (old_size - 1) else [old_root, *proof]
    fn, sn = old_size - 1, size - 1
    while fn & 1:
        fn >>= 1
        sn >>= 1
    fr = sr = path[0]
    for c in path[1:]:
        if sn == 0:
            raise VerificationError(f"{where}: {len(proof)} hashes are too many", hint="fetch the proof again")
        if fn & 1 or fn == sn:
            fr, sr = node_hash(c, fr), node_hash(c, sr)
            while not fn & 1 and fn:
                fn >>= 1
                sn >>= 1
        else:
            sr = node_hash(sr, c)
        fn >>= 1
        sn >>= 1
    if sn != 0:
        raise VerificationError(f"{where}: {len(proof)} hashes are too few", hint="fetch the proof again")
    for name, found, expected in (("old", fr, old_root), ("new", sr, root)):
        if found != expected:
            raise VerificationError(
                f"{where}: it leads to the {name} root {found.hex()}, expected {expected.hex()}",
                hint="the log was rewritten between the two checkpoints, or the proof belongs to others",
            )


def _check_hashes(where: str, proof: Sequence[bytes]) -> None:
    # 64 levels hold more entries than will ever be written; more hashes are an attack or a mistake.
    if len(proof) > 2 * 64 or any(len(h) != HASH_BYTES for h in proof):
        raise VerificationError(
            f"{where}: not a list of at most 128 hashes of {HASH_BYTES} bytes", hint="fetch the proof again"
        )
