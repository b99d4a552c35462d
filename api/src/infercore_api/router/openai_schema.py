"""Bodies of OpenAI's routes, and what their parameters mean to the core."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeAlias, Union

from pydantic import ConfigDict, Field

from infercore.errors import InvalidRequest
from infercore.sampling import SamplingParams
from infercore.watermark import Watermark
from infercore_api.router.validation import (
    MAX_MESSAGES,
    MAX_STOP_TOKEN_IDS,
    Body,
    ExactBody,
    Limits,
)

IGNORED = frozenset(
    {
        "metadata",
        "moderation",
        "parallel_tool_calls",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "reasoning_effort",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
        "verbosity",
    }
)
"""Fields that change nothing about the answer of a served model; published in the docs."""


class StreamOptions(Body):
    """`stream_options`."""

    model_config = ConfigDict(strict=True, extra="forbid")

    include_usage: bool = False
    continuous_usage_stats: bool = False
    include_obfuscation: Literal[False] = False


class OpenAIBody(ExactBody):
    """What chats and completions have in common."""

    IGNORED: ClassVar[frozenset[str]] = IGNORED

    model: str = ""
    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    n: int = 1
    stream: bool = False
    stream_options: StreamOptions = Field(default_factory=StreamOptions)
    stop: str | list[str] = Field(default_factory=list)
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[str, float] = Field(default_factory=dict)
    # beyond OpenAI's, as other servers spell them
    top_k: int = 0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    min_tokens: int = 0
    ignore_eos: bool = False
    stop_token_ids: list[int] = Field(default_factory=list)
    include_stop_str_in_output: bool = False
    watermark: bool = False

    @property
    def stops(self) -> list[str]:
        """`stop`, as a list."""
        return [self.stop] if isinstance(self.stop, str) else self.stop

    def check(self, limits: Limits) -> None:
        """Refuse what is out of the server's limits; ranges are SamplingParams' to check."""
        limits.check_choices(self.n)
        limits.check_stop(self.stops)
        limits.check_bias(self._bias())
        limits.check_repetition(self.repetition_penalty)
        limits.check_count(len(self.stop_token_ids), MAX_STOP_TOKEN_IDS, "stop_token_ids")
        limits.check_ids(self.stop_token_ids, "stop_token_ids")
        limits.mark(self.watermark)

    def _bias(self) -> dict[int, float]:
        try:
            return {int(token): value for token, value in self.logit_bias.items()}
        except ValueError as error:
            raise InvalidRequest(
                f"`logit_bias`: its keys must be token ids ({error})", "logit_bias"
            ) from error

    def _seed(self) -> int | None:
        # OpenAI's seeds are signed 64-bit integers, the core's are unsigned
        return self.seed + 2**64 if self.seed and -(2**63) <= self.seed < 0 else self.seed

    def sampling(
        self,
        max_tokens: int,
        logprobs: int | None,
        mark: Watermark | None,
        prompt_logprobs: int | None = None,
    ) -> SamplingParams:
        """The core's parameters. Raises InvalidRequest for a value out of range."""
        return SamplingParams(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            typical_p=self.typical_p,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            frequency_penalty=self.frequency_penalty,
            presence_penalty=self.presence_penalty,
            logit_bias=self._bias(),
            seed=self._seed(),
            max_tokens=max_tokens,
            min_tokens=self.min_tokens,
            stop=tuple(self.stops),
            stop_token_ids=tuple(self.stop_token_ids),
            ignore_eos=self.ignore_eos,
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
            watermark=mark,
        )


class TextPart(Body):
    """A part of a message's content."""

    type: Literal["text"]
    text: str


class Message(Body):
    """A chat message; further keys are the template's to read."""

    model_config = ConfigDict(strict=True, extra="allow", protected_namespaces=())

    role: str
    content: str | list[TextPart] = ""

    def for_template(self) -> dict[str, Any]:
        """As templates expect it: they know `system`, not the newer `developer`."""
        message = self.model_dump()
        if self.role == "developer":
            message["role"] = "system"
        return message


class ChatBody(OpenAIBody):
    """Body of `/v1/chat/completions`."""

    HARMLESS: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "audio": (),
        "function_call": ("none",),
        "functions": ([],),
        "grammar": (),
        "modalities": (["text"],),
        "prediction": (),
        "response_format": ({"type": "text"},),
        "tool_choice": ("none", "auto"),
        "tool_prompt": (),
        "tools": ([],),
        "web_search_options": (),
    }

    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_completion_tokens: int | None = None
    logprobs: bool = False
    top_logprobs: int = 0
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)

    @property
    def most_tokens(self) -> int | None:
        """`max_completion_tokens`, or `max_tokens` as it was called before."""
        newer = self.max_completion_tokens
        return self.max_tokens if newer is None else newer

    @property
    def num_logprobs(self) -> int | None:
        return self.top_logprobs if self.logprobs else None

    def check(self, limits: Limits) -> None:
        super().check(limits)
        limits.check_top_n(self.top_logprobs, "top_logprobs")
        if self.top_logprobs and not self.logprobs:
            raise InvalidRequest("`top_logprobs` needs `logprobs` to be true", "top_logprobs")


# without `fail_fast` a long list of ids makes an error of each id for each kind that it is not
_FAST = Field(fail_fast=True)
_Ids: TypeAlias = Annotated[list[int], _FAST]
_Prompt: TypeAlias = Union[  # noqa: UP007, pydantic's fields are not hashable, which `|` needs
    str, Annotated[list[str], _FAST], _Ids, Annotated[list[_Ids], _FAST]
]


class CompletionBody(OpenAIBody):
    """Body of `/v1/completions`."""

    HARMLESS: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "grammar": (),
        "response_format": ({"type": "text"},),
        "suffix": ("",),
    }

    prompt: _Prompt
    max_tokens: int | None = 16  # OpenAI's default
    logprobs: int | None = None
    echo: bool = False
    best_of: int | None = None

    @property
    def prompts(self) -> list[str | list[int]]:
        """Each prompt, a text or token ids."""
        given: Any = self.prompt  # checkers disagree about unions of lists
        single = isinstance(given, str) or (len(given) > 0 and isinstance(given[0], int))
        return [given] if single else list(given)

    @property
    def candidates(self) -> int:
        """Sequences that run per prompt."""
        return self.n if self.best_of is None else self.best_of

    def check(self, limits: Limits) -> None:
        super().check(limits)
        limits.check_top_n(self.logprobs or 0, "logprobs")
        if not self.prompts:
            raise InvalidRequest("`prompt` is an empty list; send at least one", "prompt")
        if len(self.prompts) > limits.batch_size:
            raise InvalidRequest(
                f"`prompt` holds {len(self.prompts)} prompts, and at most {limits.batch_size} are "
                "taken",
                "prompt",
            )
        if self.best_of is not None:
            limits.check_best_of(self.best_of)
            if self.best_of < self.n:
                raise InvalidRequest("`best_of` must not be less than `n`", "best_of")
            if self.stream and self.best_of > self.n:
                raise InvalidRequest("`best_of` is not supported in streams", "best_of")
        if self.echo and self.logprobs is not None:
            limits.check_prompt_logprobs("logprobs")
