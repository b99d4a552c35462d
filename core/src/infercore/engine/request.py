"""What enters the engine, and what leaves it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple, Protocol

from infercore.errors import RequestError
from infercore.sampling import SamplingParams
from infercore.step import UInt32


class FinishReason(Enum):
    """Why a request ended. Front ends translate it to their dialect's words."""

    LENGTH = "length"
    EOS = "eos"
    STOP = "stop"  # a stop id (stop texts are the router's)
    ABORT = "abort"  # the caller asked for it
    ERROR = "error"  # `Output.error` says why


class Constraint(Protocol):
    """What may come next, given what came: a grammar, for one request.

    Called on the engine's thread; `fill` follows the `accept` of every earlier token.
    """

    def accept(self, token_id: int) -> None:
        """The request's next token was chosen, or is replayed after a resume."""
        ...

    def fill(self, bitmask: UInt32) -> None:
        """Set the bits of allowed tokens in bitmask uint32[ceil(V / 32)], given all zero."""
        ...

    def fresh(self) -> "Constraint":
        """A copy in the state before the first token."""
        ...


@dataclass(slots=True)
class Request:
    """One sequence to generate. `n` choices are n requests, with seeds counted up.

    request_id: unique among live requests, chosen by the server, never by the client.
    prompt_ids: at least one. output_ids: tokens of an earlier attempt, to continue after.
    sampling: with `seed` and `max_tokens` set; max_tokens counts output_ids too.
    priority: larger goes first and is preempted last.
    cache_salt: prefixes are shared only between equal salts.
    arrival: time.monotonic of the first attempt; orders requests of equal priority.
    """

    request_id: int
    prompt_ids: Sequence[int]
    sampling: SamplingParams
    output_ids: Sequence[int] = ()
    attempt: int = 0
    priority: int = 0
    cache_salt: bytes = b""
    arrival: float = 0.0
    constraint: Constraint | None = None


class TokenLogprobs(NamedTuple):
    """Log-probabilities at one position: the token's own, and the likeliest with theirs."""

    logprob: float
    top_ids: tuple[int, ...] = ()
    top_logprobs: tuple[float, ...] = ()


@dataclass(slots=True)
class Output:
    """What one step brought for one request. `finish_reason` is set exactly once, on the last.

    token_ids: new tokens, the ending EOS or stop id included.
    logprobs: one per token, if asked for.
    prompt_logprobs: with the first token, if asked for; None at the first prompt position.
    cached_tokens: prompt tokens found in the prefix cache, with the first token.
    queue_seconds: from arrival to the first step, with the first token.
    """

    request_id: int
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] | None = None
    finish_reason: FinishReason | None = None
    error: RequestError | None = None
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    cached_tokens: int = 0
    queue_seconds: float = 0.0


@dataclass(slots=True)
class EngineStats:
    """Counters since the start, gauges of now. Seconds are of the host's monotonic clock.

    kv_usage: share of KV blocks that running sequences hold, 0 to 1 (cached blocks that
        nobody holds do not count). own_seconds: the step loop without waiting for the executor.
    padded_tokens: run to fill a planned shape; they belong to no sequence.
    joined_steps, phase_failures, prompts_per_step, step_counts, step_seconds: of `StepTimes`;
        () before the first heartbeat.
    """

    steps: int = 0
    running: int = 0
    waiting: int = 0
    kv_blocks: int = 0
    kv_blocks_used: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    dropped_tokens: int = 0
    preemptions: int = 0
    failed_steps: int = 0
    padded_tokens: int = 0
    own_seconds: float = 0.0
    wait_seconds: float = 0.0
    joined_steps: int = 0
    phase_failures: tuple[int, ...] = ()
    prompts_per_step: tuple[int, ...] = ()
    step_counts: tuple[int, ...] = ()
    step_seconds: tuple[float, ...] = ()

    @property
    def kv_usage(self) -> float:
        return self.kv_blocks_used / self.kv_blocks if self.kv_blocks else 0.0
