"""Holds a quantized model against the logits that its own tool's weights give.

The checkpoints stand beside the project's root, in ../shared/checkpoints; each folder holds
ref_dequant_fp32.safetensors: prompts, their logits and 16 greedy tokens, by transformers in
float32 over weights that the tool itself dequantized.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from infercore.model_folder import read_config
from infercore.model_spec import ModelSpec
from infercore.models.plugin import register_models
from infercore.models.registry import ModelRegistry
from infercore.quantization import QuantizationMethod
from infercore.worker.loader import CheckpointWeights, open_weights
from infercore.worker.model_runner import ModelRunner
from infercore_cpu.backend import CpuBackend
from stepper import Sequenced, Stepper, executor_config

CHECKPOINTS = Path(__file__).parents[3] / "shared" / "checkpoints"
REFERENCE = "ref_dequant_fp32.safetensors"
BLOCKS = 64


def checkpoint(name: str) -> Path:
    """The folder of a checkpoint; skips the test where it is absent."""
    path = CHECKPOINTS / name
    if not path.is_dir():
        pytest.skip(f"no checkpoint {name} in {CHECKPOINTS}, which is not part of the project")
    return path


def open_quantized(
    path: Path, method: type[QuantizationMethod], *, plain: bool = False
) -> tuple[ModelSpec, CheckpointWeights]:
    """The spec and the weights of a folder. plain: to be quantized while loading."""
    spec = ModelRegistry(register_models()).build(read_config(path))
    return spec, open_weights(path, spec, method({} if plain else spec.quantization))


def run(spec: ModelSpec, weights: CheckpointWeights, dtype: str = "float32") -> ModelRunner:
    """The model on the CPU, computed and cached in `dtype`."""
    backend = CpuBackend()
    backend.configure(executor_config(dtype=dtype, kv_dtype=dtype))
    runner = ModelRunner(backend, spec, weights, backend.config, lambda *_: None)
    runner.allocate([BLOCKS] * len(runner.groups))
    return runner


@torch.inference_mode()
def logits(runner: ModelRunner, ids: list[int]) -> torch.Tensor:
    """[T, V] of one prompt."""
    step = Stepper(runner.groups, BLOCKS).step([(Sequenced(0, ids), len(ids))])
    scores: torch.Tensor = runner.model.head(runner.forward(step).hidden)
    return scores


def prompts(path: Path) -> Iterator[tuple[list[int], torch.Tensor, list[int]]]:
    """(prompt, logits of its tokens, prompt and 16 greedy tokens) of a reference file."""
    reference = load_file(path)
    for name in sorted({key.partition(".")[0] for key in reference}):
        ids, greedy = reference[f"{name}.input_ids"], reference[f"{name}.greedy"]
        yield ids.tolist(), reference[f"{name}.logits"], greedy.tolist()


def largest_difference(runner: ModelRunner, reference: Path) -> float:
    """Over all prompts; the greedy tokens must be the same, each after those before it."""
    worst = 0.0
    for ids, expected, greedy in prompts(reference):
        scores = logits(runner, greedy[:-1])
        assert scores[len(ids) - 1 :].argmax(-1).tolist() == greedy[len(ids) :]
        worst = max(worst, (scores[: len(ids)] - expected).abs().max().item())
    return worst
