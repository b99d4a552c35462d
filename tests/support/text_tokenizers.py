"""Small tokenizers of every kind that checkpoints bring, built on the spot."""

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

WORDS = ["hello", "world", "the", "a", "un", "able", "story", "日本", "é"]


def sentencepiece(*, strip: bool) -> Tokenizer:
    """BPE over ▁-pieces with byte fallback, as Llama 2 (strip) and Gemma (no strip) have it."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    letters = sorted({letter for word in WORDS for letter in word} | set("▁.,!"))
    pieces += letters + [p for p in ("▁the", "▁a", "▁▁", "he", "llo") if p not in letters]
    merges = [("h", "e"), ("▁", "a"), ("▁", "▁")]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={piece: i for i, piece in enumerate(pieces)},
            merges=merges,
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [*([normalizers.Prepend("▁")] if strip else []), normalizers.Replace(" ", "▁")]
    )
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(steps + ([decoders.Strip(" ", 1, 0)] if strip else []))
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.add_tokens([AddedToken("<call>", special=False), AddedToken("naïve ▁x")])
    return tokenizer


def byte_level() -> Tokenizer:
    """A byte-level BPE whose added tokens hold spaces and characters beyond its alphabet."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>"])
    tokenizer.add_tokens(["<call>", "two words", "日本", "é"])
    return tokenizer


def wordpiece() -> Tokenizer:
    """Whose decoder looks at neighbours, so that no id has bytes of its own."""
    pieces = ["[UNK]", *WORDS, "##able", "##s", "."]
    tokenizer = Tokenizer(
        models.WordPiece(vocab={p: i for i, p in enumerate(pieces)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    tokenizer.add_special_tokens(["[SEP]"])
    return tokenizer


def metaspace() -> Tokenizer:
    """A unigram model with the Metaspace decoder, as T5 has it."""
    pieces = [("<unk>", 0.0), *((f"▁{word}", -1.0) for word in WORDS), ("▁", -2.0), ("s", -3.0)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def save(tokenizer: Tokenizer, path: Path, **config: object) -> Path:
    """Write a model folder's tokenizer files into `path`."""
    path.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    return path
