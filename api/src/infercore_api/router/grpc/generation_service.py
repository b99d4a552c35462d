"""`infercore.v1.Generation`: `/generate` and `/generate_stream` over gRPC."""

from collections.abc import AsyncGenerator, Mapping
from typing import Any

from fastapi.exceptions import RequestValidationError
from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message
from pydantic import ValidationError

from infercore.engine.request import FinishReason, TokenLogprobs
from infercore.text.tokenizer import Tokenizer
from infercore_api.router import tgi_generate, tgi_reply
from infercore_api.router.choice import Choice
from infercore_api.router.generation import Collector, Generation
from infercore_api.router.grpc import generation_pb2 as pb
from infercore_api.router.grpc.call import Call
from infercore_api.router.grpc.generating import streamed, whole
from infercore_api.router.grpc.methods import Streaming, Unary
from infercore_api.router.state import RouterState
from infercore_api.router.tgi_schema import GenerateBody, Parameters

SERVICE = pb.DESCRIPTOR.services_by_name["Generation"]


class GenerationService:
    """The methods of the service. The checks are those of the HTTP routes, and so are the texts."""

    def __init__(self, state: RouterState) -> None:
        self._state = state
        self.methods: Mapping[str, Unary | Streaming] = {
            "Generate": self.generate,
            "GenerateStream": self.generate_stream,
        }

    async def generate(self, request: pb.GenerateRequest, call: Call) -> Message:
        """Generate, and answer with the whole text."""
        state, body = self._state, self._body(request)

        def reply(generation: Generation, collector: Collector) -> Message:
            fields = tgi_reply.whole_fields(generation, collector, body.parameters)
            return ParseDict(_nested(fields), pb.GenerateResponse())

        return await whole(
            state,
            call.record,
            tgi_generate.permits(state, body),
            lambda: tgi_generate.prepare(state, body, stream=False),
            reply,
        )

    def generate_stream(
        self, request: pb.GenerateRequest, call: Call
    ) -> AsyncGenerator[Message, None]:
        """Generate, and answer with a message per token."""
        state, body = self._state, self._body(request)
        return streamed(
            state,
            call.record,
            tgi_generate.permits(state, body),
            lambda: tgi_generate.prepare(state, body, stream=True),
            _TokenMessages(state.tokenizer, body.parameters),
        )

    def _body(self, request: pb.GenerateRequest) -> GenerateBody:
        """The same request as the body of `/generate`. Raises what that route would."""
        self._state.check_model(request.model)
        fields = {"inputs": request.inputs, "parameters": _set_fields(request.parameters)}
        try:
            return GenerateBody.model_validate(fields)
        except ValidationError as error:
            places = [{**each, "loc": ("body", *each["loc"])} for each in error.errors()]
            raise RequestValidationError(places) from error


class _TokenMessages:
    """Makes the messages of a stream."""

    def __init__(self, tokenizer: Tokenizer, params: Parameters) -> None:
        self._tokens = tgi_reply.Tokens(tokenizer)
        self._params = params

    def __call__(
        self,
        choice: Choice,
        token_id: int,
        text: str,
        logprobs: TokenLogprobs | None,
        reason: FinishReason | None,
    ) -> Message:
        assert logprobs is not None, "the parameters of TGI's always ask for log-probabilities"
        token = self._tokens.token(token_id, text, logprobs.logprob)
        message = pb.GenerateStreamResponse(index=len(choice.output_ids), token=pb.Token(**token))
        if self._params.top_n_tokens:
            message.top_tokens.extend(pb.Token(**top) for top in self._tokens.top(logprobs))
        if reason is not None:
            message.generated_text = tgi_reply.generated_text(choice, self._params)
            if self._params.details:
                ending = tgi_reply.ending(choice, self._params)
                length = len(choice.prompt.ids)
                message.details.CopyFrom(pb.StreamDetails(input_length=length, **ending))
        return message


def _set_fields(message: Message) -> dict[str, Any]:
    """{name: value} of the fields that are set, messages among them as such dicts too."""
    return {field.name: _plain(value) for field, value in message.ListFields()}


def _plain(value: Any) -> Any:
    if isinstance(value, Message):
        return _set_fields(value)
    return value if isinstance(value, str | int | float) else list(value)


def _nested(reply: dict[str, Any]) -> dict[str, Any]:
    """The fields of a reply with lists of lists as lists of messages, which protobuf can hold."""
    details = reply.get("details")
    if details is not None:
        for part in (details, *details.get("best_of_sequences", ())):
            if "top_tokens" in part:
                part["top_tokens"] = [{"tokens": tokens} for tokens in part["top_tokens"]]
    return reply
