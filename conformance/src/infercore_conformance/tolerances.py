"""How far two correct computations of the same number may be apart, by compute dtype.

Bounds on |difference| of log-probabilities of this suite's tiny models, whose values lie between
about −15 and 0. float32: rounding of 10⁻⁷ grows by the depth and the length of sums, with a factor
of a hundred to spare. The 16-bit dtypes: their rounding step (2⁻¹¹, 2⁻⁸) on hidden states of
size 1, over two to four layers.
"""

from collections.abc import Mapping

LOGPROBS: Mapping[str, float] = {"float32": 1e-3, "float16": 5e-2, "bfloat16": 4e-1}


def logprobs_bound(dtype: str) -> float:
    """The widest there is, for a dtype that this suite does not know."""
    return LOGPROBS.get(dtype, max(LOGPROBS.values()))
