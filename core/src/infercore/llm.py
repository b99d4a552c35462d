"""Offline use: `LLM(path).generate(prompts)`, without a server."""

import secrets
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeAlias, cast

from infercore.config import EngineConfig
from infercore.engine.request import EngineStats, FinishReason, Output, Request, TokenLogprobs
from infercore.errors import InvalidRequest
from infercore.launch import launch, quiet
from infercore.sampling import MAX_COUNT, SamplingParams
from infercore.text.detokenizer import Detokenizer
from infercore.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

Prompt: TypeAlias = str | Sequence[int]


@dataclass(slots=True)
class Completion:
    """What became of one prompt.

    text: the generated text, without the stop string. token_ids: the generated ids.
    logprobs: one per generated token, prompt_logprobs: one per prompt token (None for the first);
        None unless asked for.
    finish_reason: "stop" (EOS, a stop id or a stop string) or "length".
    """

    prompt_token_ids: list[int]
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] | None = None
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    finish_reason: str = ""


class LLM:
    """A model in this process.

    model: a local folder or a hub id. options: those of `EngineConfig` (dtype, backend,
        max_model_len, threads …). Raises ConfigError, in one of its kinds, if it cannot start.

    A context manager; `close` frees the device. `engine` is the engine itself, `info` its facts.
    """

    def __init__(self, model: str | Path, **options: Any) -> None:
        for limit in ("max_waiting", "max_waiting_tokens"):
            options.setdefault(limit, MAX_COUNT)  # a list of prompts is no overload
        self._launched = launch(EngineConfig(model=str(model), **options), quiet)
        self.engine = self._launched.engine
        self.info = self._launched.info
        self.tokenizer = Tokenizer(Path(self.info.model_path))
        self._next_id = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free the device. Idempotent."""
        self._launched.close()

    @property
    def stats(self) -> EngineStats:
        """The engine's counters since it was built."""
        return self.engine.stats()

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        progress: bool = True,
    ) -> list[Completion]:
        """Complete each prompt; results come in the order of the prompts.

        prompts: texts or lists of token ids, one or many. sampling_params: one for all, or one
            each; None = the defaults. progress: show a bar on standard error if it is a terminal.

        Raises the first RequestError; the other prompts' work is then thrown away.
        """
        batch = _as_batch(prompts)
        params = _one_each(sampling_params, len(batch))
        streams: dict[int, _Stream] = {}
        engine = self.engine
        try:
            for prompt, sampling in zip(batch, params, strict=True):
                stream = _Stream(self.tokenizer, self._token_ids(prompt), sampling)
                self._next_id += 1
                engine.add(stream.request(self._next_id))
                streams[self._next_id] = stream
            self._run(streams, progress)
        except BaseException:
            for request_id in streams:
                engine.abort(request_id)
            while engine.has_work:
                engine.step()
            raise
        return [stream.completion for stream in streams.values()]

    def _token_ids(self, prompt: Prompt) -> list[int]:
        return self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)

    def _run(self, streams: dict[int, "_Stream"], progress: bool) -> None:
        engine = self.engine
        with _bar() if progress else nullcontext() as bar:
            task = bar.add_task("Generating", total=len(streams)) if bar is not None else None
            while engine.has_work:
                for output in engine.step():
                    stream = streams.get(output.request_id)
                    if stream is None or stream.ended:
                        continue
                    if not stream.take(output):
                        continue
                    if output.finish_reason is None:  # a stop string: the engine does not know
                        engine.abort(output.request_id)
                    if bar is not None and task is not None:
                        bar.advance(task)


class _Stream:
    """One prompt on its way: its request, its detokenizer, its completion so far."""

    def __init__(
        self, tokenizer: Tokenizer, prompt_ids: list[int], sampling: SamplingParams
    ) -> None:
        self.completion = Completion(prompt_ids)
        if sampling.logprobs is not None:
            self.completion.logprobs = []
        self.ended = False
        self._sampling = sampling
        self._detokenizer = Detokenizer(tokenizer, prompt_ids, stop=sampling.stop)

    def request(self, request_id: int) -> Request:
        sampling = self._sampling
        if sampling.seed is None:
            sampling = replace(sampling, seed=secrets.randbits(64))
        return Request(
            request_id, self.completion.prompt_token_ids, sampling, arrival=time.monotonic()
        )

    def take(self, output: Output) -> bool:
        """Add what a step brought. True once this prompt is done. Raises its RequestError."""
        if output.error is not None:
            raise output.error
        done = self.completion
        before = self._detokenizer.num_tokens
        done.text += self._detokenizer.push(output.token_ids)
        new = self._detokenizer.num_tokens - before  # fewer, if a stop string ended in between
        done.token_ids += output.token_ids[:new]
        if done.logprobs is not None and output.logprobs is not None:
            done.logprobs += output.logprobs[:new]
        if output.prompt_logprobs is not None:
            done.prompt_logprobs = output.prompt_logprobs
        if self._detokenizer.stop_string is not None:
            done.finish_reason = "stop"
        elif output.finish_reason is not None:
            done.text += self._detokenizer.flush()
            length = output.finish_reason is FinishReason.LENGTH
            stopped = self._detokenizer.stop_string is not None
            done.finish_reason = "length" if length and not stopped else "stop"
        self.ended = done.finish_reason != ""
        return self.ended


def _as_batch(prompts: Prompt | Sequence[Prompt]) -> Sequence[Prompt]:
    if isinstance(prompts, str):
        return [prompts]
    if len(prompts) > 0 and isinstance(prompts[0], int):
        return [cast("Sequence[int]", prompts)]
    return cast("Sequence[Prompt]", prompts)


def _one_each(
    params: SamplingParams | Sequence[SamplingParams] | None, count: int
) -> Sequence[SamplingParams]:
    if params is None or isinstance(params, SamplingParams):
        return [params or SamplingParams()] * count
    if len(params) != count:
        raise InvalidRequest(
            f"{len(params)} sampling_params for {count} prompts; give one, or one each",
            "sampling_params",
        )
    return params


def _bar() -> "Bar":
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, disable=not console.is_terminal)
