"""What chats and completions of OpenAI's API have in common: ids, usage, log-probabilities."""

import json
import math
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from infercore.engine.request import FinishReason, TokenLogprobs
from infercore.text.tokenizer import Tokenizer
from infercore_api.router.choice import Choice
from infercore_api.router.generation import Generation
from infercore_api.router.state import RouterState

FINISH_REASONS = {
    FinishReason.LENGTH: "length",
    FinishReason.EOS: "stop",
    FinishReason.STOP: "stop",
}


@dataclass(frozen=True, slots=True)
class Envelope:
    """What every object of one reply carries. kind: "chat.completion", "text_completion" …"""

    prefix: str
    kind: str
    model: str
    fingerprint: str
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    @classmethod
    def of(cls, state: RouterState, prefix: str, kind: str) -> "Envelope":
        return cls(prefix, kind, state.model_name, f"infercore-{state.options.version}")

    def fields(self) -> dict[str, Any]:
        return {
            "id": f"{self.prefix}-{self.id}",
            "object": self.kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        }

    def head(self) -> str:
        """The start of an event: its JSON up to the list of choices, made once per stream."""
        return "data: " + json.dumps(self.fields(), ensure_ascii=False)[:-1] + ',"choices":['


def usage(generation: Generation) -> dict[str, Any]:
    """Tokens of the prompts, each counted once, and of all choices that ran."""
    prompt, completion = generation.prompt_tokens, generation.generated_tokens
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": generation.cached_tokens},
    }


def usage_tail(generation: Generation) -> str:
    """The end of an event, after its list of choices: the usage as of now."""
    return f'],"usage":{json.dumps(usage(generation))}}}\n\n'


def finite(logprob: float) -> float:
    """OpenAI's number for what is impossible: JSON has no infinity."""
    return logprob if math.isfinite(logprob) else -9999.0


def chat_logprobs(
    tokenizer: Tokenizer, ids: Sequence[int], entries: Sequence[TokenLogprobs]
) -> dict[str, Any]:
    """`logprobs` of a chat's choice: per token its text, bytes and alternatives."""
    return {
        "content": [
            {
                **_token(tokenizer, token_id, entry.logprob),
                "top_logprobs": [
                    _token(tokenizer, other, logprob)
                    for other, logprob in zip(entry.top_ids, entry.top_logprobs, strict=True)
                ],
            }
            for token_id, entry in zip(ids, entries, strict=True)
        ],
        "refusal": None,
    }


def _token(tokenizer: Tokenizer, token_id: int, logprob: float) -> dict[str, Any]:
    raw = tokenizer.token_bytes(token_id)
    return {
        "token": raw.decode(errors="replace"),
        "logprob": finite(logprob),
        "bytes": list(raw),
    }


@dataclass(slots=True)
class CompletionLogprobs:
    """`logprobs` of a completion, which also tells where each token begins in the text."""

    tokenizer: Tokenizer
    offset: int = 0
    tokens: list[str] = field(default_factory=list)
    token_logprobs: list[float | None] = field(default_factory=list)
    top_logprobs: list[dict[str, float] | None] = field(default_factory=list)
    text_offset: list[int] = field(default_factory=list)

    def add(self, token_id: int, entry: TokenLogprobs | None) -> None:
        """Append a token; the first of an echoed prompt has no log-probability."""
        text = self.tokenizer.token_text(token_id)
        self.tokens.append(text)
        self.text_offset.append(self.offset)
        self.offset += 0 if self.tokenizer.is_special(token_id) else len(text)
        if entry is None:
            self.token_logprobs.append(None)
            self.top_logprobs.append(None)
            return
        self.token_logprobs.append(finite(entry.logprob))
        self.top_logprobs.append(
            {
                self.tokenizer.token_text(other): finite(logprob)
                for other, logprob in zip(entry.top_ids, entry.top_logprobs, strict=True)
            }
        )

    def reply(self) -> dict[str, Any]:
        return {
            "tokens": self.tokens,
            "token_logprobs": self.token_logprobs,
            "top_logprobs": self.top_logprobs,
            "text_offset": self.text_offset,
        }


def best(choices: Sequence[Choice], count: int) -> list[Choice]:
    """The `count` choices with the highest mean log-probability; all, if there are no more."""
    if len(choices) <= count:
        return list(choices)
    return sorted(choices, key=lambda choice: choice.mean_logprob, reverse=True)[:count]
