"""The block allocator: who owns what, what can be found again, and in which order it is given up."""

from __future__ import annotations

import pytest

from telechat.engine.blocks import BlockAllocator, BlockName, block_name, root_name


def names(*texts: list[int], salt: str = "") -> list[BlockName]:
    chain = [root_name(salt)]
    for text in texts:
        chain.append(block_name(chain[-1], text))
    return chain[1:]


def test_a_name_says_all_that_is_before_it() -> None:
    assert names([1, 2], [3, 4])[1] == names([1, 2], [3, 4])[1]
    others = [names([9, 2], [3, 4]), names([1, 2], [4, 3]), names([1, 2], [3, 4], salt="x"), names([3, 4])]
    assert len({names([1, 2], [3, 4])[1], *(other[-1] for other in others)}) == 5
    # Ids beside each other must not run together into one text.
    assert names([1, 0x0200])[0] != names([0x0201, 0])[0]


def test_released_blocks_are_free_again_and_releasing_twice_is_releasing_once() -> None:
    blocks = BlockAllocator(4, 2)
    table: list[int] = []
    blocks.allocate(table, 3)
    assert (sorted(table), blocks.num_free) == ([0, 1, 2], 1)
    blocks.release(table)
    blocks.release(table)
    assert (table, blocks.num_free) == ([], 4)
    with pytest.raises(AssertionError, match="5 blocks wanted, 4 free"):
        blocks.allocate(table, 5)


def test_a_published_block_is_found_shared_and_kept_until_its_last_user_is_gone() -> None:
    blocks = BlockAllocator(4, 2)
    [first, second] = names([1, 2], [3, 4])
    one: list[int] = []
    blocks.allocate(one, 2)
    blocks.publish(one[0], first)
    assert blocks.find([first, second]) == one[:1]
    two: list[int] = []
    blocks.share(two, blocks.find([first, second]))
    assert (blocks.num_held_alone(one), blocks.num_held_alone(two)) == (1, 0)
    shared = one[0]
    blocks.release(one)
    assert blocks.num_free == 3
    blocks.allocate(one, 3)
    assert shared not in one
    blocks.release(two)
    assert (blocks.num_free, blocks.num_cached) == (1, 1)


def test_what_nobody_uses_can_still_be_found_and_the_longest_unused_goes_first() -> None:
    blocks = BlockAllocator(3, 2)
    chain = names([1, 2], [3, 4], [5, 6])
    table: list[int] = []
    blocks.allocate(table, 3)
    for block, name in zip(table, chain, strict=True):
        blocks.publish(block, name)
    numbers = list(table)
    blocks.release(table)
    assert (blocks.num_free, blocks.num_cached) == (3, 3)
    # Of one text the end is given up first: without its beginning it could not be found anyway.
    blocks.allocate(table, 1)
    assert blocks.find(chain) == numbers[:2]
    revived: list[int] = []
    assert blocks.num_unused(numbers[:2]) == 2
    blocks.share(revived, numbers[:1])
    assert (blocks.num_free, blocks.num_unused(numbers[:1])) == (1, 0)
    blocks.release(revived)  # used last, so given up last
    blocks.allocate(table, 1)
    assert blocks.find(chain) == numbers[:1]


def test_blocks_without_a_name_are_handed_out_before_cached_ones() -> None:
    blocks = BlockAllocator(2, 2)
    table: list[int] = []
    blocks.allocate(table, 2)
    [name] = names([1, 2])
    blocks.publish(table[0], name)
    named, unnamed = table
    blocks.release(table)
    blocks.allocate(table, 1)
    assert table == [unnamed]
    assert blocks.find([name]) == [named]


def test_the_first_of_two_equal_blocks_keeps_the_name() -> None:
    blocks = BlockAllocator(3, 2)
    [name] = names([1, 2])
    table: list[int] = []
    blocks.allocate(table, 2)
    blocks.publish(table[0], name)
    blocks.publish(table[1], name)
    assert blocks.find([name]) == table[:1]
    blocks.release(table)
    assert blocks.num_cached == 1


def test_nothing_is_found_where_nothing_may_be_shared_or_trusted() -> None:
    [name] = names([1, 2])
    for blocks in (BlockAllocator(2, 2, prefix_caching=False), BlockAllocator(2, 2)):
        table: list[int] = []
        blocks.allocate(table, 1)
        blocks.publish(table[0], name)
        if blocks.prefix_caching:
            blocks.forget_names()
        assert blocks.find([name]) == []
        blocks.release(table)
        assert (blocks.num_free, blocks.num_cached) == (2, 0)
