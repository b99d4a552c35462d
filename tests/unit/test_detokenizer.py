"""Incremental detokenization: equal to decoding at once, and stops wherever they appear."""

from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from infercore.hub import demo_path
from infercore.text.detokenizer import Detokenizer
from infercore.text.stops import StopMatcher
from infercore.text.tokenizer import Tokenizer
from text_tokenizers import byte_level, metaspace, save, sentencepiece, wordpiece

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
KINDS = ("demo", "byte_level", "llama", "gemma", "wordpiece", "metaspace")
TEXTS = ("the story", "日本 ñ 👩‍👩‍👧\n", "  two  spaces ", "hello, <call>two words!", "ภาษา")


class Pair:
    """Our tokenizer beside the library's own, from the same folder."""

    def __init__(self, path: Path) -> None:
        self.ours = Tokenizer(path)
        self.library = tokenizers.Tokenizer.from_file(str(path / "tokenizer.json"))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    made = {
        "byte_level": byte_level(),
        "llama": sentencepiece(strip=True),
        "gemma": sentencepiece(strip=False),
        "wordpiece": wordpiece(),
        "metaspace": metaspace(),
    }
    root = tmp_path_factory.mktemp("tokenizers")
    folders = {kind: save(tokenizer, root / kind) for kind, tokenizer in made.items()}
    return {kind: Pair(path) for kind, path in (folders | {"demo": demo_path()}).items()}


def cut(draw: st.DrawFn, ids: list[int]) -> list[list[int]]:
    """The ids in consecutive chunks, as steps of the engine may bring them."""
    chunks = []
    while ids:
        size = draw(st.integers(1, 4))
        chunks.append(ids[:size])
        ids = ids[size:]
    return chunks


@pytest.mark.parametrize("skip_special_tokens", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60)
@given(data=st.data())
def test_random_ids_equal_decoding_at_once(
    pairs: dict[str, Pair], kind: str, skip_special_tokens: bool, data: st.DataObject
) -> None:
    pair = pairs[kind]
    ids = data.draw(st.lists(st.integers(0, pair.ours.vocab_size + 5), max_size=30))
    stream = Detokenizer(pair.ours, skip_special_tokens=skip_special_tokens)
    chunks = data.draw(st.composite(cut)(ids))
    text = "".join(map(stream.push, chunks)) + stream.flush()
    assert text == pair.ours.decode(ids, skip_special_tokens=skip_special_tokens)
    whole = pair.library.decode(ids, skip_special_tokens=skip_special_tokens)
    if kind in ("llama", "gemma"):  # the library spoils a whole run of bytes for one bad one
        assert (text == whole) or REPLACEMENT in whole
    else:
        assert text == whole
    assert stream.num_tokens == len(ids)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("kind", ["demo", "byte_level", "llama", "gemma"])
def test_texts_come_back_and_only_whole_characters_are_sent(
    pairs: dict[str, Pair], kind: str, text: str
) -> None:
    pair = pairs[kind]
    ids = pair.library.encode(text).ids
    stream = Detokenizer(pair.ours)
    parts = [stream.push([token_id]) for token_id in ids]
    assert not any(REPLACEMENT in part for part in parts)
    assert "".join(parts) + stream.flush() == pair.library.decode(ids) == text


@pytest.mark.parametrize("kind", KINDS)
def test_generation_keeps_the_space_after_its_prompt(pairs: dict[str, Pair], kind: str) -> None:
    pair = pairs[kind]
    prompt = pair.library.encode("hello").ids
    whole = pair.library.encode("hello the story").ids
    assert whole[: len(prompt)] == prompt
    stream = Detokenizer(pair.ours, prompt)
    assert stream.push(whole[len(prompt) :]) + stream.flush() == " the story"


