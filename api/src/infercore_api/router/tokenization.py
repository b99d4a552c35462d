"""The routes that turn texts into tokens and back, as TGI's clients and as vLLM's ask."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeAlias

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import ConfigDict, Discriminator, Field, Tag, model_validator

from infercore.errors import InvalidRequest
from infercore.model_folder import read_json
from infercore.text.chat_template import read_templates
from infercore.text.tokenizer import TokenSpan, special_tokens
from infercore_api.router.openai_schema import ChatBody, Message
from infercore_api.router.state import RouterState
from infercore_api.router.validation import MAX_MESSAGES, Body


class TokenizeBody(Body):
    """TGI's body of `/tokenize`."""

    inputs: str
    add_special_tokens: bool = True


class _NamedBody(Body):
    """A body that may name the model; other fields than its own are refused."""

    model_config = ConfigDict(strict=True, extra="forbid", protected_namespaces=())

    model: str = ""
    return_token_strs: bool = False


class TokenizePromptBody(_NamedBody):
    """`/tokenize` of a text, as vLLM has it."""

    prompt: str
    add_special_tokens: bool = True


class TokenizeMessagesBody(_NamedBody):
    """`/tokenize` of a chat, as vLLM has it."""

    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES)
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    add_special_tokens: bool = False
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    tools: Annotated[list[Any], Field(max_length=0)] = Field(default_factory=list)

    @model_validator(mode="after")
    def _check_continued(self) -> Self:
        continued = self.messages[-1].role == "assistant"
        given = self.model_fields_set
        if "continue_final_message" in given and self.continue_final_message != continued:
            raise InvalidRequest(
                "`continue_final_message`: a last message of the assistant is always continued, "
                "and no other; leave it out",
                "continue_final_message",
            )
        return self


class DetokenizeBody(Body):
    """Body of `/detokenize`."""

    model_config = ConfigDict(strict=True, extra="forbid", protected_namespaces=())

    model: str = ""
    tokens: Annotated[list[int], Field(fail_fast=True)]


def _shape(body: Any) -> Literal["[inputs]", "[prompt]", "[messages]"]:
    # in brackets, so that the names of the shapes are no part of the place of an error
    if isinstance(body, dict) and body.get("inputs") is None:
        if body.get("messages") is not None:
            return "[messages]"
        if body.get("prompt") is not None:
            return "[prompt]"
    return "[inputs]"


_Tokenize: TypeAlias = Annotated[
    Annotated[TokenizeBody, Tag("[inputs]")]
    | Annotated[TokenizePromptBody, Tag("[prompt]")]
    | Annotated[TokenizeMessagesBody, Tag("[messages]")],
    Discriminator(_shape),
]


def add_tokenization(router: APIRouter, state: RouterState) -> None:
    @router.post("/tokenize")
    async def tokenize(body: _Tokenize) -> JSONResponse:
        """The tokens of `inputs`, with the bytes that each covers; or of `prompt`, `messages`."""
        if isinstance(body, TokenizeBody):
            text, special = body.inputs, body.add_special_tokens
            # a reply of ten thousand tokens is written on the worker too, not on the event loop
            return await state.workers.run(
                lambda: JSONResponse(_shown(_spans(state, text, special)))
            )
        state.check_model(body.model)
        return await state.workers.run(lambda: JSONResponse(_tokens(state, body)))

    @router.post("/chat_tokenize")
    async def chat_tokenize(body: ChatBody) -> JSONResponse:
        """The prompt that a chat becomes, and its tokens."""
        state.check_model(body.model)
        return await state.workers.run(lambda: JSONResponse(_chat_tokens(state, body)))

    @router.post("/detokenize")
    async def detokenize(body: DetokenizeBody) -> JSONResponse:
        """The text of token ids, with the special ones."""
        state.check_model(body.model)
        state.limits.check_ids(body.tokens, "tokens")
        decode = state.tokenizer.decode
        text = await state.workers.run(lambda: decode(body.tokens, skip_special_tokens=False))
        return JSONResponse({"prompt": text})

    @router.get("/tokenizer_info")
    async def tokenizer_info() -> JSONResponse:
        """The model's tokenizer_config.json, with its special tokens and its chat template."""
        return JSONResponse(dict(state.tokenizer_info))


def read_tokenizer_info(path: Path) -> dict[str, Any]:
    """A model folder's tokenizer_config.json, its special tokens as texts, its chat templates.

    Raises CheckpointError for a damaged file.
    """
    config = read_json(path / "tokenizer_config.json") or {}
    templates = read_templates(path)
    named = [{"name": name, "template": source} for name, source in templates.items()]
    template = templates.get("default") if len(templates) < 2 else named
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **config,
        **special_tokens(path),
        "chat_template": template,
    }


def _spans(state: RouterState, text: str, special: bool) -> list[TokenSpan]:
    return state.tokenizer.encode_spans(text, add_special_tokens=special)


def _chat_tokens(state: RouterState, body: ChatBody) -> dict[str, Any]:
    messages = [message.for_template() for message in body.messages]
    text = state.chat_template.render(messages, variables=body.chat_template_kwargs)
    spans = _spans(state, text, special=False)
    return {"tokenize_response": _shown(spans), "templated_text": text}


def _shown(spans: Sequence[TokenSpan]) -> list[dict[str, Any]]:
    return [{"id": s.id, "text": s.text, "start": s.start, "stop": s.stop} for s in spans]


def _tokens(state: RouterState, body: TokenizePromptBody | TokenizeMessagesBody) -> dict[str, Any]:
    if isinstance(body, TokenizePromptBody):
        text = body.prompt
    else:
        text = state.chat_template.render(
            [message.for_template() for message in body.messages],
            add_generation_prompt=body.add_generation_prompt,
            variables=body.chat_template_kwargs,
        )
    ids = state.tokenizer.encode(text, add_special_tokens=body.add_special_tokens)
    texts = [state.tokenizer.token_text(i) for i in ids] if body.return_token_strs else None
    return {
        "count": len(ids),
        "max_model_len": state.info.max_model_len,
        "tokens": ids,
        "token_strs": texts,
    }
