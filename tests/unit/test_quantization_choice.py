"""How a checkpoint's format is found, and what `--quantize` makes of it."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from infercore.errors import CheckpointError, UnsupportedModel
from infercore.formats import quantization_method
from infercore.hub import demo_path
from infercore.model_folder import ModelFolder
from infercore.model_spec import LinearSpec, ModelSpec
from infercore.models.plugin import register_models
from infercore.models.registry import ModelRegistry
from infercore.plugins import PluginManager
from infercore.worker.dense_format import DenseFormat

METHODS = PluginManager().quantization_methods()
PLAIN = ModelRegistry(register_models()).build(ModelFolder.open(demo_path()).config)
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "desc_act": False}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}


def quantized(**config: Any) -> ModelSpec:
    return replace(PLAIN, quantization=config)


@pytest.mark.parametrize(
    ("config", "wanted", "name"),
    [
        ({}, None, "none"),
        ({}, "none", "none"),
        (GPTQ, None, "gptq"),
        (GPTQ, "gptq", "gptq"),
        (GPTQ, "marlin", "gptq"),
        (GPTQ, "none", "none"),
        (AWQ, None, "awq"),
        (AWQ, "awq", "awq"),
        (AWQ, "gptq", "awq"),
        (AWQ, "marlin", "awq"),
    ],
)
def test_the_format_is_what_the_checkpoint_says_under_any_of_its_names(
    config: dict[str, Any], wanted: str | None, name: str
) -> None:
    assert quantization_method(METHODS, quantized(**config), wanted).name == name


@pytest.mark.parametrize(("config", "wanted"), [(GPTQ, "awq"), (AWQ, "none-such")])
def test_what_is_quantized_is_not_quantized_again(config: dict[str, Any], wanted: str) -> None:
    says = f"--quantize {wanted} was asked for, and the checkpoint is quantized already, as"
    with pytest.raises(UnsupportedModel, match=says):
        quantization_method(METHODS, quantized(**config), wanted)


@pytest.mark.parametrize("wanted", [None, "exl2"])
def test_a_format_that_is_known_and_not_read_says_what_would_work(wanted: str | None) -> None:
    with pytest.raises(UnsupportedModel, match=r"'exl2' is not read: .*; quantize the original"):
        quantization_method(METHODS, quantized(quant_method="exl2", bits=4.5), wanted)


class Striped(DenseFormat):
    """A format whose checkpoints are told by their tensors alone."""

    name = "striped"

    @classmethod
    def detect_tensors(cls, stored: Mapping[str, tuple[int, ...]]) -> bool:
        return "stripes" in stored

    def kind(self, linear: LinearSpec) -> str:
        return "dense"


def test_a_checkpoint_without_a_configuration_is_told_by_its_tensors() -> None:
    methods = [DenseFormat, Striped]
    assert quantization_method(methods, PLAIN, None, {"stripes": (4,)}).name == "striped"
    assert quantization_method(methods, PLAIN, None, {"spots": (4,)}).name == "none"


def folder(path: Path, config: dict[str, Any], **files: dict[str, Any]) -> ModelFolder:
    (path / "config.json").write_text(json.dumps(config))
    for name, value in files.items():
        (path / f"{name}.json").write_text(json.dumps(value))
    return ModelFolder.open(path)


def test_config_json_says_it_before_the_files_of_older_tools(tmp_path: Path) -> None:
    assert folder(tmp_path, {}).quantization() == {}
    legacy = {"bits": 4, "group_size": 128}
    assert folder(tmp_path, {}, quantize_config=legacy).quantization() == legacy
    own = folder(tmp_path, {"quantization_config": GPTQ}, quantize_config=legacy)
    assert own.quantization() == GPTQ


@pytest.mark.parametrize("name", ["quant_config", "quantization_config"])
def test_older_tools_had_files_of_other_names(tmp_path: Path, name: str) -> None:
    assert folder(tmp_path, {}, **{name: AWQ}).quantization() == AWQ


def test_a_damaged_statement_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="quantization_config is 4; it must be an object"):
        folder(tmp_path, {"quantization_config": 4}).quantization()
    (tmp_path / "quantize_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"quantize_config.json cannot be read"):
        folder(tmp_path, {}).quantization()
