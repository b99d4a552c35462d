"""The suite's own tools: its models and its reference against transformers, its steps by rule."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from infercore.capabilities import Capabilities, Dimension, StaticDimension
from infercore.executor import Bucket, GroupKind, KVGroup
from infercore.sampling import SamplingParams
from infercore.step import NO_SLOT
from infercore_conformance.models import SETTINGS, VOCAB, config_of, served, write_model
from infercore_conformance.padding import padded
from infercore_conformance.reference import Reference
from infercore_conformance.running import config_for, open_model
from infercore_conformance.steps import Row, Stepper, late_inputs, prompt
from step_rules import check_blocks, check_shapes

GROUPS = (
    KVGroup("full", GroupKind.FULL, (0,), 16, 100),
    KVGroup("window", GroupKind.WINDOW, (1,), 16, 100, window=24),
)
CAN = Capabilities(dtypes=("float32",), block_sizes=(16,))


@pytest.mark.parametrize("architecture", SETTINGS)
def test_the_reference_is_transformers(tmp_path: Path, architecture: str) -> None:
    write_model(tmp_path, config_of(architecture))
    family: Any = getattr(transformers, architecture)
    model = family.from_pretrained(tmp_path, dtype=torch.float32, attn_implementation="eager")
    ids = prompt(60)
    with torch.inference_mode():
        expected = model(torch.tensor([ids])).logits[0].log_softmax(-1).numpy()
    found = Reference(*open_model(tmp_path)).logprobs(ids)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    # a model whose choices are ties, or always one token, would prove nothing
    first, second = np.sort(found, axis=-1)[:, [-1, -2]].T
    assert np.median(first - second) > 0.05
    assert len(set(found.argmax(-1).tolist())) > 10


def test_a_model_is_the_same_everywhere_and_another_for_another_seed(tmp_path: Path) -> None:
    files = []
    for name, seed in (("one", 0), ("again", 0), ("other", 1)):
        write_model(tmp_path / name, config_of("LlamaForCausalLM"), seed=seed)
        files.append((tmp_path / name / "model.safetensors").read_bytes())
    assert files[0] == files[1] != files[2]


def test_models_are_those_that_a_backend_serves() -> None:
    assert served(None) == tuple(SETTINGS)
    assert served(("GPT2LMHeadModel", "AcmeForCausalLM")) == ("GPT2LMHeadModel",)


def test_steps_keep_the_rules() -> None:
    stepper = Stepper(GROUPS, 40)
    rows = [Row(0, prompt(50)), Row(3, prompt(20)), Row(1, prompt(7))]
    handed_out: list[set[int]] = [set(), set()]
    for counts in ((30, 20, 3), (20, 1, 4), (1, 1, 1)):
        for row in rows:
            row.ids += [1] * (row.done == len(row.ids))
        step = stepper.step(list(zip(rows, counts, strict=True)), logprobs=2, targets=True)
        check_shapes(step, CAN, len(GROUPS), set())
        check_blocks(step, 16, handed_out, [])


def test_a_rows_start_is_told_once_and_again_after_its_release() -> None:
    stepper = Stepper(GROUPS, 40)
    sampling = SamplingParams(top_k=3)
    row = Row(5, [1, 2, 3, 4], sampling, stop_ids=(9,), min_position=7, prompt=3)
    first, second = stepper.step([(row, 2)]), stepper.step([(row, 2)])
    [init] = first.slot_init
    assert (init.slot, init.sampling, init.min_position) == (5, sampling, 7)
    assert (init.prompt_ids.tolist(), init.output_ids.tolist()) == ([1, 2, 3], [4])
    assert not second.slot_init
    assert (first.sample.tolist(), second.sample.tolist()) == ([False], [True])
    stepper.release(row)
    assert len(stepper.step([(row, 4)]).slot_init) == 1


def test_blocks_before_a_window_are_not_named() -> None:
    stepper, row = Stepper(GROUPS, 40), Row(0, prompt(80))
    stepper.step([(row, 64)])
    full, window = stepper.step([(row, 1)]).block_table[:, 0]
    assert (full > 0).all()
    assert (window > 0).tolist() == [False, False, True, True, True]


def test_a_padded_step_is_the_step_and_padding() -> None:
    step = Stepper(GROUPS, 40).step([(Row(2, prompt(5)), 5), (Row(4, prompt(3)), 3)])
    whole = padded(step, Bucket(16, 4, 3))
    assert (whole.num_tokens, whole.num_rows, whole.block_table.shape) == (16, 4, (2, 4, 3))
    assert whole.query_start.tolist() == [0, 5, 8, 9, 10]
    assert whole.slots.tolist() == [2, 4, NO_SLOT, NO_SLOT]
    assert whole.context_len.tolist() == [5, 3, 1, 1]
    assert not whole.slot_mapping[:, 8:].any()
    assert not whole.block_table[:, 2:].any()
    assert not whole.sample[2:].any()
    for name in ("token_ids", "positions", "slot_mapping"):
        array = getattr(whole, name)
        assert array.flags.c_contiguous
        assert np.array_equal(array[..., :8], getattr(step, name))


def test_masks_have_a_bit_per_token() -> None:
    late = late_inputs(3, drop=[1], allow={2: [0, 33, VOCAB - 1]})
    assert late.rows.tolist() == [2]
    bits = np.unpackbits(late.bitmask.view(np.uint8), bitorder="little")
    assert np.flatnonzero(bits).tolist() == [0, 33, VOCAB - 1]
    assert late.drop.tolist() == [False, True, False]


def test_a_configuration_is_legal_for_what_is_declared() -> None:
    can = Capabilities(
        dtypes=("bfloat16", "float32"),
        kv_dtypes=("float16",),
        block_sizes=(128,),
        static_dimensions=(
            StaticDimension(Dimension.ROWS, 16),
            StaticDimension(Dimension.TOKENS, 64),
        ),
    )
    config = config_for(can, threads=1)
    assert (config.dtype, config.kv_dtype, config.block_size) == ("float32", "float16", 128)
    assert (config.max_num_seqs % 16, config.max_batch_tokens % 64, config.threads) == (0, 0, 1)
    assert config_for(Capabilities(("float16",), (16,))).dtype == "float16"
