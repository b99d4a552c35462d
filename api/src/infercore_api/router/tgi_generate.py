"""TGI's routes that generate: `/generate`, `/generate_stream`, and `/`, which is both."""

from collections.abc import Sequence

from fastapi import APIRouter, Request, Response

from infercore_api.router import tgi_reply
from infercore_api.router.choice import Prompt, choices_of
from infercore_api.router.generation import Collector, Generation
from infercore_api.router.serving import serve_stream, serve_whole
from infercore_api.router.state import RouterState
from infercore_api.router.tgi_schema import CompatBody, GenerateBody


def add_generation(router: APIRouter, state: RouterState) -> None:
    @router.post("/generate")
    async def generate(request: Request, body: GenerateBody) -> Response:
        """Generate, and answer with the whole text."""
        return await _whole(state, request, body, as_list=False)

    @router.post("/generate_stream")
    async def generate_stream(request: Request, body: GenerateBody) -> Response:
        """Generate, and answer with a server-sent event per token."""
        return await _stream(state, request, body)

    @router.post("/v1", include_in_schema=False)
    @router.post("/")
    async def compat_generate(request: Request, body: CompatBody) -> Response:
        """`/generate_stream` if the body says `stream`, else `/generate` in a list of one.

        Only here TGI puts the prompt before the text unless it is told not to.
        """
        if body.parameters.return_full_text is None:
            body.parameters.return_full_text = True
        if body.stream:
            return await _stream(state, request, body)
        return await _whole(state, request, body, as_list=True)


def prepare(state: RouterState, body: GenerateBody, *, stream: bool) -> Sequence[Prompt]:
    """Checks in TGI's order, then tokenizes; runs on a worker thread."""
    params, limits = body.parameters, state.limits
    params.check(body.inputs, limits, stream=stream)
    ids = state.tokenizer.encode(body.inputs)
    if params.truncate is not None:
        ids = ids[-params.truncate :]
    max_tokens = limits.fit(len(ids), params.max_new_tokens)
    mark = limits.mark(params.watermark)
    sampling = params.sampling(max_tokens, params.top_n_tokens, mark)
    return choices_of(Prompt(body.inputs, ids, sampling, include_stop=True), params.best_of)


async def _whole(
    state: RouterState, request: Request, body: GenerateBody, *, as_list: bool
) -> Response:
    def reply(generation: Generation, collector: Collector) -> Response:
        return tgi_reply.whole(generation, collector, body.parameters, as_list=as_list)

    return await serve_whole(
        state,
        request,
        permits(state, body),
        lambda: prepare(state, body, stream=False),
        reply,
    )


async def _stream(state: RouterState, request: Request, body: GenerateBody) -> Response:
    return await serve_stream(
        state,
        request,
        permits(state, body),
        lambda: prepare(state, body, stream=True),
        lambda generation: tgi_reply.TokenEvents(generation.tokenizer, body.parameters),
    )


def permits(state: RouterState, body: GenerateBody) -> int:
    """Sequences that the request runs; out of range is refused later, by its own rule."""
    return max(1, min(body.parameters.best_of, state.options.max_best_of))
