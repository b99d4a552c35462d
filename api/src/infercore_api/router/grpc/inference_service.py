"""`inference.GRPCInferenceService`: KServe's Open Inference Protocol, version 2, over gRPC."""

import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from fastapi.exceptions import RequestValidationError
from google.protobuf.message import Message
from pydantic import ValidationError

from infercore.engine.request import FinishReason, TokenLogprobs
from infercore.errors import InvalidRequest, RequestError
from infercore_api.observability.logs import RequestRecord, log_access
from infercore_api.router.choice import Choice, Prompt
from infercore_api.router.generation import Collector, Generation
from infercore_api.router.grpc import open_inference_pb2 as pb
from infercore_api.router.grpc.call import Call, shortened
from infercore_api.router.grpc.generating import streamed, whole
from infercore_api.router.grpc.methods import Streaming, Unary
from infercore_api.router.health import live_answer, ready_answer
from infercore_api.router.kserve_infer import (
    DATATYPE,
    VERSION,
    InferParameters,
    InferRequest,
    TextTensor,
    check_count,
    check_served,
    check_tensor,
    decode_text,
    details_of,
    join_elements,
    model_facts,
    server_facts,
    split_elements,
)
from infercore_api.router.problems import problem_of
from infercore_api.router.state import RouterState

SERVICE = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]
FINAL = "triton_final_response"
_HARMLESS = frozenset({"binary_data", "binary_data_size"})


class InferenceService:
    """The methods of the service."""

    def __init__(self, state: RouterState) -> None:
        self._state = state
        self.methods: Mapping[str, Unary | Streaming] = {
            "ServerLive": self.server_live,
            "ServerReady": self.server_ready,
            "ModelReady": self.model_ready,
            "ServerMetadata": self.server_metadata,
            "ModelMetadata": self.model_metadata,
            "ModelInfer": self.model_infer,
            "ModelStreamInfer": self.model_stream_infer,
        }

    async def server_live(self, request: pb.ServerLiveRequest, call: Call) -> Message:
        """Whether a restart would not help, as `/health/live`."""
        del request, call
        return pb.ServerLiveResponse(live=live_answer(self._state).status_code == 200)

    async def server_ready(self, request: pb.ServerReadyRequest, call: Call) -> Message:
        """Whether requests are served now, as `/health/ready`."""
        del request, call
        return pb.ServerReadyResponse(ready=self._ready)

    async def model_ready(self, request: pb.ModelReadyRequest, call: Call) -> Message:
        """The same, for a model that is served; of another it is an error."""
        del call
        check_served(self._state, request.name, request.version)
        return pb.ModelReadyResponse(ready=self._ready)

    @property
    def _ready(self) -> bool:
        return ready_answer(self._state).status_code == 200

    async def server_metadata(self, request: pb.ServerMetadataRequest, call: Call) -> Message:
        """The server's name, its version, its extensions of the protocol."""
        del request, call
        return pb.ServerMetadataResponse(**server_facts(self._state))

    async def model_metadata(self, request: pb.ModelMetadataRequest, call: Call) -> Message:
        """A model's versions and tensors."""
        del call
        check_served(self._state, request.name, request.version)
        return pb.ModelMetadataResponse(**model_facts(request.name))

    async def model_infer(self, request: pb.ModelInferRequest, call: Call) -> Message:
        """Generate for each text of the inputs."""
        state, wanted = self._state, self._read(request)
        wanted.check(state)
        groups: list[Sequence[Prompt]] = []

        def prepare() -> Sequence[Prompt]:
            groups.extend(wanted.prepare(state))
            return [prompt for group in groups for prompt in group]

        def reply(generation: Generation, collector: Collector) -> Message:
            del collector
            return _response(request, wanted.answers(generation, groups))

        return await whole(state, call.record, wanted.permits(state), prepare, reply)

    async def model_stream_infer(
        self, requests: AsyncIterator[pb.ModelInferRequest], call: Call
    ) -> AsyncGenerator[Message, None]:
        """Answer one request after the other; one that is refused does not end the stream."""
        async for request in requests:
            record = RequestRecord(call.record.request_id, "GRPC", call.record.path)
            try:
                async with aclosing(self._tokens(request, record)) as messages:
                    async for message in messages:
                        yield message
                record.status = 200
            except (RequestError, RequestValidationError) as error:
                problem = problem_of(error)
                record.status = problem.status("")
                yield pb.ModelStreamInferResponse(
                    error_message=shortened(problem.text), infer_response=_response(request, ())
                )
            finally:
                record.seconds = time.monotonic() - record.started
                log_access(record)

    async def _tokens(
        self, request: pb.ModelInferRequest, record: RequestRecord
    ) -> AsyncGenerator[Message, None]:
        state, wanted = self._state, self._read(request)
        wanted.check(state, stream=True)

        def prepare() -> Sequence[Prompt]:
            (group,) = wanted.prepare(state, stream=True)
            return group

        messages = streamed(
            state, record, wanted.permits(state), prepare, _TokenResponses(request, wanted)
        )
        async with aclosing(messages):
            async for message in messages:
                yield message

    def _read(self, request: pb.ModelInferRequest) -> InferRequest:
        check_served(self._state, request.model_name, request.model_version)
        for at, tensor in enumerate(request.inputs):
            _check_known(f"inputs.{at}.parameters", tensor.parameters)
        for at, output in enumerate(request.outputs):
            _check_known(f"outputs.{at}.parameters", output.parameters)
        return InferRequest(
            request.model_name,
            request.model_version,
            request.id,
            _parameters(request.parameters),
            _tensors(request),
            [output.name for output in request.outputs],
        )


