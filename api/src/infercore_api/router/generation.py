"""Generations: the router's side of requests in work, from prompt ids to final text.

open ──▶ tokenize ──▶ start ──▶ token … token ──▶ end of each choice ──▶ close
(permits)              (engine)   (on the event loop)
"""

import asyncio
import itertools
import logging
from collections.abc import Sequence
from time import monotonic
from types import TracebackType
from typing import Self

from infercore.engine.pace import Pace
from infercore.engine.request import FinishReason, Request, TokenLogprobs
from infercore.errors import (
    EngineUnavailable,
    GenerationFailed,
    InvalidRequest,
    Overloaded,
    RequestError,
)
from infercore.text.tokenizer import Tokenizer
from infercore_api.observability.logs import RequestRecord
from infercore_api.observability.metrics import Metrics
from infercore_api.router.choice import Choice, Listener, Prompt
from infercore_api.router.engine_client import EngineClient
from infercore_api.router.problems import problem_of

log = logging.getLogger(__name__)


class Generation:
    """One HTTP request in work: its choices, its permits, its times.

    A context manager: leaving it closes it, with the exception as the outcome. A stream takes it
    over and closes it itself. Closing aborts what still runs, counts the request once, and gives
    the permits back.
    """

    def __init__(self, generator: "Generator", permits: int, record: RequestRecord) -> None:
        self.engine = generator.engine
        self.tokenizer = generator.tokenizer
        self.metrics = generator.metrics
        self.choices: list[Choice] = []
        self.record = record
        self.submitted = 0.0
        self.ended = 0.0
        self._generator = generator
        self._permits = permits
        self._live: dict[int, Choice] = {}
        self._closed = False

    def start(self, prompts: Sequence[Prompt], listener: Listener) -> None:
        """Submit one sequence per prompt. Raises EngineUnavailable if there is no engine."""
        self.submitted = monotonic()
        self._on_done = listener.on_done
        for index, prompt in enumerate(prompts):
            choice = Choice(self, listener, index, next(self._generator.ids), prompt)
            self.choices.append(choice)
            self._live[choice.request_id] = choice
        for choice in self.choices:
            request = Request(
                choice.request_id,
                choice.prompt.ids,
                choice.prompt.sampling,
                arrival=self.submitted,
            )
            self.engine.submit(request, choice)

    def first_token(self, now: float) -> None:
        """Note when a choice's first token came; the first of the request is measured."""
        if not self.record.first_token_seconds:
            self.record.first_token_seconds = now - self.record.started
            self.metrics.first_token.observe(self.record.first_token_seconds)

    def choice_ended(self, choice: Choice, error: RequestError | None) -> None:
        """Called by a choice, once. The first failure ends the other choices too."""
        if self._live.pop(choice.request_id, None) is None:
            return
        if error is None and not choice.output_ids:
            error = EngineUnavailable("The engine ended this request; send it again")
        if error is not None:
            self.abort()
        if not self._live:
            self.ended = monotonic()
            self._on_done(error)

    def abort(self) -> None:
        """End all choices that run; nothing more is delivered for them."""
        for request_id in self._live:
            self.engine.abort(request_id)
        self._live.clear()

    def close(self, outcome: BaseException | None = None) -> None:
        """Count the request and give its permits back. Closing twice does nothing."""
        if self._closed:
            return
        self._closed = True
        self.abort()
        self.ended = self.ended or monotonic()
        self._generator.closed(self._permits)
        self._fill_record(outcome)
        self._count(outcome)

    def _fill_record(self, outcome: BaseException | None) -> None:
        record = self.record
        if isinstance(outcome, GenerationFailed):  # the client is told less of it
            log.warning("request %s failed: %s", record.request_id, outcome)
        record.prompt_tokens = self.prompt_tokens
        record.cached_tokens = self.cached_tokens
        record.generated_tokens = self.generated_tokens
        record.queue_seconds = self.queue_seconds
        record.submitted, record.ended = self.submitted, self.ended
        record.sampling = [choice.prompt.sampling for choice in self.choices]
        if isinstance(outcome, RequestError):
            record.finish_reason = problem_of(outcome).name
        elif outcome is not None:
            record.finish_reason = "cancelled"
        elif self.choices and self.choices[0].finish_reason:
            record.finish_reason = self.choices[0].finish_reason.value

    def _count(self, outcome: BaseException | None) -> None:
        metrics, seconds = self.metrics, self.ended - self.record.started
        for choice in self.choices:
            metrics.finished[(choice.finish_reason or FinishReason.ABORT).value] += 1
        if outcome is not None:
            metrics.failed(self.record.finish_reason)
            return
        self._observe_own()
        metrics.ended.labels("success").inc()
        metrics.request_success.inc()
        metrics.duration.observe(seconds)
        metrics.validation.observe(self.validation_seconds)
        metrics.queue.observe(self.queue_seconds)
        metrics.inference.observe(self.inference_seconds)
        metrics.mean_token.observe(self.seconds_per_token)
        for choice in self.choices:
            metrics.generated.observe(len(choice.output_ids))
            metrics.input_length.observe(len(choice.prompt.ids))
            metrics.max_new.observe(choice.prompt.sampling.max_tokens or 0)
            metrics.skipped.observe(0)  # nothing is speculated

    def _observe_own(self) -> None:
        metrics, record = self.metrics, self.record
        metrics.own_duration.observe(self.ended - record.started)
        metrics.own_queue.observe(self.queue_seconds)
        metrics.own_inference.observe(self.inference_seconds)
        metrics.prefill.observe(record.prefill_seconds)
        metrics.decode.observe(record.decode_seconds)
        for choice in self.choices:
            metrics.prompt_tokens.observe(len(choice.prompt.ids))
            metrics.generated_tokens.observe(len(choice.output_ids))
            after_first = len(choice.output_ids) - 1
            if after_first > 0:
                metrics.per_output_token.observe(record.decode_seconds / after_first)

    @property
    def prompt_tokens(self) -> int:
        prompts = {id(choice.prompt.ids): choice.prompt for choice in self.choices}
        return sum(len(prompt.ids) for prompt in prompts.values())

    @property
    def cached_tokens(self) -> int:
        """Of each prompt, what the choice that found most of it in the cache found."""
        found: dict[int, int] = {}
        for choice in self.choices:
            prompt = id(choice.prompt.ids)
            found[prompt] = max(found.get(prompt, 0), choice.cached_tokens)
        return sum(found.values())

    @property
    def generated_tokens(self) -> int:
        return sum(len(choice.output_ids) for choice in self.choices)

    @property
    def queue_seconds(self) -> float:
        return max((choice.queue_seconds for choice in self.choices), default=0.0)

    @property
    def validation_seconds(self) -> float:
        return self.submitted - self.record.started

    @property
    def inference_seconds(self) -> float:
        return max(0.0, self.ended - self.submitted - self.queue_seconds)

    @property
    def seconds_per_token(self) -> float:
        return self.inference_seconds / max(1, self.generated_tokens)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close(error)


