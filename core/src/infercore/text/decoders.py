"""Token ids to text, one at a time: a table of bytes where the tokenizer allows it.

Byte-level BPE (Llama 3, Qwen, GPT-2) and SentencePiece with byte fallback (Llama 2, Mistral,
Gemma) map each id to fixed bytes, so text is their concatenation read as UTF-8. Other decoders
see their neighbours; for them a short window is decoded anew.
"""

import codecs
import json
from collections.abc import Sequence
from typing import Any, Protocol

from tokenizers import Tokenizer

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
WINDOW = 6  # ids of context that a windowed decoder starts with
LONGEST_CHARACTER = 4  # bytes in UTF-8, so also the most tokens that one may take


class Decoder(Protocol):
    """The state of one text that grows by tokens."""

    def push(self, token_id: int) -> str:
        """Text that this id completes; "" while a character's last bytes are missing."""
        ...

    def flush(self) -> str:
        """What is left at the end: U+FFFD for a character that never was completed."""
        ...


class Pieces(dict[int, bytes]):
    """{token id: bytes}, filled on first use. Ids unknown or hidden are empty.

    strip_first: the first space of a text is the tokenizer's own and is not shown.
    """

    def __init__(self, tokenizer: Tokenizer, hidden: frozenset[int], decoder: Any) -> None:
        super().__init__(dict.fromkeys(hidden, b""))
        self._tokenizer = tokenizer
        self.texts = Texts(self)
        self._steps = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
        self.strip_first = any(step["type"] == "Strip" for step in self._steps)

    @staticmethod
    def supports(decoder: Any) -> bool:
        """Whether ids have bytes of their own under this decoder of a tokenizer.json."""
        if decoder is None:
            return False
        steps = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
        kinds = [step["type"] for step in steps]
        if kinds == ["ByteLevel"]:
            return True
        fused = kinds.index("Fuse") if "Fuse" in kinds else len(kinds)
        return (
            bool(kinds)
            and all(step["type"] in ("Replace", "ByteFallback") for step in steps[:fused])
            and all("String" in step["pattern"] for step in steps if step["type"] == "Replace")
            and kinds[fused + 1 :] in ([], ["Strip"])
            and all(
                (step["content"], step["start"], step["stop"]) == (" ", 1, 0)
                for step in steps[fused + 1 :]
            )
        )

    def __missing__(self, token_id: int) -> bytes:
        token = self._tokenizer.id_to_token(token_id)
        self[token_id] = piece = b"" if token is None else self._bytes(token)
        return piece

    def _bytes(self, token: str) -> bytes:
        for step in self._steps:
            if step["type"] == "ByteLevel":
                # a token with other characters is an added one, and stands for itself
                known = all(character in BYTE_LEVEL for character in token)
                return bytes(map(BYTE_LEVEL.__getitem__, token)) if known else token.encode()
            if step["type"] == "Replace":
                token = token.replace(step["pattern"]["String"], step["content"])
            if step["type"] == "ByteFallback" and _is_byte(token):
                return bytes([int(token[3:5], 16)])
        return token.encode()


def _is_byte(token: str) -> bool:
    """<0x00> to <0xFF>"""
    return (
        len(token) == 6
        and token.startswith("<0x")
        and token.endswith(">")
        and all(digit in "0123456789abcdefABCDEF" for digit in token[3:5])
    )


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins for bytes (Radford et al. 2019): {character: byte}."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {
        chr(0x100 + i): byte for i, byte in enumerate(others)
    }


BYTE_LEVEL = _byte_level_alphabet()


class Texts(dict[int, str | None]):
    """{token id: its piece as text}, filled on first use; None where it is no whole UTF-8."""

    def __init__(self, pieces: "Pieces") -> None:
        super().__init__()
        self._pieces = pieces

    def __missing__(self, token_id: int) -> str | None:
        try:
            text = self._pieces[token_id].decode()
        except UnicodeDecodeError:
            text = None
        self[token_id] = text
        return text


class PieceDecoder:
    """Concatenates pieces and reads them as UTF-8; bytes that are not become U+FFFD."""

    __slots__ = ("_pieces", "_strip", "_texts", "_unfinished", "_utf8")

    def __init__(self, pieces: Pieces, *, begins_text: bool) -> None:
        self._pieces = pieces
        self._texts = pieces.texts
        self._unfinished = False  # bytes of a character wait for the rest of it
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._strip = begins_text and pieces.strip_first

    def push(self, token_id: int) -> str:
        if not self._unfinished and not self._strip:
            whole = self._texts[token_id]
            if whole is not None:
                return whole
        text = self._utf8.decode(self._pieces[token_id])
        self._unfinished = self._utf8.getstate()[0] != b""
        if self._strip and text:
            self._strip = False
            return text.removeprefix(" ")
        return text

    def flush(self) -> str:
        return self._utf8.decode(b"", final=True)


class WindowDecoder:
    """Decodes the last few ids, with and without the new ones; the difference is new text."""

    def __init__(
        self, tokenizer: Tokenizer, context: Sequence[int], hidden: frozenset[int]
    ) -> None:
        self._tokenizer = tokenizer
        self._hidden = hidden
        self._ids = [i for i in context[-WINDOW:] if self._has_text(i)]
        self._shown = len(self._ids)  # ids whose text was returned
        self._shown_text = self._decode()

    def push(self, token_id: int) -> str:
        if not self._has_text(token_id):
            return ""
        self._ids.append(token_id)
        text = self._decode()
        waiting = len(self._ids) - self._shown
        if text.endswith(REPLACEMENT) and waiting < LONGEST_CHARACTER:
            return ""
        return self._take(text)

    def flush(self) -> str:
        return self._take(self._decode())

    def _take(self, text: str) -> str:
        fresh = text[len(self._shown_text) :]
        self._ids = self._ids[self._shown :] or self._ids
        self._shown = len(self._ids)
        self._shown_text = self._decode()
        return fresh

    def _has_text(self, token_id: int) -> bool:
        return token_id not in self._hidden and self._tokenizer.id_to_token(token_id) is not None

    def _decode(self) -> str:
        return self._tokenizer.decode(self._ids, skip_special_tokens=False)


def decoder_settings(tokenizer: Tokenizer) -> Any:
    """The `decoder` entry of the tokenizer.json, None if it has none."""
    decoder = tokenizer.decoder
    return None if decoder is None else json.loads(decoder.__getstate__())
