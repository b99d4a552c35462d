"""Steps by hand: the little of an engine that a check of one call needs.

A `Row` is a sequence; a `Stepper` owns the blocks and turns (row, number of tokens) into a `Step`.
Blocks are handed out in a random order, so that nothing passes by their being consecutive.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from infercore.executor import KVGroup, KVGroups
from infercore.sampling import SamplingParams
from infercore.step import NO_LOGPROBS, Int32, LateInputs, SlotInit, Step
from infercore_conformance.models import VOCAB

GREEDY = SamplingParams(temperature=0.0)


@dataclass
class Row:
    """A sequence: its ids so far, how many of them are in the cache, its blocks per group.

    prompt: how many of `ids` are prompt; 0 = all. stop_ids are banned below `min_position`.
    done, blocks: set both for a row whose first tokens are in the cache already.
    """

    slot: int
    ids: list[int]
    sampling: SamplingParams = GREEDY
    seed: int = 7
    stop_ids: tuple[int, ...] = ()
    min_position: int = 0
    done: int = 0
    prompt: int = 0
    blocks: list[list[int]] = field(default_factory=list)
    started: bool = False  # its slot was initialized

    def __post_init__(self) -> None:
        self.prompt = self.prompt or len(self.ids)

    def init(self) -> SlotInit:
        return SlotInit(
            self.slot,
            self.sampling,
            np.array(self.ids[: self.prompt], np.int32),
            np.array(self.ids[self.prompt :], np.int32),
            np.array(self.stop_ids, np.int32),
            self.min_position,
        )


def prompt(length: int, salt: int = 0) -> list[int]:
    """Token ids of a prompt: the same on every machine, another for another length or salt."""
    return [(31 * i + 7 * length + 13 * salt) % VOCAB for i in range(length)]


def late_inputs(
    rows: int, *, drop: Sequence[int] = (), allow: Mapping[int, Sequence[int]] | None = None
) -> LateInputs:
    """For a step of `rows` rows. allow: {row: the token ids that its mask lets through}."""
    allow = allow or {}
    masks = np.zeros((len(allow), -(-VOCAB // 32)), np.uint32)
    for mask, ids in zip(masks, allow.values(), strict=True):
        for token in ids:
            mask[token // 32] |= np.uint32(1 << token % 32)
    return LateInputs(np.array(list(allow), np.int32), masks, np.isin(np.arange(rows), drop))


class Stepper:
    """Makes steps over `num_blocks` blocks per group, block 0 included."""

    def __init__(self, groups: KVGroups, num_blocks: int, seed: int = 0) -> None:
        self.groups = groups
        random = np.random.default_rng(seed)
        self.free = [(1 + random.permutation(num_blocks - 1)).tolist() for _ in groups]
        self._step_id = 0

    def step(
        self,
        rows: Sequence[tuple[Row, int]],
        *,
        follow: Mapping[int, int] | None = None,
        logprobs: int = NO_LOGPROBS,
        targets: bool = False,
        late: bool = False,
        extras: Mapping[str, Any] | None = None,
    ) -> Step:
        """The step that computes the next `count` tokens of each (row, count); advances `done`.

        follow: {row: row of the step submitted just before, whose token it continues with}.
        targets: ask for the log-probability of every next prompt token.
        """
        follow = follow or {}
        fresh: list[list[int]] = [[] for _ in self.groups]
        inits = tuple(row.init() for row, _ in rows if not row.started)
        spans = [self._extend(row, count, fresh) for row, count in rows]
        starts = np.concatenate([[0], np.cumsum([len(span) for span in spans])])
        tokens = [
            self._tokens(row, span, n in follow) for n, ((row, _), span) in _each(rows, spans)
        ]
        sources = [[follow.get(n, -1)] * len(span) for n, span in enumerate(spans)]
        wanted = [
            self._targets(row, span, targets) for (row, _), span in zip(rows, spans, strict=True)
        ]
        done = [row.done for row, _ in rows]
        self._step_id += 1
        return Step(
            step_id=self._step_id,
            token_ids=_flat(tokens),
            token_source=_flat(sources),
            positions=_flat(spans),
            slot_mapping=self._slot_mapping(rows, spans),
            prompt_targets=_flat(wanted),
            slots=np.array([row.slot for row, _ in rows], np.int32),
            query_start=starts.astype(np.int32),
            context_len=np.array(done, np.int32),
            block_table=self._block_table(rows, spans),
            sample=np.array([n in follow or r.done >= len(r.ids) for n, (r, _) in enumerate(rows)]),
            seeds=np.array([row.seed for row, _ in rows], np.uint64),
            sample_positions=np.array(done, np.int32),
            adapter=np.zeros(len(rows), np.int32),
            num_logprobs=np.full(len(rows), logprobs, np.int32),
            max_tokens=np.ones(len(rows), np.int32),
            slot_init=inits,
            fresh_blocks=tuple(np.array(blocks, np.int32) for blocks in fresh),
            late=late,
            extras=extras or {},
        )

    def release(self, row: Row) -> None:
        """Take a row's blocks back; its next step starts it anew."""
        for free, blocks in zip(self.free, row.blocks, strict=True):
            free.extend(blocks)
        row.blocks, row.done, row.started = [], 0, False

    def _extend(self, row: Row, count: int, fresh: list[list[int]]) -> range:
        row.blocks = row.blocks or [[] for _ in self.groups]
        span = range(row.done, row.done + count)
        for group, blocks, free, new in zip(self.groups, row.blocks, self.free, fresh, strict=True):
            while len(blocks) * group.block_size < span.stop:
                blocks.append(free.pop())
                new.append(blocks[-1])
        row.done, row.started = span.stop, True
        return span

    @staticmethod
    def _tokens(row: Row, span: range, follows: bool) -> list[int]:
        return [0] * len(span) if follows else [row.ids[position] for position in span]

    @staticmethod
    def _targets(row: Row, span: range, wanted: bool) -> list[int]:
        following = row.ids[span.start + 1 : span.stop + 1] if wanted else []
        return [*following, *[-1] * (len(span) - len(following))]

    def _slot_mapping(self, rows: Sequence[tuple[Row, int]], spans: Sequence[range]) -> Int32:
        places = [
            [
                row.blocks[number][p // group.block_size] * group.block_size + p % group.block_size
                for (row, _), span in zip(rows, spans, strict=True)
                for p in span
            ]
            for number, group in enumerate(self.groups)
        ]
        return np.array(places, np.int32)

    def _block_table(self, rows: Sequence[tuple[Row, int]], spans: Sequence[range]) -> Int32:
        """Of a window's blocks only those that are still read."""
        width = max(len(blocks) for row, _ in rows for blocks in row.blocks)
        table = np.zeros((len(self.groups), len(rows), width), np.int32)
        for number, group in enumerate(self.groups):
            for n, ((row, _), span) in _each(rows, spans):
                first = _first_block(group, span.start)
                table[number, n, first : len(row.blocks[number])] = row.blocks[number][first:]
        return table


def _each(
    rows: Sequence[tuple[Row, int]], spans: Sequence[range]
) -> Sequence[tuple[int, tuple[tuple[Row, int], range]]]:
    return list(enumerate(zip(rows, spans, strict=True)))


def _flat(parts: Sequence[Sequence[int]]) -> Int32:
    return np.array([value for part in parts for value in part], np.int32)


def _first_block(group: KVGroup, position: int) -> int:
    """The first block that the token at `position` reads."""
    if group.window is None:
        return 0
    return max(0, position + 1 - group.window) // group.block_size
