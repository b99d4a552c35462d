"""Every request ends once, for its own reason, and gives back what it held."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from infercore.engine.request import FinishReason, Request
from infercore.errors import GenerationFailed
from infercore.step import Step
from infercore_conformance import check
from infercore_conformance.engine_driver import Driver
from infercore_conformance.engine_fixtures import Same, Serve
from infercore_conformance.engine_serving import EOS, TOGETHER, Serving
from infercore_conformance.engine_traffic import request, traffic
from infercore_conformance.engine_wrappers import Failing
from infercore_conformance.fixtures import Models
from infercore_conformance.models import VOCAB
from infercore_conformance.steps import prompt

AHEAD = replace(TOGETHER, step_ahead=True)
CULPRIT = 3  # the request that fails
SEED = 31337  # the culprit's; no other request has it
BROKEN = 37  # the token whose embedding is no number


@check("engine.ends.reasons", "A request ends by its length, a stop id or EOS, whichever is first.")
def test_reasons(serve: Serve) -> None:
    """The ending token is the last one that the request gets."""
    serving = serve()
    plain = request(0, prompt(9), temperature=0.0)
    tokens = serving.answers([plain])[0].tokens
    wants_eos: dict[str, Any] = {
        "temperature": 0.0,
        "logit_bias": {EOS: 100.0},
        "ignore_eos": False,
    }
    requests = [
        plain,
        request(1, prompt(9), temperature=0.0, stop_token_ids=(tokens[2],)),
        request(2, prompt(9), **wants_eos),
        request(3, prompt(9), 2, temperature=0.0, stop_token_ids=(tokens[4],)),
    ]
    answers = serving.answers(requests, AHEAD)
    until_stop = tokens[: tokens.index(tokens[2]) + 1]
    assert [(answers[n].reason, answers[n].tokens) for n in range(4)] == [
        (FinishReason.LENGTH, tokens),
        (FinishReason.STOP, until_stop),
        (FinishReason.EOS, [EOS]),
        (FinishReason.LENGTH, tokens[:2]),
    ]


@check("engine.ends.min_tokens", "No EOS or stop id comes before min_tokens, however likely.")
def test_min_tokens(serve: Serve) -> None:
    """Ids are banned by position, in rows that sample and in rows that do not."""
    serving, favours = serve(), {EOS: 100.0, 7: 100.0}
    requests = [
        request(
            n,
            prompt(9),
            temperature=temperature,
            logit_bias=favours,
            ignore_eos=False,
            stop_token_ids=(7,),
            min_tokens=n,
        )
        for n, temperature in enumerate([0.0, 1.0, 0.0, 1.0])
    ]
    for setting in (TOGETHER, AHEAD):
        answers = serving.answers(requests, setting)
        for n in range(4):
            *before, last = answers[n].tokens
            assert last in favours, f"request {n} did not take the likeliest: {answers[n].tokens}"
            assert len(before) == n, f"request {n}: {answers[n].tokens}"
            assert not set(before) & set(favours), f"request {n}: {answers[n].tokens}"


@check("engine.ends.abort", "An aborted request ends at once, and harms no other.")
def test_abort(serve: Serve, same: Same) -> None:
    """One that waits, one within its prompt, one that decodes, with a step of it in flight."""
    serving = serve()
    requests = traffic(10, serving.tokens(8))
    setting = replace(AHEAD, rows=6, tokens=48)
    driver = Driver(serving.engine(setting))
    driver.add(requests)
    for number in (9, 4, 0):
        driver.engine.abort(number)
        driver.step()
        assert driver.received[number].reason is FinishReason.ABORT
        driver.step()
    driver.run()
    driver.require_reasons(FinishReason.LENGTH, but=(9, 4, 0))
    others = [each for each in requests if each.request_id not in (9, 4, 0)]
    same(serving, others, serving.answers(requests, TOGETHER), driver.received)


@check("engine.ends.blocks", "When all have ended, aborted or not, every block can be had again.")
def test_blocks_come_back(serve: Serve) -> None:
    """Round after round in a cache of few blocks, then one request that needs them all."""
    serving = serve()
    size = serving.block_size
    blocks = 2 + serving.config.max_model_len // size
    setting = replace(AHEAD, rows=4, blocks=blocks, prefix_cache=True)
    driver = Driver(serving.engine(setting))
    for salt in range(3):
        ids = range(10 * salt, 10 * salt + 6)
        driver.add(request(n, prompt(size - 2, salt=n % 3), 8, temperature=0.0) for n in ids)
        for _ in range(3 + salt):
            driver.step()
        driver.engine.abort(ids[salt])
        driver.run()
    length = (blocks - 1) * size - 8
    driver.add([request(99, prompt(min(length, serving.config.max_model_len - 8)), 8)])
    driver.run()
    assert driver.received[99].reason is FinishReason.LENGTH, f"{driver.received[99]}"


@check("engine.ends.no_token", "A request that nothing is allowed to ends alone, and says so.")
def test_no_token_is_left(serve: Serve, same: Same) -> None:
    """Its bias bans every token."""
    everything = dict.fromkeys(range(VOCAB), -np.inf)
    _ends_alone(serve(), request(CULPRIT, prompt(12), logit_bias=everything), same)


@check("engine.ends.not_finite", "A request whose scores are no numbers ends alone, and says so.")
def test_scores_are_no_numbers(
    serve: Serve, models: Models, tmp_path_factory: pytest.TempPathFactory, same: Same
) -> None:
    """The embedding of one token is NaN, which fills its request's blocks and nobody else's."""
    folder = _with_a_broken_token(models(tie_word_embeddings=False), tmp_path_factory)
    ids = [token for token in prompt(40) if token != BROKEN]
    _ends_alone(serve(folder), request(CULPRIT, [*ids, BROKEN]), same, without=BROKEN)


@check("engine.ends.culprit", "A request that fails every step it is in ends alone.")
@pytest.mark.parametrize("kv_intact", [True, False])
def test_the_culprit_ends_alone(serve: Serve, kv_intact: bool, same: Same) -> None:
    """The engine finds it by halves, in smaller steps, with slots that start again.

    As after an out of memory that only this request brings about.
    """
    serving = serve()

    def holds_it(step: Step) -> bool:
        return SEED in step.seeds.tolist()

    others = [each for each in traffic(8) if each.request_id != CULPRIT]
    culprit = request(CULPRIT, prompt(20), seed=SEED)
    driver = serving.drive(
        [*others, culprit], AHEAD, lambda inner: Failing(inner, holds_it, kv_intact=kv_intact)
    )
    assert driver.engine.stats().failed_steps > 1
    _require_only_the_culprit(driver)
    same(serving, others, serving.answers(others, TOGETHER), driver.received)


def _ends_alone(serving: Serving, culprit: Request, same: Same, without: int | None = None) -> None:
    """Beside others, none of which is given the token `without`, or may choose it."""
    others = [each for each in traffic(8) if each.request_id != CULPRIT]
    if without is not None:
        others = [_without(each, without) for each in others]
    driver = serving.drive([*others[:4], culprit, *others[4:]], AHEAD)
    _require_only_the_culprit(driver)
    same(serving, others, serving.answers(others, TOGETHER), driver.received)


def _without(each: Request, token: int) -> Request:
    bias = {**each.sampling.logit_bias, token: -1000.0}
    ids = [0 if given == token else given for given in each.prompt_ids]
    return replace(each, prompt_ids=ids, sampling=replace(each.sampling, logit_bias=bias))


def _require_only_the_culprit(driver: Driver) -> None:
    driver.require_reasons(FinishReason.LENGTH, but=(CULPRIT,))
    ended = driver.received[CULPRIT]
    assert ended.reason is FinishReason.ERROR, f"it ended by {ended.reason}"
    assert isinstance(ended.error, GenerationFailed), f"{ended.error!r}"
    assert not ended.tokens, "it got tokens all the same"


def _with_a_broken_token(source: Path, folders: pytest.TempPathFactory) -> Path:
    folder = folders.mktemp("broken")
    (folder / "config.json").write_bytes((source / "config.json").read_bytes())
    tensors = load_file(source / "model.safetensors")
    embedding = next(name for name in tensors if "embed" in name or "wte" in name)
    tensors[embedding][BROKEN] = np.nan
    save_file(tensors, folder / "model.safetensors")
    return folder
