"""The KV block pool: who holds which block, and which blocks hold tokens somebody else may use.

A block is a fixed run of KV slots. It is *used* while somebody holds it, *cached* when nobody does but its content is
known and can be shared, and *empty* otherwise; cached and empty blocks together are *free*. Contents are found by a key
that chains a cryptographic hash over the salt and every token up to the block's end, so equal keys mean equal prefixes.
Only full blocks are ever shared, and a shared block is never written again: there is no copy on write.

Free blocks are taken empty ones first, then cached ones, least recently released first. The scheme is vLLM's automatic
prefix caching. Knows no requests and no tensors.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence

BLOCK_TOKENS = 32


class BlockPool:
    """`num_blocks` blocks of `block_tokens` tokens, all empty at first. Not thread-safe: one thread owns it."""

    def __init__(self, num_blocks: int, block_tokens: int = BLOCK_TOKENS) -> None:
        self.num_blocks = num_blocks
        self.block_tokens = block_tokens
        self._holders = [0] * num_blocks
        self._empty = list(range(num_blocks - 1, -1, -1))  # a stack: memory is touched only as it is needed
        self._cached: OrderedDict[int, None] = OrderedDict()  # least recently released first
        self._key_of: dict[int, bytes] = {}
        self._block_of: dict[bytes, int] = {}

    @property
    def num_free(self) -> int:
        """Blocks that `take` can still give, cached ones included."""
        return len(self._empty) + len(self._cached)

    @property
    def num_cached(self) -> int:
        return len(self._cached)

    @property
    def num_used(self) -> int:
        return self.num_blocks - self.num_free

    @property
    def num_tokens(self) -> int:
        """Tokens the whole pool can hold."""
        return self.num_blocks * self.block_tokens

    def num_blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_tokens)

    def root_key(self, salt: bytes) -> bytes:
        """The key before the first block; contents under different salts never meet."""
        return hashlib.blake2b(salt, digest_size=32, person=b"bitnet-kv-root").digest()

    def chain_key(self, parent: bytes, token_ids: Sequence[int]) -> bytes:
        """The key of a full block with these tokens, after the block whose key is `parent`."""
        assert len(token_ids) == self.block_tokens, "only full blocks have keys"
        return hashlib.blake2b(parent + array("q", token_ids).tobytes(), digest_size=32).digest()

    def take(self) -> int | None:
        """An unshared block for the caller, who holds it until `release`; None when none is free. May evict a cached
        block; what it contained before is unspecified."""
        if self._empty:
            block_id = self._empty.pop()
        elif self._cached:
            block_id, _ = self._cached.popitem(last=False)
            self._unlist(block_id)
        else:
            return None
        self._holders[block_id] = 1
        return block_id

    def share(self, key: bytes) -> int | None:
        """The block with this content, now held by the caller too; None if there is none. Never write to it."""
        block_id = self._block_of.get(key)
        if block_id is None:
            return None
        if self._holders[block_id] == 0:
            del self._cached[block_id]
        self._holders[block_id] += 1
        return block_id

    def commit(self, block_id: int, key: bytes) -> None:
        """The block now truly holds the content of `key`: others may share it. Of two blocks with equal content the
        first stays listed."""
        assert self._holders[block_id] > 0, f"block {block_id} is held by nobody"
        if key in self._block_of or block_id in self._key_of:
            return
        self._key_of[block_id] = key
        self._block_of[key] = block_id

    def release(self, block_ids: Sequence[int]) -> None:
        """The caller, who holds these blocks in this order, lets go. The last are evicted first: a prefix is worth more
        than what follows it."""
        for block_id in reversed(block_ids):
            self._holders[block_id] -= 1
            assert self._holders[block_id] >= 0, f"block {block_id} released more often than held"
            if self._holders[block_id] > 0:
                continue
            if block_id in self._key_of:
                self._cached[block_id] = None
            else:
                self._empty.append(block_id)

    def forget(self, block_ids: Sequence[int]) -> list[int]:
        """The caller, who holds these blocks, no longer trusts what is in them: nobody will find them any more.

        Returns those that no one else holds: they are to be zeroed before they are released.
        """
        for block_id in block_ids:
            assert self._holders[block_id] > 0, f"block {block_id} is held by nobody"
            if block_id in self._key_of:
                self._unlist(block_id)
        return [block_id for block_id in block_ids if self._holders[block_id] == 1]

    def _unlist(self, block_id: int) -> None:
        del self._block_of[self._key_of.pop(block_id)]

    def check_integrity(self, held: Iterable[Sequence[int]]) -> None:
        """Assert that the books agree with each other and with `held`, the blocks of every holder."""
        holders = Counter(block_id for block_ids in held for block_id in block_ids)
        for block_id in range(self.num_blocks):
            assert self._holders[block_id] == holders[block_id], f"block {block_id}: holders disagree"
        free = [*self._empty, *self._cached]
        assert len(free) == len(set(free)), "a block is free twice"
        assert set(free) == {b for b in range(self.num_blocks) if not holders[b]}, "free blocks disagree with holders"
        assert all(block_id in self._key_of for block_id in self._cached), "a cached block without a key"
        assert not any(block_id in self._key_of for block_id in self._empty), "an empty block with a key"
        assert {key: b for b, key in self._key_of.items()} == self._block_of, "the index is not one to one"
        assert self.num_free + self.num_used == self.num_blocks
