"""Core's engine on a backend's executor, under settings that must not change what it answers."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infercore.capabilities import Capabilities, Dimension
from infercore.engine.buckets import Buckets, largest_step, plan_buckets
from infercore.engine.engine import Engine
from infercore.engine.limits import EngineLimits
from infercore.engine.request import Request
from infercore.executor import Bucket, Executor, ExecutorConfig, KVGroups
from infercore_conformance.engine_answers import Answers
from infercore_conformance.engine_driver import Driver
from infercore_conformance.models import MAX_POSITION, VOCAB
from infercore_conformance.running import WARM_UP, config_for, open_model, quiet
from infercore_conformance.subject import Subject

EOS = 2
ROWS = 32  # most that a check runs together
TOKENS = 256  # of a step
LENGTH = 128  # of the longest sequence, or two blocks where they are large
OFTEN = ((64, 1), (ROWS, ROWS), (8, 8), (1, 1))  # tokens and rows of steps that checks make


@dataclass(frozen=True, slots=True)
class Setting:
    """How an engine serves. The default is the plainest: each request alone, its prompt whole.

    rows, tokens: of a step, at most. blocks: of each group, block 0 included; None = room for all.
    buckets: how many of the warm shapes it uses, the largest first; None = all.
    """

    rows: int = 1
    tokens: int = TOKENS
    blocks: int | None = None
    prefix_cache: bool = False
    step_ahead: bool = False
    buckets: int | None = None


PLAIN = Setting()
TOGETHER = Setting(rows=8)
Wrap = Callable[[Executor], Executor]


@dataclass
class Serving:
    """A loaded executor, and engines over it, one after another.

    warm: the shapes that it was warmed for, the largest first.
    """

    executor: Executor
    groups: KVGroups
    config: ExecutorConfig
    capabilities: Capabilities
    warm: Sequence[Bucket]

    @classmethod
    def start(cls, subject: Subject, folder: Path, **config: Any) -> "Serving":
        """Load and warm up, as `infercore.launch` does. config: fields of ExecutorConfig."""
        executor = subject.executor()
        try:
            can = executor.capabilities()
            options = config_for(can, **{**_sizes(can), **config})
            groups = executor.load(*open_model(folder), options, quiet)
            executor.memory()
            executor.allocate_kv({group.name: _room(options) for group in groups})
            shapes = _few_shapes(can, options)
            count = executor.warm_up(shapes, time.monotonic() + WARM_UP, quiet)
        except BaseException:
            executor.shutdown()
            raise
        return cls(executor, groups, options, can, shapes[:count])

    @property
    def block_size(self) -> int:
        return self.config.block_size

    @property
    def rows(self) -> int:
        """Most rows of a step."""
        return self.config.max_num_seqs

    def tokens(self, steps: int) -> int:
        """As many as keep a request going for `steps` steps, whatever a row yields in one."""
        return steps * self.capabilities.tokens_per_step

    def blocks(self, setting: Setting) -> int:
        """Of each group, block 0 included."""
        return _room(self.config) if setting.blocks is None else setting.blocks

    def engine(self, setting: Setting = PLAIN, wrap: Wrap | None = None) -> Engine:
        """A new one, on a cache that holds nothing. wrap: puts an executor around the backend's."""
        counts = {group.name: self.blocks(setting) for group in self.groups}
        self.executor.allocate_kv(counts)
        self.executor.reset()
        static = self.capabilities.static_dimensions
        largest = largest_step(static, self.rows, TOKENS)
        limits = EngineLimits(
            max_model_len=self.config.max_model_len,
            max_num_seqs=min(setting.rows, self.rows),
            max_batch_tokens=min(setting.tokens, largest.scheduled),
            prefix_cache=setting.prefix_cache,
            step_ahead=setting.step_ahead,
        )
        return Engine(
            self.executor if wrap is None else wrap(self.executor),
            self.groups,
            counts,
            limits,
            eos_ids=(EOS,),
            vocab_size=VOCAB,
            buckets=Buckets.of(static, self.warm[: setting.buckets]),
        )

    def answers(
        self, requests: Iterable[Request], setting: Setting = PLAIN, wrap: Wrap | None = None
    ) -> Answers:
        """What all of `requests` get, added together in their order."""
        return self.drive(requests, setting, wrap).received

    def drive(
        self, requests: Iterable[Request], setting: Setting = PLAIN, wrap: Wrap | None = None
    ) -> Driver:
        """The same; the driver tells what else happened."""
        driver = Driver(self.engine(setting, wrap))
        driver.add(requests)
        driver.run()
        return driver


def _sizes(can: Capabilities) -> dict[str, int]:
    rows = min([ROWS, *(_most(can, Dimension.ROWS))])
    largest = largest_step(can.static_dimensions, rows, TOKENS)
    length = min(MAX_POSITION, max(LENGTH, 2 * can.block_sizes[0]))
    return {
        "max_num_seqs": largest.rows,
        "max_batch_tokens": largest.tokens,
        "max_model_len": length,
    }


def _most(can: Capabilities, dimension: Dimension) -> Iterable[int]:
    """The largest legal value, if there is one."""
    for static in can.static_dimensions:
        if static.dimension is dimension and static.maximum is not None:
            yield static.maximum // static.multiple_of * static.multiple_of


def _room(config: ExecutorConfig) -> int:
    return 1 + config.max_num_seqs * -(-config.max_model_len // config.block_size)


def _few_shapes(can: Capabilities, config: ExecutorConfig) -> Sequence[Bucket]:
    """Of core's plan the largest bucket, which holds any step, and a few that are often enough."""
    static = can.static_dimensions
    largest = largest_step(static, config.max_num_seqs, TOKENS)
    widest = -(-config.max_model_len // config.block_size)
    planned = plan_buckets(static, largest, widest)
    often = [_snuggest(planned, tokens, rows) for tokens, rows in OFTEN if planned]
    return list(dict.fromkeys([*planned[:1], *often]))


def _snuggest(planned: Sequence[Bucket], tokens: int, rows: int) -> Bucket:
    """Of those with the widest block table; the first of the plan is one, and holds any step."""
    whole = planned[0]
    holding = [
        b for b in planned if b.tokens >= tokens and b.rows >= rows and b.blocks == whole.blocks
    ]
    return min(holding, key=lambda b: (b.tokens, b.rows), default=whole)
