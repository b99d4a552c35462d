"""Inference as KServe's Open Inference Protocol has it: tensors of texts in, tensors of texts out.

The same for REST and for gRPC, which only differ in how they write a tensor down.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ConfigDict, field_validator

from infercore.errors import InvalidRequest
from infercore_api.router import tgi_generate, tgi_reply
from infercore_api.router.choice import Choice, Prompt
from infercore_api.router.generation import Generation
from infercore_api.router.state import RouterState
from infercore_api.router.tgi_schema import GenerateBody, Parameters
from infercore_api.router.validation import Limits

VERSION = "1"  # of every model: one is served, and it does not change
INPUT, OUTPUT, DATATYPE = "text_input", "text_output", "BYTES"
EXTENSIONS = ("binary_tensor_data", "generate")
PLATFORM = "infercore_llm"
_MAX_DIMENSIONS = 8
_LENGTH = 4  # bytes of the number, little-endian, that goes before each element of BYTES


class InferParameters(Parameters):
    """`/generate`'s parameters, and those that say how an answer is written down.

    A client of the protocol can send no list: one stop sequence may be a text.
    """

    model_config = ConfigDict(strict=True, extra="forbid", protected_namespaces=())

    binary_data_output: bool = False
    triton_enable_empty_final_response: bool = False

    @field_validator("stop", mode="before")
    @classmethod
    def _listed(cls, stop: Any) -> Any:
        return [stop] if isinstance(stop, str) else stop

    def check(self, inputs: str, limits: Limits, *, stream: bool) -> None:
        super().check(inputs, limits, stream=stream)
        for name in ("top_n_tokens", "decoder_input_details"):
            if getattr(self, name):
                raise InvalidRequest(f"`{name}`: a tensor cannot show it; use `/generate`", name)


@dataclass(frozen=True, slots=True)
class TextTensor:
    """A tensor of BYTES. shape: its dimensions, whose product is the number of texts.

    numbers: it was written as the bytes of one text, as TGI's clients do, and so is its answer.
    details: of an output with one text, how that ended.
    """

    name: str
    shape: Sequence[int]
    texts: Sequence[str]
    numbers: bool = False
    details: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class InferRequest:
    """A request, read. outputs: names for the answers to `inputs`, in their order; () for ours."""

    model: str
    version: str
    id: str
    parameters: InferParameters
    inputs: Sequence[TextTensor]
    outputs: Sequence[str]

    @property
    def texts(self) -> list[str]:
        return [text for tensor in self.inputs for text in tensor.texts]

    def check(self, state: RouterState, *, stream: bool = False) -> None:
        """Refuse what does not go together, and more texts than are taken."""
        names = self.outputs
        if not names and len(self.inputs) > 1:
            raise InvalidRequest(
                f"`outputs` must name an output for each of {len(self.inputs)} inputs", "outputs"
            )
        if names and (len(names) != len(self.inputs) or len(set(names)) < len(names)):
            raise InvalidRequest(
                f"`outputs` must name one output, each another, for each input. Given: "
                f"{len(names)} for {len(self.inputs)}",
                "outputs",
            )
        count, most = len(self.texts), 1 if stream else state.limits.batch_size
        if not 0 < count <= most:
            kind = "a stream takes one" if stream else f"from 1 to {most} are taken"
            raise InvalidRequest(f"`inputs` hold {count} texts, and {kind}", "inputs")
        if self.parameters.details and any(len(tensor.texts) != 1 for tensor in self.inputs):
            raise InvalidRequest("`details` need inputs of one text each", "details")

    def permits(self, state: RouterState) -> int:
        """Sequences that the request runs."""
        return len(self.texts) * tgi_generate.permits(state, self._body(""))

    def prepare(self, state: RouterState, *, stream: bool = False) -> list[Sequence[Prompt]]:
        """The prompts of each text; runs on a worker thread."""
        bodies = [self._body(text) for text in self.texts]
        return [tgi_generate.prepare(state, body, stream=stream) for body in bodies]

    def answers(
        self, generation: Generation, groups: Sequence[Sequence[Prompt]]
    ) -> list[TextTensor]:
        """An output for each input: of each text, the likeliest of its choices."""
        choices = iter(generation.choices)
        best = iter(
            max([next(choices) for _ in group], key=lambda choice: choice.mean_logprob)
            for group in groups
        )
        return [
            self.answer(at, [next(best) for _ in tensor.texts])
            for at, tensor in enumerate(self.inputs)
        ]

    def answer(self, at: int, choices: Sequence[Choice]) -> TextTensor:
        """The output for input number `at`."""
        texts = [tgi_reply.generated_text(choice, self.parameters) for choice in choices]
        details = details_of(choices[0], self.parameters) if self.parameters.details else None
        return self.output(at, texts, details)

    def output(
        self, at: int, texts: Sequence[str], details: Mapping[str, Any] | None = None
    ) -> TextTensor:
        """The output for input number `at`, with these texts."""
        tensor = self.inputs[at]
        name = self.outputs[at] if self.outputs else OUTPUT
        shape = (1, len(texts[0].encode())) if tensor.numbers else tensor.shape
        return TextTensor(name, shape, texts, tensor.numbers, details)

    def _body(self, text: str) -> GenerateBody:
        return GenerateBody(inputs=text, parameters=self.parameters)


def details_of(choice: Choice, params: Parameters) -> dict[str, Any]:
    """How a choice ended, in the kinds of values that the protocol's parameters may have."""
    ending = {**tgi_reply.ending(choice, params), "input_length": len(choice.prompt.ids)}
    return {name: value for name, value in ending.items() if value is not None}


