"""The tokenizer: ids, texts, byte ranges, special tokens, and clear refusals."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
from tokenizers import processors

from infercore.errors import CheckpointError
from infercore.hub import demo_path
from infercore.text.tokenizer import Tokenizer, special_tokens
from text_tokenizers import byte_level, save, sentencepiece, wordpiece

TEXT = "Once upon a time, naïve 日本 👩‍👩‍👧 said:\n  hello <|im_end|>"


@pytest.fixture(scope="module")
def demo() -> Tokenizer:
    return Tokenizer(demo_path())


def test_encode_and_decode(demo: Tokenizer) -> None:
    ids = demo.encode(TEXT)
    assert demo.decode(ids, skip_special_tokens=False) == TEXT
    assert demo.decode(ids) == TEXT.removesuffix("<|im_end|>")
    assert demo.decode([]) == ""


def test_facts(demo: Tokenizer) -> None:
    assert demo.vocab_size == 4096
    assert (demo.eos_token, demo.eos_id) == ("<|im_end|>", 2)
    assert (demo.bos_token, demo.bos_id) == (None, None)
    assert demo.is_special(2)
    assert not demo.is_special(100)
    assert demo.id_of("<|im_start|>") == 1
    assert demo.id_of("no such token") is None


def test_added_tokens_of_a_template(tmp_path: Path) -> None:
    tokenizer = sentencepiece(strip=True)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    loaded = Tokenizer(save(tokenizer, tmp_path, bos_token={"content": "<s>"}, eos_token="</s>"))
    assert loaded.encode("hello")[0] == loaded.bos_id == 1
    assert loaded.encode("hello", add_special_tokens=False)[0] != 1
    assert loaded.decode(loaded.encode("hello the")) == "hello the"
    first = loaded.encode_spans("hello")[0]
    assert (first.id, first.text, first.start, first.stop) == (1, "", 0, 0)


def test_spans_are_byte_ranges_of_the_text(demo: Tokenizer) -> None:
    raw = TEXT.encode()
    spans = demo.encode_spans(TEXT)
    assert [span.id for span in spans] == demo.encode(TEXT)
    assert spans[0].start == 0
    assert spans[-1].stop == len(raw)
    for span, following in pairwise(spans):
        assert span.text == raw[span.start : span.stop].decode(errors="replace")
        assert following.start <= span.stop  # a character's tokens all cover it whole


def test_saved_truncation_and_padding_do_not_apply(tmp_path: Path) -> None:
    tokenizer = byte_level()
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=9)
    loaded = Tokenizer(save(tokenizer, tmp_path))
    assert len(loaded.encode("abcd")) == 4
    assert len(loaded.encode("a")) == 1


def test_token_texts(demo: Tokenizer, tmp_path: Path) -> None:
    ids = demo.encode("👩")
    assert len(ids) > 1
    assert b"".join(map(demo.token_bytes, ids)).decode() == "👩"
    assert "\N{REPLACEMENT CHARACTER}" in demo.token_text(ids[0])
    assert demo.token_text(2) == "<|im_end|>"
    assert demo.token_text(10**6) == ""
    words = Tokenizer(save(wordpiece(), tmp_path))
    assert words.token_text(words.encode("hello")[0]) == "hello"
    assert words.token_bytes(words.encode("é")[0]) == "é".encode()


def test_special_tokens_prefer_tokenizer_config(tmp_path: Path) -> None:
    assert special_tokens(tmp_path) == {}
    (tmp_path / "special_tokens_map.json").write_text(
        json.dumps({"bos_token": "<a>", "pad_token": {"content": "<p>"}, "eos_token": "<e>"})
    )
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": "<end>", "bos_token": None, "add_bos_token": True})
    )
    assert special_tokens(tmp_path) == {
        "bos_token": "<a>",
        "pad_token": "<p>",
        "eos_token": "<end>",
    }


def test_missing_tokenizer_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no tokenizer.json; make one .*AutoTokenizer"):
        Tokenizer(tmp_path)


@pytest.mark.parametrize("raw", ["", "{", "[]", '{"version": "1.0"}'])
def test_damaged_tokenizer(tmp_path: Path, raw: str) -> None:
    (tmp_path / "tokenizer.json").write_text(raw)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json cannot be read .*download it"):
        Tokenizer(tmp_path)


def test_damaged_tokenizer_config(tmp_path: Path) -> None:
    save(byte_level(), tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json cannot be read"):
        Tokenizer(tmp_path)
