"""Every family's decoder traces with `torch.fx` to core's layers: the graph that `compile` gets."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import fx, nn

from infercore.executor import Bucket
from infercore.layers.common import Layer
from infercore.layers.decoder import Attend
from infercore_cpu.backend import CpuBackend
from model_runs import load, prompt
from stepper import Sequenced, Stepper
from tiny_models import FAMILIES, make_tiny


class LayerTracer(fx.Tracer):
    """Stops at core's layers."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, Layer)


def traced(model: nn.Module) -> fx.GraphModule:
    return fx.GraphModule(model, LayerTracer().trace(model))


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_the_traced_graph_computes_the_same(tmp_path: Path, family: str) -> None:
    make_tiny(tmp_path, family)
    runner = load(tmp_path)
    graph = traced(runner.model)
    stepper = Stepper(runner.groups, 128)
    rows = [Sequenced(slot, prompt(length)) for slot, length in enumerate((1, 30, 70))]
    for counts in ((1, 20, 33), (10, 37)):  # a second step reads what the first one wrote
        step = stepper.step(list(zip(rows[-len(counts) :], counts, strict=True)))
        expected = runner.forward(step).hidden
        plans = [
            cache.plan(runner._batch(step, group)) for group, cache in enumerate(runner.caches)
        ]
        ids, positions = torch.from_numpy(step.token_ids), torch.from_numpy(step.positions)
        assert torch.equal(graph(ids.long(), positions.long(), plans), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_all_work_is_done_in_layers(tmp_path: Path, family: str) -> None:
    """Between leaves the graph only takes shapes and tuples apart."""
    make_tiny(tmp_path, family)
    model = load(tmp_path).model
    nodes = list(traced(model).graph.nodes)
    leaves = [str(node.target) for node in nodes if node.op == "call_module"]
    assert all(isinstance(model.get_submodule(leaf), Layer) for leaf in leaves)
    # each once, but the head, which sees the sampled rows only
    assert sorted(leaves) == sorted(
        name for name, m in model.named_modules() if isinstance(m, Layer) and name != "head"
    )
    others = {str(n.target) for n in nodes if n.op in ("call_method", "call_function")}
    assert others <= {"unflatten", "split", "<built-in function getitem>"}
    assert not [node for node in nodes if node.op == "get_attr"]


class TracingBackend(CpuBackend):
    """Its `compile` replaces the model by the traced graph, as a compiling vendor's does."""

    def compile(self, model: nn.Module, buckets: Sequence[Bucket]) -> nn.Module:
        return traced(model)


@torch.inference_mode()
def test_a_backend_may_serve_the_traced_graph(tmp_path: Path) -> None:
    make_tiny(tmp_path, "gemma2")
    runner = load(tmp_path, TracingBackend())
    step = Stepper(runner.groups, 128).step([(Sequenced(0, prompt(40)), 40)])
    expected = runner.finish(runner.forward(step), None)
    runner.compile([Bucket(64, 8, 4)])
    assert isinstance(runner._program, fx.GraphModule)
    found = runner.finish(runner.forward(step), None)
    assert found.tokens.tolist() == expected.tokens.tolist()


def test_a_graph_keeps_its_caches(tmp_path: Path) -> None:
    make_tiny(tmp_path, "llama")
    runner = load(tmp_path)
    graph = traced(runner.model)
    attends = [m for m in graph.modules() if isinstance(m, Attend)]
    assert all(attend.cache is runner.caches[attend.group] for attend in attends)
    assert len(attends) == len(runner.spec.layers)
