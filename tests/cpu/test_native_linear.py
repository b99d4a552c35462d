"""The native matrix products, of every kind of weight and on every instruction set of this CPU."""

import importlib.util
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from ctypes import CDLL
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from infercore.backend import PackedLinear
from infercore.kinds import (
    NF4,
    Blocks,
    Codebook4,
    Dense,
    Fp8,
    IntGrouped,
    Kind,
    pack_cells,
    uniform_groups,
)
from infercore_cpu import native
from infercore_cpu.backend import CpuBackend
from infercore_cpu.linear import CpuLinear, NativeLinear, native_linear
from kind_cases import (
    Make,
    make_codebook4,
    make_dense,
    make_fp8,
    make_int_grouped,
    seeds,
    sizes,
)
from stepper import executor_config

library = native.library()
if library is None:
    pytest.skip("infercore-cpu was installed without a C++ compiler", allow_module_level=True)
LIB: CDLL = library
ISAS = native.isas(LIB)
SHAPES = [(1, 1), (5, 3), (16, 8), (40, 24), (130, 520)]
HEIGHTS = (*range(1, 17), 31, 32, 33, 63, 64)
ROUNDING = {torch.float32: 0.0, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    assert LIB.infercore_use_isa(request.param.encode())
    yield request.param
    LIB.infercore_use_isa(ISAS[0].encode())


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    LIB.infercore_set_threads(2)
    yield
    LIB.infercore_set_threads(1)


def random_x(rows: int, columns: int) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows))


def bits_of(weight: Tensor, dtype: torch.dtype) -> Dense:
    storage = torch.uint16 if dtype == torch.bfloat16 else dtype
    name = str(dtype).removeprefix("torch.")
    return Dense(weight.to(dtype).view(storage).numpy(), name)


def int_grouped(rng: np.random.Generator, n: int, k: int, bits: int, act_order: bool) -> Kind:
    group_of_row = uniform_groups(k, 32)
    if act_order:
        group_of_row = rng.permutation(group_of_row)
    groups = int(group_of_row.max()) + 1
    codes = rng.integers(0, 2**bits, (n, k), np.uint8)
    scales = Dense(rng.random((groups, n), np.float32).astype(np.float16), "float16")
    zeros = rng.integers(0, 2**bits + 1, (groups, n), np.int16)
    packed = codes if bits == 8 else pack_cells(codes)
    return IntGrouped(bits, packed, scales, zeros, group_of_row)


def codebook4(rng: np.random.Generator, n: int, k: int) -> Codebook4:
    blocks = Blocks(k, 16)
    codes = pack_cells(rng.integers(0, 16, (n, k), np.uint8))
    scales = Dense(rng.random((n, blocks.count), np.float32), "float32")
    return Codebook4(codes, NF4, blocks, scales)


def kinds(n: int, k: int) -> dict[str, Kind]:
    rng = np.random.default_rng(n * 1000 + k)
    weight = torch.from_numpy(rng.standard_normal((n, k)).astype(np.float32))
    made = {
        str(dtype): bits_of(weight, dtype)
        for dtype in (torch.float32, torch.bfloat16, torch.float16)
    }
    codes = {
        f"int{bits}{', act-order' * act_order}": int_grouped(rng, n, k, bits, act_order)
        for bits in (3, 4, 8)
        for act_order in (False, True)
    }
    nf4 = codebook4(rng, n, k)
    cut = {"codebook4, cut": nf4.slice_k(5, k)} if k > 5 else {}
    return {**made, **codes, "codebook4": nf4, **cut}


