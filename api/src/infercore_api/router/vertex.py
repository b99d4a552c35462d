"""Vertex AI's `/vertex`: several generations in one request, and their texts in one reply."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeAlias

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import Discriminator, Field, Tag

from infercore.errors import InvalidRequest
from infercore_api.router import openai_chat, tgi_generate
from infercore_api.router.choice import Prompt
from infercore_api.router.generation import Collector, Generation
from infercore_api.router.openai_reply import best
from infercore_api.router.openai_schema import ChatBody
from infercore_api.router.serving import serve_whole
from infercore_api.router.state import RouterState
from infercore_api.router.tgi_reply import generated_text
from infercore_api.router.tgi_schema import GenerateBody
from infercore_api.router.validation import Body


def _shape(instance: Any) -> Literal["[inputs]", "[messages]"]:
    # in brackets, so that the names of the shapes are no part of the place of an error
    chat = isinstance(instance, dict) and instance.get("messages") is not None
    return "[messages]" if chat else "[inputs]"


_Instance: TypeAlias = Annotated[
    Annotated[GenerateBody, Tag("[inputs]")] | Annotated[ChatBody, Tag("[messages]")],
    Discriminator(_shape),
]


class VertexBody(Body):
    """Body of `/vertex`: what `/generate` and `/v1/chat/completions` take, several at once."""

    instances: list[_Instance] = Field(min_length=1)

    def check(self, state: RouterState) -> None:
        """Refuse what one text per instance cannot answer, and more instances than are taken."""
        most = state.limits.batch_size
        if len(self.instances) > most:
            raise InvalidRequest(
                f"`instances` holds {len(self.instances)}, and at most {most} are taken",
                "instances",
            )
        for instance in self.instances:
            if isinstance(instance, ChatBody):
                state.check_model(instance.model)
                instance.check(state.limits)
                for name, asked in (("stream", instance.stream), ("n", instance.n > 1)):
                    if asked:
                        raise InvalidRequest(f"`{name}`: an instance is answered by one text", name)


def add_vertex(router: APIRouter, state: RouterState) -> None:
    @router.post("/vertex")
    async def vertex(request: Request, body: VertexBody) -> Response:
        """One text for each instance, in their order."""
        body.check(state)
        groups: list[Sequence[Prompt]] = []

        def prepare() -> Sequence[Prompt]:
            groups.extend(_prepare(state, instance) for instance in body.instances)
            return [prompt for group in groups for prompt in group]

        def reply(generation: Generation, collector: Collector) -> Response:
            del collector
            return JSONResponse({"predictions": _texts(body, groups, generation)})

        permits = sum(_permits(state, instance) for instance in body.instances)
        return await serve_whole(state, request, permits, prepare, reply)

    route = state.options.vertex_predict_route
    if route is not None:
        router.add_api_route(route, vertex, methods=["POST"], include_in_schema=False)


def _permits(state: RouterState, instance: GenerateBody | ChatBody) -> int:
    return 1 if isinstance(instance, ChatBody) else tgi_generate.permits(state, instance)


def _prepare(state: RouterState, instance: GenerateBody | ChatBody) -> Sequence[Prompt]:
    if isinstance(instance, ChatBody):
        return openai_chat.prepare(state, instance)
    return tgi_generate.prepare(state, instance, stream=False)


def _texts(
    body: VertexBody, groups: Sequence[Sequence[Prompt]], generation: Generation
) -> list[str]:
    """Of each instance, the text of its likeliest choice."""
    choices, texts = iter(generation.choices), []
    for instance, group in zip(body.instances, groups, strict=True):
        (chosen,) = best([next(choices) for _ in group], 1)
        if isinstance(instance, ChatBody):
            texts.append(chosen.text)
        else:
            texts.append(generated_text(chosen, instance.parameters))
    return texts
