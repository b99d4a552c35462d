"""Replies of TGI's routes: whole ones as objects, streams as events."""

import json
import math
from collections.abc import Sequence
from json.encoder import encode_basestring as quoted
from typing import Any

from fastapi import Response

from infercore.engine.request import FinishReason, TokenLogprobs
from infercore.errors import RequestError
from infercore.text.tokenizer import Tokenizer
from infercore_api.router.choice import Choice
from infercore_api.router.generation import Collector, Generation
from infercore_api.router.streaming import EventStream
from infercore_api.router.tgi_schema import Parameters

FINISH_REASONS = {
    FinishReason.LENGTH: "length",
    FinishReason.EOS: "eos_token",
    FinishReason.STOP: "stop_sequence",
}


class Tokens:
    """Token objects as TGI spells them."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def token(self, token_id: int, text: str, logprob: float | None) -> dict[str, Any]:
        special = self._tokenizer.is_special(token_id)
        shown = self._tokenizer.token_text(token_id) if special else text
        return {"id": token_id, "text": shown, "logprob": _finite(logprob), "special": special}

    def top(self, entry: TokenLogprobs) -> list[dict[str, Any]]:
        return [
            self.token(token_id, self._tokenizer.token_text(token_id), logprob)
            for token_id, logprob in zip(entry.top_ids, entry.top_logprobs, strict=True)
        ]

    def prefill(self, choice: Choice) -> list[dict[str, Any]]:
        """The prompt's tokens, if their log-probabilities were asked for."""
        if choice.prompt_logprobs is None:
            return []
        return [
            {
                "id": token_id,
                "text": self._tokenizer.token_text(token_id),
                "logprob": None if entry is None else _finite(entry.logprob),
            }
            for token_id, entry in zip(choice.prompt.ids, choice.prompt_logprobs, strict=True)
        ]


def generated_text(choice: Choice, params: Parameters) -> str:
    """The choice's text, after the prompt if that was asked for."""
    return choice.prompt.text + choice.text if params.return_full_text else choice.text


def ending(choice: Choice, params: Parameters) -> dict[str, Any]:
    """How the choice ended, as part of `details`."""
    assert choice.finish_reason is not None
    return {
        "finish_reason": FINISH_REASONS[choice.finish_reason],
        "generated_tokens": len(choice.output_ids),
        "seed": choice.prompt.sampling.seed if params.sampled else None,
    }


def whole(
    generation: Generation, collector: Collector, params: Parameters, *, as_list: bool
) -> Response:
    """The reply of `/generate`, or of `/` if `as_list`."""
    reply = whole_fields(generation, collector, params)
    body = json.dumps([reply] if as_list else reply, ensure_ascii=False)
    return Response(body, media_type="application/json")


def whole_fields(
    generation: Generation, collector: Collector, params: Parameters
) -> dict[str, Any]:
    """The fields of a whole reply: of the likeliest choice, and of the others in its details."""
    tokens = Tokens(generation.tokenizer)
    best, *others = sorted(generation.choices, key=lambda choice: choice.mean_logprob, reverse=True)
    reply: dict[str, Any] = {"generated_text": generated_text(best, params)}
    if params.details or params.decoder_input_details:
        reply["details"] = _details(best, collector, params, tokens)
        if others:
            reply["details"]["best_of_sequences"] = [
                {
                    "generated_text": generated_text(other, params),
                    **_details(other, collector, params, tokens),
                }
                for other in others
            ]
    return reply


def _details(
    choice: Choice, collector: Collector, params: Parameters, tokens: Tokens
) -> dict[str, Any]:
    entries: Sequence[TokenLogprobs] = collector.logprobs[choice.index]
    details = {
        **ending(choice, params),
        "prefill": tokens.prefill(choice),
        "tokens": [
            tokens.token(token_id, text, entry.logprob)
            for token_id, text, entry in zip(choice.output_ids, choice.texts, entries, strict=True)
        ],
    }
    if params.top_n_tokens:
        details["top_tokens"] = [tokens.top(entry) for entry in entries]
    return details


class TokenEvents:
    """Listener of a stream: one event per token, the last with the whole text."""

    stream: EventStream

    def __init__(self, tokenizer: Tokenizer, params: Parameters) -> None:
        self._tokens = Tokens(tokenizer)
        self._tokenizer = tokenizer
        self._params = params

    def on_token(
        self,
        choice: Choice,
        token_id: int,
        text: str,
        logprobs: TokenLogprobs | None,
        reason: FinishReason | None,
    ) -> None:
        assert logprobs is not None, "TGI's streams always ask for log-probabilities"
        special = self._tokenizer.is_special(token_id)
        shown = self._tokenizer.token_text(token_id) if special else text
        top = ""
        if self._params.top_n_tokens:
            top = f',"top_tokens":{_json(self._tokens.top(logprobs))}'
        last = "null" if reason is None else quoted(generated_text(choice, self._params))
        details = "null"
        if reason is not None and self._params.details:
            length = {"input_length": len(choice.prompt.ids)}
            details = _json({**ending(choice, self._params), **length})
        self.stream.push(
            f'data: {{"index":{len(choice.output_ids)},"token":{{"id":{token_id},'
            f'"text":{quoted(shown)},"logprob":{_number(logprobs.logprob)},'
            f'"special":{"true" if special else "false"}}}{top},'
            f'"generated_text":{last},"details":{details}}}\n\n'
        )

    def on_done(self, error: RequestError | None) -> None:
        self.stream.end(error)


def _finite(logprob: float | None) -> float | None:
    return logprob if logprob is not None and math.isfinite(logprob) else None


def _number(logprob: float) -> str:
    return f"{logprob:.7g}" if math.isfinite(logprob) else "null"


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
