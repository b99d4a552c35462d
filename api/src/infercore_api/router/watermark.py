"""`/watermark/detect`: whether a text carries this server's mark."""

from dataclasses import asdict
from typing import Annotated, Any, Self

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import ConfigDict, Field, model_validator

from infercore.errors import InvalidRequest
from infercore.watermark import detect
from infercore_api.router.state import RouterState
from infercore_api.router.validation import Body


class DetectBody(Body):
    """Body of `/watermark/detect`: a text, or the token ids that a reply's details had."""

    model_config = ConfigDict(strict=True, extra="forbid", protected_namespaces=())

    inputs: str | None = None
    tokens: Annotated[list[int], Field(fail_fast=True)] | None = None

    @model_validator(mode="after")
    def _check_one(self) -> Self:
        if (self.inputs is None) == (self.tokens is None):
            raise InvalidRequest("send either `inputs`, a text, or `tokens`, its ids", "inputs")
        return self


def add_watermark(router: APIRouter, state: RouterState) -> None:
    @router.post("/watermark/detect")
    async def detect_watermark(body: DetectBody) -> JSONResponse:
        """How likely a text carries the mark of this server's key."""
        state.limits.check_ids(body.tokens or (), "tokens")
        return JSONResponse(await state.workers.run(lambda: _found(state, body)))


def _found(state: RouterState, body: DetectBody) -> dict[str, Any]:
    ids = body.tokens
    if ids is None:
        ids = state.tokenizer.encode(body.inputs or "", add_special_tokens=False)
    mark = state.options.watermark
    return {**asdict(detect(mark, ids)), "gamma": mark.gamma}
