"""Inference requests and replies as REST writes them: JSON, and tensors in binary after it."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import HTTPException, Response
from fastapi.exceptions import RequestValidationError
from pydantic import Field, ValidationError

from infercore.errors import InvalidRequest
from infercore_api.router.kserve_infer import (
    DATATYPE,
    VERSION,
    InferParameters,
    InferRequest,
    TextTensor,
    check_count,
    check_tensor,
    decode_text,
    join_elements,
    split_elements,
)
from infercore_api.router.validation import Body, ExactBody

JSON_LENGTH = "inference-header-content-length"
"""The header that says how many bytes of a body are JSON; binary tensors follow them."""


class InputParameters(ExactBody):
    """Parameters of an input. `binary_data_size`: bytes that it has after the JSON."""

    binary_data_size: int | None = Field(default=None, ge=0)


class OutputParameters(ExactBody):
    """Parameters of an output that is asked for; without them those of the request decide."""

    binary_data: bool | None = None


class InferInput(ExactBody):
    """A tensor. `data`: texts, nested or flat, or the bytes of one text as numbers."""

    name: str
    shape: list[int]
    datatype: str
    parameters: InputParameters = Field(default_factory=InputParameters)
    data: list[Any] | None = None


class InferOutput(ExactBody):
    """An output that is asked for."""

    name: str
    parameters: OutputParameters = Field(default_factory=OutputParameters)


class InferBody(Body):
    """Body of `/v2/models/{name}/infer`."""

    id: str = ""
    parameters: InferParameters = Field(default_factory=InferParameters)
    inputs: list[InferInput] = Field(min_length=1)
    outputs: list[InferOutput] = Field(default_factory=list)


def read_body(headers: Mapping[str, str], content: bytes) -> tuple[InferBody, bytes]:
    """The JSON of a request, and what follows it. Raises as a route with such a body would."""
    if headers.get("content-encoding", "identity") != "identity":
        raise HTTPException(415, "A compressed body is not supported; send it as it is")
    length = headers.get(JSON_LENGTH, str(len(content)))
    if not (length.isascii() and length.isdigit() and int(length) <= len(content)):
        raise HTTPException(400, f"The header {JSON_LENGTH} must count bytes of the body")
    text, rest = content[: int(length)], content[int(length) :]
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, f"The body is not valid JSON: {error}") from error
    try:
        return InferBody.model_validate(fields), rest
    except ValidationError as error:
        places = [{**each, "loc": ("body", *each["loc"])} for each in error.errors()]
        raise RequestValidationError(places) from error


def request_of(model: str, version: str, body: InferBody, binary: bytes) -> InferRequest:
    """The request that a body, and the binary data after it, ask for."""
    tensors, at = [], 0
    for number, each in enumerate(body.inputs):
        place, size = f"inputs.{number}", each.parameters.binary_data_size
        raw = None if size is None else binary[at : at + size]
        at += size or 0
        if at > len(binary):
            raise InvalidRequest(f"`{place}`: the body ends before its {size} binary bytes", place)
        tensors.append(_tensor(place, each, raw))
    if at != len(binary):
        raise InvalidRequest(f"{len(binary) - at} binary bytes belong to no input", "inputs")
    names = [each.name for each in body.outputs]
    return InferRequest(model, version, body.id, body.parameters, tensors, names)


def response_of(
    model: str, request: InferRequest, body: InferBody, outputs: Sequence[TextTensor]
) -> Response:
    """The reply. `body` says which outputs it wants in binary."""
    chosen = [each.parameters.binary_data for each in body.outputs] or [None] * len(outputs)
    default = request.parameters.binary_data_output
    shown, tail = [], []
    for output, choice in zip(outputs, chosen, strict=True):
        fields = _shown(output)
        if default if choice is None else choice:
            tail.append(join_elements(output.texts))
            size = {"binary_data_size": len(tail[-1])}
            fields = {**fields, "shape": _shape(output), "parameters": size | _details(output)}
            del fields["data"]
        shown.append(fields)
    reply = {"model_name": model, "model_version": VERSION, "outputs": shown}
    text = json.dumps({"id": request.id, **reply} if request.id else reply).encode()
    if not tail:
        return Response(text, media_type="application/json")
    return Response(
        text + b"".join(tail),
        media_type="application/octet-stream",
        headers={JSON_LENGTH: str(len(text))},
    )


def _tensor(place: str, given: InferInput, raw: bytes | None) -> TextTensor:
    expected = check_tensor(place, given.datatype, given.shape)
    if raw is not None and given.data is None:
        texts = [decode_text(place, each) for each in split_elements(place, raw)]
        check_count(place, len(texts), given.shape)
        return TextTensor(given.name, given.shape, texts)
    if raw is not None or given.data is None:
        raise InvalidRequest(f"`{place}` needs either `data` or `binary_data_size`", place)
    elements = _flat(given.data)
    if elements and all(type(each) is int and 0 <= each < 256 for each in elements):
        if expected not in (1, len(elements)):
            check_count(place, len(elements), given.shape)
        return TextTensor(
            given.name, given.shape, [decode_text(place, bytes(elements))], numbers=True
        )
    if not all(isinstance(each, str) for each in elements):
        raise InvalidRequest(f"`{place}.data` must be texts, or the bytes of one", place)
    check_count(place, len(elements), given.shape)
    return TextTensor(given.name, given.shape, elements)


def _flat(data: list[Any]) -> list[Any]:
    """The elements of lists in lists, in row-major order; the depth of a body is limited."""
    while any(isinstance(each, list) for each in data):
        data = [inner for each in data for inner in (each if isinstance(each, list) else (each,))]
    return data


def _shown(output: TextTensor) -> dict[str, Any]:
    data = list(output.texts[0].encode()) if output.numbers else list(output.texts)
    fields = {"name": output.name, "shape": list(output.shape), "datatype": DATATYPE, "data": data}
    details = _details(output)
    return {**fields, "parameters": details} if details else fields


def _shape(output: TextTensor) -> list[int]:
    """The shape in binary, where one text is one element however it came."""
    return [1] if output.numbers else list(output.shape)


def _details(output: TextTensor) -> dict[str, Any]:
    return dict(output.details or {})