def check_served(state: RouterState, model: str, version: str) -> None:
    """Refuse another model, and another version than the one there is; "" is any."""
    state.check_model(model)
    if version not in ("", VERSION):
        raise InvalidRequest(
            f"The model `{model}` has no version `{version}`; it has `{VERSION}`", "model"
        )


def check_tensor(place: str, datatype: str, shape: Sequence[int]) -> int:
    """How many elements a tensor of texts has. Refuses other tensors."""
    if datatype != DATATYPE:
        raise InvalidRequest(
            f"`{place}.datatype` must be {DATATYPE}, for texts. Given: {datatype}", place
        )
    if len(shape) > _MAX_DIMENSIONS or any(size < 0 for size in shape):
        raise InvalidRequest(
            f"`{place}.shape` must have up to {_MAX_DIMENSIONS} dimensions of 0 or more", place
        )
    return math.prod(shape)


def check_count(place: str, count: int, shape: Sequence[int]) -> None:
    """Refuse as many elements if the shape speaks of others."""
    if count != math.prod(shape):
        raise InvalidRequest(
            f"`{place}.shape` {list(shape)} is of {math.prod(shape)} elements. Given: {count}",
            place,
        )


def decode_text(place: str, data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"`{place}` holds bytes that are no UTF-8 text", place) from error


def split_elements(place: str, data: bytes) -> list[bytes]:
    """The elements of a tensor of BYTES in binary form: each after its length."""
    elements, at = [], 0
    while at < len(data):
        start = at + _LENGTH
        at = start + int.from_bytes(data[at:start], "little")
        if start > len(data) or at > len(data):
            raise InvalidRequest(
                f"`{place}`: the binary data of {len(data)} bytes end within an element", place
            )
        elements.append(data[start:at])
    return elements


def join_elements(texts: Sequence[str]) -> bytes:
    """The same form of texts."""
    raw = [text.encode() for text in texts]
    return b"".join(len(each).to_bytes(_LENGTH, "little") + each for each in raw)


def server_facts(state: RouterState) -> dict[str, Any]:
    """The server's metadata."""
    return {"name": "infercore", "version": state.options.version, "extensions": [*EXTENSIONS]}


def model_facts(name: str) -> dict[str, Any]:
    """A model's metadata."""
    tensors = {
        kind: [{"name": tensor, "datatype": DATATYPE, "shape": [-1]}]
        for kind, tensor in (("inputs", INPUT), ("outputs", OUTPUT))
    }
    return {"name": name, "versions": [VERSION], "platform": PLATFORM, **tensors}