def check(y: Tensor, x: Tensor, kind: Kind) -> None:
    """Within float32's rounding of a sum, and that of y's dtype, of the reference in float64."""
    weight = torch.from_numpy(kind.dequantize()).double()
    size = x.double().abs() @ weight.abs().T
    if isinstance(kind, IntGrouped):  # code and zero are scaled apart, and may be near each other
        span = np.abs(kind.scales.dequantize().astype(np.float64)).max(0) * 2**kind.bits
        size += x.double().abs().sum(1, keepdim=True) * torch.from_numpy(span)
    error = (y.double() - x.double() @ weight.T).abs()
    sane = size < 1e30  # beyond, a sum of float32 may overflow on its way
    assert (error <= size * (2e-6 + ROUNDING[y.dtype]) + 1e-30)[sane].all()


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_every_kind_equals_its_dequantized_reference(n: int, k: int) -> None:
    for name, kind in kinds(n, k).items():
        product = native_linear(LIB, kind, "float32")
        for rows in (1, 2, 7, 70):
            x = random_x(rows, kind.shape[1])
            y = product(x)
            assert (y.shape, y.dtype, y.is_contiguous()) == ((rows, n), torch.float32, True), name
            check(y, x, kind)


@pytest.mark.usefixtures("isa")
@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([make_dense, make_int_grouped, make_codebook4, make_fp8]), seeds, sizes, sizes
)
def test_a_random_kind(make: Make, seed: int, n: int, k: int) -> None:
    case = make(np.random.default_rng(seed), n, k)
    product = native_linear(LIB, case.kind, "float32")
    x = random_x(5, k)
    check(product(x), x, case.kind)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_row_has_the_same_bits_in_any_batch_on_any_threads(dtype: torch.dtype) -> None:
    for name, kind in kinds(130, 520).items():
        product = native_linear(LIB, kind, "float32")
        x = random_x(64, kind.shape[1]).to(dtype)
        alone = torch.cat([product(x[i : i + 1]) for i in range(64)])
        for threads in (1, 2, 3, 8):
            LIB.infercore_set_threads(threads)
            for rows in HEIGHTS:
                assert torch.equal(product(x[64 - rows :]), alone[64 - rows :]), (name, rows)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
def test_activations_in_16_bits(dtype: torch.dtype) -> None:
    for kind in kinds(40, 24).values():
        x = random_x(9, kind.shape[1]).to(dtype)
        y = native_linear(LIB, kind, "bfloat16")(x)
        assert y.dtype == dtype
        check(y, x, kind if kind.nbytes < 4 * 40 * 24 else _as_bfloat16(kind))


def _as_bfloat16(kind: Kind) -> Kind:
    return bits_of(torch.from_numpy(kind.dequantize()), torch.bfloat16)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_products_of_bfloat16_in_pairs(n: int, k: int) -> None:
    """Chosen where the CPU has an instruction for them, and emulated here where it has none."""
    pairs = 2
    kind = kinds(n, k)["torch.bfloat16"]
    packed = native_linear(LIB, kind, "float32").packed
    x = random_x(70, k).bfloat16()
    y = torch.empty(70, n, dtype=torch.bfloat16)
    row = torch.empty(1, n, dtype=torch.bfloat16)
    LIB.infercore_linear(packed.address, x.data_ptr(), pairs, y.data_ptr(), 70)
    check(y, x, kind)
    for i in range(70):
        LIB.infercore_linear(packed.address, x[i].data_ptr(), pairs, row.data_ptr(), 1)
        assert torch.equal(row[0], y[i])


@pytest.mark.parametrize("rows", [0, 3])
def test_rows_that_lie_apart_and_none_at_all(rows: int) -> None:
    kind = kinds(40, 24)["torch.bfloat16"]
    x = random_x(rows, 48)[:, ::2]
    y = native_linear(LIB, kind, "float32")(x)
    assert y.shape == (rows, 40)
    check(y, x, kind)


def test_a_weight_that_lies_transposed() -> None:
    weight = np.random.default_rng(0).standard_normal((24, 40)).astype(np.float32).T
    x = random_x(3, 24)
    check(native_linear(LIB, Dense(weight, "float32"), "float32")(x), x, Dense(weight, "float32"))


def test_weights_that_are_not_finite_stay_in_their_row() -> None:
    weight = torch.randn(20, 9, generator=torch.Generator().manual_seed(0))
    weight[3, 8], weight[17, 0] = torch.inf, torch.nan
    y = native_linear(LIB, bits_of(weight, torch.bfloat16), "float32")(random_x(70, 9))
    assert (~y.isfinite()).any(0).nonzero().flatten().tolist() == [3, 17]


