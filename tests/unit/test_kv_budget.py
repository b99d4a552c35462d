"""KV blocks are split by what is free, and never beyond what a group can use."""

import pytest

from infercore.engine.kv_budget import require_one_sequence, split_blocks
from infercore.errors import MemoryBudgetError
from infercore.executor import GroupKind, KVGroup

FULL = KVGroup("full", GroupKind.FULL, (0, 2), 16, 1000)
WINDOW = KVGroup("window", GroupKind.WINDOW, (1, 3), 16, 1000, window=64)
LIMITS = {"max_model_len": 1024, "max_num_seqs": 4, "max_batch_tokens": 32}


def test_one_group_takes_what_is_free() -> None:
    assert split_blocks([FULL], 100_500, **LIMITS) == {"full": 100}


def test_no_group_gets_more_than_it_can_use() -> None:
    # 4 sequences of 1024 / 16 = 64 blocks, as much again for the prefix cache, and block 0
    assert split_blocks([FULL], 10**9, **LIMITS) == {"full": 513}


def test_a_window_group_leaves_the_rest_to_the_full_one() -> None:
    # the window group stops at 2 · 4 · (64 + 32 + 16) / 16 + 1 = 57 blocks
    assert split_blocks([FULL, WINDOW], 400_000, **LIMITS) == {"full": 343, "window": 57}


def test_scarce_memory_is_shared_equally() -> None:
    assert split_blocks([FULL, WINDOW], 60_000, **LIMITS) == {"full": 30, "window": 30}


def test_the_context_shrinks_to_what_fits_unless_it_was_asked_for() -> None:
    blocks = split_blocks([FULL], 11_000, **LIMITS)
    arguments = {"free": 11_000, "max_model_len": 1024, "max_batch_tokens": 32}
    assert require_one_sequence([FULL], blocks, explicit=False, **arguments) == 160
    with pytest.raises(MemoryBudgetError, match="room for 160 tokens"):
        require_one_sequence([FULL], blocks, explicit=True, **arguments)


def test_no_room_at_all_is_refused_with_the_arithmetic() -> None:
    blocks = split_blocks([FULL], 500, **LIMITS)
    with pytest.raises(MemoryBudgetError, match="62 bytes a token"):
        require_one_sequence(
            [FULL], blocks, free=500, max_model_len=1024, max_batch_tokens=32, explicit=False
        )
