"""Text cut into windows of tokens, and the geometry of a window for a paged cache."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from infercore.backend import AttentionBatch
from infercore.errors import ConfigError
from infercore.executor import KVGroup
from infercore.text.tokenizer import Tokenizer

Int64 = NDArray[np.int64]


def read_tokens(text: Path, model: Path) -> Int64:
    """The tokens of a UTF-8 text file, by the tokenizer of the model folder `model`.

    Raises ConfigError if the file cannot be read.
    """
    try:
        content = text.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{text} cannot be read as text in UTF-8 ({error}); name another file"
        ) from error
    return np.array(Tokenizer(model).encode(content, add_special_tokens=False), np.int64)


def consecutive(tokens: Int64, length: int) -> Sequence[Int64]:
    """All tokens, in windows one after another; the last is shorter, or dropped if it is one."""
    windows = [tokens[at : at + length] for at in range(0, len(tokens), length)]
    return [window for window in windows if len(window) > 1]


def spread(tokens: Int64, length: int, count: int) -> Int64:
    """At most `count` whole windows, int64[R, length], spread evenly over the text.

    Raises ConfigError if the text is shorter than one window.
    """
    if len(tokens) < length:
        raise ConfigError(
            f"the calibration text has {len(tokens)} tokens, and a window takes {length}; "
            "give a longer text, or a smaller --window"
        )
    whole = tokens[: len(tokens) // length * length].reshape(-1, length)
    if len(whole) <= count:
        return whole
    return whole[np.linspace(0, len(whole) - 1, count).round().astype(np.int64)]


def blocks_of(group: KVGroup, length: int) -> int:
    """Blocks that a window of that many tokens takes, block 0 included."""
    return -(-length // group.block_size) + 1


def one_sequence(group: KVGroup, length: int, device: torch.device) -> AttentionBatch:
    """A step that is one whole sequence, in blocks 1, 2, … of its group."""
    blocks = np.arange(1, blocks_of(group, length), dtype=np.int32)
    start = np.array([0, length], np.int32)
    context = np.array([length], np.int32)
    slots = torch.arange(length, device=device) + group.block_size
    return AttentionBatch(
        query_start=torch.from_numpy(start).to(device),
        context_len=torch.from_numpy(context).to(device),
        block_table=torch.from_numpy(blocks[None]).to(device),
        slot_mapping=slots,
        host_query_start=start,
        host_context_len=context,
        fresh_blocks=torch.from_numpy(blocks.astype(np.int64)).to(device),
    )
