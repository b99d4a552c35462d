"""TGI's routes, as a plugin."""

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import JSONResponse

from infercore.errors import InvalidRequest
from infercore.hookspecs import hookimpl
from infercore_api.router import tgi_reply
from infercore_api.router.engine_client import EnginePhase
from infercore_api.router.generation import Collector, Generation, Prompt, choices_of
from infercore_api.router.problems import FlatError, documented
from infercore_api.router.serving import serve_stream, serve_whole
from infercore_api.router.state import RouterState
from infercore_api.router.tgi_schema import CompatBody, GenerateBody, TokenizeBody

API_VERSION = (1, 0)


@hookimpl
def register_routes(app: FastAPI, state: RouterState) -> None:
    router = APIRouter(tags=["TGI"], responses=documented(FlatError))
    _add_generation(router, state)
    _add_facts(router, state)
    _add_health(router, state)
    app.include_router(router)


def _add_generation(router: APIRouter, state: RouterState) -> None:
    @router.post("/generate")
    async def generate(request: Request, body: GenerateBody) -> Response:
        """Generate, and answer with the whole text."""
        return await _whole(state, request, body, as_list=False)

    @router.post("/generate_stream")
    async def generate_stream(request: Request, body: GenerateBody) -> Response:
        """Generate, and answer with a server-sent event per token."""
        return await _stream(state, request, body)

    @router.post("/")
    async def compat_generate(request: Request, body: CompatBody) -> Response:
        """`/generate_stream` if the body says `stream`, else `/generate` in a list of one."""
        if body.stream:
            return await _stream(state, request, body)
        return await _whole(state, request, body, as_list=True)


def _add_facts(router: APIRouter, state: RouterState) -> None:
    @router.get("/info")
    async def info() -> JSONResponse:
        """The model and the limits in force."""
        return JSONResponse(_info(state))

    @router.post("/tokenize")
    async def tokenize(body: TokenizeBody) -> JSONResponse:
        """The tokens of `inputs`, with the bytes that each covers."""
        spans = await state.workers.run(
            lambda: state.tokenizer.encode_spans(
                body.inputs, add_special_tokens=body.add_special_tokens
            )
        )
        return JSONResponse(
            [{"id": s.id, "text": s.text, "start": s.start, "stop": s.stop} for s in spans]
        )


def _add_health(router: APIRouter, state: RouterState) -> None:
    @router.get("/health/live")
    async def live() -> Response:
        """200 as long as this process answers, whatever its engine does."""
        return Response(status_code=200)

    @router.get("/", include_in_schema=False)
    @router.get("/ping", include_in_schema=False)
    @router.get("/health/ready")
    @router.get("/health")
    async def health() -> Response:
        """200 if requests are served now; 503 with the engine's phase if not."""
        engine = state.engine.state
        if engine.phase is EnginePhase.READY:
            return Response(status_code=200)
        body = {
            "error": "unhealthy",
            "error_type": "healthcheck",
            "phase": engine.phase.value,
            "done": engine.done,
            "total": engine.total,
        }
        return JSONResponse(body, 503)


def _info(state: RouterState) -> dict[str, Any]:
    info, options = state.info, state.options
    return {
        "model_id": info.model_id,
        "model_sha": info.revision or None,
        "model_pipeline_tag": "text-generation",
        "model_dtype": info.dtype,
        "model_device_type": info.backend,
        "max_concurrent_requests": options.max_concurrent_requests,
        "max_best_of": options.max_best_of,
        "max_stop_sequences": options.max_stop_sequences,
        "max_top_n_tokens": options.max_top_n_tokens,
        "max_input_tokens": info.max_input_len,
        "max_total_tokens": info.max_model_len,
        "max_batch_total_tokens": info.kv_tokens,
        "max_batch_prefill_tokens": info.max_batch_tokens,
        "max_batch_size": info.max_num_seqs,
        "validation_workers": options.validation_workers,
        "max_client_batch_size": options.max_client_batch_size,
        "payload_limit": options.payload_limit,
        "router": "infercore-router",
        "version": options.version,
        "sha": None,
        "docker_label": None,
    }


def _prepare(state: RouterState, body: GenerateBody, *, stream: bool) -> Sequence[Prompt]:
    """Checks in TGI's order, then tokenizes; runs on a worker thread."""
    params, limits = body.parameters, state.limits
    params.check(limits, stream=stream)
    if not body.inputs:
        raise InvalidRequest("`inputs` cannot be empty", "inputs")
    ids = state.tokenizer.encode(body.inputs)
    if params.truncate is not None:
        ids = ids[-params.truncate :]
    max_tokens = limits.fit(len(ids), params.max_new_tokens)
    sampling = params.sampling(max_tokens, params.top_n_tokens)
    return choices_of(Prompt(body.inputs, ids, sampling, include_stop=True), params.best_of)


async def _whole(
    state: RouterState, request: Request, body: GenerateBody, *, as_list: bool
) -> Response:
    def reply(generation: Generation, collector: Collector) -> Response:
        response = tgi_reply.whole(generation, collector, body.parameters, as_list=as_list)
        headers = tgi_reply.whole_headers(generation, state.info.backend, len(body.inputs))
        response.headers.update(headers)
        return response

    return await serve_whole(
        state,
        request,
        _permits(state, body),
        lambda: _prepare(state, body, stream=False),
        reply,
    )


async def _stream(state: RouterState, request: Request, body: GenerateBody) -> Response:
    return await serve_stream(
        state,
        request,
        _permits(state, body),
        lambda: _prepare(state, body, stream=True),
        lambda generation: tgi_reply.TokenEvents(generation.tokenizer, body.parameters),
        tgi_reply.stream_headers(state.info.backend, len(body.inputs)),
    )


def _permits(state: RouterState, body: GenerateBody) -> int:
    """Sequences that the request runs; out of range is refused later, by its own rule."""
    return max(1, min(body.parameters.best_of, state.options.max_best_of))
