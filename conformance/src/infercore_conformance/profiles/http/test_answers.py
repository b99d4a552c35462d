"""Every dialect gives what the engine gives, and what it says about it is true."""

import math
from itertools import pairwise
from typing import Any

import pytest

from infercore_conformance import Level, check
from infercore_conformance.http_bodies import (
    GREEDY,
    MESSAGES,
    SEEDED,
    TEXTS,
    TOKENS,
    Choice,
    chat,
    completion,
    ids_of,
    ids_of_chat,
    native,
    text_of_chat,
    text_of_completion,
)
from infercore_conformance.http_fixtures import Offline
from infercore_conformance.http_server import SERVER, ServerProcess

CHOICES = pytest.mark.parametrize("choice", [GREEDY, SEEDED], ids=["greedy", "seeded"])
TOPS = 3
LITTLE = 1e-3  # of a log-probability, whose digits a stream may shorten


@check(
    "http.answers.native",
    "/generate gives the tokens that LLM.generate gives.",
    level=Level.EXTENDED,
    needs=SERVER,
)
@CHOICES
def test_native(server: ServerProcess, offline: Offline, choice: Choice) -> None:
    """Greedy and seeded, token for token, and the same text. Offline each prompt runs alone."""
    for text in TEXTS:
        found = server.sound("/generate", native(text, choice))
        expected = offline(text, max_tokens=TOKENS, **choice.offline)
        ids = ids_of(found)
        assert ids == expected.token_ids, f"{text!r}: {ids}, not {expected.token_ids}"
        assert found["generated_text"] == expected.text, f"{text!r}: {found['generated_text']!r}"


@check(
    "http.answers.completions",
    "/v1/completions gives the text that /generate gives, from a text and from its token ids.",
    level=Level.EXTENDED,
    needs=SERVER,
)
@CHOICES
def test_completions(server: ServerProcess, choice: Choice) -> None:
    """Two dialects are two readers of one request; a default that differs shows."""
    for text in TEXTS:
        expected = server.sound("/generate", native(text, choice))["generated_text"]
        ids = [token["id"] for token in server.sound("/tokenize", {"inputs": text})]
        for prompt in (text, ids):
            found = text_of_completion(server.sound("/v1/completions", completion(prompt, choice)))
            assert found == expected, f"{prompt!r}: {found!r}, not {expected!r}"


@check(
    "http.answers.chat",
    "A chat gives what its templated prompt gives, here and offline.",
    level=Level.EXTENDED,
    needs=SERVER,
)
@CHOICES
def test_chat(server: ServerProcess, offline: Offline, choice: Choice) -> None:
    """/chat_tokenize says which prompt the messages become."""
    ids = ids_of_chat(server)
    found = text_of_chat(server.sound("/v1/chat/completions", chat(choice)))
    plain = text_of_completion(server.sound("/v1/completions", completion(ids, choice)))
    assert found == plain, f"{MESSAGES}: {found!r}, and as a completion {plain!r}"
    expected = offline(ids, max_tokens=TOKENS, **choice.offline).text
    assert found == expected, f"{MESSAGES}: {found!r}, and offline {expected!r}"


@check(
    "http.answers.repeated",
    "The same request again gets the same answer, though its prompt is in the prefix cache now.",
    level=Level.EXTENDED,
    needs=SERVER,
)
def test_repeated(server: ServerProcess, offline: Offline) -> None:
    """Of several blocks, so that the second starts behind them. The usage says that it did."""
    text = "One and one is two, and two and two is four. " * 6
    expected = offline(text, max_tokens=TOKENS, temperature=0.0).text
    for attempt in range(3):
        reply = server.sound("/v1/completions", completion(text))
        found = text_of_completion(reply)
        assert found == expected, f"attempt {attempt}: {found!r}, not {expected!r}"


