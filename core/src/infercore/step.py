"""What the engine sends to an executor for one step, and what comes back.

Shapes: T tokens, R rows (one row = one sequence), G KV groups in the order that `Executor.load`
returned them, B the width of the block table, K tokens at most per row. All arrays are
C-contiguous NumPy. They belong to the executor until the step's result was returned; the engine
then reuses them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from infercore.sampling import RowStatus, SamplingParams

Int32: TypeAlias = NDArray[np.int32]
UInt32: TypeAlias = NDArray[np.uint32]
UInt64: TypeAlias = NDArray[np.uint64]
Float32: TypeAlias = NDArray[np.float32]
Bool: TypeAlias = NDArray[np.bool_]

NO_SLOT = -1  # in `slots`: the row is padding
NO_LOGPROBS = -1  # in `num_logprobs`: the row wants none, not even its choice's


@dataclass(frozen=True, slots=True)
class SlotInit:
    """Sent once when a sequence is admitted or resumes: what sampling must know of its past.

    slot: where the executor keeps it; a slot is reused after its sequence ended.
    sampling: penalties, filters, logit bias (the ending rules in it are the engine's own).
    prompt_ids, output_ids: int32[P], int32[O], kept apart because frequency and presence
        penalties count the output only. The executor appends the tokens that it chooses.
    stop_ids: int32[S], EOS and stop ids in force; banned while the chosen token's position
        is below `min_position` (min_tokens), and what ends a row in a multi-token step.
    """

    slot: int
    sampling: SamplingParams
    prompt_ids: Int32
    output_ids: Int32
    stop_ids: Int32
    min_position: int = 0


@dataclass(slots=True)
class Step:
    """One forward pass over a mixed batch of prefill chunks and decodes.

    Per token [T]:
      token_ids: what to embed, where token_source is −1.
      token_source: −1, or r: the token that row r of the step submitted just before produces.
      positions: index in the whole sequence.
      slot_mapping [G, T]: KV slot to write, block · block_size + offset. Padding writes to block 0.
      prompt_targets: −1, or the id whose log-probability is wanted given the tokens up to here.
    Per row [R]:
      slots: the sequence's stable slot; NO_SLOT = padding. Padded rows are the last ones.
      query_start [R + 1]: the row's tokens are query_start[r] : query_start[r + 1]. Tokens from
        query_start[R] on are padding of no row.
      context_len: tokens in the KV cache once this step has written its own.
      block_table [G, R, B]: blocks in order, 0 beyond the end and before a sliding window.
      sample: whether the row's last token yields a token.
      seeds, sample_positions: key and counter of the noise (see `sampling`).
      adapter: 0 = none.
      num_logprobs: NO_LOGPROBS, 0 = the choice's, n = also the n likeliest; for prompt targets too.
      max_tokens: most tokens that the row may yield (1, unless tokens_per_step allows more).
    Besides:
      slot_init: for rows that were admitted or resumed in this step.
      fresh_blocks: per group, blocks first handed out in this step.
      late: sampling waits for one `Handle.sample`.
      extras: arrays by capability name; an executor refuses a name that it does not know.
    """

    step_id: int
    token_ids: Int32
    token_source: Int32
    positions: Int32
    slot_mapping: Int32
    prompt_targets: Int32
    slots: Int32
    query_start: Int32
    context_len: Int32
    block_table: Int32
    sample: Bool
    seeds: UInt64
    sample_positions: Int32
    adapter: Int32
    num_logprobs: Int32
    max_tokens: Int32
    slot_init: tuple[SlotInit, ...] = ()
    fresh_blocks: tuple[Int32, ...] = ()
    late: bool = False
    extras: Mapping[str, NDArray[np.generic]] = field(default_factory=dict)

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_rows(self) -> int:
        return len(self.slots)


@dataclass(slots=True)
class LateInputs:
    """What the host learnt while the step ran, for its sampling.

    rows int32[M] and bitmask uint32[M, ceil(V / 32)]: bit v of a masked row's mask set = token v
        is allowed (little end first). Rows not named are free.
    drop bool[R]: rows whose sequence ended meanwhile; their token is not wanted.
    """

    rows: Int32
    bitmask: UInt32
    drop: Bool


@dataclass(slots=True)
class StepResult:
    """What one step produced.

    tokens int32[R, K], n_tokens int32[R], status uint8[R] (`sampling.RowStatus`).
    logprobs float32[R, K]: of the chosen tokens, from the model's own distribution.
    top_ids int32[R, K, N], top_logprobs float32[R, K, N]: likeliest first; N = the most any row
        asked for, 0 if none did. Rows that asked for fewer take their first few.
    prompt_logprobs float32[T], prompt_top_ids int32[T, N], prompt_top_logprobs float32[T, N]:
        at tokens with a target; None if the step had no target.
    seconds: device time by phase ("forward", "sample"; "capture" where the step's shape had to be
        captured or compiled first).
    """

    step_id: int
    tokens: Int32
    n_tokens: Int32
    status: NDArray[np.uint8]
    logprobs: Float32
    top_ids: Int32
    top_logprobs: Float32
    prompt_logprobs: Float32 | None = None
    prompt_top_ids: Int32 | None = None
    prompt_top_logprobs: Float32 | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def blank(cls, step_id: int, rows: int, top: int = 0, most: int = 1) -> "StepResult":
        """Of rows that yielded nothing, to be filled in. top: N. most: K."""
        return cls(
            step_id=step_id,
            tokens=np.zeros((rows, most), np.int32),
            n_tokens=np.zeros(rows, np.int32),
            status=np.full(rows, RowStatus.NOT_SAMPLED, np.uint8),
            logprobs=np.zeros((rows, most), np.float32),
            top_ids=np.zeros((rows, most, top), np.int32),
            top_logprobs=np.zeros((rows, most, top), np.float32),
        )
