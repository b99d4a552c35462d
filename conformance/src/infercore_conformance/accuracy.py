"""How near to its float32 definition an operation's result is to be, by compute dtype.

The error is max |found − expected| / max |expected| of one tensor. Inputs are numbers that every
dtype holds, so that the rest is the operation's own rounding.

ERROR: four roundings (2⁻¹¹ and 2⁻⁸) of the 16-bit dtypes, since an operation rounds its result, and
at most a few things on the way. float32: sums of up to some thousand terms, in any order, and
exponentials that are right to a few last places; TF32 or bfloat16 products are not float32.
ERROR_INT8: of products where activations are rounded to 8 bits per token and group, as declared.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from infercore_conformance.fixtures import Numerics

if TYPE_CHECKING:
    from torch import Tensor

ERROR: Mapping[str, float] = {"float32": 1e-5, "float16": 4 * 2**-11, "bfloat16": 4 * 2**-8}
ERROR_INT8 = 5e-2
# of a KV cache that is narrower than activations: four roundings too
ERROR_KV: Mapping[str, float] = {**ERROR, "float8_e4m3fn": 4 * 2**-4, "float8_e5m2": 4 * 2**-3}


def error_bound(dtype: str, kv_dtype: str | None = None) -> float:
    """The wider of the two; the widest there is, for a dtype that this suite does not know."""
    bound = ERROR.get(dtype, max(ERROR.values()))
    if kv_dtype is None:
        return bound
    return max(bound, ERROR_KV.get(kv_dtype, max(ERROR_KV.values())))


def relative_error(found: "Tensor", expected: "Tensor") -> float:
    """max |found − expected| / max |expected|, not a number where `found` holds one that is none.

    Raises AssertionError where the shapes differ.
    """
    assert found.shape == expected.shape, (
        f"the result is {list(found.shape)} instead of {list(expected.shape)}"
    )
    wide, reference = found.detach().cpu().double(), expected.double()
    return float((wide - reference).abs().max() / reference.abs().max())


class Accuracy:
    """Holds a device's results against expected ones, and reports the worst error."""

    def __init__(self, numerics: Numerics, dtype: str, bound: float | None = None) -> None:
        """dtype: names the figure. bound: that of the dtype by default."""
        self._numerics = numerics
        self._name = f"{dtype}.error"
        self._bound = error_bound(dtype) if bound is None else bound

    def check(self, found: "Tensor", expected: "Tensor", case: str) -> None:
        """expected: on the host. case: what was computed, for the message."""
        try:
            error = relative_error(found, expected)
            self._numerics.record(self._name, error, self._bound)
        except AssertionError as failure:
            failure.add_note(f"of {case}")
            raise
