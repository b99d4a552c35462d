"""How often the watermark is found, by entropy and delta: `python benchmarks/watermark_power.py`.

Texts of the bundled model that continue its held-out text, marked and not. Prints the tables of
docs/explanation/watermark.md.
"""

import sys
from collections.abc import Iterator, Sequence

import numpy as np

from infercore import LLM, SamplingParams
from infercore.hub import DEMO, demo_path
from infercore.watermark import Watermark, detect, key_of

MARK_KEY = key_of("a secret")
TEMPERATURES = (1.0, 0.5, 1.5, 2.0, 2.5)  # the first one's texts are also cut shorter
DELTAS = (0.0, 1.0, 2.0, 4.0, 8.0)  # 0: no mark
LENGTHS = (25, 50, 100, 200)
TEXTS, PROMPT, LENGTH = 24, 24, 200  # of each kind; tokens of prompts and texts
LEVEL = 1e-4  # of the p-value below which a text counts as marked


def prompts(llm: LLM, count: int) -> list[list[int]]:
    """Pieces of the held-out text, evenly apart."""
    ids = llm.tokenizer.encode((demo_path() / "heldout.txt").read_text(encoding="utf-8"))
    starts = np.linspace(0, len(ids) - PROMPT, count).astype(int).tolist()
    return [ids[start : start + PROMPT] for start in starts]


def generate(llm: LLM, temperature: float) -> dict[float, list[list[int]]]:
    """{delta: texts as token ids}, all in one batch."""
    given = [
        SamplingParams(
            temperature=temperature,
            seed=text,
            max_tokens=LENGTH,
            ignore_eos=True,
            watermark=Watermark(MARK_KEY, delta=delta) if delta else None,
        )
        for delta in DELTAS
        for text in range(TEXTS)
    ]
    done = llm.generate(prompts(llm, TEXTS) * len(DELTAS), given, progress=False)
    texts = [each.token_ids for each in done]
    return {delta: texts[i * TEXTS : (i + 1) * TEXTS] for i, delta in enumerate(DELTAS)}


def entropy(llm: LLM, temperature: float) -> tuple[float, float]:
    """Mean and median bits per token of what unmarked tokens are drawn from."""
    few, vocab = 6, llm.info.vocab_size
    given = [
        SamplingParams(
            temperature=temperature, seed=text, max_tokens=50, ignore_eos=True, logprobs=vocab
        )
        for text in range(few)
    ]
    bits: list[float] = []
    for completion in llm.generate(prompts(llm, few), given, progress=False):
        for each in completion.logprobs or ():
            scaled = np.array(each.top_logprobs) / temperature
            scaled -= np.logaddexp.reduce(scaled)
            bits.append(float(-(np.exp(scaled) * scaled).sum() / np.log(2)))
    return float(np.mean(bits)), float(np.median(bits))


def summary(texts: Sequence[Sequence[int]], length: int = LENGTH) -> str:
    """Share of texts that are found, and the mean z-score."""
    found = [detect(Watermark(MARK_KEY), text[:length]) for text in texts]
    share = np.mean([each.p_value < LEVEL for each in found])
    return f"{100 * share:.0f} % ({np.mean([each.z_score for each in found]):.1f})"


def perplexity(llm: LLM, texts: list[list[int]]) -> float:
    """Of the texts after their prompts, under the model itself."""
    wanted = SamplingParams(max_tokens=1, seed=0, prompt_logprobs=0)
    whole = [p + text for p, text in zip(prompts(llm, TEXTS), texts, strict=True)]
    logprobs = [
        each.logprob
        for completion in llm.generate(whole, wanted, progress=False)
        for each in (completion.prompt_logprobs or [])[PROMPT:]
        if each is not None
    ]
    return float(np.exp(-np.mean(logprobs)))


def tables(llm: LLM) -> Iterator[str]:
    shorter = [f"| δ | {' | '.join(f'{length} tokens' for length in LENGTHS)} | perplexity |"]
    shorter.append("|---" * (2 + len(LENGTHS)) + "|")
    header = " | ".join(f"δ = {delta:g}" for delta in DELTAS)
    yield f"| temperature | bits, mean | bits, median | {header} |"
    yield "|---" * (3 + len(DELTAS)) + "|"
    for temperature in TEMPERATURES:
        mean, median = entropy(llm, temperature)
        texts = generate(llm, temperature)
        cells = [summary(each) for each in texts.values()]
        yield f"| {temperature:g} | {mean:.2f} | {median:.2f} | {' | '.join(cells)} |"
        if temperature == TEMPERATURES[0]:
            for delta, each in texts.items():
                cells = [summary(each, length) for length in LENGTHS]
                shorter.append(f"| {delta:g} | {' | '.join(cells)} | {perplexity(llm, each):.2f} |")
    yield ""
    yield from shorter


def main() -> None:
    with LLM(DEMO, dtype="float32", max_num_seqs=TEXTS * len(DELTAS)) as llm:
        for line in tables(llm):
            sys.stdout.write(f"{line}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
