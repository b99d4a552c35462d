"""`/v1/responses`: items in, one message out, whole or in named events; nothing is stored."""

import json
import time
import uuid
from collections.abc import Sequence
from json.encoder import encode_basestring as quoted
from typing import Any

from fastapi import APIRouter, Request, Response

from infercore.engine.request import FinishReason, TokenLogprobs
from infercore.errors import InvalidRequest, RequestError
from infercore_api.router.choice import Choice, Prompt, choices_of
from infercore_api.router.problems import problem_of
from infercore_api.router.responses_schema import ResponsesBody
from infercore_api.router.serving import serve_stream, serve_whole
from infercore_api.router.state import RouterState
from infercore_api.router.streaming import EventStream


def add_responses(router: APIRouter, state: RouterState) -> None:
    @router.post("/v1/responses")
    async def responses(request: Request, body: ResponsesBody) -> Response:
        """Answer a conversation, whole or as a stream of named events."""
        state.check_model(body.model)
        reply = Reply(state.model_name, body)
        if body.stream:
            return await serve_stream(
                state, request, 1, lambda: _prepare(state, body), lambda _: ResponseEvents(reply)
            )
        return await serve_whole(
            state,
            request,
            1,
            lambda: _prepare(state, body),
            lambda generation, _: _whole(reply, generation.choices[0]),
        )


def _prepare(state: RouterState, body: ResponsesBody) -> Sequence[Prompt]:
    """Render and tokenize; runs on a worker thread."""
    chat = body.for_template()
    if not chat:
        raise InvalidRequest("`input` is an empty list; send at least one message", "input")
    text = state.chat_template.render(chat)
    # the template wrote the special tokens itself
    ids = state.tokenizer.encode(text, add_special_tokens=False)
    max_tokens = state.limits.fit(
        len(ids), body.max_output_tokens, "input", name="max_output_tokens"
    )
    return choices_of(Prompt(text, ids, body.sampling(max_tokens)), 1)


def _whole(reply: "Reply", choice: Choice) -> Response:
    body = json.dumps(reply.response(choice), ensure_ascii=False)
    return Response(body, media_type="application/json")


class Reply:
    """The objects of one reply: the response, its one item, and that item's one part."""

    def __init__(self, model: str, body: ResponsesBody) -> None:
        self.item_id = f"msg_{uuid.uuid4().hex}"
        self._fields = {
            "id": f"resp_{uuid.uuid4().hex}",
            "object": "response",
            "created_at": int(time.time()),
            "model": model,
            "background": False,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": {},
            "parallel_tool_calls": True,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": False,
            "temperature": body.temperature,
            "text": {"format": {"type": "text"}},
            "tool_choice": "auto",
            "tools": [],
            "top_p": body.top_p,
            "truncation": "disabled",
        }

    def part(self, text: str) -> dict[str, Any]:
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}

    def item(self, choice: Choice) -> dict[str, Any]:
        return {**self.new_item(), "status": status(choice), "content": [self.part(choice.text)]}

    def new_item(self) -> dict[str, Any]:
        """The item before its text came."""
        return {
            "id": self.item_id,
            "type": "message",
            "role": "assistant",
            "status": "in_progress",
            "content": [],
        }

    def response(self, choice: Choice) -> dict[str, Any]:
        """The whole response, once the choice has ended."""
        cut = status(choice) == "incomplete"
        prompt, output = len(choice.prompt.ids), len(choice.output_ids)
        return {
            **self.new_response(),
            "status": status(choice),
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "output": [self.item(choice)],
            "usage": {
                "input_tokens": prompt,
                "input_tokens_details": {"cached_tokens": choice.cached_tokens},
                "output_tokens": output,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": prompt + output,
            },
        }

    def new_response(self) -> dict[str, Any]:
        """The response before its item came."""
        return {
            **self._fields,
            "status": "in_progress",
            "error": None,
            "incomplete_details": None,
            "output": [],
            "usage": None,
        }


def status(choice: Choice) -> str:
    """OpenAI's word for how the choice ended."""
    return "incomplete" if choice.finish_reason is FinishReason.LENGTH else "completed"


class ResponseEvents:
    """Listener of a streamed response: deltas of one text, and the objects that frame it."""

    stream: EventStream

    def __init__(self, reply: Reply) -> None:
        self._reply = reply
        self._number = 0
        self._choice: Choice | None = None
        self._place = {"item_id": reply.item_id, "output_index": 0, "content_index": 0}

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
            self._begin()
        if text:
            self.stream.push(
                'event: response.output_text.delta\ndata: {"type":"response.output_text.delta",'
                f'"sequence_number":{self._number},"item_id":"{self._reply.item_id}",'
                f'"output_index":0,"content_index":0,"delta":{quoted(text)},"logprobs":[]}}\n\n'
            )
            self._number += 1

    def _begin(self) -> None:
        response = self._reply.new_response()
        self._push("response.created", response=response)
        self._push("response.in_progress", response=response)
        self._push("response.output_item.added", output_index=0, item=self._reply.new_item())
        self._push("response.content_part.added", **self._place, part=self._reply.part(""))

    def _end(self, choice: Choice) -> None:
        part = self._reply.part(choice.text)
        self._push("response.output_text.done", **self._place, text=choice.text, logprobs=[])
        self._push("response.content_part.done", **self._place, part=part)
        self._push("response.output_item.done", output_index=0, item=self._reply.item(choice))
        self._push(f"response.{status(choice)}", response=self._reply.response(choice))

    def _fail(self, error: RequestError) -> None:
        problem = problem_of(error)
        shown = {"code": "server_error", "message": problem.message}
        response = {**self._reply.new_response(), "status": "failed", "error": shown}
        self._push("response.failed", response=response)

    def _push(self, name: str, **fields: Any) -> None:
        data = {"type": name, "sequence_number": self._number, **fields}
        self._number += 1
        self.stream.push(f"event: {name}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n")

    def on_done(self, error: RequestError | None) -> None:
        if self._choice is not None:
            if error is None:
                self._end(self._choice)
            else:
                self._fail(error)
        self.stream.end(error)
