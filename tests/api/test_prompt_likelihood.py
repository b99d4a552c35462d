"""Echoed log-probabilities of prompts are those that transformers computes."""

import math
from typing import Any

import httpx2
import pytest
import torch
from transformers import AutoModelForCausalLM

from infercore.hub import demo_path
from infercore.text.tokenizer import Tokenizer

LONGEST = 512  # tokens of one prompt, which the server's limit of 600 admits


def pieces() -> list[list[int]]:
    ids = Tokenizer(demo_path()).encode((demo_path() / "heldout.txt").read_text())
    return [ids[at : at + LONGEST] for at in range(0, len(ids), LONGEST)]


def reference(model: Any, ids: list[int]) -> list[float]:
    """The log-probability of every token but the first, in float32."""
    with torch.inference_mode():
        logits = model(torch.tensor([ids])).logits[0].float()
    chosen = logits.log_softmax(-1)[:-1].gather(1, torch.tensor(ids[1:])[:, None])
    values: list[float] = chosen[:, 0].tolist()
    return values


@pytest.mark.parametrize(
    "count", [2, pytest.param(None, marks=[pytest.mark.slow, pytest.mark.timeout(900)])]
)
def test_echoed_likelihoods_equal_transformers(http: httpx2.Client, count: int | None) -> None:
    """Over the bundled model's held-out text; the quick case takes its beginning."""
    model = AutoModelForCausalLM.from_pretrained(
        demo_path(), dtype=torch.float32, attn_implementation="eager"
    )
    sums = [0.0, 0.0]
    for ids in pieces()[:count]:
        body = {"prompt": ids, "max_tokens": 1, "echo": True, "logprobs": 0, "temperature": 0}
        reply = http.post("/v1/completions", json=body)
        assert reply.status_code == 200, reply.text
        ours = reply.json()["choices"][0]["logprobs"]["token_logprobs"]
        assert ours[0] is None
        theirs = reference(model, ids)
        assert ours[1 : len(ids)] == pytest.approx(theirs, abs=1e-3)
        sums[0] += math.fsum(ours[1 : len(ids)])
        sums[1] += math.fsum(theirs)
    assert sums[0] == pytest.approx(sums[1], abs=1e-3 * len(pieces()))
