"""create_app: the router's ASGI application, its stack of middlewares built in one place."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect

from infercore.errors import RequestError
from infercore_api.observability.trace_setup import open_traces
from infercore_api.router.access import Authorization, HostCheck, open_routes
from infercore_api.router.api_keys import ApiKeys
from infercore_api.router.middleware import BodyLimit, RequestContext
from infercore_api.router.options import RouterOptions
from infercore_api.router.problems import NestedError, documented, problem_of
from infercore_api.router.state import RouterState

if TYPE_CHECKING:
    from infercore_api.observability.traces import Traces


class RegisterRoutes(Protocol):
    """The hook of the same name, over all route plugins."""

    def __call__(self, *, app: FastAPI, state: RouterState) -> Any:
        """Add every plugin's routes to `app`."""


def create_app(state: RouterState, register_routes: RegisterRoutes) -> FastAPI:
    """The application that serves `state`, with the routes that plugins register.

    From the outside in: unexpected errors, traces, request id and access log, CORS, Host,
    authorization, body limits, errors raised on purpose, routes. Raises ConfigError for an
    unusable file of keys, or an unusable collector of traces.
    """
    traces = open_traces(state.options)
    handlers: dict[Any, Any] = dict.fromkeys(
        (RequestError, RequestValidationError, HTTPException, ClientDisconnect, Exception),
        _answer_problem,
    )
    app = FastAPI(
        title="InferCore",
        version=state.options.version,
        openapi_url="/api-doc/openapi.json",
        redoc_url=None,
        swagger_ui_oauth2_redirect_url=None,
        redirect_slashes=False,  # a redirect would go where the client's Host header says
        lifespan=lambda _: _watching(state, traces),
        middleware=_stack(state.options, traces),
        exception_handlers=handlers,
    )

    @app.get("/metrics", tags=["operations"])
    async def metrics() -> Response:
        """Metrics in Prometheus' text format."""
        # a thousand lines and more: on the event loop they would hold streams up
        text = await asyncio.to_thread(state.metrics.render)
        return Response(text, media_type="text/plain; version=0.0.4")

    @app.get("/v1/capabilities", tags=["operations"], responses=documented(NestedError))
    async def capabilities() -> JSONResponse:
        """What the backend declares, as conformance reports show it."""
        info = state.info
        declared = json.loads(info.capabilities)
        return JSONResponse({"backend": info.backend, "devices": info.devices, **declared})

    register_routes(app=app, state=state)
    return app


@asynccontextmanager
async def _watching(state: RouterState, traces: "Traces | None") -> AsyncIterator[None]:
    """While the application serves, the engine's steps are watched, and traces are sent."""
    task = asyncio.create_task(state.step_watch.run(), name="step watch")
    try:
        yield
    finally:
        task.cancel()
        if traces is not None:
            await asyncio.to_thread(traces.close)


def _stack(options: RouterOptions, traces: "Traces | None") -> list[Middleware]:
    health = open_routes(options.vertex_health_route)
    stack = [Middleware(RequestContext)]
    if traces is not None:
        from infercore_api.observability.traces import TraceRequests

        stack.insert(0, Middleware(TraceRequests, traces=traces))
    if options.cors_allow_origin:
        stack.append(
            Middleware(
                CORSMiddleware,
                allow_origins=options.cors_allow_origin,
                allow_methods=("GET", "POST"),
                allow_headers=("*",),  # clients send some of their own; the origin is what counts
                expose_headers=("x-request-id",),
            )
        )
    if options.allowed_hosts:
        stack.append(Middleware(HostCheck, hosts=options.allowed_hosts, open_routes=health))
    file = Path(options.api_key_file) if options.api_key_file else None
    keys = ApiKeys(options.api_keys, file)
    if keys:
        stack.append(Middleware(Authorization, keys=keys, open_routes=health))
    most = options.payload_limit * options.max_concurrent_requests
    return [*stack, Middleware(BodyLimit, limit=options.payload_limit, total=most)]


async def _answer_problem(request: Request, error: Exception) -> Response:
    return problem_of(error).response(request.scope["path"])
