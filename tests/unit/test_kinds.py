"""Weight kinds, cut and joined, against a reference that computes one element at a time."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from infercore.errors import UnsupportedModel
from infercore.kinds import Activation, Blocks, Dense, Kind
from infercore.layers.linear import DenseLinear
from kind_cases import MAKERS, Make, make_dense, make_int_grouped, ranges, same, seeds, sizes

makers = pytest.mark.parametrize("make", MAKERS)


@makers
@given(data=st.data(), seed=seeds, n=sizes, k=sizes)
def test_dequantize_equals_the_formula_and_so_does_every_slice(
    make: Make, data: st.DataObject, seed: int, n: int, k: int
) -> None:
    case = make(np.random.default_rng(seed), n, k)
    same(case.kind, case.weight)
    (n0, n1), (k0, k1) = data.draw(ranges(n)), data.draw(ranges(k))
    same(case.kind.slice_n(n0, n1), case.weight[n0:n1])
    same(case.kind.slice_k(k0, k1), case.weight[:, k0:k1])
    part, weight = case.kind.slice_k(k0, k1).slice_n(n0, n1), case.weight[n0:n1, k0:k1]
    (n2, n3), (k2, k3) = data.draw(ranges(n1 - n0)), data.draw(ranges(k1 - k0))
    same(part.slice_n(n2, n3).slice_k(k2, k3), weight[n2:n3, k2:k3])


@makers
@given(data=st.data(), seed=seeds, n=st.integers(3, 13), k=sizes)
def test_slices_along_n_join_to_the_whole(
    make: Make, data: st.DataObject, seed: int, n: int, k: int
) -> None:
    case = make(np.random.default_rng(seed), n, k)
    first, second = sorted(data.draw(st.sets(st.integers(1, n - 1), min_size=2, max_size=2)))
    bounds = [(0, first), (first, second), (second, n)]
    joined = type(case.kind).concat_n([case.kind.slice_n(*bound) for bound in bounds])
    same(joined, case.weight)
    k0, k1 = data.draw(ranges(k))
    same(joined.slice_k(k0, k1), case.weight[:, k0:k1])


@makers
@settings(max_examples=50)
@given(data=st.data(), seed=seeds, rows=st.lists(sizes, min_size=1, max_size=3), k=sizes)
def test_matrices_quantized_apart_join_exactly(
    make: Make, data: st.DataObject, seed: int, rows: list[int], k: int
) -> None:
    """Groups, maps, blocks, scale dtypes and bits may all differ; only tables are shared."""
    rng = np.random.default_rng(seed)
    cases = [make(rng, n, k) for n in rows]
    whole = np.concatenate([case.weight for case in cases])
    joined = type(cases[0].kind).concat_n([case.kind for case in cases])
    same(joined, whole)
    n0, n1 = data.draw(ranges(len(whole)))
    same(joined.slice_n(n0, n1), whole[n0:n1])


@makers
@settings(max_examples=50)
@given(data=st.data(), seed=seeds, experts=st.integers(1, 3), n=sizes, k=sizes)
def test_stacked_experts_slice_and_join_like_one(
    make: Make, data: st.DataObject, seed: int, experts: int, n: int, k: int
) -> None:
    rng = np.random.default_rng(seed)
    cases = [make(rng, n, k) for _ in range(experts)]
    weight = np.stack([case.weight for case in cases])
    stack = type(cases[0].kind).stack([case.kind for case in cases])
    same(stack, weight)
    for expert, case in zip(stack.unstack(), cases, strict=True):
        same(expert, case.weight)
    (n0, n1), (k0, k1) = data.draw(ranges(n)), data.draw(ranges(k))
    part = stack.slice_n(n0, n1).slice_k(k0, k1)
    same(part, weight[:, n0:n1, k0:k1])
    joined = type(part).concat_n([part, stack.slice_k(k0, k1)])
    same(joined, np.concatenate([weight[:, n0:n1, k0:k1], weight[..., k0:k1]], axis=1))


@makers
def test_activation_stays_with_its_matrix(make: Make) -> None:
    rng = np.random.default_rng(0)
    static, dynamic = Activation("int8", 0.5), Activation("int8")
    plain = make(rng, 6, 8).kind
    kind: Kind = replace(plain, activation=static)  # type: ignore[type-var]
    cls = type(kind)
    assert plain.activation is None
    for part in (
        *(kind.slice_n(1, 3), kind.slice_k(3, 6)),
        *(cls.concat_n([kind, kind]), cls.stack([kind, kind]), cls.stack([kind]).unstack()[0]),
    ):
        assert part.activation == static
    for other in (plain, replace(plain, activation=dynamic)):  # type: ignore[type-var]
        for join in (cls.concat_n, cls.stack):
            with pytest.raises(UnsupportedModel, match="rounded differently"):
                join([kind, other])


@makers
def test_default_product_multiplies_every_kind(make: Make) -> None:
    case = make(np.random.default_rng(11), 6, 8)
    weight = DenseLinear(case.kind, torch.device("cpu"), "float32").weight
    np.testing.assert_array_equal(weight.numpy(), case.weight)


def test_kinds_of_different_names_do_not_join() -> None:
    rng = np.random.default_rng(0)
    parts: list[Any] = [make_dense(rng, 2, 4).kind, make_int_grouped(rng, 2, 4).kind]
    with pytest.raises(UnsupportedModel, match="dense and int_grouped cannot be joined"):
        Dense.concat_n(parts)


def test_activations_that_nothing_computes_are_refused() -> None:
    with pytest.raises(UnsupportedModel, match="activations in int4 cannot be served"):
        Activation("int4")
    for scale in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(UnsupportedModel, match="positive number"):
            Activation("int8", scale)


@given(data=st.data(), length=sizes, size=sizes)
def test_cut_blocks_keep_every_entry_in_its_block(
    data: st.DataObject, length: int, size: int
) -> None:
    blocks = Blocks(length, size, data.draw(st.integers(0, size - 1)))
    assert blocks.index().max() == blocks.count - 1
    start, stop = data.draw(ranges(length))
    cut, kept = blocks.cut(start, stop)
    assert np.array_equal(cut.index() + kept.start, blocks.index()[start:stop])
    assert cut.count == kept.stop - kept.start
    other = Blocks(length, data.draw(sizes))
    common = Blocks.common([blocks, other])
    for own in (blocks, other):
        assert np.array_equal(own.refine(common)[common.index()], own.index())
