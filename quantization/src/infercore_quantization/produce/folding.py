"""Moves AWQ's scales out of a layer's inputs, into the norm or the matrix that makes them."""

import torch
from torch import Tensor

from infercore.model_spec import LayerSpec, LinearSpec, NormSpec
from infercore_quantization.produce.block import Moments, Stage
from infercore_quantization.produce.overlay import Overlay

Matrices = dict[str, Tensor]


def joined(stage: Stage, matrices: Matrices) -> Tensor:
    """The stage's matrices one above the other: [N, K]."""
    return torch.cat([matrices[spec.name] for spec in stage.specs])


def shares(layer: LayerSpec, stage: Stage) -> int:
    """How many inputs of a stage must have one scale; 0 = nothing takes its scales.

    Query heads that share a value head get its outputs, so that their inputs share a scale too.
    """
    attention, mlp = layer.attention, layer.mlp
    if stage.name in ("qkv", "inputs"):
        return 1
    if stage.name == "out":
        whole = attention.num_heads % attention.num_kv_heads == 0
        return attention.num_heads // attention.num_kv_heads if _split(layer) and whole else 0
    return int(mlp.gated and len(mlp.inputs) == 2)


def shared_magnitude(layer: LayerSpec, stage: Stage, magnitude: Tensor) -> Tensor:
    """The mean over inputs that must have one scale, for each of them: [K] → [K]."""
    if shares(layer, stage) == 1:
        return magnitude
    heads = _by_heads(layer, magnitude)
    return heads.mean(1, keepdim=True).expand_as(heads).reshape(-1)


def fold(
    layer: LayerSpec, stage: Stage, s: Tensor, weights: Overlay, matrices: Matrices, at: Moments
) -> None:
    """Multiply the inputs' columns of the stage by s [K], and divide what makes the inputs.

    Norms are rounded to the checkpoint's dtype first; s is then what they were really divided by,
    so that the product stays what it was.
    """
    if stage.name in ("qkv", "inputs"):
        norm = layer.pre_attention if stage.name == "qkv" else layer.pre_mlp
        s = _fold_into_norm(norm, s, weights)
    elif stage.name == "out":
        rows = _by_heads(layer, s)[:, 0].reshape(-1)
        _fold_into_rows(layer.attention.qkv[2], rows, weights, matrices)
    else:
        _fold_into_rows(layer.mlp.inputs[1], s, weights, matrices)
    for spec in stage.specs:
        matrices[spec.name] = matrices[spec.name] * s
    at.second /= s[:, None] * s
    at.magnitude /= s


def _split(layer: LayerSpec) -> bool:
    return len(layer.attention.qkv) == 3


def _by_heads(layer: LayerSpec, values: Tensor) -> Tensor:
    """[H · D] → [H_kv, H / H_kv, D]."""
    attention = layer.attention
    return values.view(attention.num_kv_heads, -1, attention.head_dim)


def _fold_into_norm(norm: NormSpec, s: Tensor, weights: Overlay) -> Tensor:
    name = f"{norm.name}.weight"
    before = weights.values(name) + norm.offset
    weights.put_values(name, before / s - norm.offset)
    after = weights.values(name) + norm.offset
    exact = torch.where((after == 0) | (before == 0), torch.ones_like(s), before / after)
    if norm.bias:
        bias = f"{norm.name}.bias"
        weights.put_values(bias, weights.values(bias) / exact)
    return exact


def _fold_into_rows(spec: LinearSpec, s: Tensor, weights: Overlay, matrices: Matrices) -> None:
    matrices[spec.name] = matrices[spec.name] / s[:, None]
    if spec.bias:
        bias = f"{spec.name}.bias"
        weights.put_values(bias, weights.values(bias) / s)
