"""KServe's Open Inference Protocol, version 2, over REST, as a plugin.

github.com/kserve/open-inference-protocol; binary tensors are Triton's extension of it, `/generate`
and `/generate_stream` its own for text generation. A path may name the model's version or not.
"""

import json
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import JSONResponse

from infercore.hookspecs import hookimpl
from infercore_api.router.choice import Prompt
from infercore_api.router.generation import Collector, Generation
from infercore_api.router.health import live_answer, ready_answer
from infercore_api.router.kserve_generate import add_generate
from infercore_api.router.kserve_infer import check_served, model_facts, server_facts
from infercore_api.router.kserve_rest import read_body, request_of, response_of
from infercore_api.router.problems import FlatError, documented
from infercore_api.router.serving import serve_whole
from infercore_api.router.state import RouterState

API_VERSION = (1, 0)

_TENSOR = {
    "type": "object",
    "required": ["name", "shape", "datatype"],
    "properties": {
        "name": {"type": "string"},
        "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
        "datatype": {"type": "string", "enum": ["BYTES"]},
        "parameters": {"type": "object"},
        "data": {"type": "array", "items": {"type": "string"}},
    },
}
_BODY = {  # for the API's document; the route reads it itself, since binary data may follow
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["inputs"],
                    "properties": {
                        "id": {"type": "string"},
                        "parameters": {"type": "object"},
                        "inputs": {"type": "array", "minItems": 1, "items": _TENSOR},
                        "outputs": {
                            "type": "array",
                            "items": {
                                "type": "object",
                                "required": ["name"],
                                "properties": {
                                    "name": {"type": "string"},
                                    "parameters": {"type": "object"},
                                },
                            },
                        },
                    },
                }
            }
        },
    }
}


# Names may hold slashes, so a path without a version matches one with it, and the model's own path
# all of them: what is more exact is added first, and of two decorators that is the lower one.


@hookimpl
def register_routes(app: FastAPI, state: RouterState) -> None:
    router = APIRouter(tags=["KServe"], responses=documented(FlatError))
    _add_server(router, state)
    _add_infer(router, state)
    add_generate(router, state)
    _add_model(router, state)
    app.include_router(router)


def _add_server(router: APIRouter, state: RouterState) -> None:
    @router.get("/v2")
    async def server() -> JSONResponse:
        """The server's name, its version, and the extensions of the protocol that it has."""
        return JSONResponse(server_facts(state))

    @router.get("/v2/health/live")
    async def live() -> Response:
        """200 unless the engine has work and makes no step, as `/health/live`."""
        return _told(live_answer(state), live=True)

    @router.get("/v2/health/ready")
    async def ready() -> Response:
        """200 if requests are served now, as `/health/ready`."""
        return _told(ready_answer(state), live=True, ready=True)


def _add_model(router: APIRouter, state: RouterState) -> None:
    @router.get("/v2/models/{name:path}/ready")
    @router.get("/v2/models/{name:path}/versions/{version}/ready")
    async def model_ready(name: str, version: str = "") -> Response:
        """200 if this model serves requests now, else 503."""
        check_served(state, name, version)
        return _told(ready_answer(state), name=name, ready=True)

    @router.get("/v2/models/{name:path}")
    @router.get("/v2/models/{name:path}/versions/{version}")
    async def model(name: str, version: str = "") -> JSONResponse:
        """The model's versions and its tensors."""
        check_served(state, name, version)
        return JSONResponse(model_facts(name))


def _add_infer(router: APIRouter, state: RouterState) -> None:
    @router.post("/v2/models/{name:path}/infer", openapi_extra=_BODY)
    @router.post("/v2/models/{name:path}/versions/{version}/infer", openapi_extra=_BODY)
    async def infer(request: Request, name: str, version: str = "") -> Response:
        """Generate for each text of the inputs; the outputs hold what was generated."""
        check_served(state, name, version)
        body, binary = read_body(request.headers, await request.body())
        wanted = request_of(name, version, body, binary)
        wanted.check(state)
        groups: list[Sequence[Prompt]] = []

        def prepare() -> Sequence[Prompt]:
            groups.extend(wanted.prepare(state))
            return [prompt for group in groups for prompt in group]

        def reply(generation: Generation, collector: Collector) -> Response:
            del collector
            outputs = wanted.answers(generation, groups)
            return response_of(name, wanted, body, outputs)

        return await serve_whole(state, request, wanted.permits(state), prepare, reply)


def _told(answer: Response, **facts: Any) -> Response:
    """The same with a body of the protocol's, if it is good."""
    if answer.status_code == 200:
        return JSONResponse(facts)
    told = {name: False if value is True else value for name, value in facts.items()}
    body = {**told, **json.loads(bytes(answer.body))}
    return JSONResponse(body, answer.status_code)
