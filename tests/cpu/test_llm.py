"""Offline use on the bundled model, as its users spell it."""

from pathlib import Path

import pytest

from infercore import LLM, SamplingParams
from infercore.errors import CheckpointError, ConfigError, InvalidRequest, MemoryBudgetError
from infercore.hub import DEMO


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM(DEMO, dtype="float32", threads=1)


def chat(question: str) -> str:
    return f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"


def test_texts_come_back_in_order(llm: LLM) -> None:
    questions = ["What is the capital of France?", "Hello!"]
    greedy = SamplingParams(temperature=0.0, max_tokens=40)
    both = llm.generate([chat(q) for q in questions], greedy, progress=False)
    single = [llm.generate(chat(q), greedy, progress=False)[0] for q in questions]
    assert [done.text for done in both] == [done.text for done in single]
    assert "Paris" in both[0].text
    assert both[0].finish_reason == "stop"
    assert both[0].token_ids[-1] == llm.info.eos_ids[0]
    assert "<|im_end|>" not in both[0].text


def test_token_ids_are_prompts_too(llm: LLM) -> None:
    ids = llm.tokenizer.encode(chat("Hello!"))
    greedy = SamplingParams(temperature=0.0, max_tokens=8)
    by_ids, by_text = (llm.generate(p, greedy, progress=False)[0] for p in (ids, chat("Hello!")))
    assert by_ids.token_ids == by_text.token_ids
    assert by_ids.prompt_token_ids == ids


def test_length_ends_what_nothing_else_ends(llm: LLM) -> None:
    params = SamplingParams(temperature=0.7, seed=3, max_tokens=50, ignore_eos=True)
    done = llm.generate(chat("Hello!"), params, progress=False)[0]
    assert (len(done.token_ids), done.finish_reason) == (50, "length")


def test_a_stop_string_ends_text_and_count(llm: LLM) -> None:
    free = SamplingParams(temperature=0.0, max_tokens=40)
    text = llm.generate(chat("What is the capital of France?"), free, progress=False)[0].text
    stop = text[5:9]
    stopped = llm.generate(
        chat("What is the capital of France?"),
        SamplingParams(temperature=0.0, max_tokens=40, stop=(stop,)),
        progress=False,
    )[0]
    assert stopped.text == text[: text.index(stop)]
    assert stopped.finish_reason == "stop"
    assert stop in llm.tokenizer.decode(stopped.token_ids)
    assert stop not in llm.tokenizer.decode(stopped.token_ids[:-1])


def test_logprobs_are_the_models_own(llm: LLM) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=4, logprobs=2, prompt_logprobs=1)
    done = llm.generate(chat("Hello!"), params, progress=False)[0]
    assert done.logprobs is not None
    assert done.prompt_logprobs is not None
    assert len(done.logprobs) == len(done.token_ids)
    for token, reported in zip(done.token_ids, done.logprobs, strict=True):
        assert reported.top_ids[0] == token  # greedy: the choice is the likeliest
        assert reported.logprob == pytest.approx(reported.top_logprobs[0])
        assert reported.top_logprobs[0] >= reported.top_logprobs[1]
    assert len(done.prompt_logprobs) == len(done.prompt_token_ids)
    assert done.prompt_logprobs[0] is None
    assert all(p is not None and p.logprob <= 0 for p in done.prompt_logprobs[1:])


def test_parameters_may_differ_by_prompt(llm: LLM) -> None:
    lengths = [3, 5]
    params = [SamplingParams(max_tokens=n, seed=1, ignore_eos=True) for n in lengths]
    done = llm.generate(["a", "b"], params, progress=False)
    assert [len(each.token_ids) for each in done] == lengths
    with pytest.raises(InvalidRequest, match="1 sampling_params for 2 prompts"):
        llm.generate(["a", "b"], params[:1], progress=False)


def test_a_bad_prompt_harms_nobody_else(llm: LLM) -> None:
    with pytest.raises(InvalidRequest):
        llm.generate(["fine", ""], SamplingParams(max_tokens=4), progress=False)
    with pytest.raises(InvalidRequest, match="4000"):
        llm.generate([[9] * 4000], SamplingParams(max_tokens=4), progress=False)
    with pytest.raises(InvalidRequest):
        llm.generate([[9, 4096]], SamplingParams(max_tokens=4), progress=False)
    assert llm.generate("fine", SamplingParams(max_tokens=4, ignore_eos=True), progress=False)
    assert llm.stats.kv_blocks_used == 0


def test_what_cannot_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json"):
        LLM(tmp_path)
    with pytest.raises(ConfigError, match="int3"):
        LLM(DEMO, dtype="int3")
    with pytest.raises(ConfigError, match="made for 2048"):
        LLM(DEMO, max_model_len=4096)
    with pytest.raises(MemoryBudgetError, match="bytes a token"):
        LLM(DEMO, dtype="float32", max_model_len=2048, memory_budget=30 * 2**20)
    with pytest.raises(ConfigError, match="abacus"):
        LLM(DEMO, backend="abacus")


def test_a_list_of_any_length_is_no_overload(llm: LLM) -> None:
    many = llm.generate([[9]] * 1100, SamplingParams(max_tokens=1, ignore_eos=True), progress=False)
    assert len(many) == 1100