@pytest.mark.parametrize("kind", KINDS)
def test_an_unfinished_character_ends_as_one_replacement(pairs: dict[str, Pair], kind: str) -> None:
    if kind in ("wordpiece", "metaspace"):
        assert pairs[kind].ours.decode(pairs[kind].ours.encode("the")) == "the"
        return
    ours = pairs[kind].ours
    ids = ours.encode("a👩", add_special_tokens=False)
    stream = Detokenizer(ours)
    assert stream.push(ids[:-1]).endswith("a")
    assert stream.flush() == REPLACEMENT


def test_special_tokens_are_hidden_unless_wanted(pairs: dict[str, Pair]) -> None:
    ours = pairs["demo"].ours
    ids = [1, *ours.encode("hello"), 2]
    assert Detokenizer(ours).push(ids) == "hello"
    shown = Detokenizer(ours, skip_special_tokens=False)
    assert shown.push(ids) == "<|im_start|>hello<|im_end|>"


def ends(text: str, stops: list[str]) -> tuple[int, str] | None:
    """The definition: the first end of any stop, and the longest stop that ends there."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if stop and text[:end].endswith(stop)]
        if found:
            return end, max(found, key=len)
    return None


STOPS = st.lists(st.text("ab\n", max_size=4), max_size=4)


@settings(max_examples=200)
@given(text=st.text("ab\n", max_size=30), stops=STOPS, data=st.data())
def test_stops_do_not_depend_on_how_text_is_cut(
    pairs: dict[str, Pair], text: str, stops: list[str], data: st.DataObject
) -> None:
    ours = pairs["byte_level"].ours  # one character, one token
    ids = ours.encode(text)
    expected = ends(text, stops)
    chunks = data.draw(st.composite(cut)(ids))
    for include_stop in (False, True):
        stream = Detokenizer(ours, stop=stops, include_stop=include_stop)
        out = "".join(map(stream.push, chunks)) + stream.flush()
        if expected is None:
            assert (out, stream.stop_string, stream.num_tokens) == (text, None, len(ids))
            continue
        end, stop = expected
        assert stream.stop_string == stop
        assert stream.num_tokens == end
        assert out == (text[:end] if include_stop else text[: end - len(stop)])


def test_stop_in_the_middle_of_a_token_ends_with_that_token(pairs: dict[str, Pair]) -> None:
    ours = pairs["demo"].ours
    ids = ours.encode("Once upon a time there was")
    inside = next(i for i, token_id in enumerate(ids) if "ther" in ours.token_text(token_id))
    stream = Detokenizer(ours, stop=["her"])
    assert stream.push(ids) == "Once upon a time t"
    assert stream.num_tokens == inside + 1
    assert stream.push(ids) + stream.flush() == ""
    assert stream.num_tokens == inside + 1
    kept = Detokenizer(ours, stop=["her"], include_stop=True)
    assert kept.push(ids) == "Once upon a time ther"


def test_only_what_may_begin_a_stop_is_held_back(pairs: dict[str, Pair]) -> None:
    ours = pairs["byte_level"].ours
    stream = Detokenizer(ours, stop=["\n\nUser"])
    assert stream.push(ours.encode("hi\n")) == "hi"
    assert stream.push(ours.encode("\n")) == ""
    assert stream.push(ours.encode("\n")) == "\n"  # two line feeds may still begin it
    assert stream.push(ours.encode("Us")) == ""
    assert stream.push(ours.encode("a")) == "\n\nUsa"
    assert stream.push(ours.encode("\n\nUse")) == ""
    assert stream.flush() == "\n\nUse"


def test_included_stops_hold_nothing_back(pairs: dict[str, Pair]) -> None:
    ours = pairs["byte_level"].ours
    stream = Detokenizer(ours, stop=["END"], include_stop=True)
    assert [stream.push([i]) for i in ours.encode("xEND!")] == ["x", "E", "N", "D", ""]


def test_a_match_reads_each_character_once() -> None:
    matcher = StopMatcher(["aab", "ab", ""])
    assert matcher.feed("aaa") is None
    assert matcher.held == 2
    assert matcher.feed("b") == ("aab", 1)
