"""Perplexity of a text under a model, and how far its predictions are from another model's.

perplexity = exp(−mean log p(token | those before it in its window)), in natural logarithms.
KL = mean over the same places of Σ p_other (log p_other − log p), in nats.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from infercore.backend import Backend
from infercore.config import EngineConfig
from infercore.errors import ConfigError, HardwareUnavailable, UnsupportedModel
from infercore.executor import Progress
from infercore.launch import executor_config, quiet
from infercore.plugins import PluginManager
from infercore.worker.model_runner import ModelRunner
from infercore_quantization.produce.opening import Opened
from infercore_quantization.produce.windows import Int64, blocks_of, one_sequence

TILE = 256  # places whose logits are held at once


@dataclass(frozen=True, slots=True)
class Scores:
    """What was measured. tokens: those predicted. seconds: of both models' passes.

    kl: in nats per token, None without another model to compare with.
    """

    perplexity: float
    tokens: int
    seconds: float
    kl: float | None = None


class Scorer:
    """A model on a backend, which scores one window of at most `length` tokens at a time."""

    def __init__(self, opened: Opened, config: EngineConfig, length: int) -> None:
        backend = _backend(config.backend)
        config = replace(config, max_model_len=length, max_num_seqs=1, max_batch_tokens=length)
        options = executor_config(config, opened.spec, backend.capabilities())
        backend.configure(options)
        self.vocab_size = opened.spec.vocab_size
        self._runner = ModelRunner(backend, opened.spec, opened.weights, options, quiet)
        opened.weights.release()
        self._runner.allocate([blocks_of(group, length) for group in self._runner.groups])

    def hidden(self, window: Int64) -> Tensor:
        """int64[T] → hidden states [T, E], from which `logprobs` predicts."""
        runner = self._runner
        plans = [
            cache.plan(one_sequence(group, len(window), runner.device))
            for group, cache in zip(runner.groups, runner.caches, strict=True)
        ]
        ids = torch.from_numpy(window).to(runner.device)
        positions = torch.arange(len(window), device=runner.device)
        hidden: Tensor = runner.model(ids, positions, plans)
        return hidden

    def logprobs(self, hidden: Tensor) -> Tensor:
        """[S, E] → float32 [S, V], on the host."""
        return torch.log_softmax(self._runner.model.head(hidden), dim=-1).cpu()


@torch.inference_mode()
def evaluate(
    model: Scorer, windows: Sequence[Int64], against: Scorer | None, progress: Progress
) -> Scores:
    """Score the windows. Raises ConfigError if there is nothing to predict, or no common tokens."""
    if not windows:
        raise ConfigError("the text has fewer than two tokens; give a longer one")
    if against is not None and against.vocab_size != model.vocab_size:
        raise ConfigError(
            f"the models have {model.vocab_size} and {against.vocab_size} tokens, so their "
            "predictions cannot be compared; name two forms of one model"
        )
    start, loss, divergence, count = time.perf_counter(), 0.0, 0.0, 0
    for done, window in enumerate(windows):
        progress("evaluate", done, len(windows))
        hidden = model.hidden(window)
        other = None if against is None else against.hidden(window)
        targets = torch.from_numpy(window[1:])
        for at in range(0, len(targets), TILE):
            tile = slice(at, min(at + TILE, len(targets)))
            predicted = model.logprobs(hidden[tile])
            loss -= predicted.gather(1, targets[tile, None]).double().sum().item()
            if against is not None and other is not None:
                reference = against.logprobs(other[tile])
                divergence += (reference.exp() * (reference - predicted)).double().sum().item()
        count += len(targets)
    progress("evaluate", len(windows), len(windows))
    seconds = time.perf_counter() - start
    kl = None if against is None else divergence / count
    return Scores(_exp(loss / count), count, seconds, kl)


def _exp(nats: float) -> float:
    """e^nats, infinite beyond what a float holds."""
    return math.exp(nats) if nats < 700 else math.inf


def _backend(name: str) -> Backend:
    built = PluginManager().backend(name)
    probe = built.probe()
    if not probe.available:
        raise HardwareUnavailable(f"backend {name} cannot run here: {probe.reason}")
    backend = built()
    if not isinstance(backend, Backend):
        raise UnsupportedModel(
            f"backend {name} runs models of its own, whose logits cannot be asked for at every "
            "place; evaluate with --backend cpu"
        )
    return backend
