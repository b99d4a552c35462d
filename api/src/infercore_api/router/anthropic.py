"""Anthropic's routes, as a plugin: messages in, one message out, whole or in named events."""

import json
import uuid
from collections.abc import Sequence
from json.encoder import encode_basestring as quoted
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import JSONResponse

from infercore.engine.request import FinishReason, TokenLogprobs
from infercore.errors import RequestError
from infercore.hookspecs import hookimpl
from infercore_api.router.anthropic_schema import CountBody, MessagesBody
from infercore_api.router.choice import Choice, Prompt, choices_of
from infercore_api.router.generation import Collector, Generation
from infercore_api.router.problems import AnthropicError, documented
from infercore_api.router.serving import serve_stream, serve_whole
from infercore_api.router.state import RouterState
from infercore_api.router.streaming import EventStream

API_VERSION = (1, 0)


@hookimpl
def register_routes(app: FastAPI, state: RouterState) -> None:
    router = APIRouter(tags=["Anthropic"], responses=documented(AnthropicError))
    _add_messages(router, state)
    app.include_router(router)


def _add_messages(router: APIRouter, state: RouterState) -> None:
    @router.post("/v1/messages")
    async def messages(request: Request, body: MessagesBody) -> Response:
        """Answer a conversation, whole or as a stream of named events."""
        state.check_model(body.model)
        body.check(state.limits)
        if body.stream:
            return await serve_stream(
                state,
                request,
                1,
                lambda: _prepare(state, body),
                lambda _: MessageEvents(state, body),
            )
        return await serve_whole(
            state,
            request,
            1,
            lambda: _prepare(state, body),
            lambda generation, collector: _whole(state, body, generation, collector),
        )

    @router.post("/v1/messages/count_tokens")
    async def count_tokens(body: CountBody) -> JSONResponse:
        """How many tokens a conversation's prompt has."""
        state.check_model(body.model)
        _, ids = await state.workers.run(lambda: _prompt(state, body))
        return JSONResponse({"input_tokens": len(ids)})


def _prompt(state: RouterState, body: CountBody) -> tuple[str, list[int]]:
    text = state.chat_template.render(body.for_template())
    # the template wrote the special tokens itself
    return text, state.tokenizer.encode(text, add_special_tokens=False)


def _prepare(state: RouterState, body: MessagesBody) -> Sequence[Prompt]:
    """Render and tokenize; runs on a worker thread.

    Clients ask for as many tokens as their usual models can give; what does not fit the context
    is not refused but told at the end, as `model_context_window_exceeded`.
    """
    text, ids = _prompt(state, body)
    fits = state.limits.fit(len(ids), None, "messages")
    sampling = body.sampling(min(body.max_tokens, fits))
    return choices_of(Prompt(text, ids, sampling), 1)


def _whole(
    state: RouterState, body: MessagesBody, generation: Generation, collector: Collector
) -> Response:
    del collector
    (choice,) = generation.choices
    message = {
        **_envelope(state),
        "content": [{"type": "text", "text": choice.text}],
        **_ending(choice, body),
        "usage": _usage(choice),
    }
    return Response(json.dumps(message, ensure_ascii=False), media_type="application/json")


def _envelope(state: RouterState) -> dict[str, Any]:
    return {
        "id": f"msg_{uuid.uuid4().hex}",
        "type": "message",
        "role": "assistant",
        "model": state.model_name,
    }


def _ending(choice: Choice, body: MessagesBody) -> dict[str, str | None]:
    """Why the choice ended; `stop_sequence` is the text that ended it, if one did."""
    reason = "end_turn"
    if choice.finish_reason is FinishReason.LENGTH:
        cut = len(choice.output_ids) < body.max_tokens
        reason = "model_context_window_exceeded" if cut else "max_tokens"
    elif choice.stop_string is not None:
        reason = "stop_sequence"
    return {"stop_reason": reason, "stop_sequence": choice.stop_string}


def _usage(choice: Choice) -> dict[str, int]:
    """Tokens; those of the prompt that were found in the cache are counted apart."""
    return {
        "input_tokens": len(choice.prompt.ids) - choice.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": choice.cached_tokens,
        "output_tokens": len(choice.output_ids),
    }


class MessageEvents:
    """Listener of a streamed message: one block of text, and what frames it."""

    stream: EventStream

    def __init__(self, state: RouterState, body: MessagesBody) -> None:
        self._message = _envelope(state)
        self._body = body
        self._choice: Choice | None = None

    def on_token(
        self,
        choice: Choice,
        token_id: int,
        text: str,
        logprobs: TokenLogprobs | None,
        reason: FinishReason | None,
    ) -> None:
        del token_id, logprobs, reason
        if self._choice is None:
            self._choice = choice
            self._begin(choice)
        if text:
            self.stream.push(
                'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,'
                f'"delta":{{"type":"text_delta","text":{quoted(text)}}}}}\n\n'
            )

    def _begin(self, choice: Choice) -> None:
        message = {
            **self._message,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {**_usage(choice), "output_tokens": 0},
        }
        self._push("message_start", message=message)
        self._push("content_block_start", index=0, content_block={"type": "text", "text": ""})

    def _end(self, choice: Choice) -> None:
        self._push("content_block_stop", index=0)
        self._push("message_delta", delta=_ending(choice, self._body), usage=_usage(choice))
        self._push("message_stop")

    def _push(self, name: str, **fields: Any) -> None:
        data = json.dumps({"type": name, **fields}, ensure_ascii=False)
        self.stream.push(f"event: {name}\ndata: {data}\n\n")

    def on_done(self, error: RequestError | None) -> None:
        if error is None and self._choice is not None:
            self._end(self._choice)
        self.stream.end(error)
