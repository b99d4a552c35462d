"""The checkpoint loader: what it reads, and how it refuses what it must not."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infercore.errors import CheckpointError
from infercore.hub import demo_path
from infercore.kinds import Dense, Kind
from infercore.model_folder import ModelFolder
from infercore.model_spec import (
    AttentionSpec,
    LayerSpec,
    LinearSpec,
    MlpSpec,
    ModelSpec,
    NormSpec,
    Shard,
)
from infercore.quantization import QuantizationMethod, TensorFile
from infercore.worker import loader
from infercore.worker.loader import CheckpointWeights, open_checkpoint, open_weights
from infercore.worker.safetensors_file import SafetensorsFile

Tensors = dict[str, tuple[str, tuple[int, ...], bytes]]
F32 = "F32"
DEMO = demo_path()


class Plain(QuantizationMethod):
    """Matrices as they are stored."""

    name = "plain"

    @classmethod
    def detect(cls, config: Mapping[str, Any]) -> bool:
        return not config

    def __init__(self, config: Mapping[str, Any]) -> None:
        del config

    def kind(self, linear: LinearSpec) -> str:
        return "dense"

    def tensors(self, spec: ModelSpec) -> dict[str, tuple[int, ...]]:
        return spec.tensors()

    def read(self, linear: LinearSpec, file: TensorFile) -> Kind:
        return file[f"{linear.name}.weight"]


def linear(name: str, k: int = 4, n: int = 4) -> LinearSpec:
    return LinearSpec(name, k, n, Shard.COLUMN)


def spec(*, tied: bool = False) -> ModelSpec:
    attention = AttentionSpec(2, 2, 2, 0.7, (linear("h.0.attn.qkv", 4, 12),), linear("h.0.attn.o"))
    layer = LayerSpec(
        NormSpec("h.0.n1", 4, 1e-5),
        attention,
        NormSpec("h.0.n2", 4, 1e-5),
        MlpSpec((linear("h.0.up"),), linear("h.0.down"), "relu", gated=False),
    )
    return ModelSpec(
        "Tiny", 8, 4, 16, "float32", "wte.weight", (layer,), NormSpec("ln_f", 4, 1e-5),
        linear("lm_head", 4, 8), tied,
    )  # fmt: skip


def numbers(shape: tuple[int, ...], first: float = 0.0) -> tuple[str, tuple[int, ...], bytes]:
    data = first + np.arange(np.prod(shape, dtype=int), dtype=np.float32)
    return F32, shape, data.tobytes()


def whole(model: ModelSpec) -> Tensors:
    return {name: numbers(shape) for name, shape in model.tensors().items()}


def encode(tensors: Tensors) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, (dtype, shape, raw) in tensors.items():
        offsets = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        data += raw
    return with_header(header, data)


def with_header(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(begin: int, end: int, shape: list[int], dtype: str = "U8") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def open_tiny(path: Path, *, tied: bool = False) -> CheckpointWeights:
    return open_weights(path, spec(tied=tied), Plain({}))


def test_reads_linears_and_tensors_without_copy(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(encode(whole(spec())))
    weights = open_tiny(tmp_path)
    qkv = weights.linear("h.0.attn.qkv")
    assert qkv.shape == (12, 4)
    assert qkv.dequantize().tolist() == np.arange(48, dtype=np.float32).reshape(12, 4).tolist()
    first, again = weights.tensor("wte.weight"), weights.tensor("wte.weight")
    assert np.shares_memory(first.data, again.data)
    weights.release()
    assert first.data[7, 3] == 31.0  # views stay valid
    assert weights.tensor("ln_f.weight").data.tolist() == [0, 1, 2, 3]


def test_unknown_layer_and_tensor_are_named(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(encode(whole(spec())))
    weights = open_tiny(tmp_path)
    with pytest.raises(CheckpointError, match="no linear layer named nope"):
        weights.linear("nope")
    with pytest.raises(CheckpointError, match=r"no tensor named nope in .*model\.safetensors"):
        weights.tensor("nope")


@pytest.mark.parametrize(
    ("dtype", "tag", "raw", "value"),
    [
        ("BF16", "bfloat16", b"\x80\x3f\x00\xc0", [1.0, -2.0]),
        ("F16", "float16", b"\x00\x3c\x00\xc0", [1.0, -2.0]),
        ("I8", "int8", b"\x01\xfe", [1.0, -2.0]),
        ("BOOL", "bool", b"\x01\x00", [1.0, 0.0]),
    ],
)
def test_dtypes(tmp_path: Path, dtype: str, tag: str, raw: bytes, value: list[float]) -> None:
    # one byte before it makes the tensor unaligned in the file
    path = tmp_path / "x.safetensors"
    path.write_bytes(encode({"pad": ("U8", (1,), b"\0"), "x": (dtype, (2,), raw)}))
    tensor = SafetensorsFile(path)["x"]
    assert tensor.dtype == tag
    assert tensor.data.flags.aligned
    assert tensor.dequantize().tolist() == value


def test_scalar_and_empty_tensors(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(encode({"none": (F32, (0, 3), b""), "one": numbers((), 5.0)}))
    file = SafetensorsFile(path)
    assert file["none"].shape == (0, 3)
    assert file["one"].data.item() == 5.0


def test_legal_dtype_that_nothing_reads_is_refused_only_when_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(encode({"wide": ("F64", (1,), b"\0" * 8), "x": numbers((1,))}))
    file = SafetensorsFile(path)
    assert file["x"].data.tolist() == [0.0]
    with pytest.raises(CheckpointError, match="wide is stored as float64"):
        file["wide"]


@settings(max_examples=30)
@given(st.dictionaries(st.text(max_size=5), st.lists(st.integers(0, 3), max_size=3), max_size=5))
def test_what_safetensors_writes_reads_back(
    tmp_path_factory: pytest.TempPathFactory, shapes: dict[str, list[int]]
) -> None:
    from safetensors.numpy import save

    arrays = {
        f"t{name}": np.random.default_rng(0).random(shape, dtype=np.float32)
        for name, shape in shapes.items()
    }
    path = tmp_path_factory.getbasetemp() / "roundtrip.safetensors"
    path.write_bytes(save(arrays))
    file = SafetensorsFile(path)
    assert file.headers.keys() == arrays.keys()
    for name, array in arrays.items():
        assert np.array_equal(file[name].data, array)


BIG = 2**63
DAMAGED: dict[str, tuple[bytes, str]] = {
    "empty file": (b"", "truncated inside its header, at 0"),
    "half a length": (b"\x10\0\0", "truncated inside its header, at 3"),
    "header beyond the file": (with_header({})[:9], "truncated inside its header, at 9"),
    "header of 2^63 bytes": (BIG.to_bytes(8, "little") + b"{}", f"a header of {BIG} bytes"),
    "header of all ones": (b"\xff" * 16, "a header of 18446744073709551615 bytes"),
    "no json": (with_header(b"hello"), "is not JSON"),
    "no utf-8": (with_header(b'{"\xff": 1}'), "is not JSON"),
    "deep json": (with_header(b"[" * 200_000), "is not JSON"),
    "a list": (with_header([]), "no JSON object"),
    "no entry": (with_header({"a": 3}), "a lacks dtype"),
    "no offsets": (with_header({"a": {"dtype": "U8", "shape": [1]}}), "a lacks dtype"),
    "unknown dtype": (with_header({"a": entry(0, 1, [1], "Q8")}, b"1"), "unknown dtype 'Q8'"),
    "negative size": (with_header({"a": entry(0, 1, [-1])}, b"1"), "non-negative"),
    "bool size": (with_header({"a": entry(0, 1, [True])}, b"1"), "non-negative"),
    "float size": (with_header({"a": entry(0, 1, [1.0])}, b"1"), "non-negative"),  # type: ignore[list-item]
    "too many sizes": (with_header({"a": entry(0, 1, [1] * 65)}, b"1"), "non-negative"),
    "negative offset": (with_header({"a": entry(-1, 0, [1])}, b"1"), "non-negative"),
    "reversed offsets": (with_header({"a": entry(1, 0, [1])}, b"1"), "cannot fill bytes 1:0"),
    "product wraps": (with_header({"a": entry(0, 0, [BIG, 2])}), "cannot fill bytes 0:0"),
    "wrong product": (with_header({"a": entry(0, 4, [3])}, b"1234"), "cannot fill bytes 0:4"),
    "beyond the file": (with_header({"a": entry(0, 9, [9])}, b"1234"), "truncated at .* bytes"),
    "huge": (with_header({"a": entry(0, BIG, [BIG])}, b"1"), "truncated at .* bytes"),
    "overlap": (
        with_header({"a": entry(0, 2, [2]), "b": entry(1, 3, [2])}, b"123"),
        "b overlaps a",
    ),
    "gap": (with_header({"a": entry(0, 1, [1]), "b": entry(2, 3, [1])}, b"123"), "b leaves a gap"),
    "late start": (with_header({"a": entry(1, 2, [1])}, b"12"), "a leaves a gap after the header"),
    "rest": (with_header({"a": entry(0, 1, [1])}, b"1234"), "holds 3 bytes after"),
    "twice": (
        with_header(b'{"a": {"dtype":"U8","shape":[0],"data_offsets":[0,0]}, "a": {}}'),
        "names a twice",
    ),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_file_is_named_and_refused(tmp_path: Path, case: str) -> None:
    raw, message = DAMAGED[case]
    path = tmp_path / "model.safetensors"
    path.write_bytes(raw)
    with pytest.raises(CheckpointError, match=message) as caught:
        SafetensorsFile(path)
    assert str(path) in str(caught.value)


@settings(max_examples=60)
@given(st.data())
def test_any_truncation_is_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    raw = encode(whole(spec()))
    path = tmp_path_factory.getbasetemp() / "cut.safetensors"
    path.write_bytes(raw[: data.draw(st.integers(0, len(raw) - 1))])
    with pytest.raises(CheckpointError, match="truncated"):
        SafetensorsFile(path)


def test_every_mismatch_is_in_one_error(tmp_path: Path) -> None:
    tensors = whole(spec())
    del tensors["ln_f.weight"], tensors["h.0.n1.weight"]
    tensors["h.0.up.weight"] = numbers((4, 5))
    tensors["h.1.up.weight"] = numbers((4, 4))
    (tmp_path / "model.safetensors").write_bytes(encode(tensors))
    with pytest.raises(CheckpointError) as caught:
        open_tiny(tmp_path)
    message = str(caught.value)
    assert "missing: h.0.n1.weight (4,), ln_f.weight (4,);" in message
    assert "not known: h.1.up.weight (4, 4);" in message
    assert "of another shape: h.0.up.weight (4, 5) instead of (4, 4)." in message


def test_long_lists_are_shortened(tmp_path: Path) -> None:
    tensors = whole(spec()) | {f"x{i}": numbers((1,)) for i in range(40)}
    (tmp_path / "model.safetensors").write_bytes(encode(tensors))
    with pytest.raises(CheckpointError, match=r"not known: x0 \(1,\), .*x4 \(1,\) and 35 more"):
        open_tiny(tmp_path)


def test_known_buffers_and_a_tied_head_are_tolerated(tmp_path: Path) -> None:
    tensors = whole(spec(tied=True)) | {
        "lm_head.weight": numbers((8, 4)),
        "h.0.attn.bias": numbers((1, 1, 4, 4)),
        "h.0.attn.masked_bias": numbers(()),
        "model.layers.0.self_attn.rotary_emb.inv_freq": numbers((2,)),
    }
    (tmp_path / "model.safetensors").write_bytes(encode(tensors))
    assert open_tiny(tmp_path, tied=True).tensor("wte.weight").shape == (8, 4)


def test_untied_head_is_required(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(encode(whole(spec(tied=True))))
    with pytest.raises(CheckpointError, match="missing: lm_head.weight"):
        open_tiny(tmp_path)


def test_the_tied_tensor_may_go_by_the_heads_name(tmp_path: Path) -> None:
    tensors = whole(spec(tied=True))
    tensors["lm_head.weight"] = tensors.pop("wte.weight")
    (tmp_path / "model.safetensors").write_bytes(encode(tensors))
    assert open_tiny(tmp_path, tied=True).tensor("wte.weight").shape == (8, 4)


@pytest.mark.parametrize("prefix", ["model.", "transformer."])
def test_base_model_prefix_may_be_there_or_not(tmp_path: Path, prefix: str) -> None:
    tensors = {
        name if name.startswith("lm_head") else prefix + name: tensor
        for name, tensor in whole(spec()).items()
    }
    (tmp_path / "model.safetensors").write_bytes(encode(tensors))
    weights = open_tiny(tmp_path)
    assert weights.linear("h.0.up").shape == (4, 4)
    assert weights.tensor("wte.weight").shape == (8, 4)


def write_sharded(path: Path, tensors: Tensors) -> dict[str, str]:
    """Two shards with an index; returns its weight map."""
    names = list(tensors)
    weight_map: dict[str, str] = {}
    for i, part in enumerate((names[:3], names[3:])):
        file = f"model-0000{i + 1}-of-00002.safetensors"
        (path / file).write_bytes(encode({name: tensors[name] for name in part}))
        weight_map |= dict.fromkeys(part, file)
    write_index(path, weight_map)
    return weight_map


def write_index(path: Path, weight_map: object) -> None:
    (path / loader.INDEX).write_text(json.dumps({"weight_map": weight_map}))


def test_sharded(tmp_path: Path) -> None:
    write_sharded(tmp_path, whole(spec()))
    assert open_tiny(tmp_path).linear("lm_head").shape == (8, 4)


def test_missing_shard_is_named(tmp_path: Path) -> None:
    write_sharded(tmp_path, whole(spec()))
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match="are missing: model-00002-of-00002"):
        open_tiny(tmp_path)


def test_swapped_shards_are_noticed(tmp_path: Path) -> None:
    write_sharded(tmp_path, whole(spec()))
    one, two = (tmp_path / f"model-0000{i}-of-00002.safetensors" for i in (1, 2))
    one_bytes = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(one_bytes)
    with pytest.raises(CheckpointError, match="lacks tensors that .* puts there: wte.weight"):
        open_tiny(tmp_path)


def test_name_in_two_shards_is_refused(tmp_path: Path) -> None:
    weight_map = write_sharded(tmp_path, whole(spec()))
    (tmp_path / "third.safetensors").write_bytes(encode({"wte.weight": numbers((8, 4))}))
    write_index(tmp_path, weight_map | {"wte.weight": "third.safetensors"})
    with pytest.raises(CheckpointError, match="wte.weight is in both"):
        open_tiny(tmp_path)


@pytest.mark.parametrize(
    "file",
    ["../secret.safetensors", "/etc/x.safetensors", "a\\b.safetensors", "sub/x.safetensors",
     "x.bin", "a\0.safetensors", "", "C:x.safetensors"],
)  # fmt: skip
def test_index_cannot_leave_the_folder(tmp_path: Path, file: str) -> None:
    write_index(tmp_path, {"wte.weight": file})
    with pytest.raises(CheckpointError, match="no plain"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("raw", [b"", b"[]", b'{"weight_map": 3}', b"{}", b"[" * 200_000, b"\xff"])
def test_damaged_index(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / loader.INDEX).write_bytes(raw)
    with pytest.raises(CheckpointError, match=r"is no index of the form"):
        open_checkpoint(tmp_path)


def test_pickled_weights_are_refused_with_the_conversion(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(CheckpointError, match=r"pickled weights \(pytorch_model.bin\).*save_pre"):
        open_checkpoint(tmp_path)


def test_folder_without_weights(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no"):
        open_checkpoint(tmp_path)


def test_missing_file_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot be read: No such file"):
        SafetensorsFile(tmp_path / "gone.safetensors")


def write_folder(path: Path, **files: object) -> None:
    for name, value in files.items():
        (path / f"{name}.json").write_text(json.dumps(value))


@pytest.mark.parametrize(
    ("generation", "config", "ids"),
    [
        ({"eos_token_id": [2, 0, 2]}, {"eos_token_id": 5}, (2, 0)),
        ({"eos_token_id": 7}, {"eos_token_id": 5}, (7,)),
        ({}, {"eos_token_id": 5}, (5,)),
        ({"eos_token_id": None}, {"eos_token_id": [5, 6]}, (5, 6)),
        ({}, {}, ()),
    ],
)
def test_eos_ids(tmp_path: Path, generation: object, config: object, ids: tuple[int, ...]) -> None:
    write_folder(tmp_path, generation_config=generation, config=config)
    assert ModelFolder.open(tmp_path).eos_ids == ids


def test_bad_generation_config(tmp_path: Path) -> None:
    write_folder(tmp_path, generation_config={"eos_token_id": "</s>"}, config={})
    with pytest.raises(CheckpointError, match="eos_token_id is '</s>'"):
        _ = ModelFolder.open(tmp_path).eos_ids
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"generation_config.json cannot be read"):
        ModelFolder.open(tmp_path)


@pytest.mark.parametrize("raw", [b"", b"{", b"\xff", b"[" * 200_000, b"[]"])
def test_damaged_config_is_named(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "config.json").write_bytes(raw)
    with pytest.raises(CheckpointError, match=r"config\.json .*download it again"):
        ModelFolder.open(tmp_path)


def test_missing_config_and_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="has no config.json"):
        ModelFolder.open(tmp_path)
    with pytest.raises(CheckpointError, match="is no folder"):
        ModelFolder.open(tmp_path / "none")


def test_the_packaged_demo_opens() -> None:
    checkpoint = open_checkpoint(DEMO)
    embedding = checkpoint["model.embed_tokens.weight"]
    assert isinstance(embedding, Dense)
    assert (embedding.shape, embedding.dtype) == ((4096, 384), "bfloat16")
    assert np.isfinite(embedding.dequantize()).all()
    assert ModelFolder.open(DEMO).eos_ids == (2, 0)
