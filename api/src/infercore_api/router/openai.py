"""OpenAI's routes, as a plugin."""

from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.responses import JSONResponse

from infercore.hookspecs import hookimpl
from infercore_api.router.openai_chat import add_chat
from infercore_api.router.openai_completions import add_completions
from infercore_api.router.openai_responses import add_responses
from infercore_api.router.problems import NestedError, documented
from infercore_api.router.state import RouterState

API_VERSION = (1, 0)


@hookimpl
def register_routes(app: FastAPI, state: RouterState) -> None:
    router = APIRouter(tags=["OpenAI"], responses=documented(NestedError))
    add_chat(router, state)
    add_completions(router, state)
    add_responses(router, state)
    _add_models(router, state)
    app.include_router(router)


def _add_models(router: APIRouter, state: RouterState) -> None:
    started = datetime.now(UTC).replace(microsecond=0)

    def model(name: str) -> dict[str, Any]:
        """OpenAI's fields, then Anthropic's: both call these routes, and no name is in both."""
        return {
            "id": name,
            "object": "model",
            "created": int(started.timestamp()),
            "owned_by": state.model_name,
            "max_model_len": state.info.max_model_len,
            "type": "model",
            "display_name": name,
            "created_at": started.isoformat(),
        }

    @router.get("/v1/models")
    async def models() -> JSONResponse:
        """The names of the served model."""
        names = state.options.model_names
        data = [model(name) for name in names]
        page = {"has_more": False, "first_id": names[0], "last_id": names[-1]}
        return JSONResponse({"object": "list", "data": data, **page})

    @router.get("/v1/models/{name:path}")
    async def model_by_name(name: str) -> JSONResponse:
        """One of them; names may hold slashes."""
        state.check_model(name)
        return JSONResponse(model(name))