def test_products_of_several_threads_at_once() -> None:
    kind = kinds(130, 520)["torch.bfloat16"]
    product = native_linear(LIB, kind, "float32")
    x = [random_x(rows, 520) for rows in range(1, 9)]
    expected = [product(one) for one in x]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(20):
            found = list(pool.map(product, x))
            assert all(map(torch.equal, found, expected))


def test_a_weight_takes_little_more_than_its_codes() -> None:
    n, k = 64, 256
    sizes_of = {
        name: native_linear(LIB, kind, "float32").nbytes for name, kind in kinds(n, k).items()
    }
    assert sizes_of["torch.float32"] == 4 * n * k
    assert sizes_of["torch.bfloat16"] == sizes_of["torch.float16"] == 2 * n * k
    groups, starts = n * k // 32, 4 * (k // 32 + 1)
    assert sizes_of["int8"] == n * k + 4 * groups + starts  # scale and zero have 16 bits each
    narrow = 3 * groups + starts  # the zero has 8
    assert sizes_of["int4"] == sizes_of["int3"] == n * k // 2 + narrow
    assert sizes_of["int4, act-order"] == sizes_of["int4"] + 4 * k


def configured(dtype: str) -> CpuBackend:
    backend = CpuBackend()
    backend.configure(executor_config(dtype=dtype))
    return backend


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_backend_keeps_weights_as_they_are_stored(dtype: str) -> None:
    backend, stored = configured(dtype), kinds(64, 256)
    assert set(backend.capabilities().weight_kinds) == {"dense", "int_grouped", "codebook4"}
    for name in ("torch.bfloat16", "int4", "codebook4"):
        packed = backend.pack(stored[name])
        assert isinstance(packed, NativeLinear)
        assert packed.nbytes <= stored[name].nbytes * 2
    wide = {"float32": 4, "bfloat16": 2}[dtype]  # what the operator chose rounds what is wider
    assert backend.pack(stored["torch.float32"]).nbytes == wide * 64 * 256
    head = backend.pack_head(stored["torch.bfloat16"])
    assert (head.nbytes, head(random_x(2, 256)).dtype) == (2 * 64 * 256, torch.float32)
    assert backend.pack_head(stored["torch.float32"]).nbytes == 4 * 64 * 256


def test_other_kinds_become_dense_ones_of_the_chosen_dtype() -> None:
    rng = np.random.default_rng(3)
    case = make_fp8(rng, 13, 12)
    assert isinstance(case.kind, Fp8)
    assert isinstance(configured("float32").pack(case.kind), NativeLinear)


def test_without_the_library_torch_multiplies_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(native, "LIBRARY", tmp_path / "none.so")
    native.library.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            backend = configured("float32")
            packed: list[PackedLinear] = [
                backend.pack(kinds(5, 8)["int4"]),
                backend.pack_head(kinds(5, 8)["torch.bfloat16"]),
            ]
        assert all(isinstance(one, CpuLinear) for one in packed)
        assert backend.capabilities().weight_kinds == ("dense",)
        assert len(caplog.records) == 1
        assert "Install a C++ compiler" in caplog.text
    finally:
        native.library.cache_clear()


@pytest.fixture
def build_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """hatch_build.py, which compiles into a folder of the test's own."""
    path = Path(__file__).parents[2] / "backends/cpu/hatch_build.py"
    spec = importlib.util.spec_from_file_location("hatch_build", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "LIBRARY", tmp_path / "lib.so")
    monkeypatch.delenv("CXX", raising=False)
    return module


def test_without_a_compiler_the_build_goes_on(
    build_script: ModuleType, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "")
    assert not build_script.build()
    assert "no C++ compiler" in capfd.readouterr().err


def test_a_source_that_does_not_compile_stops_the_build(
    build_script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sources = tmp_path / "native"
    sources.mkdir()
    (sources / "pool.cpp").write_text("int broken(")
    monkeypatch.setattr(build_script, "SOURCES", sources)
    with pytest.raises(RuntimeError, match="compiling the native kernels failed"):
        build_script.build()
