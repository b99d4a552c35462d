"""Choice: one sequence in work, from its prompt to its last token; the router's hot path.

`Choice.token` detokenizes and hands the text to the listener, which formats. Nothing in it waits,
so the engine never waits for a client.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from time import monotonic
from typing import Protocol

from infercore.engine.request import FinishReason, Output, TokenLogprobs
from infercore.errors import RequestError
from infercore.sampling import MAX_SEED, SamplingParams
from infercore.text.detokenizer import Detokenizer
from infercore.text.tokenizer import Tokenizer
from infercore_api.observability.metrics import Metrics
from infercore_api.router.engine_client import EngineClient


@dataclass(frozen=True, slots=True)
class Prompt:
    """What one choice starts from. `sampling` has `max_tokens` set.

    text: the prompt as the client wrote it, or as the template made it; "" for token ids.
    include_stop: the generated text keeps the stop string that ended it.
    """

    text: str
    ids: Sequence[int]
    sampling: SamplingParams
    include_stop: bool = False


class Listener(Protocol):
    """Who is told about tokens: a formatter of events, or a collector for one whole reply."""

    def on_token(
        self,
        choice: "Choice",
        token_id: int,
        text: str,
        logprobs: TokenLogprobs | None,
        reason: FinishReason | None,
    ) -> None:
        """A token came, with the text that became final; `reason` is set on the choice's last."""

    def on_done(self, error: RequestError | None) -> None:
        """All choices ended, or `error` ended them; called once."""


class Owner(Protocol):
    """What a choice asks of the generation that it belongs to."""

    engine: EngineClient
    tokenizer: Tokenizer
    metrics: Metrics

    def first_token(self, now: float) -> None:
        """A choice's first token came."""

    def choice_ended(self, choice: "Choice", error: RequestError | None) -> None:
        """Called once per choice."""


class Choice:
    """One sequence in work: what came so far, and how it ended. The `Sink` of its request."""

    __slots__ = (
        "_detokenizer",
        "_last",
        "_observe",
        "_on_token",
        "_owner",
        "_push",
        "cached_tokens",
        "finish_reason",
        "index",
        "logprob_sum",
        "output_ids",
        "prompt",
        "prompt_logprobs",
        "queue_seconds",
        "request_id",
        "texts",
    )

    def __init__(
        self, owner: Owner, listener: Listener, index: int, request_id: int, prompt: Prompt
    ) -> None:
        self.index = index
        self.request_id = request_id
        self.prompt = prompt
        self.output_ids: list[int] = []
        self.texts: list[str] = []
        self.logprob_sum = 0.0
        self.finish_reason: FinishReason | None = None
        self.prompt_logprobs: list[TokenLogprobs | None] | None = None
        self.cached_tokens = 0
        self.queue_seconds = 0.0
        self._owner = owner
        self._on_token = listener.on_token
        self._observe = owner.metrics.inter_token.observe
        self._last = 0.0
        self._detokenizer = Detokenizer(
            owner.tokenizer,
            prompt.ids,
            stop=prompt.sampling.stop,
            include_stop=prompt.include_stop,
        )
        self._push = self._detokenizer.push_one

    @property
    def text(self) -> str:
        return "".join(self.texts)

    @property
    def stop_string(self) -> str | None:
        """The stop text that ended it, None if it ended otherwise."""
        return self._detokenizer.stop_string

    @property
    def mean_logprob(self) -> float:
        """What candidates are compared by; needs log-probabilities of the choices."""
        return self.logprob_sum / max(1, len(self.output_ids))

    def token(self, token_id: int, logprob: float | None, now: float) -> None:
        """Take one more token and nothing else; see `Sink`. What cannot happen here is left out."""
        entry = None if logprob is None else TokenLogprobs(logprob)
        if self.prompt.sampling.stop or not self.output_ids:
            self.output(Output(self.request_id, [token_id], None if entry is None else [entry]))
            return
        self._observe(now - self._last)
        self._last = now
        text = self._push(token_id)
        self.output_ids.append(token_id)
        self.texts.append(text)
        if logprob is not None:
            self.logprob_sum += logprob
        self._on_token(self, token_id, text, entry, None)

    def output(self, output: Output) -> None:
        """Take whatever else the engine says; see `Sink`."""
        if output.token_ids:
            self._time(output)
        nothing: list[TokenLogprobs | None] = [None] * len(output.token_ids)
        entries = output.logprobs or nothing
        for at, (token_id, entry) in enumerate(zip(output.token_ids, entries, strict=True), 1):
            last = at == len(output.token_ids)
            self._take(token_id, entry, output.finish_reason if last else None)
            if self.finish_reason is not None:
                break
        self.finish_reason = self.finish_reason or output.finish_reason
        if self.finish_reason is not None:
            if output.finish_reason is None:  # a stop text, which the engine does not know of
                self._owner.engine.abort(self.request_id)
            self._owner.choice_ended(self, output.error)

    def _take(
        self, token_id: int, entry: TokenLogprobs | None, reason: FinishReason | None
    ) -> None:
        text = self._push(token_id)
        if self._detokenizer.stop_string is not None:
            reason = FinishReason.STOP
        elif reason is not None:
            text += self._detokenizer.flush()
        self.output_ids.append(token_id)
        self.texts.append(text)
        self.finish_reason = reason
        if entry is not None:
            self.logprob_sum += entry.logprob
        self._on_token(self, token_id, text, entry, reason)

    def _time(self, output: Output) -> None:
        now = monotonic()
        if self.output_ids:
            self._observe(now - self._last)
        else:
            self.prompt_logprobs = output.prompt_logprobs
            self.cached_tokens = output.cached_tokens
            self.queue_seconds = output.queue_seconds
            self._owner.first_token(now)
        self._last = now


def choices_of(prompt: Prompt, count: int) -> list[Prompt]:
    """`count` choices of one prompt: choice j draws with seed + j, from a drawn seed if none."""
    seed = prompt.sampling.seed
    first = secrets.randbits(64) if seed is None else seed
    return [
        replace(prompt, sampling=replace(prompt.sampling, seed=(first + j) & MAX_SEED))
        for j in range(count)
    ]
