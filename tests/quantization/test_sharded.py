"""Every quantized checkpoint says on several ranks what it says on one, act-order included."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from infercore.formats import quantization_method
from infercore.model_folder import ModelFolder
from infercore.models.plugin import register_models
from infercore.models.registry import ModelRegistry
from infercore.plugins import PluginManager
from infercore.worker.loader import open_weights
from infercore.worker.torch_executor import TorchExecutor
from model_runs import BLOCKS, quiet
from packed_files import gptq, packed_folder
from rank_runs import ThreadedBackend, assert_same, said
from reference_logits import checkpoint
from stepper import executor_config

NAMES = (
    "gptq",
    "gptq-desc-act-g32-asym",
    "awq",
    "bnb-nf4",
    "bnb-int8",
    "compressed-tensors",
    "fp8",
)
LENGTHS = (1, 17, 40)


@contextmanager
def running(folder: Path, ranks: int) -> Iterator[TorchExecutor]:
    """The model, its format found as at a start, with a cache, on that many ranks."""
    model = ModelFolder.open(folder)
    spec = ModelRegistry(register_models()).build(model.config)
    spec = replace(spec, quantization=model.quantization())
    method = quantization_method(PluginManager().quantization_methods(), spec, None)
    executor = TorchExecutor(ThreadedBackend())
    try:
        weights = open_weights(folder, spec, method)
        groups = executor.load(spec, weights, executor_config(ranks=ranks), quiet)
        executor.allocate_kv({group.name: BLOCKS for group in groups})
        yield executor
    finally:
        executor.shutdown()


def require_same(folder: Path, ranks: int) -> None:
    with running(folder, 1) as executor:
        whole = said(executor, LENGTHS)
    with running(folder, ranks) as executor:
        assert_same(whole, said(executor, LENGTHS))


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", NAMES)
def test_ranks_together_say_what_one_says(name: str, ranks: int) -> None:
    require_same(checkpoint(name), ranks)


@pytest.mark.parametrize(("ranks", "bits"), [(2, 3), (3, 4)])
def test_groups_that_a_rank_cuts_keep_their_scales(tmp_path: Path, ranks: int, bits: int) -> None:
    """Inputs in any order, in groups of 32 of 48: each rank has a part of every group."""
    rng = np.random.default_rng(2)
    config = {"quant_method": "gptq", "bits": bits, "group_size": 32, "desc_act": True}
    packed_folder(
        tmp_path,
        lambda name, n, k: None if name == "lm_head" else gptq(rng, n, k, bits, act_order=True),
        {**config, "sym": False},
        num_key_value_heads=6,
        intermediate_size=96,
    )
    require_same(tmp_path, ranks)
