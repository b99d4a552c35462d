"""What every step must keep to, whoever runs it: shapes, and the rules on blocks and slots."""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import fields, replace

import numpy as np

from infercore.capabilities import Capabilities, Dimension
from infercore.executor import Bucket
from infercore.step import NO_SLOT, Bool, Int32, Step, UInt64

ARRAYS = [f.name for f in fields(Step) if f.type in (Int32, UInt64, Bool)]


_PER_ROW = (
    *("slots", "context_len", "sample", "seeds"),
    *("sample_positions", "adapter", "num_logprobs", "max_tokens"),
)


def unpadded(step: Step, planned: AbstractSet[Bucket], can: Capabilities) -> Step:
    """The step's own rows and tokens. Checks that its shape was planned, and what fills it."""
    static = {each.dimension for each in can.static_dimensions}
    if not static:
        return step
    shape = {
        Dimension.TOKENS: step.num_tokens,
        Dimension.ROWS: step.num_rows,
        Dimension.BLOCKS: step.block_table.shape[-1],
    }
    assert any(
        all(shape[each] == getattr(bucket, each.value) for each in static) for bucket in planned
    ), f"{shape} was not planned"
    rows = int((step.slots != NO_SLOT).sum())
    tokens = int(step.query_start[rows])
    assert (step.slots[rows:] == NO_SLOT).all(), "padded rows are the last ones"
    assert (np.diff(step.query_start[rows:]) == 1).all(), "a padded row has one token"
    assert (step.context_len[rows:] == 1).all()
    assert not step.sample[rows:].any()
    assert not step.block_table[:, rows:].any(), "rule (i): padded rows are on block 0"
    assert not step.slot_mapping[:, tokens:].any(), "rule (i): padding writes to block 0"
    assert (step.token_source[tokens:] == -1).all()
    assert (step.prompt_targets[tokens:] == -1).all()
    return replace(
        step,
        token_ids=step.token_ids[:tokens],
        token_source=step.token_source[:tokens],
        positions=step.positions[:tokens],
        prompt_targets=step.prompt_targets[:tokens],
        slot_mapping=np.ascontiguousarray(step.slot_mapping[:, :tokens]),
        block_table=np.ascontiguousarray(step.block_table[:, :rows]),
        query_start=step.query_start[: rows + 1],
        extras={name: array[:rows] for name, array in step.extras.items()},
        **{name: getattr(step, name)[:rows] for name in _PER_ROW},
    )


def check_shapes(
    step: Step, can: Capabilities, num_groups: int, busy_slots: AbstractSet[int]
) -> None:
    """A step is well formed. busy_slots: of the steps in flight."""
    rows, tokens = step.num_rows, step.num_tokens
    assert rows > 0, "an empty step"
    assert len(set(step.slots.tolist())) == rows, "one row per sequence"
    assert step.query_start[0] == 0
    assert step.query_start[-1] == tokens
    assert (np.diff(step.query_start) > 0).all()
    assert step.slot_mapping.shape == (num_groups, tokens)
    assert step.block_table.shape[:2] == (num_groups, rows)
    assert (step.sample_positions == step.context_len).all()
    assert (step.max_tokens <= can.tokens_per_step).all()
    assert can.late_inputs or not step.late, "late inputs were not offered"
    for name in ARRAYS:
        assert getattr(step, name).flags.c_contiguous, f"{name} is not C-contiguous"
    for init in step.slot_init:
        assert init.slot not in busy_slots, "rule (d): a slot starts anew while in flight"


def check_blocks(
    step: Step,
    block_size: int,
    handed_out: list[set[int]],
    in_flight: Sequence[Sequence[AbstractSet[int]]],
) -> None:
    """A step writes only to blocks of its own. Adds its fresh blocks to those handed out.

    handed_out: blocks named fresh so far, by group. in_flight: blocks that each unresolved step
    names, by group.
    """
    row_of = np.repeat(np.arange(step.num_rows), np.diff(step.query_start))
    for g, table in enumerate(step.block_table):
        fresh = set(step.fresh_blocks[g].tolist())
        assert 0 not in fresh, "rule (i): block 0 was given out"
        for named_in_flight in in_flight:
            assert not fresh & named_in_flight[g], "rule (c): a block in flight was released"
        handed_out[g] |= fresh
        named = set(table[table > 0].tolist())
        assert named <= handed_out[g], "a block was never named in fresh_blocks"
        mapping = step.slot_mapping[g]
        assert len(np.unique(mapping)) == len(mapping), "two tokens write to one place"
        assert (mapping >= block_size).all(), "rule (i): a token writes to block 0"
        inside = table[row_of, step.positions // block_size]
        assert (inside == mapping // block_size).all(), "a write beside the block table"
        holders = np.bincount(table[table > 0], minlength=int(table.max()) + 1)
        assert (holders[inside] == 1).all(), "a block that two rows share is written to"