class _TokenResponses:
    """Makes the messages of a stream."""

    def __init__(self, request: pb.ModelInferRequest, wanted: InferRequest) -> None:
        self._request = request
        self._wanted = wanted

    def __call__(
        self,
        choice: Choice,
        token_id: int,
        text: str,
        logprobs: TokenLogprobs | None,
        reason: FinishReason | None,
    ) -> Message:
        del token_id, logprobs
        params = self._wanted.parameters
        details = details_of(choice, params) if params.details and reason is not None else None
        response = _response(self._request, [self._wanted.output(0, [text], details)])
        response.parameters[FINAL].bool_param = reason is not None
        return pb.ModelStreamInferResponse(infer_response=response)


def _check_known(place: str, parameters: Iterable[str]) -> None:
    """Refuse parameters of a tensor, but for those that speak of REST's binary data."""
    for name in parameters:
        if name not in _HARMLESS:
            raise InvalidRequest(f"`{place}.{name}`: This field is not known here", place)


def _parameters(given: Mapping[str, pb.InferParameter]) -> InferParameters:
    """The parameters, checked as those of a REST body are."""
    try:
        return InferParameters.model_validate({n: _value(value) for n, value in given.items()})
    except ValidationError as error:
        places = [{**each, "loc": ("body", "parameters", *each["loc"])} for each in error.errors()]
        raise RequestValidationError(places) from error


def _value(parameter: pb.InferParameter) -> Any:
    kind = parameter.WhichOneof("parameter_choice")
    return None if kind is None else getattr(parameter, kind)


def _tensors(request: pb.ModelInferRequest) -> list[TextTensor]:
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise InvalidRequest(
            f"`raw_input_contents` must have one entry per input. Given: {len(raw)} for "
            f"{len(request.inputs)}",
            "raw_input_contents",
        )
    tensors = []
    for at, each in enumerate(request.inputs):
        place = f"inputs.{at}"
        check_tensor(place, each.datatype, each.shape)
        if raw and each.HasField("contents"):
            raise InvalidRequest(f"`{place}` has both `contents` and raw contents", place)
        contents = split_elements(place, raw[at]) if raw else each.contents.bytes_contents
        check_count(place, len(contents), each.shape)
        texts = [decode_text(place, content) for content in contents]
        tensors.append(TextTensor(each.name, list(each.shape), texts))
    return tensors


def _response(
    request: pb.ModelInferRequest, outputs: Sequence[TextTensor]
) -> pb.ModelInferResponse:
    """A reply to `request`, with contents in the form in which its own came."""
    response = pb.ModelInferResponse(
        model_name=request.model_name, model_version=VERSION, id=request.id
    )
    for output in outputs:
        tensor = response.outputs.add(name=output.name, datatype=DATATYPE, shape=output.shape)
        for name, value in (output.details or {}).items():
            kind = "string_param" if isinstance(value, str) else "uint64_param"
            setattr(tensor.parameters[name], kind, value)
        if request.raw_input_contents:
            response.raw_output_contents.append(join_elements(output.texts))
        else:
            tensor.contents.bytes_contents.extend(text.encode() for text in output.texts)
    return response
