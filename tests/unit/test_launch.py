"""What the operator left open is resolved against a backend, and what it has not is refused."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from infercore.capabilities import FULL, Capabilities
from infercore.config import EngineConfig
from infercore.errors import ConfigError, UnsupportedModel
from infercore.formats import quantization_method
from infercore.hub import demo_path
from infercore.kinds import Kind
from infercore.launch import executor_config, require_architecture
from infercore.model_folder import read_config
from infercore.model_spec import LinearSpec, ModelSpec
from infercore.models.plugin import register_models
from infercore.models.registry import ModelRegistry
from infercore.quantization import QuantizationMethod, TensorFile
from infercore.worker.dense_format import DenseFormat

CAN = Capabilities(
    dtypes=("bfloat16", "float32"), block_sizes=(32, 64), kv_dtypes=("auto", "float32")
)


def spec(**changes: Any) -> ModelSpec:
    config = {**read_config(demo_path()), **changes}
    return ModelRegistry(register_models()).build(config)


class Eightfold(QuantizationMethod):
    """A format whose checkpoints say so; it reads nothing here."""

    name = "eightfold"

    @classmethod
    def detect(cls, config: Mapping[str, Any]) -> bool:
        return config.get("quant_method") == "eightfold"

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = config

    def kind(self, linear: LinearSpec) -> str:
        return "dense"

    def tensors(self, spec: ModelSpec) -> dict[str, tuple[int, ...]]:
        return spec.tensors()

    def read(self, linear: LinearSpec, file: TensorFile) -> Kind:
        return file[linear.name]


def resolved(**options: Any) -> Any:
    return executor_config(EngineConfig("x", **options), spec(), CAN)


def test_open_options_come_from_the_checkpoint_and_the_backend() -> None:
    found = resolved()
    assert (found.dtype, found.kv_dtype, found.block_size) == ("bfloat16", "bfloat16", 32)
    assert found.max_model_len == spec().max_position
    fp16 = executor_config(EngineConfig("x"), spec(dtype="float16"), CAN)
    assert fp16.dtype == "bfloat16"  # the backend's best, where it has not the checkpoint's own


def test_given_options_are_kept() -> None:
    found = resolved(dtype="float32", kv_dtype="float32", block_size=64, max_model_len=100)
    assert (found.dtype, found.kv_dtype, found.block_size) == ("float32", "float32", 64)
    assert found.max_model_len == 100


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"dtype": "float16"}, "bfloat16, float32"),
        ({"kv_dtype": "int8"}, "auto, float32"),
        ({"block_size": 16}, "32, 64"),
        ({"max_model_len": 10**6}, "made for 2048"),
    ],
)
def test_what_the_backend_has_not_is_refused_with_what_it_has(
    options: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        resolved(**options)


ROUNDS = replace(CAN, activation_int8=FULL)


@pytest.mark.parametrize(
    ("can", "options", "rounds"),
    [
        (CAN, {}, False),
        (CAN, {"activation_dtype": "bf16"}, False),
        (ROUNDS, {}, True),
        (ROUNDS, {"activation_dtype": "int8"}, True),
        (ROUNDS, {"activation_dtype": "bf16"}, False),
        (ROUNDS, {"dtype": "float32"}, False),
        (ROUNDS, {"dtype": "float32", "activation_dtype": "bf16"}, False),
    ],
)
def test_activations_are_rounded_in_bfloat16_where_the_backend_has_it(
    can: Capabilities, options: dict[str, Any], rounds: bool
) -> None:
    found = executor_config(EngineConfig("x", **options), spec(), can)
    assert found.activation_int8 is rounds


@pytest.mark.parametrize(
    ("can", "options", "says"),
    [
        (CAN, {"activation_dtype": "int4"}, "auto, int8, bf16"),
        (CAN, {"activation_dtype": "int8"}, "does not round activations to int8"),
        (ROUNDS, {"activation_dtype": "int8", "dtype": "float32"}, "in bfloat16 compute only"),
    ],
)
def test_rounding_that_cannot_be_is_refused(
    can: Capabilities, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        executor_config(EngineConfig("x", **options), spec(), can)


def test_an_executor_with_models_of_its_own_serves_only_those() -> None:
    own = Capabilities(("float32",), (16,), architectures=("OwnModel",))
    with pytest.raises(UnsupportedModel, match="backend x runs models of its own.*OwnModel"):
        require_architecture("x", spec(), own)
    require_architecture("x", spec(), Capabilities(("float32",), (16,)))
    mine = Capabilities(("float32",), (16,), architectures=(spec().architecture,))
    require_architecture("x", spec(), mine)


def test_the_checkpoint_chooses_its_format_and_the_operator_overrides() -> None:
    methods = [Eightfold, DenseFormat]
    quantized = spec(quantization_config={"quant_method": "eightfold"})
    assert quantization_method(methods, spec(), None).name == "none"
    assert quantization_method(methods, quantized, None).name == "eightfold"
    assert quantization_method(methods, quantized, "none").name == "none"


def test_a_format_that_nobody_reads_is_refused_with_those_that_are_read() -> None:
    odd = spec(quantization_config={"quant_method": "odd"})
    with pytest.raises(UnsupportedModel, match=r"'odd'.*eightfold, none"):
        quantization_method([Eightfold, DenseFormat], odd, None)
    with pytest.raises(UnsupportedModel, match=r"'gptq' is installed.*none"):
        quantization_method([DenseFormat], spec(), "gptq")


def test_a_folder_is_what_a_local_model_is(tmp_path: Path) -> None:
    from infercore.launch import launch

    with pytest.raises(ConfigError, match=str(tmp_path)):
        launch(EngineConfig(str(tmp_path)))
