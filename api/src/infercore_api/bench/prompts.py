"""Prompts to measure with: random ids of a model's vocabulary, none of them special."""

from pathlib import Path

import numpy as np

from infercore.text.tokenizer import Tokenizer


class Prompts:
    """Draws prompts that repeat for a seed, and never repeat within a run (caches stay cold)."""

    def __init__(self, model_path: Path, seed: int) -> None:
        tokenizer = Tokenizer(model_path)
        ids = range(tokenizer.vocab_size)
        self._ids = np.array([i for i in ids if tokenizer.decode([i])])  # special ids have no text
        self._random = np.random.default_rng(seed)

    def draw(self, count: int, length: int) -> list[list[int]]:
        """`count` prompts of `length` tokens."""
        drawn: list[list[int]] = self._random.choice(self._ids, (count, length)).tolist()
        return drawn
