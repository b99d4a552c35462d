"""Limits: the one table that every front end checks a request against, and the steps around it."""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, model_validator

from infercore.engine.info import EngineInfo
from infercore.errors import InvalidRequest
from infercore.watermark import Watermark
from infercore_api.router.options import RouterOptions

T = TypeVar("T")


class Body(BaseModel):
    """A request body: exact types, unknown fields ignored, and null is the same as absent."""

    model_config = ConfigDict(strict=True, extra="ignore", protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        for name, value in data.items():
            _check_value(str(name), value)
        return {name: value for name, value in data.items() if value is not None}


class ExactBody(Body):
    """A body in which a field that is not known is refused by name.

    IGNORED: fields that change nothing about the answer of a served model.
    HARMLESS: {field that is not served: values that change nothing}.
    """

    model_config = ConfigDict(strict=True, extra="forbid", protected_namespaces=())
    IGNORED: ClassVar[frozenset[str]] = frozenset()
    HARMLESS: ClassVar[Mapping[str, tuple[Any, ...]]] = {}

    @model_validator(mode="before")
    @classmethod
    def _drop_harmless(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        kept = {}
        for name, value in data.items():
            harmless = cls.HARMLESS.get(name)
            if name in cls.IGNORED or value is None or (harmless is not None and value in harmless):
                continue
            if harmless is not None:
                raise InvalidRequest(f"`{name}` is not supported by this server yet", name)
            kept[name] = value
        return kept


MAX_STOP_LENGTH = 1000  # characters; a table is made of each, where nothing else may take long
MAX_STOP_TOKEN_IDS = 128
MAX_LOGIT_BIAS = 1024  # entries; OpenAI has taken 300
LARGEST_BIAS = 100.0  # OpenAI's range
LEAST_REPETITION_PENALTY = 1e-30  # a score divided by less need not fit into float32
MAX_MESSAGES = 2048  # of a chat; each is validated on the event loop
MAX_DEPTH = 64  # of lists and objects in one field; what walks them later may recurse


_LEAVES = frozenset({int, float, bool, type(None)})  # left out early: prompts may be all ids


def _check_value(name: str, value: Any) -> None:
    """Refuse, level by level, what is nested too deeply and texts that are no Unicode."""
    level = [name, value]
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for item in level:
            if isinstance(item, str):
                _check_text(name, item)
            elif isinstance(item, dict):
                below += [*item, *item.values()]
            elif isinstance(item, list):
                below += [each for each in item if type(each) not in _LEAVES]
        if not below:
            return
        level = below
    raise InvalidRequest(f"`{name}` is nested deeper than {MAX_DEPTH} levels", name)


def _check_text(name: str, text: str) -> None:
    try:
        text.encode()  # far faster than a look at each character
    except UnicodeEncodeError as error:
        raise InvalidRequest(
            f"`{name}` holds half of a surrogate pair, which is no character", name
        ) from error


@dataclass(frozen=True, slots=True)
class Limits:
    """What a request may ask for; sizes in tokens. `total_len` is prompt and output together.

    watermark: how texts are marked, None where the engine cannot.
    """

    best_of: int
    stop_sequences: int
    top_n_tokens: int
    batch_size: int
    input_len: int
    total_len: int
    vocab_size: int
    prompt_logprobs: bool
    watermark: Watermark | None

    @classmethod
    def of(cls, options: RouterOptions, info: EngineInfo) -> "Limits":
        return cls(
            options.max_best_of,
            options.max_stop_sequences,
            options.max_top_n_tokens,
            options.max_client_batch_size,
            info.max_input_len,
            info.max_model_len,
            info.vocab_size,
            info.prompt_logprobs,
            options.watermark if info.watermark else None,
        )

    def check_best_of(self, best_of: int) -> None:
        if not 0 < best_of <= self.best_of:
            raise InvalidRequest(
                f"`best_of` must be > 0 and <= {self.best_of}. Given: {best_of}", "best_of"
            )

    def check_stop(self, stop: Sequence[str], param: str = "stop") -> None:
        if len(stop) > self.stop_sequences:
            raise InvalidRequest(
                f"`{param}` supports up to {self.stop_sequences} stop sequences. "
                f"Given: {len(stop)}",
                param,
            )
        longest = max(map(len, stop), default=0)
        if longest > MAX_STOP_LENGTH:
            raise InvalidRequest(
                f"`{param}`: a stop sequence may have up to {MAX_STOP_LENGTH} characters. "
                f"Given: {longest}",
                param,
            )

    def check_count(self, count: int, most: int, param: str) -> None:
        """Refuse a field with more entries than `most`, one of this module's numbers."""
        if count > most:
            raise InvalidRequest(f"`{param}` takes up to {most} entries. Given: {count}", param)

    def check_top_n(self, count: int, param: str = "top_n_tokens") -> None:
        if not 0 <= count <= self.top_n_tokens:
            raise InvalidRequest(
                f"`{param}` must be >= 0 and <= {self.top_n_tokens}. Given: {count}", param
            )

    def check_choices(self, count: int) -> None:
        if not 0 < count <= self.batch_size:
            raise InvalidRequest(f"`n` must be > 0 and <= {self.batch_size}. Given: {count}", "n")

    def check_ids(self, ids: Iterable[int], param: str) -> None:
        for token_id in ids:
            if not 0 <= token_id < self.vocab_size:
                raise InvalidRequest(
                    f"`{param}`: {token_id} is not a token id; the vocabulary has "
                    f"{self.vocab_size}",
                    param,
                )

    def check_bias(self, bias: Mapping[int, float]) -> None:
        self.check_count(len(bias), MAX_LOGIT_BIAS, "logit_bias")
        self.check_ids(bias, "logit_bias")
        for token, value in bias.items():
            if not -LARGEST_BIAS <= value <= LARGEST_BIAS:
                raise InvalidRequest(
                    f"`logit_bias` must be >= -{LARGEST_BIAS:g} and <= {LARGEST_BIAS:g}. "
                    f"Given: {value:g} for token {token}",
                    "logit_bias",
                )

    def check_repetition(self, penalty: float) -> None:
        """Refuse what makes scores overflow; whether it is positive is checked elsewhere."""
        if 0 < penalty < LEAST_REPETITION_PENALTY:
            raise InvalidRequest(
                f"`repetition_penalty` must be >= {LEAST_REPETITION_PENALTY:g}. Given: {penalty:g}",
                "repetition_penalty",
            )

    def check_prompt_logprobs(self, param: str) -> None:
        if not self.prompt_logprobs:
            raise InvalidRequest(
                f"`{param}`: log-probabilities of the prompt are not supported by this engine",
                param,
            )

    def mark(self, wanted: bool) -> Watermark | None:
        """The watermark of a request that wants one. Raises InvalidRequest if there is none."""
        if wanted and self.watermark is None:
            raise InvalidRequest("`watermark`: this engine's backend marks no texts", "watermark")
        return self.watermark if wanted else None

    def fit(
        self, num_prompt: int, max_tokens: int | None, param: str = "inputs", name: str = ""
    ) -> int:
        """The most tokens to generate after `num_prompt`; all that fit if None were asked for.

        param, name: the fields that hold the prompt and `max_tokens`.
        """
        name = name or ("max_new_tokens" if param == "inputs" else "max_tokens")
        if num_prompt == 0:
            raise InvalidRequest(f"`{param}` cannot be empty", param)
        if max_tokens is not None and num_prompt + max_tokens > self.total_len:
            raise InvalidRequest(
                f"`{param}` tokens + `{name}` must be <= {self.total_len}. Given: {num_prompt} "
                f"`{param}` tokens and {max_tokens} `{name}`",
                name,
            )
        if num_prompt > min(self.input_len, self.total_len - 1):
            raise InvalidRequest(
                f"`{param}` must have less than {self.input_len} tokens. Given: {num_prompt}",
                param,
            )
        return self.total_len - num_prompt if max_tokens is None else max_tokens


class Workers:
    """The threads that tokenize and render, so that the event loop does neither."""

    def __init__(self, count: int) -> None:
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="validation")

    async def run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
