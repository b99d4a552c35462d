"""Blocks and the prefix cache: what is found, what is shared, what is evicted first."""

from typing import Any

import pytest

from engine_traffic import GREEDY, prompt
from infercore.engine.block_manager import BlockManager, BlockPool
from infercore.engine.limits import EngineLimits
from infercore.engine.request import Request
from infercore.engine.sequence import Sequence
from infercore.errors import UnsupportedModel
from infercore.executor import GroupKind, KVGroup
from infercore.sampling import SamplingParams
from toy_model import ToyModel

LIMITS = EngineLimits(max_model_len=64, max_num_seqs=4, max_batch_tokens=32)


def manager(*windows: int | None, num_blocks: int = 20) -> BlockManager:
    groups = ToyModel(windows or (None,)).groups(4)
    return BlockManager(groups, {group.name: num_blocks for group in groups}, LIMITS)


def sequence(
    ids: list[int], slot: int = 0, sampling: SamplingParams = GREEDY, **facts: Any
) -> Sequence:
    seq = Sequence(Request(slot + 1, ids, sampling, **facts), 64, frozenset(), 0.0)
    seq.slot = slot
    return seq


def run(blocks: BlockManager, seq: Sequence, num_tokens: int | None = None) -> None:
    """Start a sequence and compute its tokens, as one step would."""
    blocks.start(seq, blocks.match(seq))
    fresh: list[list[int]] = [[] for _ in blocks.groups]
    stop = seq.num_tokens if num_tokens is None else num_tokens
    assert blocks.grow(seq, stop, fresh)
    blocks.advance(seq, stop - seq.num_computed)


def test_a_pool_gives_every_block_but_the_first() -> None:
    pool = BlockPool(4)
    assert sorted(pool.take() for _ in range(3)) == [1, 2, 3]
    assert (pool.num_free, pool.num_used) == (0, 3)


def test_the_block_unused_for_longest_is_evicted_first() -> None:
    pool = BlockPool(4)
    first, second, third = (pool.take() for _ in range(3))
    for block, digest in ((first, b"1"), (second, b"2"), (third, b"3")):
        pool.seal(block, digest)
    for block in (second, first, third):
        pool.release(block)
    pool.share(second)  # used again
    pool.release(second)
    assert [pool.take() for _ in range(3)] == [first, third, second]
    assert pool.find(b"2") is None


def test_a_block_without_a_hash_is_taken_before_a_cached_one() -> None:
    pool = BlockPool(3)
    cached, plain = pool.take(), pool.take()
    pool.seal(cached, b"1")
    pool.release(cached)
    pool.release(plain)
    assert pool.take() == plain
    assert pool.find(b"1") == cached


def test_releasing_what_nobody_holds_is_a_bug() -> None:
    pool = BlockPool(3)
    block = pool.take()
    pool.release(block)
    with pytest.raises(AssertionError, match="nobody holds it"):
        pool.release(block)


def test_whole_blocks_of_a_prefix_are_shared_and_one_token_is_left_to_run() -> None:
    blocks = manager()
    first = sequence(prompt(12), 0)
    run(blocks, first)
    longer, same = sequence([*prompt(10), 3, 3], 1), sequence(prompt(12), 2)
    assert blocks.match(longer) == [blocks.tables[0, 0, :2].tolist()]
    assert blocks.match(same) == [blocks.tables[0, 0, :2].tolist()]  # not the third: no logits
    blocks.start(longer, blocks.match(longer))
    assert (longer.num_computed, blocks.num_used) == (8, 3)
    blocks.release(first)
    assert blocks.num_used == 2
    blocks.release(longer)
    assert blocks.num_used == 0


def test_a_block_is_found_once_its_last_slot_is_written() -> None:
    blocks = manager()
    first = sequence(prompt(12), 0)
    run(blocks, first, 6)
    assert len(blocks.match(sequence(prompt(12), 1))[0]) == 1
    blocks.grow(first, 8, [[]])
    blocks.advance(first, 2)
    assert len(blocks.match(sequence(prompt(12), 1))[0]) == 2


def test_a_prefix_is_keyed_by_salt_and_by_all_that_came_before() -> None:
    blocks = manager()
    run(blocks, sequence(prompt(12), 0, cache_salt=b"a"))
    assert blocks.match(sequence(prompt(12), 1, cache_salt=b"b")) == [[]]
    assert blocks.match(sequence(prompt(12), 1)) == [[]]
    assert blocks.match(sequence([9, *prompt(12)[1:]], 1, cache_salt=b"a")) == [[]]
    assert len(blocks.match(sequence(prompt(12), 1, cache_salt=b"a"))[0]) == 2