class Generator:
    """Opens generations, within the limit of sequences in work at once."""

    def __init__(
        self, engine: EngineClient, tokenizer: Tokenizer, metrics: Metrics, max_concurrent: int
    ) -> None:
        self.engine = engine
        self.tokenizer = tokenizer
        self.metrics = metrics
        self.ids = itertools.count(1)
        self._max_concurrent = max_concurrent
        self._permits = 0
        self._pace = Pace()  # of permits that came back

    def open(self, permits: int, record: RequestRecord) -> Generation:
        """Count a request in and take its permits, one per sequence.

        Raises Overloaded if fewer are left, and InvalidRequest if there are never that many.
        """
        metrics = self.metrics
        metrics.request_count.inc()
        metrics.started.inc()
        refusal = self._refusal(permits)
        if refusal is not None:
            record.finish_reason = problem_of(refusal).name
            metrics.failed(record.finish_reason)
            raise refusal
        self._permits += permits
        metrics.in_flight.inc()
        return Generation(self, permits, record)

    def _refusal(self, permits: int) -> RequestError | None:
        most = self._max_concurrent
        if permits > most:
            return InvalidRequest(
                f"The request asks for {permits} sequences and the server runs at most {most} at "
                "once; ask for fewer prompts or choices",
                "n",
            )
        if self._permits + permits > most:
            wait = self._pace.seconds_for(self._permits + permits - most, monotonic())
            return Overloaded(
                f"{self._permits} sequences of at most {most} are in work. Try again in "
                f"{wait:.0f} s.",
                wait,
            )
        return None

    def closed(self, permits: int) -> None:
        """Called by a generation, once."""
        self._permits -= permits
        self._pace.note(permits, monotonic())
        self.metrics.in_flight.dec()


class Collector:
    """A listener for one whole reply: keeps log-probabilities and waits for the end."""

    def __init__(self) -> None:
        self.logprobs: dict[int, list[TokenLogprobs]] = {}
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def on_token(
        self,
        choice: Choice,
        token_id: int,
        text: str,
        logprobs: TokenLogprobs | None,
        reason: FinishReason | None,
    ) -> None:
        del token_id, text, reason  # the choice itself keeps them
        if logprobs is not None:
            self.logprobs.setdefault(choice.index, []).append(logprobs)

    def on_done(self, error: RequestError | None) -> None:
        if self._done.done():
            return
        if error is None:
            self._done.set_result(None)
        else:
            self._done.set_exception(error)

    async def done(self) -> None:
        """Return when all choices ended. Raises the RequestError that ended them."""
        await self._done
