"""`/v1/chat/completions`: messages in, one message per choice out."""

import json
from collections.abc import Sequence
from json.encoder import encode_basestring as quoted

from fastapi import APIRouter, Request, Response

from infercore.engine.request import FinishReason, TokenLogprobs
from infercore.errors import RequestError
from infercore_api.router.choice import Choice, Prompt, choices_of
from infercore_api.router.generation import Collector, Generation
from infercore_api.router.openai_reply import (
    FINISH_REASONS,
    Envelope,
    chat_logprobs,
    usage,
    usage_tail,
)
from infercore_api.router.openai_schema import ChatBody
from infercore_api.router.serving import serve_stream, serve_whole
from infercore_api.router.state import RouterState
from infercore_api.router.streaming import EventStream


def add_chat(router: APIRouter, state: RouterState) -> None:
    @router.post("/v1/chat/completions")
    async def chat_completions(request: Request, body: ChatBody) -> Response:
        """Answer a chat, whole or as a stream of deltas."""
        state.check_model(body.model)
        body.check(state.limits)
        if body.stream:
            return await serve_stream(
                state,
                request,
                body.n,
                lambda: prepare(state, body),
                lambda generation: ChatEvents(
                    state, body, generation, tgi_client=_is_tgi_client(request, body)
                ),
            )
        return await serve_whole(
            state,
            request,
            body.n,
            lambda: prepare(state, body),
            lambda generation, collector: _whole(state, body, generation, collector),
        )


def _is_tgi_client(request: Request, body: ChatBody) -> bool:
    """Whether TGI's own Python client asks, `text-generation`: it always says `tgi`."""
    agent = request.headers.get("user-agent", "")
    return body.model == "tgi" and ("python-requests/" in agent or "aiohttp/" in agent)


def prepare(state: RouterState, body: ChatBody) -> Sequence[Prompt]:
    """Render and tokenize; runs on a worker thread."""
    messages = [message.for_template() for message in body.messages]
    text = state.chat_template.render(messages, variables=body.chat_template_kwargs)
    # the template wrote the special tokens itself
    ids = state.tokenizer.encode(text, add_special_tokens=False)
    name = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
    max_tokens = state.limits.fit(len(ids), body.most_tokens, "messages", name)
    mark = state.limits.mark(body.watermark)
    sampling = body.sampling(max_tokens, body.num_logprobs, mark)
    return choices_of(Prompt(text, ids, sampling, body.include_stop_str_in_output), body.n)


def _whole(
    state: RouterState, body: ChatBody, generation: Generation, collector: Collector
) -> Response:
    choices = []
    for choice in generation.choices:
        assert choice.finish_reason is not None
        logprobs = None
        if body.logprobs:
            entries = collector.logprobs.get(choice.index, [])
            logprobs = chat_logprobs(state.tokenizer, choice.output_ids, entries)
        choices.append(
            {
                "index": choice.index,
                "message": {"role": "assistant", "content": choice.text, "tool_calls": None},
                "logprobs": logprobs,
                "finish_reason": FINISH_REASONS[choice.finish_reason],
            }
        )
    envelope = Envelope.of(state, "chatcmpl", "chat.completion")
    reply = {**envelope.fields(), "choices": choices, "usage": usage(generation)}
    return Response(json.dumps(reply, ensure_ascii=False), media_type="application/json")


class ChatEvents:
    """Listener of a streamed chat: deltas of every choice, then the usage if it was asked for.

    tgi_client: TGI's own, which wants the role in every delta and fails at `[DONE]`.
    """

    stream: EventStream

    def __init__(
        self, state: RouterState, body: ChatBody, generation: Generation, *, tgi_client: bool
    ) -> None:
        self._tokenizer = state.tokenizer
        self._generation = generation
        self._usage = body.stream_options.include_usage
        self._continuous = body.stream_options.continuous_usage_stats
        self._logprobs = body.logprobs
        self._tgi_client = tgi_client
        # the role alone comes first, as at OpenAI; clients that add deltas up must see it once
        self._role = '"assistant"' if tgi_client else "null"
        self._head = Envelope.of(state, "chatcmpl", "chat.completion.chunk").head()
        self._tail = '],"usage":null}\n\n' if self._usage else "]}\n\n"

    def on_token(
        self,
        choice: Choice,
        token_id: int,
        text: str,
        logprobs: TokenLogprobs | None,
        reason: FinishReason | None,
    ) -> None:
        if len(choice.output_ids) == 1:
            self._push(choice.index, "", "null", "null", '"assistant"')
        shown = "null"
        if logprobs is not None and self._logprobs:
            entry = chat_logprobs(self._tokenizer, (token_id,), (logprobs,))
            shown = json.dumps(entry, ensure_ascii=False)
        if text or reason is not None or self._logprobs:
            ended = "null" if reason is None else f'"{FINISH_REASONS[reason]}"'
            self._push(choice.index, text, shown, ended, self._role)

    def _push(self, index: int, text: str, logprobs: str, reason: str, role: str) -> None:
        tail = usage_tail(self._generation) if self._continuous else self._tail
        self.stream.push(
            f'{self._head}{{"index":{index},"delta":{{"role":{role},"content":{quoted(text)},'
            f'"tool_calls":null}},"logprobs":{logprobs},"finish_reason":{reason}}}{tail}'
        )

    def on_done(self, error: RequestError | None) -> None:
        if error is None and self._usage:
            self.stream.push(self._head + usage_tail(self._generation))
        self.stream.end(error, done=not self._tgi_client)
