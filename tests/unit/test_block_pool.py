"""The pool's accounts hold whatever is done with blocks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from optimized.scheduling.block_pool import BlockPool, block_hash

hashes = st.integers(0, 5).map(lambda i: bytes([i]))


class Accounts(RuleBasedStateMachine):
    """Sequences take, share, publish and give back blocks in any order."""

    @initialize(count=st.integers(1, 8))
    def start(self, count: int) -> None:
        self.pool = BlockPool(count)
        self.tables: list[list[int]] = []

    @rule(count=st.integers(0, 9))
    def allocate(self, count: int) -> None:
        if count > self.pool.num_free:
            with pytest.raises(ValueError):
                self.pool.allocate(count)
            return
        blocks = self.pool.allocate(count)
        held = {block for table in self.tables for block in table}
        assert len(set(blocks)) == count and not held & set(blocks), "a held block was given away"
        self.tables.append(blocks)

    @rule(h=hashes)
    def share(self, h: bytes) -> None:
        found = self.pool.find([h])
        self.pool.share(found)
        self.tables.append(found)

    @precondition(lambda self: any(self.tables))
    @rule(data=st.data(), h=hashes)
    def publish(self, data: st.DataObject, h: bytes) -> None:
        block = data.draw(st.sampled_from([b for table in self.tables for b in table]))
        if self.pool._hash_of[block] is None:  # a full block's contents never change
            was_new = self.pool.cache(block, h)
            assert self.pool.find([h]) and (not was_new or self.pool.find([h]) == [block])

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        self.pool.release(self.tables.pop(data.draw(st.integers(0, len(self.tables) - 1))))

    @rule()
    def reset(self) -> None:
        self.pool.reset_cache()
        assert not self.pool.find([bytes([i]) for i in range(6)])

    @invariant()
    def accounts_agree(self) -> None:
        if hasattr(self, "pool"):
            self.pool.check_integrity(self.tables)


TestAccounts = Accounts.TestCase


def test_contents_of_a_free_block_are_found_until_it_is_reused_and_the_least_recent_goes_first() -> None:
    pool = BlockPool(3)
    a, b, c = pool.allocate(3)
    for block, h in ((a, b"a"), (b, b"b"), (c, b"c")):
        pool.cache(block, h)
    pool.release([b])
    pool.release([a])
    pool.release([c])
    assert pool.find([b"a", b"b", b"c"]) == [a, b, c]
    assert pool.allocate(1) == [b]
    assert pool.find([b"a"]) == [a] and pool.find([b"b"]) == []


def test_of_a_sequence_the_end_is_reused_before_the_beginning() -> None:
    pool = BlockPool(3)
    blocks = pool.allocate(3)
    for i, block in enumerate(blocks):
        pool.cache(block, bytes([i]))
    pool.release(blocks)
    assert pool.allocate(2) == [blocks[2], blocks[1]]
    assert pool.find([bytes([0])]) == [blocks[0]]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=4), st.lists(st.integers(0, 3), min_size=1, max_size=4))
def test_hashes_are_equal_only_for_equal_histories(one: list[int], other: list[int]) -> None:
    def chain(tokens: list[int], salt: str) -> bytes:
        h = b""
        for token in tokens:
            h = block_hash(h, [token], salt)
        return h

    assert (chain(one, "") == chain(other, "")) == (one == other)
    assert chain(one, "") != chain(one, "salt")


def test_a_broken_account_is_told_term_by_term() -> None:
    pool = BlockPool(2)
    (block,) = pool.allocate(1)
    with pytest.raises(AssertionError, match="num_blocks 2 = held 1 \\+ free 1; holders"):
        pool.check_integrity([])
    pool.check_integrity([[block]])
