"""Every format, cut for several ranks: groups, blocks and scales that a cut goes through."""

import pytest

from infercore.hub import demo_path
from infercore.quantization import QuantizationMethod
from infercore_quantization.bitsandbytes import Bitsandbytes
from infercore_quantization.compressed_tensors import CompressedTensors
from infercore_quantization.fp8 import Fp8Format
from infercore_quantization.on_load import Int4, Nf4
from rank_runs import assert_same, running, said
from reference_logits import checkpoint, open_quantized

STORED: dict[str, type[QuantizationMethod]] = {
    "bnb-nf4": Bitsandbytes,
    "bnb-int8": Bitsandbytes,
    "compressed-tensors": CompressedTensors,
    "fp8": CompressedTensors,
}
ON_LOAD: list[type[QuantizationMethod]] = [Nf4, Int4, Fp8Format]


@pytest.mark.parametrize(
    ("name", "method"),
    [*STORED.items(), *(("base", method) for method in ON_LOAD)],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_ranks_say_what_one_says(name: str, method: type[QuantizationMethod]) -> None:
    """8 heads over 2 ranks, and over 4, where 2 ranks each hold the same of 2 KV heads."""
    _, weights = open_quantized(checkpoint(name), method, plain=name == "base")
    base = checkpoint("base")  # of the same sizes
    with running(base, 1, lambda _: weights) as executor:
        expected = said(executor, (5, 40), tokens=6)
    for ranks in (2, 4):
        with running(base, ranks, lambda _: weights) as executor:
            assert_same(expected, said(executor, (5, 40), tokens=6))


@pytest.mark.slow
@pytest.mark.parametrize("method", [Nf4, Int4], ids=lambda method: method.name)
def test_the_bundled_model_says_it_on_2_ranks(method: type[QuantizationMethod]) -> None:
    """6 heads over 2 ranks."""
    bundled = demo_path()
    _, weights = open_quantized(bundled, method, plain=True)
    with running(bundled, 1, lambda _: weights) as executor:
        expected = said(executor, (5, 40), tokens=6)
    with running(bundled, 2, lambda _: weights) as executor:
        assert_same(expected, said(executor, (5, 40), tokens=6))
