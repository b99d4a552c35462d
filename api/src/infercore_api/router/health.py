"""The health routes: whether requests are served now, and whether a restart would help."""

from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse

from infercore_api.router.engine_client import EnginePhase, EngineState
from infercore_api.router.state import RouterState

_COMING_UP = (EnginePhase.STARTING, EnginePhase.LOADING, EnginePhase.WARMING)


def add_health(router: APIRouter, state: RouterState) -> None:
    @router.get("/health/live")
    async def live() -> Response:
        """200 unless the engine has work and no step for `stall_timeout` seconds: then 503."""
        return live_answer(state)

    @router.get("/", include_in_schema=False)
    @router.get("/ping", include_in_schema=False)
    @router.get("/health/ready")
    @router.get("/health")
    async def health() -> Response:
        """200 if requests are served now; 503 with the engine's phase and progress if not."""
        return ready_answer(state)

    route = state.options.vertex_health_route
    if route is not None:
        router.add_api_route(route, health, methods=["GET"], include_in_schema=False)


def live_answer(state: RouterState) -> Response:
    """200 if a restart would not help, else 503."""
    stalled = state.step_watch.stalled_seconds()
    if stalled < state.options.stall_timeout:
        return Response(status_code=200)
    return _unhealthy(state, stalled_seconds=round(stalled, 1))


def ready_answer(state: RouterState) -> Response:
    """200 if requests are served now, else 503."""
    engine = state.engine.state
    if engine.phase is EnginePhase.READY:
        return Response(status_code=200)
    return _unhealthy(state, percent=_percent(engine), done=engine.done, total=engine.total)


def _percent(engine: EngineState) -> int | None:
    """How much of its phase an engine that comes up has done; None for one that does not."""
    if engine.phase not in _COMING_UP:
        return None
    return 100 * engine.done // engine.total if engine.total else 0


def _unhealthy(state: RouterState, **facts: Any) -> JSONResponse:
    """503 with TGI's body, the engine's phase, and what else tells why."""
    phase = state.engine.state.phase.value
    body = {"error": "unhealthy", "error_type": "healthcheck", "phase": phase, **facts}
    return JSONResponse(body, 503)
