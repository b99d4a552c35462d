"""The two operations that core's own attention is made of: writing to a cache, and attending."""

import numpy as np
import pytest

from infercore_conformance import Level, check, thorough
from infercore_conformance.accuracy import Accuracy
from infercore_conformance.device import IS_BACKEND, Device, definition, on_host
from infercore_conformance.fixtures import Numerics
from infercore_conformance.subject import Subject


@check(
    "ops.kv_write",
    "Keys are stored in the rows that are named, head by head, and in no other.",
    level=Level.EXTENDED,
    needs=IS_BACKEND,
)
@pytest.mark.parametrize("least", [1, 7, pytest.param(33, marks=thorough)])
@pytest.mark.parametrize(("heads", "dim"), [(1, 64), (3, 16), pytest.param(8, 80, marks=thorough)])
def test_kv_write(subject: Subject, least: int, heads: int, dim: int) -> None:
    """The cache may have another dtype than what is written; rows are in any order."""
    for device in Device.each(subject):
        tokens = device.tokens(least)
        made = device.normal(20, tokens, heads + 2, dim)
        cache = device.normal(21, 2 * heads * tokens + 3, dim)
        rows = np.random.default_rng(22).permutation(len(cache))[: heads * tokens]
        expected = cache.copy()
        expected[rows] = made[:, :heads].swapaxes(0, 1).reshape(-1, dim)
        for dtype in {device.compute_dtype, device.put(cache).dtype}:
            there = device.put(cache, dtype)
            device.ops.kv_write(there, device.put(rows), device.activations(made)[:, :heads])
            found = there.float().cpu().numpy()
            assert np.array_equal(found, expected), f"a cache in {dtype} holds something else"


@check(
    "ops.attention_tile",
    "Attention of one tile is right: causal, masked or free, with a soft cap and without.",
    level=Level.EXTENDED,
    needs=IS_BACKEND,
)
@pytest.mark.parametrize(
    ("groups", "heads", "queries", "keys", "dim"),
    [(3, 2, 1, 37, 16), (2, 4, 9, 24, 64), pytest.param(1, 8, 70, 200, 128, marks=thorough)],
)
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_attention_tile(
    subject: Subject,
    numerics: Numerics,
    groups: int,
    heads: int,
    queries: int,
    keys: int,
    dim: int,
    softcap: float | None,
) -> None:
    """Heads share keys and values. Causal: query i sees keys 0 to i. The soft cap comes before
    the mask, or what is masked would count. Everything is float32 inside.
    """
    scale = dim**-0.5
    seen = np.arange(keys) <= np.arange(queries)[:, None] + keys - queries
    mask = np.where(seen, np.float32(0), np.float32(-np.inf))
    for device in Device.each(subject):
        accuracy = Accuracy(numerics, device.dtype)
        q = device.normal(23, groups, heads, queries, dim)
        k, v = (device.normal(seed, groups, 1, keys, dim) for seed in (24, 25))
        for name, hidden in (("free", None), ("masked", mask), ("causal", None)):
            causal = name == "causal"
            found = device.ops.attention(
                device.activations(q),
                device.activations(k),
                device.activations(v),
                scale,
                softcap,
                None if hidden is None else device.put(hidden),
                causal,
            )
            expected = definition().attention(
                on_host(q),
                on_host(k),
                on_host(v),
                scale,
                softcap,
                None if hidden is None else on_host(hidden),
                causal,
            )
            assert str(found.dtype) == "torch.float32", f"the result is {found.dtype}"
            accuracy.check(found, expected, f"{name}, soft cap {softcap}")
