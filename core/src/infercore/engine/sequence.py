"""A request while the engine holds it: its tokens, a few counters, and properties of them."""

import hashlib
from array import array
from collections.abc import Set as AbstractSet

import numpy as np

from infercore.engine.request import Constraint, FinishReason, Request, TokenLogprobs
from infercore.step import Int32, SlotInit


class Sequence:
    """Tokens and counters of one request.

    What has happened and what is in flight are counted apart, so that a failed step is undone by
    forgetting what was in flight:

        |<-- num_computed -->|<-- num_scheduled -->|<-- remaining -->|
        |<------------------- num_tokens ------------->|<- num_pending ->|

    num_computed: tokens whose KV is written, by steps whose results came.
    num_scheduled: tokens that unresolved steps run.
    num_pending: tokens that unresolved steps may yield, at most.
    in_flight: unresolved steps that name it; its blocks and its slot stay until that is 0.
    num_blocks: entries of its block table; num_sealed: leading blocks offered to the cache.
    slot: its place in the executor and in the block tables, while it runs.
    initialised: the executor knows the slot's past (`SlotInit` was sent and not lost).
    row: its row in the last step that named it.
    """

    __slots__ = (
        "arrival",
        "awaited_step",
        "blocked_since",
        "cached_tokens",
        "constraint",
        "eos_ids",
        "finish_reason",
        "hashes",
        "ids",
        "in_flight",
        "initialised",
        "max_len",
        "num_blocks",
        "num_computed",
        "num_pending",
        "num_scheduled",
        "num_sealed",
        "order",
        "prompt_len",
        "prompt_logprobs",
        "queue_order",
        "request",
        "request_id",
        "row",
        "salt_key",
        "slot",
        "started",
        "stop_ids",
    )

    def __init__(
        self, request: Request, max_len: int, eos_ids: AbstractSet[int], now: float
    ) -> None:
        sampling = request.sampling
        self.request = request
        self.request_id = request.request_id
        self.prompt_len = len(request.prompt_ids)
        self.ids = array("i", request.prompt_ids)
        self.ids.extend(request.output_ids)
        self.max_len = max_len
        self.eos_ids = frozenset() if sampling.ignore_eos else eos_ids
        self.stop_ids = self.eos_ids | frozenset(sampling.stop_token_ids)
        self.constraint = self._replay(request)
        self.arrival = request.arrival or now
        self.order = (-request.priority, self.arrival, self.request_id)
        resumed = bool(request.attempt or request.output_ids)
        self.queue_order = (not resumed, *self.order)
        self.salt_key = hashlib.blake2b(request.cache_salt).digest()
        self.hashes: list[bytes] = []
        self.started: float | None = None
        self.cached_tokens = 0
        self.blocked_since: float | None = None
        self.awaited_step: int | None = None
        self.finish_reason: FinishReason | None = None
        self.prompt_logprobs: list[TokenLogprobs | None] | None = None
        if sampling.prompt_logprobs is not None and not request.output_ids:
            self.prompt_logprobs = [None for _ in range(self.prompt_len)]
        self.num_scheduled = self.num_pending = self.in_flight = self.row = 0
        self.forget()

    @staticmethod
    def _replay(request: Request) -> Constraint | None:
        if request.constraint is None:
            return None
        constraint = request.constraint.fresh()
        for token in request.output_ids:
            constraint.accept(token)
        return constraint

    def forget(self) -> None:
        """Go back to the start: nothing is computed, no block or slot is held."""
        assert not self.in_flight, "only a sequence with nothing in flight starts again"
        self.num_computed = self.num_blocks = self.num_sealed = self.slot = 0
        self.initialised = False

    @property
    def num_tokens(self) -> int:
        """Tokens known to the host: prompt and output."""
        return len(self.ids)

    @property
    def next_position(self) -> int:
        """Where the next step goes on."""
        return self.num_computed + self.num_scheduled

    @property
    def remaining(self) -> int:
        """Tokens to run before the next can be chosen; 1 while decoding."""
        return len(self.ids) + self.num_pending - self.num_computed - self.num_scheduled

    @property
    def is_finished(self) -> bool:
        return self.finish_reason is not None

    @property
    def reads_cache(self) -> bool:
        """Log-probabilities of a prompt need its logits, so that prompt is computed in full."""
        return self.prompt_logprobs is None

    def ending(self) -> FinishReason | None:
        """Why it ends with its last token, if it does."""
        last = self.ids[-1]
        if len(self.ids) > self.prompt_len and last in self.stop_ids:
            return FinishReason.EOS if last in self.eos_ids else FinishReason.STOP
        return FinishReason.LENGTH if len(self.ids) >= self.max_len else None

    def slot_init(self) -> SlotInit:
        """What the executor must know of its past, as of now."""
        ids: Int32 = np.array(self.ids, np.int32)
        sampling = self.request.sampling
        return SlotInit(
            slot=self.slot,
            sampling=sampling,
            prompt_ids=ids[: self.prompt_len],
            output_ids=ids[self.prompt_len :],
            stop_ids=np.array(sorted(self.stop_ids), np.int32),
            min_position=self.prompt_len + sampling.min_tokens,
        )
