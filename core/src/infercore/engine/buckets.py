"""Buckets: the step shapes of a device that must know them ahead, and which one a step goes into.

    rows ─────▶ decode buckets: one token per row ─┐
    blocks ───▶ (every width of the block table)   ├─▶ in order of need ─▶ warm ─▶ `fit`
    tokens ───▶ prefill buckets: few rows, or all ─┘

Values of a dimension double from its smallest legal one, so that padding takes less than half of
it. The largest bucket comes first and holds any step that the engine can schedule, so a step
always has a place, however many of the others warm-up had time for.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from infercore.capabilities import Dimension, StaticDimension
from infercore.errors import ConfigError
from infercore.executor import Bucket


@dataclass(frozen=True, slots=True)
class StepShape:
    """The largest step of an engine: what its executor is configured for.

    scheduled: tokens that the scheduler may put into a step. tokens: those and the padding beside
    them. Padded rows take a token each, so `tokens` exceeds `scheduled` where both are planned.
    """

    rows: int
    scheduled: int
    tokens: int


def largest_step(
    static: Sequence[StaticDimension], max_num_seqs: int, max_batch_tokens: int
) -> StepShape:
    """The step that holds the operator's limits, in legal values.

    Raises ConfigError where the device has no step for so many rows.
    """
    legal = {each.dimension: each for each in static}
    rows, tokens = max_num_seqs, max_batch_tokens
    if Dimension.ROWS in legal:
        most = _most(legal[Dimension.ROWS])
        rows = _rounded(legal[Dimension.ROWS], rows)
        if rows > most:
            raise ConfigError(
                f"max_num_seqs is {max_num_seqs}, and this device's steps have at most {most:.0f} "
                "rows; lower it"
            )
        tokens += rows - 1
    if Dimension.TOKENS in legal:
        tokens = int(min(_rounded(legal[Dimension.TOKENS], tokens), _most(legal[Dimension.TOKENS])))
    scheduled = min(max_batch_tokens, tokens - rows + 1) if Dimension.ROWS in legal else tokens
    if scheduled < 1:
        raise ConfigError(
            f"a step of {rows} rows has as many tokens, and this device's steps have at most "
            f"{tokens}; lower max_num_seqs"
        )
    return StepShape(rows, min(scheduled, max_batch_tokens), tokens)


def plan_buckets(
    static: Sequence[StaticDimension], largest: StepShape, max_blocks: int
) -> tuple[Bucket, ...]:
    """Every bucket worth having, in order of need; () if the device takes any shape.

    max_blocks: width of the widest block table. A dimension that is not static has its largest
    value in all of them. The order: the largest, decodes of all rows and all widths, the others.
    """
    if not static:
        return ()
    legal = {each.dimension: each for each in static}
    rows = _values(legal.get(Dimension.ROWS), largest.rows)
    tokens = _values(legal.get(Dimension.TOKENS), largest.tokens)
    blocks = _values(legal.get(Dimension.BLOCKS), max_blocks)
    decodes = {(next((t for t in tokens if t >= r), tokens[-1]), r) for r in rows}
    prefills = {(t, r) for t in tokens for r in (rows[0], rows[-1]) if t >= r}
    top = Bucket(tokens[-1], rows[-1], blocks[-1])
    ordered: dict[Bucket, None] = {top: None}
    for shapes in (decodes, prefills):
        for t, r in sorted(shapes, reverse=True):
            ordered |= dict.fromkeys(Bucket(t, r, b) for b in reversed(blocks))
    return tuple(ordered)


def _values(static: StaticDimension | None, largest: int) -> list[int]:
    """Legal values that double, up to the first that holds `largest`."""
    if static is None:
        return [largest]
    top, values = _rounded(static, largest), [static.multiple_of]
    while values[-1] < top:
        values.append(min(2 * values[-1], top))
    return values


def _rounded(static: StaticDimension, size: int) -> int:
    return -(-size // static.multiple_of) * static.multiple_of


def _most(static: StaticDimension) -> float:
    if static.maximum is None:
        return math.inf
    return static.maximum // static.multiple_of * static.multiple_of


def first_used(buckets: Sequence[Bucket], uses: Mapping[Bucket, int]) -> tuple[Bucket, ...]:
    """The same buckets with those in front that earlier runs used most; the largest stays first."""
    return (*buckets[:1], *sorted(buckets[1:], key=lambda bucket: -uses.get(bucket, 0)))


@dataclass(slots=True)
class Buckets:
    """The warm buckets. uses: how many steps went into each.

    static: dimensions that are padded; steps keep their own size in the others.
    """

    static: frozenset[Dimension]
    warm: Sequence[Bucket]
    uses: Counter[Bucket] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.warm = sorted(self.warm, key=lambda b: (b.tokens, b.rows * b.blocks, b.rows))

    @classmethod
    def of(cls, static: Iterable[StaticDimension], warm: Sequence[Bucket]) -> "Buckets":
        return cls(frozenset(each.dimension for each in static), warm)

    def largest(self, tokens: int, rows: int, blocks: int) -> Bucket:
        """What no shape from `fit` exceeds, for steps of up to these sizes."""
        rows = max(rows, *(bucket.rows for bucket in self.warm), 0)
        padded = tokens + rows if self.static else tokens
        return Bucket(
            max(padded, *(bucket.tokens for bucket in self.warm), 0),
            rows,
            max(blocks, *(bucket.blocks for bucket in self.warm), 0),
        )

    def fit(self, tokens: int, rows: int, blocks: int) -> Bucket:
        """The shape that a step of these sizes is padded to: the cheapest bucket that holds it.

        Padded rows have one token each; tokens beyond belong to no row.
        """
        if not self.static:
            return Bucket(tokens, rows, blocks)
        for bucket in self.warm:
            padding = bucket.rows - rows if Dimension.ROWS in self.static else 0
            roomy = Dimension.TOKENS not in self.static or tokens + padding <= bucket.tokens
            if roomy and padding >= 0 and blocks <= bucket.blocks:
                self.uses[bucket] += 1
                return Bucket(
                    self._padded(Dimension.TOKENS, bucket.tokens, tokens + padding),
                    rows + padding,
                    self._padded(Dimension.BLOCKS, bucket.blocks, blocks),
                )
        raise AssertionError(
            f"no warm bucket holds {tokens} tokens, {rows} rows, {blocks} blocks: {self.warm}"
        )

    def _padded(self, dimension: Dimension, planned: int, own: int) -> int:
        return planned if dimension in self.static else own
