"""Bodies of TGI's routes, and what their parameters mean to the core."""

from typing import Any

from pydantic import Field

from infercore.errors import InvalidRequest
from infercore.sampling import SamplingParams
from infercore.watermark import Watermark
from infercore_api.router.validation import Body, Limits


class Parameters(Body):
    """TGI's generation parameters; their defaults are TGI's."""

    best_of: int = 1
    temperature: float = 1.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    typical_p: float = 1.0
    do_sample: bool = False
    max_new_tokens: int | None = None
    return_full_text: bool | None = None
    stop: list[str] = Field(default_factory=list)
    truncate: int | None = None
    watermark: bool = False
    details: bool = False
    decoder_input_details: bool = False
    seed: int | None = None
    top_n_tokens: int = 0
    grammar: Any = None
    adapter_id: str | None = None

    @property
    def sampled(self) -> bool:
        """An explicit `do_sample` decides; without it, any sampling parameter asks for sampling."""
        if "do_sample" in self.model_fields_set:
            return self.do_sample
        asking = {"temperature", "top_k", "top_p", "typical_p"}
        return not asking.isdisjoint(self.model_fields_set)

    def check(self, inputs: str, limits: Limits, *, stream: bool) -> None:
        """Refuse what breaks a rule, in TGI's order and words."""
        limits.check_best_of(self.best_of)
        if stream and self.best_of > 1:
            _refuse("best_of", "`best_of` != 1 is not supported when streaming tokens")
        if self.best_of > 1 and not self.sampled:
            _refuse("best_of", "you must use sampling when `best_of` is > 1")
        self._check_ranges()
        limits.check_repetition(self.repetition_penalty)
        limits.check_stop(self.stop)
        if self.best_of > 1 and self.seed is not None:
            _refuse("seed", "`seed` must not be set when `best_of` > 1")
        limits.check_top_n(self.top_n_tokens)
        if not inputs:
            _refuse("inputs", "`inputs` cannot be empty")
        if self.truncate is not None and not 0 < self.truncate <= limits.input_len:
            _refuse(
                "truncate",
                f"`truncate` must be strictly positive and less than {limits.input_len}. "
                f"Given: {self.truncate}",
            )
        if self.decoder_input_details:
            if stream:
                _refuse(
                    "decoder_input_details",
                    "`decoder_input_details` == true is not supported when streaming tokens",
                )
            limits.check_prompt_logprobs("decoder_input_details")
        limits.mark(self.watermark)
        for name in ("grammar", "adapter_id"):
            if getattr(self, name):
                _refuse(name, f"{name} is not supported by this server yet")

    def _check_ranges(self) -> None:
        given = self.model_fields_set
        for name, holds, rule in (
            ("temperature", self.temperature > 0, "must be strictly positive"),
            ("repetition_penalty", self.repetition_penalty > 0, "must be strictly positive"),
            (
                "frequency_penalty",
                -2.0 <= self.frequency_penalty <= 2.0,
                "must be >= -2.0 and <= 2.0",
            ),
            ("top_p", 0 < self.top_p < 1, "must be > 0.0 and < 1.0"),
            ("typical_p", 0 < self.typical_p < 1, "must be > 0.0 and < 1.0"),
            ("top_k", self.top_k > 0, "must be strictly positive"),
            ("max_new_tokens", (self.max_new_tokens or 0) > 0, "must be strictly positive"),
        ):
            if name in given and not holds:
                _refuse(name, f"`{name}` {rule}")

    def sampling(
        self, max_tokens: int, logprobs: int | None, mark: Watermark | None
    ) -> SamplingParams:
        """The core's parameters; those of sampling only if it samples."""
        return SamplingParams(
            temperature=self.temperature if self.sampled else 0.0,
            top_k=self.top_k,
            top_p=self.top_p,
            typical_p=self.typical_p,
            repetition_penalty=self.repetition_penalty,
            frequency_penalty=self.frequency_penalty,
            seed=self.seed,
            max_tokens=max_tokens,
            stop=tuple(self.stop),
            logprobs=logprobs,
            prompt_logprobs=0 if self.decoder_input_details else None,
            watermark=mark,
        )


def _sampled() -> Parameters:
    # TGI's rule: no parameters at all ask for sampling, an empty object for greedy
    return Parameters(do_sample=True)


class GenerateBody(Body):
    """Body of `/generate` and `/generate_stream`."""

    inputs: str
    parameters: Parameters = Field(default_factory=_sampled)


class CompatBody(GenerateBody):
    """Body of `/`."""

    stream: bool = False


def _refuse(param: str, message: str) -> None:
    raise InvalidRequest(message, param)
