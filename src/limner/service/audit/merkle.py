"""The Merkle tree of RFC 6962: hashes, roots, inclusion and consistency proofs. Pure functions.

A tree of n leaves is split at the largest power of two below n. So each subtree covers a range of leaves
[start, end), and proofs are made from a function that hashes such a range: `Subtree`.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence

HASH_BYTES = 32
EMPTY = hashlib.sha256(b"").digest()
"""Root of the tree without leaves."""

TILE_LEVELS = 8
"""Levels of the tree in a tile. Stored nodes are at multiples of it: each is the root of 256 below it."""

Subtree = Callable[[int, int], bytes]
"""Hash of the leaves from `start` to before `end`."""


def leaf_hash(entry: bytes) -> bytes:
    """The hash of a leaf."""
    return hashlib.sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of an inner node."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def root_of(leaves: Sequence[bytes]) -> bytes:
    """The root of a tree.

    Args:
        leaves: Hashes of its leaves, in order.
    """
    frontier = Frontier()
    for leaf in leaves:
        frontier.append(leaf)
    return frontier.root


def subtree_of(leaves: Sequence[bytes]) -> Subtree:
    """The function that hashes ranges of leaves in memory."""
    return lambda start, end: root_of(leaves[start:end])


def complete_parts(start: int, end: int) -> Iterator[tuple[int, int]]:
    """The complete subtrees that a subtree consists of, from left to right: the level and number of each.

    Args:
        start: First leaf; a multiple of the largest power of two that is at most `end - start`.
        end: Leaf after the last.
    """
    while start < end:
        level = (end - start).bit_length() - 1
        yield level, start >> level
        start += 1 << level


def joined(parts: Sequence[bytes]) -> bytes:
    """The hash of a subtree from those of its complete parts, from left to right."""
    if not parts:
        return EMPTY
    found = parts[-1]
    for part in reversed(parts[:-1]):
        found = node_hash(part, found)
    return found


def folded(nodes: Sequence[bytes]) -> bytes:
    """The hash over a power of two of neighbouring nodes of one level."""
    level = list(nodes)
    while len(level) > 1:
        level = [node_hash(level[place], level[place + 1]) for place in range(0, len(level), 2)]
    return level[0]


class Frontier:
    """The right edge of a growing tree: the roots of its complete subtrees, from which its root is made.

    Attributes:
        size: Number of leaves.

    Args:
        size: As the attribute.
        parts: Hashes of `complete_parts(0, size)`.
    """

    def __init__(self, size: int = 0, parts: Sequence[bytes] = ()) -> None:
        if len(parts) != size.bit_count():
            raise ValueError(
                f"a tree of {size} leaves has {size.bit_count()} complete parts, not {len(parts)}"
            )
        self.size, self._parts = size, list(parts)

    @property
    def root(self) -> bytes:
        """The root of the tree."""
        return joined(self._parts)

    def append(self, leaf: bytes) -> list[tuple[int, int, bytes]]:
        """Add a leaf by its hash.

        Returns:
            The nodes to be stored that it completes: level, number in the level, hash.
        """
        node, level, size = leaf, 0, self.size
        stored = []
        while size & 1:
            node = node_hash(self._parts.pop(), node)
            size >>= 1
            level += 1
            if level % TILE_LEVELS == 0:
                stored.append((level, size, node))
        self._parts.append(node)
        self.size += 1
        return stored

    def copy(self) -> "Frontier":
        """A frontier of its own."""
        return Frontier(self.size, self._parts)


def inclusion_proof(index: int, size: int, subtree: Subtree) -> list[bytes]:
    """The hashes that prove that a leaf is in a tree, from the leaf upwards (RFC 6962, 2.1.1).

    Raises:
        ValueError: The tree has no such leaf.
    """
    if not 0 <= index < size:
        raise ValueError(f"a tree of {size} leaves has no leaf {index}")
    path = []
    start, end = 0, size
    while end - start > 1:
        middle = start + _split(end - start)
        if index < middle:
            path.append(subtree(middle, end))
            end = middle
        else:
            path.append(subtree(start, middle))
            start = middle
    return path[::-1]


def consistency_proof(old: int, new: int, subtree: Subtree) -> list[bytes]:
    """The hashes that prove that a tree of `new` leaves continues one of `old` (RFC 6962, 2.1.2).

    Raises:
        ValueError: The new tree is smaller.
    """
    if not 0 <= old <= new:
        raise ValueError(f"a tree of {new} leaves continues none of {old}")
    if old in (0, new):
        return []
    path = []
    start, end, whole = 0, new, True
    while old != end:
        middle = start + _split(end - start)
        if old <= middle:
            path.append(subtree(middle, end))
            end = middle
        else:
            path.append(subtree(start, middle))
            start, whole = middle, False
    if not whole:
        path.append(subtree(start, end))
    return path[::-1]


def root_by_inclusion(leaf: bytes, index: int, size: int, path: Sequence[bytes]) -> bytes:
    """The root of the tree that an inclusion proof is of (RFC 9162, 2.1.3.2).

    Args:
        leaf: Hash of the leaf.

    Raises:
        ValueError: The proof has the wrong length, or there is no such leaf.
    """
    if not 0 <= index < size:
        raise ValueError(f"a tree of {size} leaves has no leaf {index}")
    node, last, found = index, size - 1, leaf
    for part in path:
        if last == 0:
            raise ValueError("the proof is too long")
        if node & 1 or node == last:
            found = node_hash(part, found)
            while node and not node & 1:
                node, last = node >> 1, last >> 1
        else:
            found = node_hash(found, part)
        node, last = node >> 1, last >> 1
    if last:
        raise ValueError("the proof is too short")
    return found


def is_consistent(old: int, old_root: bytes, new: int, new_root: bytes, path: Sequence[bytes]) -> bool:
    """Whether a proof shows that the tree of `new` leaves continues that of `old` (RFC 9162, 2.1.4.2)."""
    if not 0 <= old <= new:
        return False
    if old == new:
        return not path and old_root == new_root
    if old == 0:
        return not path and old_root == EMPTY
    parts = list(path) if old & (old - 1) else [old_root, *path]
    if not parts:
        return False
    node, last = old - 1, new - 1
    while node & 1:
        node, last = node >> 1, last >> 1
    first = second = parts[0]
    for part in parts[1:]:
        if last == 0:
            return False
        if node & 1 or node == last:
            first, second = node_hash(part, first), node_hash(part, second)
            while node and not node & 1:
                node, last = node >> 1, last >> 1
        else:
            second = node_hash(second, part)
        node, last = node >> 1, last >> 1
    return last == 0 and first == old_root and second == new_root


def _split(size: int) -> int:
    """The largest power of two below a size of at least two."""
    return 1 << ((size - 1).bit_length() - 1)
