"""Generations: the router's side of requests in work, from prompt ids to final text.

    open ──▶ tokenize ──▶ start ──▶ deliver … deliver ──▶ end of each choice ──▶ close
    (permits)              (engine)   (one call per output, on the event loop)

`Choice.deliver` is the hot path: it detokenizes, applies stop strings and hands each token to the
listener, which formats. Nothing in it waits, so the engine never waits for a client.
"""

import asyncio
import itertools
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from time import monotonic
from types import TracebackType
from typing import Protocol, Self

from infercore.engine.request import FinishReason, Output, Request, TokenLogprobs
from infercore.errors import EngineUnavailable, InvalidRequest, Overloaded, RequestError
from infercore.sampling import MAX_SEED, SamplingParams
from infercore.text.detokenizer import Detokenizer
from infercore.text.tokenizer import Tokenizer
from infercore_api.observability.logs import RequestRecord
from infercore_api.observability.metrics import Metrics
from infercore_api.router.engine_client import EngineClient
from infercore_api.router.problems import problem_of


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


class Choice:
    """One sequence in work: what came so far, and how it ended."""

    __slots__ = (
        "_detokenizer",
        "_generation",
        "_last",
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
        self, generation: "Generation", index: int, request_id: int, prompt: Prompt
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
        self._generation = generation
        self._last = 0.0
        self._detokenizer = Detokenizer(
            generation.tokenizer,
            prompt.ids,
            stop=prompt.sampling.stop,
            include_stop=prompt.include_stop,
        )

    @property
    def text(self) -> str:
        return "".join(self.texts)

    @property
    def mean_logprob(self) -> float:
        """What candidates are compared by; needs log-probabilities of the choices."""
        return self.logprob_sum / max(1, len(self.output_ids))

    def deliver(self, output: Output) -> None:
        """Take one output of the engine."""
        if output.token_ids:
            self._time(output)
        on_token, push = self._generation.on_token, self._detokenizer.push_one
        ids, logprobs = output.token_ids, output.logprobs
        for i, token_id in enumerate(ids):
            text = push(token_id)
            reason = output.finish_reason if i + 1 == len(ids) else None
            if self._detokenizer.stop_string is not None:
                if output.finish_reason is None:
                    self._generation.engine.abort(self.request_id)
                reason = FinishReason.STOP
            elif reason is not None:
                text += self._detokenizer.flush()
            self.output_ids.append(token_id)
            self.texts.append(text)
            self.finish_reason = reason
            entry = None
            if logprobs is not None:
                entry = logprobs[i]
                self.logprob_sum += entry.logprob
            on_token(self, token_id, text, entry, reason)
            if reason is not None:
                break
        if self.finish_reason is None and output.finish_reason is not None:
            self.finish_reason = output.finish_reason
        if self.finish_reason is not None:
            self._generation.choice_ended(self, output.error)

    def _time(self, output: Output) -> None:
        now = monotonic()
        metrics = self._generation.metrics
        if self.output_ids:
            metrics.inter_token.observe(now - self._last)
        else:
            self.prompt_logprobs = output.prompt_logprobs
            self.cached_tokens = output.cached_tokens
            self.queue_seconds = output.queue_seconds
            self._generation.first_token(now)
        self._last = now


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
        self.on_token = listener.on_token
        self._on_done = listener.on_done
        for index, prompt in enumerate(prompts):
            choice = Choice(self, index, next(self._generator.ids), prompt)
            self.choices.append(choice)
            self._live[choice.request_id] = choice
        for choice in self.choices:
            request = Request(
                choice.request_id,
                choice.prompt.ids,
                choice.prompt.sampling,
                arrival=self.submitted,
            )
            self.engine.submit(request, choice.deliver)

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
        record.prompt_tokens = self.prompt_tokens
        record.generated_tokens = self.generated_tokens
        record.queue_seconds = self.queue_seconds
        if isinstance(outcome, RequestError):
            record.finish_reason = problem_of(outcome).name
        elif outcome is not None:
            record.finish_reason = "cancelled"
        elif self.choices and self.choices[0].finish_reason:
            record.finish_reason = self.choices[0].finish_reason.value

    def _count(self, outcome: BaseException | None) -> None:
        metrics, seconds = self.metrics, self.ended - self.record.started
        if isinstance(outcome, RequestError):
            metrics.ended.labels("failure").inc()
            metrics.request_failure.inc(problem_of(outcome).name)
            return
        if outcome is not None:
            metrics.ended.labels("cancelled").inc()
            return
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
            metrics.ended.labels("failure").inc()
            metrics.request_failure.inc(record.finish_reason)
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
            return Overloaded(
                f"{self._permits} sequences of at most {most} are in work; try again later"
            )
        return None

    def closed(self, permits: int) -> None:
        """Called by a generation, once."""
        self._permits -= permits
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


def choices_of(prompt: Prompt, count: int) -> list[Prompt]:
    """`count` choices of one prompt: choice j draws with seed + j, from a drawn seed if none."""
    seed = prompt.sampling.seed
    first = secrets.randbits(64) if seed is None else seed
    return [
        replace(prompt, sampling=replace(prompt.sampling, seed=(first + j) & MAX_SEED))
        for j in range(count)
    ]
