"""The distributed profile: green on what is right, and what its checks are made of.

That each check fails for its own cause is for the planted defects to show.
"""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infercore.capabilities import Support
from infercore.errors import UnsupportedModel
from infercore.model_spec import ModelSpec
from infercore.models.registry import ModelRegistry
from infercore.worker.parallel import require_ranks
from infercore_conformance.made_kinds import VARIANTS
from infercore_conformance.models import SETTINGS, VOCAB, config_of, families, write_model
from infercore_conformance.profiles.distributed.test_refusals import UNEVEN
from infercore_conformance.ranks import MANY, Fuse, MadeWeights, forced, of_kind, shared, shares_of
from infercore_conformance.running import open_model
from infercore_conformance.subject import Subject
from plain_backend import PlainBackend, subject_of

INFERCORE = Path(sys.executable).with_name("infercore")


def spec_of(architecture: str, **overrides: Any) -> ModelSpec:
    return ModelRegistry(families()).build(config_of(architecture, **overrides))


def green(backend: str, folder: Path, *arguments: str) -> dict[str, str]:
    """{check: status} of a run that has to be conformant."""
    report = folder / "report.json"
    command = [str(INFERCORE), "conformance", "run", "--backend", backend]
    ended = subprocess.run(
        [*command, "--profile", "distributed", *arguments, "--report", str(report), "--", "-q"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return {each["id"]: each["status"] for each in json.loads(report.read_text())["checks"]}


@pytest.mark.parametrize("architecture", SETTINGS)
@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_its_models_can_be_shared(architecture: str, ranks: int) -> None:
    require_ranks(spec_of(architecture, **shared(architecture)), ranks)


@pytest.mark.parametrize(("what", "ranks", "sizes"), UNEVEN)
def test_its_uneven_models_cannot(what: str, ranks: int, sizes: dict[str, Any]) -> None:
    known = shared("LlamaForCausalLM")
    sizes = {name: size for name, size in sizes.items() if name in known}
    word = {"heads": "attention heads", "kv_heads": "KV heads", "features": "features"}[what]
    with pytest.raises(UnsupportedModel, match=word):
        require_ranks(spec_of("LlamaForCausalLM", **{**known, **sizes}), ranks)


def test_shares_of_a_vocabulary_end_where_the_next_begins() -> None:
    assert shares_of(10, 2) == [0, 4, 5, 9]
    assert shares_of(VOCAB, 3) == [0, 53, 54, 107, 108, VOCAB - 1]


def test_any_collective_makes_many_ranks() -> None:
    can = PlainBackend().capabilities()
    assert MANY.answer(replace(can, collectives=("rings",))).support is Support.FULL
    answer = MANY.answer(replace(can, collectives=()))
    assert answer.support is Support.UNSUPPORTED
    assert "one rank" in answer.detail


def test_a_fuse_blows_once_and_when_it_is_told() -> None:
    fuse = Fuse()
    fuse.burn()
    fuse.error, fuse.countdown = RuntimeError("now"), 1
    fuse.burn()
    with pytest.raises(RuntimeError, match="now"):
        fuse.burn()
    fuse.burn()
    assert fuse.blown == 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    write_model(path, config_of("LlamaForCausalLM", **shared("LlamaForCausalLM")))
    return path


def test_made_weights_are_the_same_for_every_rank_and_differ_by_name(folder: Path) -> None:
    spec, weights = open_model(folder)
    names = [linear.name for linear in spec.layers[0].attention.qkv]
    shapes = dict.fromkeys(names, (96, 48))
    made = MadeWeights(weights, shapes, VARIANTS["codebook4"][0])
    first, again, other = (made.linear(name).dequantize() for name in (names[0], *names[:2]))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert np.array_equal(made.tensor(spec.embedding).data, weights.tensor(spec.embedding).data)


def test_a_model_of_made_weights_is_another_one(folder: Path) -> None:
    subject: Subject = subject_of(PlainBackend)
    plain = forced(subject, folder, 1)
    made = forced(of_kind(subject, VARIANTS["fp8"][0]), folder, 1)
    assert plain.shape == made.shape == (3, 4, VOCAB)
    assert float(np.abs(plain - made).max()) > 0.1


def test_a_backend_of_one_rank_is_asked_to_refuse_two(tmp_path: Path) -> None:
    statuses = green("cpu", tmp_path, "--quick")
    assert statuses.pop("distributed.refused.undeclared") == "passed"
    assert set(statuses.values()) <= {"passed", "not run"}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_it_is_green_on_ranks_that_are_threads(tmp_path: Path) -> None:
    statuses = green("sim", tmp_path)
    failing = {name: status for name, status in statuses.items() if status != "passed"}
    assert failing == {"distributed.bits": "not run"}, "sim is not batch-invariant"
