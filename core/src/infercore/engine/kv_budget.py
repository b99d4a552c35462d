"""How many KV blocks each group gets out of the memory that is left."""

from bisect import bisect_right
from collections.abc import Sequence

from infercore.errors import MemoryBudgetError
from infercore.executor import GroupKind, KVGroup


def blocks_per_sequence(group: KVGroup, max_model_len: int, max_batch_tokens: int) -> int:
    """Blocks of `group` that one sequence of `max_model_len` tokens holds at most.

    A window group keeps the window, the chunk being written, and a block cut at either end.
    """
    tokens = max_model_len
    if group.kind is GroupKind.WINDOW and group.window is not None:
        tokens = min(tokens, group.window + max_batch_tokens + group.block_size)
    return -(-tokens // group.block_size)


def split_blocks(
    groups: Sequence[KVGroup],
    free: int,
    *,
    max_model_len: int,
    max_num_seqs: int,
    max_batch_tokens: int,
) -> dict[str, int]:
    """{group name: blocks, block 0 included} that fit in `free` bytes.

    Every group gets the same number, unless it could never use so many: a window group stops at
    what `max_num_seqs` windows take, any group at twice what the running sequences can hold (the
    other half serves the prefix cache).
    """
    caps = [
        2 * max_num_seqs * blocks_per_sequence(group, max_model_len, max_batch_tokens) + 1
        for group in groups
    ]

    def bytes_for(blocks: int) -> int:
        return sum(
            g.bytes_per_block * min(blocks, cap) for g, cap in zip(groups, caps, strict=True)
        )

    blocks = bisect_right(range(max(caps) + 1), free, key=bytes_for) - 1
    return {group.name: min(blocks, cap) for group, cap in zip(groups, caps, strict=True)}


def longest_sequence(
    groups: Sequence[KVGroup], num_blocks: dict[str, int], max_model_len: int, max_batch_tokens: int
) -> int:
    """The most tokens, up to `max_model_len`, that one sequence alone can hold."""
    for group in groups:
        usable = num_blocks[group.name] - 1
        if blocks_per_sequence(group, max_model_len, max_batch_tokens) > usable:
            max_model_len = min(max_model_len, usable * group.block_size)
    return max_model_len


def require_one_sequence(
    groups: Sequence[KVGroup],
    num_blocks: dict[str, int],
    *,
    free: int,
    max_model_len: int,
    max_batch_tokens: int,
    explicit: bool,
) -> int:
    """The context length in force. Raises MemoryBudgetError, with the arithmetic, if too small.

    explicit: the operator asked for `max_model_len`, so it must not shrink.
    """
    longest = longest_sequence(groups, num_blocks, max_model_len, max_batch_tokens)
    if longest >= (max_model_len if explicit else 2):
        return longest
    per_token = sum(group.bytes_per_block / group.block_size for group in groups)
    need = max_model_len * per_token
    shorter = f", or lower the longest sequence to at most {longest}" if longest >= 2 else ""
    raise MemoryBudgetError(
        f"a sequence of {max_model_len} tokens needs {need / 2**20:.1f} MiB of KV cache "
        f"({per_token:.0f} bytes a token), and {free / 2**20:.1f} MiB are left after weights and "
        f"workspace: room for {max(longest, 0)} tokens. Raise the memory budget{shorter}."
    )
