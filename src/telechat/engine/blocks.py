"""Which block of the cache belongs to whom. Integers and hashes only; knows no tensors, queues or text.

A block holds the keys and values of `block_size` tokens. A full block may be published under a name, a hash
over all tokens up to its end, and is then shared with every request that begins with the same tokens: nothing
is copied, and nobody writes into a full block again. A published block that nobody uses any more stays
readable until its memory is needed; the one unused for longest goes first.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence

# A block's name: 32 bytes. With BLAKE2b, two texts of one name are not to be had even by trying, so that no
# request can be given another one's keys.
BlockName = bytes
_NAME_BYTES = 32


def root_name(salt: str) -> BlockName:
    """What chains of names start from; different salts never share a block."""
    return hashlib.blake2b(salt.encode(), digest_size=_NAME_BYTES).digest()


def block_name(parent: BlockName, token_ids: Sequence[int]) -> BlockName:
    """Name of the full block that holds `token_ids` and follows the block `parent`."""
    return hashlib.blake2b(parent + array("q", token_ids).tobytes(), digest_size=_NAME_BYTES).digest()


class BlockAllocator:
    """Hands out blocks 0 to num_blocks - 1 and counts who uses them.

    A block table is a list of block numbers in the order of its tokens. `release` empties it, so releasing
    twice is releasing once.

    Args:
        num_blocks: at least 1.
        block_size: tokens of a block.
        prefix_caching: False: nothing is ever shared.
    """

    def __init__(self, num_blocks: int, block_size: int, *, prefix_caching: bool = True) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.prefix_caching = prefix_caching
        self._num_users = [0] * num_blocks
        self._names: list[BlockName | None] = [None] * num_blocks
        self._block_of: dict[BlockName, int] = {}
        # The next block to hand out comes first: those without a name, then those unused for longest.
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))
        # Counted as they come and go, since it is asked for after every step.
        self._num_cached = 0

    @property
    def num_free(self) -> int:
        """Blocks that nobody uses; some of them may still be published."""
        return len(self._free)

    @property
    def num_cached(self) -> int:
        """Published blocks that nobody uses at the moment."""
        return self._num_cached

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that so many tokens fill or begin."""
        return -(-num_tokens // self.block_size)

    def allocate(self, table: list[int], count: int) -> None:
        """Append `count` blocks to the table; what they held is gone. There must be so many free ones."""
        assert count <= len(self._free), f"{count} blocks wanted, {len(self._free)} free"
        for _ in range(count):
            block, _ = self._free.popitem(last=False)
            self._num_cached -= self._names[block] is not None
            self._forget(block)
            self._num_users[block] = 1
            table.append(block)

    def find(self, names: Sequence[BlockName]) -> list[int]:
        """Blocks of the longest run of published names from the first on. They are not yet taken."""
        found = []
        for name in names:
            block = self._block_of.get(name)
            if block is None:
                break
            found.append(block)
        return found

    def share(self, table: list[int], blocks: Sequence[int]) -> None:
        """Append published blocks to the table of one more user."""
        for block in blocks:
            assert self._names[block] is not None
            if not self._num_users[block]:
                del self._free[block]
                self._num_cached -= 1
            self._num_users[block] += 1
            table.append(block)

    def num_unused(self, blocks: Sequence[int]) -> int:
        """How many of these are free, so that sharing them makes `num_free` smaller."""
        return sum(not self._num_users[block] for block in blocks)

    def num_held_alone(self, table: Sequence[int]) -> int:
        """How many blocks would be free if this table were released."""
        return sum(self._num_users[block] == 1 for block in table)

    def publish(self, block: int, name: BlockName) -> None:
        """Let others find this full block. Of two with the same tokens the first one keeps the name."""
        if self.prefix_caching and name not in self._block_of:
            assert self._num_users[block] and self._names[block] is None
            self._names[block] = name
            self._block_of[name] = block

    def release(self, table: list[int]) -> None:
        """Take a user's blocks back and empty its table."""
        while table:
            # From the end: of one text, what follows is given up before what it follows on.
            block = table.pop()
            self._num_users[block] -= 1
            assert self._num_users[block] >= 0
            if not self._num_users[block]:
                self._free[block] = None
                if self._names[block] is None:
                    self._free.move_to_end(block, last=False)
                else:
                    self._num_cached += 1

    def forget_names(self) -> None:
        """Publish nothing any more of what is in the cache now: its content is not to be trusted."""
        for block in range(self.num_blocks):
            self._forget(block)
        self._num_cached = 0

    def _forget(self, block: int) -> None:
        name = self._names[block]
        if name is not None:
            del self._block_of[name]
            self._names[block] = None
