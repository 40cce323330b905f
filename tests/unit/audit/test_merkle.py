"""The Merkle tree against the published reference tree, and against the RFC's recursive definition."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from natwork_ray.audit import merkle
from natwork_ray.errors import InputError, VerificationError

VECTORS: dict[str, Any] = json.loads((Path(__file__).parents[2] / "vectors" / "merkle.json").read_text())
LEAVES = [bytes.fromhex(leaf) for leaf in VECTORS["leaves"]]
ROOTS = [bytes.fromhex(root) for root in VECTORS["roots"]]


def mth(leaves: list[bytes]) -> bytes:
    """RFC 6962 section 2.1, word by word: the oracle."""
    if not leaves:
        return sha256(b"").digest()
    if len(leaves) == 1:
        return sha256(b"\x00" + leaves[0]).digest()
    k = 1
    while 2 * k < len(leaves):
        k *= 2
    return sha256(b"\x01" + mth(leaves[:k]) + mth(leaves[k:])).digest()


def grow(leaves: list[bytes]) -> tuple[merkle.CompactTree, merkle.NodeReader]:
    tree, stored = merkle.CompactTree(), {}
    for leaf in leaves:
        stored.update({(n.level, n.position): n.hash for n in tree.append(merkle.leaf_hash(leaf))})
    return tree, lambda level, position: stored[level, position]


def hashes(case: dict[str, Any]) -> tuple[bytes, ...]:
    return tuple(bytes.fromhex(h) for h in case["proof"])


@pytest.mark.parametrize("size", range(9))
def test_roots_of_the_reference_tree(size: int) -> None:
    tree, read = grow(LEAVES[:size])
    assert tree.root() == ROOTS[size]
    assert merkle.root_at(size, read) == ROOTS[size]
    lean = merkle.CompactTree()
    for leaf in LEAVES[:size]:
        lean.add(merkle.leaf_hash(leaf))
    assert (lean.size, lean.frontier) == (tree.size, tree.frontier)


@pytest.mark.parametrize("case", VECTORS["inclusion"])
def test_published_inclusion_proofs(case: dict[str, Any]) -> None:
    _, read = grow(LEAVES)
    index, size = case["index"], case["size"]
    assert merkle.inclusion_proof(index, size, read) == hashes(case)
    merkle.verify_inclusion(merkle.leaf_hash(LEAVES[index]), index, size, hashes(case), ROOTS[size])


@pytest.mark.parametrize("case", VECTORS["consistency"])
def test_published_consistency_proofs(case: dict[str, Any]) -> None:
    _, read = grow(LEAVES)
    old, size = case["old_size"], case["size"]
    assert merkle.consistency_proof(old, size, read) == hashes(case)
    merkle.verify_consistency(old, size, ROOTS[old], ROOTS[size], hashes(case))


@pytest.mark.parametrize("case", VECTORS["must_fail"]["inclusion"], ids=lambda case: case["why"])
def test_inclusion_proofs_that_must_fail(case: dict[str, Any]) -> None:
    leaf = merkle.leaf_hash(LEAVES[case["index"] % 8])
    with pytest.raises(VerificationError):
        merkle.verify_inclusion(leaf, case["index"], case["size"], hashes(case), ROOTS[8])


@pytest.mark.parametrize("case", VECTORS["must_fail"]["consistency"], ids=lambda case: case["why"])
def test_consistency_proofs_that_must_fail(case: dict[str, Any]) -> None:
    old, size = case["old_size"], case["size"]
    with pytest.raises(VerificationError):
        merkle.verify_consistency(old, size, ROOTS[old], ROOTS[size], hashes(case))


SIZES = st.integers(1, 70)


@given(SIZES, st.data())
def test_any_inclusion_proof_verifies_and_any_flipped_bit_fails(size: int, data: st.DataObject) -> None:
    leaves = [b"%d" % i for i in range(size)]
    tree, read = grow(leaves)
    assert tree.root() == mth(leaves)
    index = data.draw(st.integers(0, size - 1))
    leaf, proof = merkle.leaf_hash(leaves[index]), merkle.inclusion_proof(index, size, read)
    merkle.verify_inclusion(leaf, index, size, proof, tree.root())
    parts = [leaf, *proof, tree.root()]
    at, bit = data.draw(st.integers(0, len(parts) - 1)), data.draw(st.integers(0, 255))
    parts[at] = (int.from_bytes(parts[at]) ^ 1 << bit).to_bytes(32)
    with pytest.raises(VerificationError):
        merkle.verify_inclusion(parts[0], index, size, parts[1:-1], parts[-1])


@given(SIZES, st.data())
def test_any_consistency_proof_verifies_and_any_flipped_bit_fails(size: int, data: st.DataObject) -> None:
    leaves = [b"%d" % i for i in range(size)]
    tree, read = grow(leaves)
    old = data.draw(st.integers(0, size))
    old_root = mth(leaves[:old])
    assert merkle.root_at(old, read) == old_root
    proof = merkle.consistency_proof(old, size, read)
    merkle.verify_consistency(old, size, old_root, tree.root(), proof)
    parts = [old_root, *proof, tree.root()]
    # With nothing to compare (old size 0) the new root plays no part.
    at = data.draw(st.integers(0, len(parts) - 1 if old else 0))
    parts[at] = (int.from_bytes(parts[at]) ^ 1 << data.draw(st.integers(0, 255))).to_bytes(32)
    with pytest.raises(VerificationError):
        merkle.verify_consistency(old, size, parts[0], parts[-1], parts[1:-1])


@given(st.integers(0, 200), st.integers(0, 20))
def test_a_tree_restored_from_its_frontier_goes_on_alike(size: int, more: int) -> None:
    leaves = [b"%d" % i for i in range(size + more)]
    tree, read = grow(leaves[:size])
    frontier = [read(level, position) for level, position in merkle.frontier_positions(size)]
    restored = merkle.CompactTree(size, frontier)
    for leaf in leaves[size:]:
        assert restored.append(merkle.leaf_hash(leaf)) == tree.append(merkle.leaf_hash(leaf))
    assert restored.root() == mth(leaves)


@pytest.mark.parametrize(("size", "frontier"), [(-1, []), (1, []), (3, [bytes(32)]), (1, [bytes(31)])])
def test_a_frontier_that_does_not_fit_is_refused(size: int, frontier: list[bytes]) -> None:
    with pytest.raises(InputError):
        merkle.CompactTree(size, frontier)


def test_proofs_of_what_is_not_there_are_refused() -> None:
    _, read = grow(LEAVES)
    for index in (-1, 8):
        with pytest.raises(InputError):
            merkle.inclusion_proof(index, 8, read)
    for old in (-1, 9):
        with pytest.raises(InputError):
            merkle.consistency_proof(old, 8, read)
