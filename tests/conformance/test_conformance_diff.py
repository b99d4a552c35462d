"""`infercore conformance diff`: backends that agree, one that is wrong, and what it refuses."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from infercore.backend import Backend
from infercore_conformance.command import conformance as commands
from infercore_conformance.divergence import described, first_difference, kl_divergence
from infercore_conformance.models import config_of, write_model
from infercore_conformance.two_backends import Comparison
from plain_backend import PlainBackend, subject_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    write_model(path, config_of("LlamaForCausalLM"))
    return path


def compared(folder: Path, other: type[Backend]) -> Comparison:
    """Of the plain backend with `other`, behind two prompts."""
    opened = Comparison.open(["cpu", "cpu"], str(folder), "float32", (), 6)
    subjects = (subject_of(PlainBackend), subject_of(other))
    prompts = (tuple(range(3, 40)), (5, 6, 7))
    return Comparison(
        subjects, "tiny", opened.folder, opened.spec, opened.dtype, prompts, opened.tokens
    )


class WrongLayer(PlainBackend):
    """Its second MLP, and no other part, computes something else."""

    def compile(self, model: Any, buckets: Any) -> Any:
        _break_second_mlp(model)
        return model


class WrongOps(PlainBackend):
    """Its attention reads the keys of the second layer scaled, on every path."""

    def attention(self, group: Any, specs: Any) -> Any:
        made = super().attention(group, specs)
        forward = made.forward

        def scaled(layer: int, q: Any, k: Any, v: Any, plan: object) -> Any:
            return forward(layer, q * (1.5 if layer == 1 else 1.0), k, v, plan)

        made.forward = scaled  # type: ignore[method-assign]
        return made


def _break_second_mlp(model: Any) -> None:
    def double(module: Any, arguments: Any, output: torch.Tensor) -> torch.Tensor:
        return 2 * output

    model.layers[1].mlp.register_forward_hook(double)


def test_a_backend_is_alike_itself(folder: Path) -> None:
    found = compared(folder, PlainBackend).run()
    assert found.alike
    assert not found.differs
    assert found.kl.shape == (2, 6)
    assert found.kl.max() < 1e-12
    assert list(found.parts or ()) == [
        "embedding", "layers.0.attention", "layers.0.mlp", "layers.1.attention", "layers.1.mlp",
        "final_norm",
    ]  # fmt: skip
    assert set((found.parts or {}).values()) == {0.0}
    text = described(found, "a", "b")
    assert "first differing token  none of 12" in text
    assert text.endswith("\nalike")


def test_the_first_layer_that_differs_is_named(folder: Path) -> None:
    found = compared(folder, WrongOps).run()
    assert not found.alike
    assert found.first_part == "layers.1.attention"
    assert found.differs
    assert not found.near_tie
    text = described(found, "a", "b")
    assert "first differing layer  layers.1.attention, by " in text
    assert text.endswith("NOT alike")


def test_what_only_compile_breaks_is_in_no_layer(folder: Path) -> None:
    found = compared(folder, WrongLayer).run()
    assert not found.alike
    assert found.first_part is None
    assert "look at compile and the sampler" in described(found, "a", "b")


def test_divergence_is_zero_for_equals_and_known_for_a_coin() -> None:
    fair, biased = np.log([[0.5, 0.5]]), np.log([[0.25, 0.75]])
    assert kl_divergence(fair, fair).tolist() == [0.0]
    expected = 0.5 * np.log(2) + 0.5 * np.log(2 / 3)
    np.testing.assert_allclose(kl_divergence(fair, biased), [expected])
    impossible = np.array([[0.0, -np.inf]])
    np.testing.assert_allclose(kl_divergence(impossible, fair), [np.log(2)])


def test_a_real_difference_comes_before_an_earlier_near_tie() -> None:
    chosen = np.array([[[1, 2, 3]], [[9, 2, 9]]])
    margins = np.array([[[0.001, 1.0, 1.0]], [[0.001, 1.0, 0.5]]], np.float32)
    kl = np.array([[0.0, 0.3, 0.1]])
    assert first_difference(chosen, margins, kl, bound=0.01) == (0, 2)
    assert first_difference(chosen, margins, kl, bound=1.0) == (0, 0)
    assert first_difference(chosen[[0, 0]], margins, kl, bound=0.01) == (0, 1)


def diff(folder: Path, *arguments: str) -> Result:
    return CliRunner().invoke(commands, ["diff", "--model", str(folder), *arguments])


def test_the_command_compares_installed_backends(folder: Path) -> None:
    """One plans its shapes, the other does not."""
    ended = diff(folder, "--backend", "cpu", "--backend", "sim", "--tokens", "4")
    assert ended.exit_code == 0, ended.output
    assert "in float32 on cpu and sim, 4 tokens behind each of 3 prompts" in ended.stdout
    assert "first differing layer  none of 6 parts" in ended.stdout


def test_an_executor_has_no_layers_to_compare(folder: Path) -> None:
    ended = diff(folder, "--backend", "numpy", "--backend", "cpu", "--tokens", "2")
    assert ended.exit_code == 0, ended.output
    assert "is an Executor of its own, and no Backend" in ended.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--backend", "cpu"), "two backends are compared, and 1 were named"),
        (("--backend", "cpu", "--backend", "none"), "no backend 'none' is installed"),
        (
            ("--backend", "cpu", "--backend", "sim", "--dtype", "int3"),
            "do not both compute in int3",
        ),
        (("--backend", "cpu", "--backend", "sim", "--tokens", "500"), "at most 12 can be compared"),
        (("--backend", "cpu", "--backend", "sim", "--prompt", "x"), "tokenizer.json"),
    ],
)
def test_what_is_refused(folder: Path, arguments: tuple[str, ...], message: str) -> None:
    ended = diff(folder, *arguments)
    assert ended.exit_code == 2, ended.output
    assert message in ended.stderr


def test_a_prompt_is_text_where_there_is_a_tokenizer() -> None:
    arguments = ("--backend", "cpu", "--backend", "cpu", "--tokens", "2", "--prompt", "Once upon")
    ended = CliRunner().invoke(commands, ["diff", "--model", "infercore/demo", *arguments])
    assert ended.exit_code == 0, ended.output
    assert "2 tokens behind each of 1 prompts" in ended.stdout
