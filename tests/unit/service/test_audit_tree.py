"""The Merkle tree against the vectors of Certificate Transparency, and proofs of trees of any size."""

from contextlib import suppress
from hashlib import sha256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limner.service.audit.merkle import (
    EMPTY,
    Frontier,
    complete_parts,
    consistency_proof,
    folded,
    inclusion_proof,
    is_consistent,
    joined,
    leaf_hash,
    root_by_inclusion,
    root_of,
    subtree_of,
)

# Test data of RFC 6962's reference implementation (google/certificate-transparency, merkle_tree_test).
ENTRIES = [
    bytes.fromhex(text)
    for text in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
PATHS = {  # leaf from 0, size
    (0, 8): [
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ],
    (5, 8): [
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ],
    (2, 3): ["fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"],
}


def hashes(count):
    return [leaf_hash(str(number).encode()) for number in range(count)]


def test_the_roots_of_the_reference_trees():
    leaves = [leaf_hash(entry) for entry in ENTRIES]
    assert [root_of(leaves[:size]).hex() for size in range(1, 9)] == ROOTS
    assert root_of([]) == EMPTY == sha256(b"").digest()


def test_the_proofs_of_the_reference_trees():
    leaves = [leaf_hash(entry) for entry in ENTRIES]
    for (leaf, size), path in PATHS.items():
        found = inclusion_proof(leaf, size, subtree_of(leaves))
        assert [one.hex() for one in found] == path


def test_every_proof_of_small_trees_holds_and_no_other_does():
    leaves = hashes(20)
    whole = subtree_of(leaves)
    for size in range(1, 20):
        root = root_of(leaves[:size])
        for leaf in range(size):
            path = inclusion_proof(leaf, size, whole)
            assert root_by_inclusion(leaves[leaf], leaf, size, path) == root
            assert root_by_inclusion(leaf_hash(b"another"), leaf, size, path) != root
            for other in range(size):
                if other != leaf:
                    with suppress(ValueError):  # where paths have other lengths
                        assert root_by_inclusion(leaves[leaf], other, size, path) != root
            with pytest.raises(ValueError, match="too long"):
                root_by_inclusion(leaves[leaf], leaf, size, [*path, root])
        for old in range(size + 1):
            path = consistency_proof(old, size, whole)
            assert is_consistent(old, root_of(leaves[:old]), size, root, path)
            if 0 < old < size:
                assert not is_consistent(old, leaf_hash(b"x"), size, root, path)
                assert not is_consistent(old, root_of(leaves[:old]), size, leaf_hash(b"x"), path)
                assert not is_consistent(old, root_of(leaves[:old]), size, root, path[:-1])
                assert not is_consistent(old, root_of(leaves[:old]), size, root, [*path, root])


def test_what_is_no_leaf_or_no_continuation_is_refused():
    with pytest.raises(ValueError, match="no leaf 3"):
        inclusion_proof(3, 3, subtree_of(hashes(3)))
    with pytest.raises(ValueError, match="continues none"):
        consistency_proof(4, 3, subtree_of(hashes(3)))
    with pytest.raises(ValueError, match="no leaf"):
        root_by_inclusion(EMPTY, 3, 3, [])
    with pytest.raises(ValueError, match="too short"):
        root_by_inclusion(EMPTY, 0, 3, [])
    assert not is_consistent(4, EMPTY, 3, EMPTY, [])
    assert not is_consistent(1, EMPTY, 3, EMPTY, [])


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 1500), st.data())
def test_proofs_of_larger_trees(size, data):
    leaves = hashes(size)
    whole, root = subtree_of(leaves), root_of(leaves)
    leaf, old = data.draw(st.integers(0, size - 1)), data.draw(st.integers(0, size))
    path = inclusion_proof(leaf, size, whole)
    assert root_by_inclusion(leaves[leaf], leaf, size, path) == root
    if path:
        place = data.draw(st.integers(0, len(path) - 1))
        wrong = [*path[:place], EMPTY, *path[place + 1 :]]
        assert root_by_inclusion(leaves[leaf], leaf, size, wrong) != root
    assert is_consistent(old, root_of(leaves[:old]), size, root, consistency_proof(old, size, whole))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1500), st.integers(0, 40))
def test_a_frontier_goes_on_from_its_parts(size, more):
    leaves = hashes(size + more)
    parts = [
        folded(leaves[number << level : (number + 1) << level]) for level, number in complete_parts(0, size)
    ]
    frontier = Frontier(size, parts)
    assert frontier.root == root_of(leaves[:size]) == joined(parts)
    other = frontier.copy()
    for leaf in leaves[size:]:
        frontier.append(leaf)
    assert frontier.root == root_of(leaves)
    assert other.root == root_of(leaves[:size])
    with pytest.raises(ValueError, match="complete parts"):
        Frontier(size, [*parts, EMPTY])


def test_the_nodes_to_be_stored_are_those_of_every_eighth_level():
    leaves, frontier = hashes(256 * 256 + 3), Frontier()
    stored = {(level, number): node for leaf in leaves for level, number, node in frontier.append(leaf)}
    assert sorted(stored) == [*((8, number) for number in range(256)), (16, 0)]
    assert stored[8, 3] == root_of(leaves[3 * 256 : 4 * 256])
    assert stored[16, 0] == root_of(leaves[: 256 * 256])
