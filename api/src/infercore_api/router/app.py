"""create_app: the router's ASGI application, its stack of middlewares built in one place."""

from typing import Any, Protocol

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from infercore.errors import RequestError
from infercore_api.router.middleware import Authorization, BodyLimit, RequestContext
from infercore_api.router.options import RouterOptions
from infercore_api.router.problems import problem_of
from infercore_api.router.state import RouterState


class RegisterRoutes(Protocol):
    """The hook of the same name, over all route plugins."""

    def __call__(self, *, app: FastAPI, state: RouterState) -> Any:
        """Add every plugin's routes to `app`."""


def create_app(state: RouterState, register_routes: RegisterRoutes) -> FastAPI:
    """The application that serves `state`, with the routes that plugins register.

    From the outside in: unexpected errors, request id and access log, CORS, authorization, body
    limits, errors raised on purpose, routes.
    """
    handlers: dict[Any, Any] = dict.fromkeys(
        (RequestError, RequestValidationError, HTTPException, Exception), _answer_problem
    )
    app = FastAPI(
        title="InferCore",
        version=state.options.version,
        openapi_url="/api-doc/openapi.json",
        redoc_url=None,
        middleware=_stack(state.options),
        exception_handlers=handlers,
    )

    @app.get("/metrics", tags=["operations"])
    async def metrics() -> Response:
        """Metrics in Prometheus' text format."""
        return Response(state.metrics.render(), media_type="text/plain; version=0.0.4")

    register_routes(app=app, state=state)
    return app


def _stack(options: RouterOptions) -> list[Middleware]:
    stack = [
        Middleware(RequestContext),
        Middleware(
            CORSMiddleware,
            allow_origins=options.cors_allow_origin or ("*",),
            allow_methods=("GET", "POST"),
            allow_headers=("content-type", "authorization"),
        ),
    ]
    if options.api_key is not None:
        stack.append(Middleware(Authorization, api_key=options.api_key))
    return [*stack, Middleware(BodyLimit, limit=options.payload_limit)]


async def _answer_problem(request: Request, error: Exception) -> Response:
    return problem_of(error).response(request.url.path)
