"""SageMaker's `/invocations`: one path for TGI's and OpenAI's bodies."""

import json

from fastapi import APIRouter, FastAPI, Request, Response
from starlette.types import Message, Receive, Scope, Send

_PATHS = (
    ("inputs", "/"),
    ("messages", "/v1/chat/completions"),
    ("prompt", "/v1/completions"),
)
_BODIES = {  # for the API's document, to which the other paths bring the schemas
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "anyOf": [
                        {"$ref": f"#/components/schemas/{name}"}
                        for name in ("CompatBody", "ChatBody", "CompletionBody")
                    ]
                }
            }
        },
    }
}


def add_sagemaker(router: APIRouter, app: FastAPI) -> None:
    @router.post("/invocations", openapi_extra=_BODIES)
    async def invocations(request: Request) -> Response:
        """What `/`, `/v1/chat/completions` or `/v1/completions` answers, by the body's shape."""
        body = await request.body()
        return _Forwarded(app, _path_for(body), body)


def _path_for(body: bytes) -> str:
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        fields = None
    if isinstance(fields, dict):
        for name, path in _PATHS:
            if fields.get(name) is not None:
                return path
    return "/"  # which says what is wrong


class _Forwarded(Response):
    """The answer of another path to the same request, in the dialect of that path."""

    def __init__(self, app: FastAPI, path: str, body: bytes) -> None:
        self.background = None
        self._app = app
        self._path = path
        self._body = body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        unread = [self._body]

        async def receive_again() -> Message:
            if unread:
                return {"type": "http.request", "body": unread.pop(), "more_body": False}
            return await receive()

        inner = {**scope, "path": self._path, "raw_path": self._path.encode()}
        await self._app.router(inner, receive_again, send)
