"""Steps and results survive their way through one flat buffer."""

from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infercore.sampling import SamplingParams
from infercore.step import SlotInit, Step, StepResult
from infercore.step_codec import decode_result, decode_step, encode_result, encode_step
from infercore.watermark import Watermark

INF = float("inf")


def assert_same(one: Any, other: Any) -> None:
    """Equal in every field; arrays in dtype and shape too."""
    assert type(one) is type(other)
    if isinstance(one, np.ndarray):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        np.testing.assert_array_equal(one, other)
    elif is_dataclass(one):
        for field in fields(one):
            assert_same(getattr(one, field.name), getattr(other, field.name))
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, tuple):
        assert len(one) == len(other)
        for mine, theirs in zip(one, other, strict=True):
            assert_same(mine, theirs)
    else:
        assert one == other


def random_step(seed: int, tokens: int, rows: int, groups: int, width: int) -> Step:
    random = np.random.default_rng(seed)

    def ints(*shape: int) -> Any:
        return random.integers(-(2**31), 2**31, shape).astype(np.int32)

    sampling = SamplingParams(
        temperature=0.3, seed=2**64 - 1, logit_bias={5: -INF, 7: 0.25}, stop=("é\n",), logprobs=3,
        watermark=Watermark(2**64 - 1, 0.25, 1.5) if seed % 2 else None,
    )  # fmt: skip
    init = SlotInit(3, sampling, ints(tokens), ints(2), ints(0), min_position=9)
    return Step(
        step_id=seed,
        token_ids=ints(tokens),
        token_source=ints(tokens),
        positions=ints(tokens),
        slot_mapping=ints(groups, tokens),
        prompt_targets=ints(tokens),
        slots=ints(rows),
        query_start=ints(rows + 1),
        context_len=ints(rows),
        block_table=ints(groups, rows, width),
        sample=random.integers(0, 2, rows).astype(np.bool_),
        seeds=random.integers(0, 2**64, rows, np.uint64),
        sample_positions=ints(rows),
        adapter=ints(rows),
        num_logprobs=ints(rows),
        max_tokens=ints(rows),
        slot_init=(init,) * (seed % 3),
        fresh_blocks=tuple(ints(g + seed % 2) for g in range(groups)),
        late=bool(seed % 2),
        extras={"masks": random.integers(0, 2**32, (rows, 3), np.uint32)} if seed % 4 == 3 else {},
    )


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**40), st.integers(0, 70), st.integers(0, 9), st.integers(1, 3),
    st.integers(0, 5),
)  # fmt: skip
def test_a_step_comes_back_whole(
    seed: int, tokens: int, rows: int, groups: int, width: int
) -> None:
    step = random_step(seed, tokens, rows, groups, width)
    assert_same(decode_step(encode_step(step)), step)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 99), st.integers(0, 9), st.integers(1, 4), st.integers(0, 3), st.booleans())
def test_a_result_comes_back_whole(
    seed: int, rows: int, most: int, shown: int, with_prompt: bool
) -> None:
    random = np.random.default_rng(seed)
    result = StepResult(
        seed,
        random.integers(0, 99, (rows, most)).astype(np.int32),
        random.integers(0, most + 1, rows).astype(np.int32),
        random.integers(0, 5, rows).astype(np.uint8),
        random.random((rows, most), np.float32),
        random.integers(0, 99, (rows, most, shown)).astype(np.int32),
        random.random((rows, most, shown), np.float32),
        seconds={"forward": 0.25, "sample": 1e-9},
    )
    if with_prompt:
        result.prompt_logprobs = random.random(seed, np.float32)
        result.prompt_top_ids = random.integers(0, 9, (seed, shown)).astype(np.int32)
        result.prompt_top_logprobs = random.random((seed, shown), np.float32)
    assert_same(decode_result(encode_result(result)), result)


def test_decoding_copies_nothing_and_its_arrays_cannot_be_written() -> None:
    buffer = encode_step(random_step(3, 8, 2, 1, 4))
    step = decode_step(buffer)
    assert not step.positions.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        step.positions[0] = 1


def test_a_cut_buffer_is_refused() -> None:
    buffer = encode_step(random_step(2, 8, 2, 1, 4))
    with pytest.raises(ValueError, match="buffer"):
        decode_step(buffer[: len(buffer) // 2])


def test_every_array_of_the_contract_is_in_the_buffer() -> None:
    """A field that is added to Step or StepResult must be added to the tables too."""
    step = decode_step(encode_step(random_step(7, 5, 2, 2, 3)))
    for field in fields(Step):
        assert getattr(step, field.name) is not None
