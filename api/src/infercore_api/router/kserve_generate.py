"""The Open Inference Protocol's extension for text generation: one text in, one text out."""

import json
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import ConfigDict, Field, model_validator

from infercore.engine.request import FinishReason, TokenLogprobs
from infercore.errors import RequestError
from infercore.text.tokenizer import Tokenizer
from infercore_api.router import tgi_generate, tgi_reply
from infercore_api.router.choice import Choice
from infercore_api.router.generation import Collector, Generation
from infercore_api.router.kserve_infer import VERSION, check_served
from infercore_api.router.serving import serve_stream, serve_whole
from infercore_api.router.state import RouterState
from infercore_api.router.streaming import EventStream
from infercore_api.router.tgi_schema import GenerateBody, Parameters
from infercore_api.router.validation import ExactBody


class GenerateParameters(Parameters):
    """`/generate`'s parameters; `max_tokens` is the extension's name of `max_new_tokens`."""

    model_config = ConfigDict(strict=True, extra="forbid", protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _renamed(cls, data: Any) -> Any:
        if not isinstance(data, dict) or data.get("max_tokens") is None:
            return data
        others = {name: value for name, value in data.items() if name != "max_tokens"}
        return {"max_new_tokens": data["max_tokens"], **others}


class TextBody(ExactBody):
    """Body of `/v2/models/{name}/generate` and of `/generate_stream` beside it."""

    text_input: str
    parameters: GenerateParameters = Field(default_factory=GenerateParameters)

    def generate_body(self) -> GenerateBody:
        """The same as a body of `/generate`."""
        return GenerateBody(inputs=self.text_input, parameters=self.parameters)


def add_generate(router: APIRouter, state: RouterState) -> None:
    @router.post("/v2/models/{name:path}/generate")
    @router.post("/v2/models/{name:path}/versions/{version}/generate")
    async def generate(request: Request, name: str, body: TextBody, version: str = "") -> Response:
        """Generate, and answer with the whole text."""
        check_served(state, name, version)
        wanted = body.generate_body()

        def reply(generation: Generation, collector: Collector) -> Response:
            fields = tgi_reply.whole_fields(generation, collector, wanted.parameters)
            return _whole(name, fields)

        return await serve_whole(
            state,
            request,
            tgi_generate.permits(state, wanted),
            lambda: tgi_generate.prepare(state, wanted, stream=False),
            reply,
        )

    @router.post("/v2/models/{name:path}/generate_stream")
    @router.post("/v2/models/{name:path}/versions/{version}/generate_stream")
    async def generate_stream(
        request: Request, name: str, body: TextBody, version: str = ""
    ) -> Response:
        """Generate, and answer with a server-sent event per token."""
        check_served(state, name, version)
        wanted = body.generate_body()
        return await serve_stream(
            state,
            request,
            tgi_generate.permits(state, wanted),
            lambda: tgi_generate.prepare(state, wanted, stream=True),
            lambda generation: _Events(generation.tokenizer, name, wanted.parameters),
        )


def _whole(model: str, fields: dict[str, Any]) -> Response:
    reply: dict[str, Any] = {
        "model_name": model,
        "model_version": VERSION,
        "text_output": fields["generated_text"],
    }
    if "details" in fields:
        details = fields["details"]
        reply["details"] = {"logprobs": details.pop("tokens"), **details}
    return Response(json.dumps(reply, ensure_ascii=False), media_type="application/json")


class _Events:
    """Listener of a stream: each event has the text of one token."""

    stream: EventStream

    def __init__(self, tokenizer: Tokenizer, model: str, params: Parameters) -> None:
        self._tokens = tgi_reply.Tokens(tokenizer)
        self._start = {"model_name": model, "model_version": VERSION}
        self._params = params

    def on_token(
        self,
        choice: Choice,
        token_id: int,
        text: str,
        logprobs: TokenLogprobs | None,
        reason: FinishReason | None,
    ) -> None:
        assert logprobs is not None, "TGI's parameters always ask for log-probabilities"
        event: dict[str, Any] = {**self._start, "text_output": text}
        if self._params.details:
            token = self._tokens.token(token_id, text, logprobs.logprob)
            ending = {} if reason is None else tgi_reply.ending(choice, self._params)
            event["details"] = {"finish_reason": None, **ending, "token": token}
            if self._params.top_n_tokens:
                event["details"]["top_tokens"] = self._tokens.top(logprobs)
        self.stream.push(f"data: {json.dumps(event, ensure_ascii=False)}\n\n")

    def on_done(self, error: RequestError | None) -> None:
        self.stream.end(error)
