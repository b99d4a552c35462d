"""The largest step that a configuration allows, to measure memory by and to wake the device."""

import numpy as np

from infercore.executor import ExecutorConfig
from infercore.sampling import SamplingParams
from infercore.step import Int32, SlotInit, Step

TILE_TARGETS = 64  # prompt tokens whose logits exist at once; executors may take more tiles
TOP_LOGPROBS = 20  # beside the choice, the most that common clients ask for


def rehearsal(config: ExecutorConfig, groups: int) -> Step:
    """Most tokens and rows, every row sampled with all filters and a penalty; all in block 0.

    The first row decodes at the longest context, where the last one ends a prefill as large as
    fits, whose prompt log-probabilities are wanted. Those between decode at the start.
    """
    rows = min(config.max_num_seqs, config.max_batch_tokens)
    longest = config.max_model_len
    lengths = np.ones(rows, np.int32)
    lengths[-1] = min(config.max_batch_tokens - rows + 1, longest)
    contexts = lengths.copy()
    contexts[[0, -1]] = longest
    starts = np.concatenate([[0], lengths.cumsum()]).astype(np.int32)
    total = int(starts[-1])
    targets = np.full(total, -1, np.int32)
    targets[-TILE_TARGETS:] = 0  # more of them take more time, and no more memory
    nothing: Int32 = np.zeros(0, np.int32)
    sampling = SamplingParams(top_p=0.9, repetition_penalty=1.1)
    return Step(
        step_id=-1,
        token_ids=np.zeros(total, np.int32),
        token_source=np.full(total, -1, np.int32),
        positions=np.arange(total, dtype=np.int32) % longest,
        slot_mapping=np.zeros((groups, total), np.int32),
        prompt_targets=targets,
        slots=np.arange(rows, dtype=np.int32),
        query_start=starts,
        context_len=contexts,
        block_table=np.zeros((groups, rows, -(-longest // config.block_size)), np.int32),
        sample=np.ones(rows, np.bool_),
        seeds=np.arange(rows, dtype=np.uint64),
        sample_positions=contexts.copy(),
        adapter=np.zeros(rows, np.int32),
        num_logprobs=np.full(rows, TOP_LOGPROBS, np.int32),
        max_tokens=np.ones(rows, np.int32),
        slot_init=tuple(
            SlotInit(slot, sampling, nothing, nothing, nothing) for slot in range(rows)
        ),
    )
