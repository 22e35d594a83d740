from __future__ import annotations

import random

import pytest

from service.engine.blocks import BlockPool


def keys_of(pool: BlockPool, token_ids: list[int], salt: bytes = b"") -> list[bytes]:
    keys = [pool.root_key(salt)]
    for start in range(0, len(token_ids), pool.block_tokens):
        keys.append(pool.chain_key(keys[-1], token_ids[start : start + pool.block_tokens]))
    return keys[1:]


def test_taken_blocks_are_distinct_until_none_is_left() -> None:
    pool = BlockPool(3, 4)
    assert sorted(block for block in (pool.take() for _ in range(3)) if block is not None) == [0, 1, 2]
    assert pool.take() is None
    assert (pool.num_free, pool.num_used) == (0, 3)


def test_a_committed_block_is_found_while_used_and_after_release() -> None:
    pool = BlockPool(2, 4)
    (key,) = keys_of(pool, [1, 2, 3, 4])
    block = pool.take()
    assert block is not None
    assert pool.share(key) is None
    pool.commit(block, key)
    assert pool.share(key) == block
    pool.release([block])
    assert pool.num_used == 1
    pool.release([block])
    assert (pool.num_used, pool.num_cached) == (0, 1)
    assert pool.share(key) == block
    assert pool.num_cached == 0


def test_keys_depend_on_every_token_before_them_and_on_the_salt() -> None:
    pool = BlockPool(1, 2)
    base = keys_of(pool, [1, 2, 3, 4])
    assert keys_of(pool, [1, 2, 3, 4]) == base
    for other in ([9, 2, 3, 4], [1, 9, 3, 4], [1, 2, 9, 4], [1, 2, 3, 9], [2, 1, 3, 4]):
        assert keys_of(pool, other)[1] != base[1]
    assert not set(keys_of(pool, [1, 2, 3, 4], b"salt")) & set(base)


def test_empty_blocks_go_before_cached_ones_and_those_in_order_of_release() -> None:
    pool = BlockPool(3, 1)
    first, second = pool.take(), pool.take()
    assert first is not None
    assert second is not None
    pool.commit(first, keys_of(pool, [1])[0])
    pool.commit(second, keys_of(pool, [2])[0])
    pool.release([second])
    pool.release([first])
    assert [pool.take() for _ in range(3)][1:] == [second, first]
    assert pool.share(keys_of(pool, [2])[0]) is None


def test_the_tail_of_a_released_prefix_is_evicted_before_its_head() -> None:
    pool = BlockPool(3, 1)
    blocks = [block for block in (pool.take() for _ in range(3)) if block is not None]
    for block, key in zip(blocks, keys_of(pool, [1, 2, 3]), strict=True):
        pool.commit(block, key)
    pool.release(blocks)
    assert [pool.take() for _ in range(3)] == blocks[::-1]


def test_a_second_block_of_equal_content_stays_unlisted() -> None:
    pool = BlockPool(2, 1)
    (key,) = keys_of(pool, [1])
    blocks = [block for block in (pool.take(), pool.take()) if block is not None]
    for block in blocks:
        pool.commit(block, key)
    pool.release(blocks)
    assert pool.num_cached == 1
    pool.check_integrity([])


def test_forgotten_blocks_are_found_no_more_and_only_unshared_ones_are_to_be_zeroed() -> None:
    pool = BlockPool(2, 1)
    keys = keys_of(pool, [1, 2])
    blocks = [block for block in (pool.take(), pool.take()) if block is not None]
    for block, key in zip(blocks, keys, strict=True):
        pool.commit(block, key)
    assert pool.share(keys[0]) == blocks[0]
    assert pool.forget(blocks) == [blocks[1]]
    pool.release(blocks)
    assert pool.share(keys[0]) is None
    assert pool.share(keys[1]) is None
    pool.check_integrity([[blocks[0]]])


def test_releasing_what_is_not_held_is_noticed() -> None:
    pool = BlockPool(1, 1)
    with pytest.raises(AssertionError, match="more often"):
        pool.release([0])


@pytest.mark.parametrize("seed", range(10))
def test_the_books_agree_under_random_use(seed: int) -> None:
    rng = random.Random(seed)
    pool = BlockPool(12, 2)
    held: list[list[int]] = []
    for _ in range(400):
        match rng.randrange(4):
            case 0 if pool.num_free:
                held.append([])
                for key in keys_of(pool, [rng.randrange(2) for _ in range(8)]):
                    block = pool.share(key)
                    if block is None and (block := pool.take()) is None:
                        break
                    pool.commit(block, key)
                    held[-1].append(block)
            case 1 if held:
                pool.release(held.pop(rng.randrange(len(held))))
            case 2 if held and rng.random() < 0.3:
                assert set(pool.forget(held[-1])) <= set(held[-1])
            case _:
                pass
        pool.check_integrity(held)
    for blocks in held:
        pool.release(blocks)
    pool.check_integrity([])
    assert pool.num_free == pool.num_blocks
