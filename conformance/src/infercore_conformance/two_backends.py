"""One model on two backends, one after the other, for `infercore conformance diff`.

The second backend reads the text that the first one chose, so both are compared at every token,
whatever the second would have chosen.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from infercore.backend import Backend
from infercore.capabilities import Capabilities
from infercore.errors import ConfigError
from infercore.hub import resolve
from infercore.launch import require_architecture
from infercore.model_folder import read_config
from infercore.model_spec import ModelSpec
from infercore.models.registry import ModelRegistry
from infercore.step import Float32, StepResult
from infercore.text.tokenizer import Tokenizer
from infercore_conformance.divergence import (
    Divergence,
    Place,
    Reading,
    distance,
    first_difference,
    kl_divergence,
)
from infercore_conformance.layer_tap import LayerTap
from infercore_conformance.models import families
from infercore_conformance.running import MAX_LENGTH, Running, config_for, quiet
from infercore_conformance.steps import Row
from infercore_conformance.subject import Subject
from infercore_conformance.tolerances import logprobs_bound

STEP_SECONDS = 600.0  # for one step of a large model on a slow device
DRAWN = (5, 17, 40)  # lengths of the prompts where none is given


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two backends, one model, and what to compute. prompts: token ids."""

    subjects: tuple[Subject, Subject]
    model: str
    folder: Path
    spec: ModelSpec
    dtype: str
    prompts: tuple[tuple[int, ...], ...]
    tokens: int

    @classmethod
    def open(
        cls,
        backends: Sequence[str],
        model: str,
        dtype: str | None,
        texts: Sequence[str],
        tokens: int,
    ) -> "Comparison":
        """texts: prompts; none = drawn ids. Raises ConfigError, in one of its kinds."""
        if len(backends) != 2:
            raise ConfigError(f"two backends are compared, and {len(backends)} were named")
        folder = resolve(model, None, progress=quiet).path
        spec = ModelRegistry(families()).build(read_config(folder))
        first, second = (Subject.open(name) for name in backends)
        for subject in (first, second):
            require_architecture(subject.name, spec, subject.capabilities)
        dtype = _common_dtype(first, second, dtype)
        prompts = _prompts(folder, spec, texts)
        made = cls((first, second), model, folder, spec, dtype, prompts, tokens)
        for subject in made.subjects:
            made.require_room(subject)
        return made

    def require_room(self, subject: Subject) -> None:
        """Raises ConfigError for a prompt that is no single step, or too long with its tokens."""
        config = config_for(subject.capabilities, **self.overrides(subject.capabilities))
        longest = max(len(prompt) for prompt in self.prompts)
        most = min(config.max_batch_tokens, config.max_model_len - self.tokens)
        if longest > most:
            raise ConfigError(
                f"a prompt is {longest} tokens long, and with {self.tokens} more behind it at most "
                f"{most} can be compared on {subject.name}; shorten it, or lower --tokens"
            )

    def overrides(self, can: Capabilities) -> dict[str, str | int]:
        """Fields of ExecutorConfig. The cache is in the compute dtype where it can be."""
        same = "auto" in can.kv_dtypes or self.dtype in can.kv_dtypes
        length = min(MAX_LENGTH, self.spec.max_position)
        kv_dtype = self.dtype if same else can.kv_dtypes[0]
        return {"dtype": self.dtype, "kv_dtype": kv_dtype, "max_model_len": length}

    def run(self) -> Divergence:
        """Load the model on one backend after the other. Raises ConfigError."""
        first = self._read(self.subjects[0], None)
        second = self._read(self.subjects[1], first.tokens)
        kl = kl_divergence(first.logprobs.astype(np.float64), second.logprobs.astype(np.float64))
        chosen = np.stack([first.tokens, second.tokens])
        margins = np.stack([first.margins, second.margins])
        bound = logprobs_bound(self.dtype)
        place = first_difference(chosen, margins, kl, bound)
        return Divergence(
            kl, chosen, margins, place, self._parts(place, first.tokens[place[0]]), bound
        )

    def _read(self, subject: Subject, given: NDArray[np.int64] | None) -> Reading:
        """given: the tokens behind each prompt, in place of the backend's own choices."""
        with self._running(subject) as running:
            rows = [
                list(_answer(running, ids, self.tokens, None if given is None else given[n]))
                for n, ids in enumerate(self.prompts)
            ]
        return Reading(
            np.array([[token for token, _ in row] for row in rows]),
            np.array([[logprobs for _, logprobs in row] for row in rows]),
        )

    def _parts(self, place: Place, tokens: NDArray[np.int64]) -> dict[str, float] | None:
        if not all(issubclass(subject.cls, Backend) for subject in self.subjects):
            return None
        prompt, count = self.prompts[place[0]], place[1] + 1
        length = 1 if place[1] else len(prompt)  # of the last step; padding stands behind
        seen = []
        for subject in self.subjects:
            tap = LayerTap()
            with self._running(tap.on(subject)) as running:
                for _ in _answer(running, prompt, count, tokens):
                    pass
            seen.append({name: state[:length] for name, state in tap.states.items()})
        first, second = seen
        return {name: distance(first[name], second[name]) for name in first}

    @contextmanager
    def _running(self, subject: Subject) -> Iterator[Running]:
        config = config_for(subject.capabilities, **self.overrides(subject.capabilities))
        running = Running.start(subject, self.folder, config)
        try:
            yield running
        finally:
            running.executor.shutdown()


def _common_dtype(first: Subject, second: Subject, wanted: str | None) -> str:
    both = [d for d in first.capabilities.dtypes if d in second.capabilities.dtypes]
    dtype = wanted or ("float32" if "float32" in both else next(iter(both), None))
    if dtype not in both:
        raise ConfigError(
            f"{first.name} and {second.name} do not both compute in {dtype or 'one dtype'}; "
            f"both have {', '.join(both) or 'none'}"
        )
    return dtype


def _prompts(folder: Path, spec: ModelSpec, texts: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    if texts:
        tokenizer = Tokenizer(folder)
        prompts = tuple(tuple(tokenizer.encode(text)) for text in texts)
        if not all(prompts):
            raise ConfigError("a prompt has no tokens; give --prompt a text")
        return prompts
    random = np.random.default_rng(0)
    return tuple(tuple(random.integers(spec.vocab_size, size=length).tolist()) for length in DRAWN)


def _answer(
    running: Running, ids: Sequence[int], tokens: int, given: NDArray[np.int64] | None
) -> Iterator[tuple[int, Float32]]:
    """(chosen token, log-probabilities [V] by id) behind `ids`, and behind each token."""
    running.executor.reset()
    stepper, row = running.stepper(), Row(0, list(ids))
    vocab = running.spec.vocab_size
    for n in range(tokens):
        step = stepper.step([(row, len(row.ids) - row.done)], logprobs=vocab)
        result = running.submit(step).result(STEP_SECONDS)
        chosen = _chosen(result, vocab)
        row.ids.append(chosen if given is None else int(given[n]))
        by_id = np.empty(vocab, np.float32)
        by_id[result.top_ids[0, 0]] = result.top_logprobs[0, 0]
        yield chosen, by_id


def _chosen(result: StepResult, vocab: int) -> int:
    """Raises ConfigError for a result that cannot be compared."""
    if result.n_tokens[0] != 1 or len(np.unique(result.top_ids[0, 0])) != vocab:
        raise ConfigError(
            f"step {result.step_id} has no token with all {vocab} log-probabilities; "
            "infercore conformance run --backend NAME finds the cause"
        )
    return int(result.tokens[0, 0])