def test_a_block_is_found_behind_its_own_prefix_only() -> None:
    blocks = manager()
    one, other, rest = prompt(4), prompt(4, 1), prompt(5, 2)
    run(blocks, sequence([*one, *rest], 0))
    run(blocks, sequence([*other, 3, 3, 3, 3], 1))
    assert len(blocks.match(sequence([*one, *rest], 2))[0]) == 2
    assert len(blocks.match(sequence([*other, *rest], 2))[0]) == 1


def test_prompt_logprobs_fill_the_cache_but_do_not_read_it() -> None:
    blocks = manager()
    scored = SamplingParams(max_tokens=4, seed=0, prompt_logprobs=0)
    run(blocks, sequence(prompt(12), 0, scored))
    assert blocks.match(sequence(prompt(12), 1, scored)) == [[]]
    assert len(blocks.match(sequence(prompt(12), 1))[0]) == 2


def test_the_end_of_a_prefix_is_evicted_before_its_start() -> None:
    blocks = manager(num_blocks=5)
    seq = sequence(prompt(16), 0)
    run(blocks, seq)
    blocks.release(seq)
    taken = [blocks.pools[0].take() for _ in range(2)]
    assert taken
    assert len(blocks.match(sequence(prompt(16), 1))[0]) == 2


def test_a_window_group_lets_go_what_no_query_reads_any_more() -> None:
    blocks = manager(None, 6)
    seq = sequence(prompt(16), 0)
    run(blocks, seq)
    # the next query, at 16, reads 11 to 16: blocks 2, 3 and the one to come
    assert (blocks.tables[1, 0, :4] > 0).tolist() == [False, False, True, True]
    assert (blocks.tables[0, 0, :4] > 0).all()
    assert blocks.num_used == 6


def test_a_match_needs_the_window_before_its_end_only() -> None:
    blocks = manager(None, 6)
    seq = sequence(prompt(17), 0)
    run(blocks, seq, 16)
    blocks.release(seq)
    full, window = blocks.match(sequence(prompt(17), 1))
    assert (len(full), len(window)) == (4, 4)
    assert [block > 0 for block in window] == [False, False, True, True]


def test_a_hole_in_a_window_shortens_the_match() -> None:
    blocks = manager(None, 6)
    seq = sequence(prompt(17), 0)
    run(blocks, seq, 16)
    blocks.release(seq)
    window = blocks.pools[1]
    lost = window.find(seq.hashes[3])
    while window.find(seq.hashes[3]) is not None:
        window.take()
    assert lost is not None
    # a match of three blocks would read 7 to 12, and so blocks 1 and 2
    full, matched = blocks.match(sequence(prompt(17), 1))
    assert len(full) == len(matched) <= 3
    assert all(matched[blocks.first_in_window(6, 4 * len(matched)) :])


def test_growing_takes_all_or_nothing() -> None:
    blocks = manager(None, 6, num_blocks=4)
    seq, fresh = sequence(prompt(16), 0), [[], []]  # type: ignore[var-annotated]
    blocks.start(seq, blocks.match(seq))
    assert not blocks.grow(seq, 16, fresh)
    assert (blocks.num_used, fresh) == (0, [[], []])
    assert blocks.grow(seq, 12, fresh)
    assert [len(taken) for taken in fresh] == [3, 3]


def test_trimming_keeps_what_results_wrote() -> None:
    blocks = manager()
    seq = sequence(prompt(16), 0)
    run(blocks, seq, 6)
    blocks.grow(seq, 16, [[]])
    blocks.trim(seq)
    assert (seq.num_blocks, blocks.num_used) == (2, 2)


def test_what_is_full_already_is_shared_by_its_first_writer() -> None:
    """Two sequences computed one prefix at once: one copy is cached, the other is just freed."""
    blocks = manager()
    one, other = sequence(prompt(8), 0), sequence(prompt(8), 1)
    for seq in (one, other):
        blocks.start(seq, [[]])
        blocks.grow(seq, 8, [[]])
    for seq in (one, other):
        blocks.advance(seq, 8)
    cached = blocks.match(sequence(prompt(9), 2))[0]
    assert cached == blocks.tables[0, 0, :2].tolist()
    free = len(blocks.pools[0]._free)
    blocks.release(other)
    assert len(blocks.pools[0]._free) == free + 2


def test_groups_that_it_cannot_keep_are_refused() -> None:
    state = KVGroup("state", GroupKind.STATE, (0,), 4, 64)
    with pytest.raises(UnsupportedModel, match="'state' holds one state per sequence"):
        BlockManager((state,), {"state": 4}, LIMITS)
    groups = (*ToyModel().groups(4), KVGroup("other", GroupKind.FULL, (1,), 8, 64))
    with pytest.raises(UnsupportedModel, match="'group0': 4, 'other': 8"):
        BlockManager(groups, {"group0": 4, "other": 4}, LIMITS)
