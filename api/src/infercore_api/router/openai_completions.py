"""`/v1/completions`: prompts as texts or token ids in, texts out."""

import json
from collections.abc import Sequence
from json.encoder import encode_basestring as quoted
from typing import Any

from fastapi import APIRouter, Request, Response

from infercore.engine.request import FinishReason, TokenLogprobs
from infercore.errors import RequestError
from infercore_api.router.choice import Choice, Prompt, choices_of
from infercore_api.router.generation import Collector, Generation
from infercore_api.router.openai_reply import (
    FINISH_REASONS,
    CompletionLogprobs,
    Envelope,
    best,
    usage,
    usage_tail,
)
from infercore_api.router.openai_schema import CompletionBody
from infercore_api.router.serving import serve_stream, serve_whole
from infercore_api.router.state import RouterState
from infercore_api.router.streaming import EventStream


def add_completions(router: APIRouter, state: RouterState) -> None:
    @router.post("/v1/completions")
    async def completions(request: Request, body: CompletionBody) -> Response:
        """Complete each prompt, whole or as a stream."""
        state.check_model(body.model)
        body.check(state.limits)
        permits = len(body.prompts) * body.candidates
        if body.stream:
            return await serve_stream(
                state,
                request,
                permits,
                lambda: _prepare(state, body),
                lambda generation: CompletionEvents(state, body, generation),
            )
        return await serve_whole(
            state,
            request,
            permits,
            lambda: _prepare(state, body),
            lambda generation, collector: _whole(state, body, generation, collector),
        )


def _prepare(state: RouterState, body: CompletionBody) -> Sequence[Prompt]:
    """The candidates of every prompt, one prompt after the other; runs on a worker thread."""
    prepared: list[Prompt] = []
    for given in body.prompts:
        if isinstance(given, str):
            text, ids = given, state.tokenizer.encode(given)
        else:
            state.limits.check_ids(given, "prompt")
            text, ids = state.tokenizer.decode(given) if body.echo else "", given
        max_tokens = state.limits.fit(len(ids), body.max_tokens, "prompt")
        echoed = body.logprobs if body.echo else None
        logprobs = body.logprobs
        if body.candidates > body.n and logprobs is None:
            logprobs = 0  # candidates are compared by them
        mark = state.limits.mark(body.watermark)
        sampling = body.sampling(max_tokens, logprobs, mark, echoed)
        prompt = Prompt(text, ids, sampling, body.include_stop_str_in_output)
        prepared += choices_of(prompt, body.candidates)
    return prepared


def _whole(
    state: RouterState, body: CompletionBody, generation: Generation, collector: Collector
) -> Response:
    choices: list[dict[str, Any]] = []
    for at in range(0, len(generation.choices), body.candidates):
        for choice in best(generation.choices[at : at + body.candidates], body.n):
            assert choice.finish_reason is not None
            choices.append(
                {
                    "index": len(choices),
                    "text": choice.prompt.text + choice.text if body.echo else choice.text,
                    "logprobs": _logprobs(state, body, choice, collector),
                    "finish_reason": FINISH_REASONS[choice.finish_reason],
                }
            )
    envelope = Envelope.of(state, "cmpl", "text_completion")
    reply = {**envelope.fields(), "choices": choices, "usage": usage(generation)}
    return Response(json.dumps(reply, ensure_ascii=False), media_type="application/json")


def _logprobs(
    state: RouterState, body: CompletionBody, choice: Choice, collector: Collector
) -> dict[str, Any] | None:
    if body.logprobs is None:
        return None
    found = CompletionLogprobs(state.tokenizer)
    if body.echo and choice.prompt_logprobs is not None:
        for token_id, entry in zip(choice.prompt.ids, choice.prompt_logprobs, strict=True):
            found.add(token_id, entry)
    for token_id, chosen in zip(
        choice.output_ids, collector.logprobs.get(choice.index, []), strict=True
    ):
        found.add(token_id, chosen)
    return found.reply()


class CompletionEvents:
    """Listener of a streamed completion. Streams of several prompts are interleaved by index."""

    stream: EventStream

    def __init__(self, state: RouterState, body: CompletionBody, generation: Generation) -> None:
        self._tokenizer = state.tokenizer
        self._generation = generation
        self._body = body
        self._usage = body.stream_options.include_usage
        self._continuous = body.stream_options.continuous_usage_stats
        self._offsets: dict[int, int] = {}
        self._head = Envelope.of(state, "cmpl", "text_completion").head()
        self._tail = '],"usage":null}\n\n' if self._usage else "]}\n\n"

    def on_token(
        self,
        choice: Choice,
        token_id: int,
        text: str,
        logprobs: TokenLogprobs | None,
        reason: FinishReason | None,
    ) -> None:
        if len(choice.output_ids) == 1 and self._body.echo:
            self._echo(choice)
        shown = "null"
        if logprobs is not None and self._body.logprobs is not None:
            found = CompletionLogprobs(self._tokenizer, self._offsets.get(choice.index, 0))
            found.add(token_id, logprobs)
            self._offsets[choice.index] = found.offset
            shown = json.dumps(found.reply(), ensure_ascii=False)
        if text or reason is not None or shown != "null":
            ended = "null" if reason is None else f'"{FINISH_REASONS[reason]}"'
            self._push(choice.index, text, shown, ended)

    def _echo(self, choice: Choice) -> None:
        """The prompt, as an event before the first token's."""
        shown = "null"
        if choice.prompt_logprobs is not None and self._body.logprobs is not None:
            found = CompletionLogprobs(self._tokenizer)
            for token_id, entry in zip(choice.prompt.ids, choice.prompt_logprobs, strict=True):
                found.add(token_id, entry)
            self._offsets[choice.index] = found.offset
            shown = json.dumps(found.reply(), ensure_ascii=False)
        self._push(choice.index, choice.prompt.text, shown, "null")

    def _push(self, index: int, text: str, logprobs: str, reason: str) -> None:
        tail = usage_tail(self._generation) if self._continuous else self._tail
        self.stream.push(
            f'{self._head}{{"index":{index},"text":{quoted(text)},"logprobs":{logprobs},'
            f'"finish_reason":{reason}}}{tail}'
        )

    def on_done(self, error: RequestError | None) -> None:
        if error is None and self._usage:
            self.stream.push(self._head + usage_tail(self._generation))
        self.stream.end(error)