@check(
    "http.answers.stop",
    "A stop text ends the output where it begins, and TGI's dialect shows it.",
    level=Level.EXTENDED,
    needs=SERVER,
)
def test_stop(server: ServerProcess) -> None:
    """A part of the answer itself, that begins within one token and ends within another."""
    whole: str = server.sound("/generate", native(TEXTS[0]))["generated_text"]
    stop = whole[len(whole) // 2 - 2 : len(whole) // 2 + 2]
    before = whole[: whole.index(stop)]
    reply = server.sound("/generate", native(TEXTS[0], stop=[stop]))
    assert reply["generated_text"] == before + stop, f"{stop!r} in {whole!r}: {reply}"
    assert reply["details"]["finish_reason"] == "stop_sequence", f"{reply['details']}"
    reply = server.sound("/v1/completions", completion(TEXTS[0], stop=[stop]))
    assert text_of_completion(reply) == before, f"{stop!r} in {whole!r}: {reply}"
    assert reply["choices"][0]["finish_reason"] == "stop", f"{reply}"


@check(
    "http.answers.logprobs",
    "Log-probabilities are finite, at most 0 and in order, and the same in every dialect.",
    level=Level.EXTENDED,
    needs=SERVER,
)
def test_logprobs(server: ServerProcess) -> None:
    """A greedy token is the first of the likeliest, whose list begins with it."""
    details = server.sound("/generate", native(TEXTS[0], top_n_tokens=TOPS))["details"]
    chosen = [token["logprob"] for token in details["tokens"]]
    for token, tops in zip(details["tokens"], details["top_tokens"], strict=True):
        values = [top["logprob"] for top in tops]
        assert all(math.isfinite(v) and v <= LITTLE for v in values), f"{tops}"
        assert all(a >= b for a, b in pairwise(values)), f"not the likeliest first: {tops}"
        assert token["id"] == tops[0]["id"], f"{token} was chosen, and the likeliest are {tops}"
        assert abs(token["logprob"] - values[0]) < LITTLE, f"{token} is told otherwise in {tops}"
    reply = server.sound("/v1/completions", completion(TEXTS[0], logprobs=TOPS))
    _require_near("/v1/completions", reply["choices"][0]["logprobs"]["token_logprobs"], chosen)
    asked = chat(logprobs=True, top_logprobs=TOPS)
    content = server.sound("/v1/chat/completions", asked)["choices"][0]["logprobs"]["content"]
    plain = server.sound("/v1/completions", completion(ids_of_chat(server), logprobs=0))
    values = plain["choices"][0]["logprobs"]["token_logprobs"]
    _require_near("/v1/chat/completions", [each["logprob"] for each in content], values)


def _require_near(path: str, found: list[float], expected: list[float]) -> None:
    near = len(found) == len(expected) and all(
        abs(a - b) < LITTLE for a, b in zip(found, expected, strict=True)
    )
    assert near, f"{path}: log-probabilities {found}, not {expected}"


@check(
    "http.answers.usage",
    "Tokens are counted as they are: of the prompt, and of the output.",
    level=Level.EXTENDED,
    needs=SERVER,
)
def test_usage(server: ServerProcess) -> None:
    """They are what clients pay by."""
    prompt = len(server.sound("/tokenize", {"inputs": TEXTS[0]}))
    for reply, prompt_tokens in (
        (server.sound("/v1/completions", completion(TEXTS[0], ignore_eos=True)), prompt),
        (
            server.sound("/v1/chat/completions", chat(ignore_eos=True)),
            len(ids_of_chat(server)),
        ),
    ):
        _require_usage(reply["usage"], prompt_tokens)
    details = server.sound("/generate", native(TEXTS[0]))["details"]
    counted, shown = details["generated_tokens"], len(details["tokens"])
    assert counted == shown, f"{counted} generated tokens are counted, and {shown} are shown"


def _require_usage(usage: dict[str, Any], prompt: int) -> None:
    found = tuple(usage[name] for name in ("prompt_tokens", "completion_tokens", "total_tokens"))
    expected = (prompt, TOKENS, prompt + TOKENS)
    assert found == expected, f"prompt, completion and total tokens: {found}, not {expected}"
