"""Blocks of the KV cache: who holds which, and which hold what. Pure accounting; the memory itself is elsewhere.

    free ──allocate──► held by 1 ──share──► held by n
      ▲                    │                   │
      └──── release, when the last holder lets go ◄┘      (its contents stay findable until it is allocated again)

A full block may be *cached*: findable by the hash of all tokens up to its end. Free blocks are reused least recently
used first, so cached contents live as long as there is room.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence


def block_hash(parent: bytes, token_ids: Sequence[int], salt: str) -> bytes:
    """SHA-256 of a full block's tokens, chained to all blocks before it.

    Args:
        parent: hash of the block before; empty for the first.
        token_ids: the block's tokens.
        salt: of the requests that may share it; counts in the first block and through the chain in all others.
    """
    digest = hashlib.sha256(parent if parent else salt.encode() + b"\0")
    digest.update(array("I", token_ids).tobytes())
    return digest.digest()


class BlockPool:
    """Reference counts, free list and prefix index of ``num_blocks`` blocks.

    Args:
        num_blocks: how many there are, numbered from 0.
        caching: whether contents of free blocks can be found again.
    """

    def __init__(self, num_blocks: int, caching: bool = True) -> None:
        self.num_blocks = num_blocks
        self._caching = caching
        self._num_holders = [0] * num_blocks
        self._hash_of: list[bytes | None] = [None] * num_blocks
        self._cached: dict[bytes, int] = {}
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))

    @property
    def num_free(self) -> int:
        """Blocks that ``allocate`` can give; those with findable contents included."""
        return len(self._free)

    @property
    def cached_blocks(self) -> list[int]:
        """Blocks whose contents can be found."""
        return list(self._cached.values())

    def allocate(self, count: int) -> list[int]:
        """Take ``count`` ≤ ``num_free`` blocks, the least recently used first; what they held is forgotten."""
        if count > len(self._free):
            raise ValueError(f"{count} blocks asked for, {len(self._free)} are free")
        taken = [self._free.popitem(last=False)[0] for _ in range(count)]
        for block in taken:
            self._forget(block)
            self._num_holders[block] = 1
        return taken

    def find(self, hashes: Iterable[bytes]) -> list[int]:
        """The blocks of the longest cached prefix; mutates nothing, so they are safe only until ``allocate``."""
        found = []
        for h in hashes:
            block = self._cached.get(h)
            if block is None:
                break
            found.append(block)
        return found

    def num_free_among(self, blocks: Iterable[int]) -> int:
        """How many of these ``share`` would take out of the free list."""
        return sum(self._num_holders[block] == 0 for block in blocks)

    def share(self, blocks: Iterable[int]) -> None:
        """Hold found blocks once more."""
        for block in blocks:
            if self._num_holders[block] == 0:
                del self._free[block]
            self._num_holders[block] += 1

    def release(self, blocks: Sequence[int]) -> None:
        """Let go of a sequence's blocks. Its last block will be reused first: a prefix is worth more than an end."""
        for block in reversed(blocks):
            self._num_holders[block] -= 1
            if self._num_holders[block] == 0:
                self._free[block] = None
                if self._hash_of[block] is None:  # nothing to find in it
                    self._free.move_to_end(block, last=False)

    def cache(self, block: int, h: bytes) -> bool:
        """Make a held, full block findable; False if another one with the same contents already is."""
        if not self._caching or h in self._cached:
            return False
        self._hash_of[block] = h
        self._cached[h] = block
        return True

    def reset_cache(self) -> None:
        """Forget all contents; held blocks stay held."""
        for block in list(self._cached.values()):
            self._forget(block)

    def check_integrity(self, tables: Iterable[Sequence[int]]) -> None:
        """Check that the accounts agree with the block tables of all sequences that hold blocks.

        Raises:
            AssertionError: they don't; the message names every term.
        """
        holders = Counter(block for table in tables for block in table)
        held = sum(count > 0 for count in self._num_holders)
        wrong = {b: (n, holders[b]) for b, n in enumerate(self._num_holders) if n != holders[b]}
        lost = [b for b, n in enumerate(self._num_holders) if (n == 0) != (b in self._free)]
        stale = [b for h, b in self._cached.items() if self._hash_of[b] != h]
        unfindable = [b for b, h in enumerate(self._hash_of) if h is not None and self._cached.get(h) != b]
        if self.num_blocks != held + len(self._free) or wrong or lost or stale or unfindable:
            raise AssertionError(
                f"num_blocks {self.num_blocks} = held {held} + free {len(self._free)}; "
                f"holders (counted, in tables) {wrong}; neither held nor free, or both {lost}; "
                f"index points to other contents {stale}; contents not in the index {unfindable}"
            )

    def _forget(self, block: int) -> None:
        h = self._hash_of[block]
        if h is not None:
            self._hash_of[block] = None
            del self._cached[h]
