"""Text to token ids and back, from a model folder's tokenizer.json."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import tokenizers

from infercore.errors import CheckpointError
from infercore.model_folder import read_json
from infercore.text.decoders import (
    Decoder,
    PieceDecoder,
    Pieces,
    WindowDecoder,
    decoder_settings,
)


@dataclass(frozen=True, slots=True)
class TokenSpan:
    """A token of an encoded text: text = its bytes start:stop, as UTF-8 with U+FFFD for the rest.

    A token that the tokenizer added itself has text "" at 0:0.
    """

    id: int
    text: str
    start: int
    stop: int


class Tokenizer:
    """Encodes and decodes; safe to use from several threads, and encodes without the GIL.

    bos_token, eos_token: texts, None if the model has none; bos_id, eos_id: their ids.
    vocab_size: ids that exist, added tokens included.
    Raises CheckpointError if tokenizer.json is missing or damaged.
    """

    def __init__(self, path: Path) -> None:
        self._tokenizer = _load(path / "tokenizer.json")
        names = special_tokens(path)
        self.bos_token = names.get("bos_token")
        self.eos_token = names.get("eos_token")
        self.bos_id = self.id_of(self.bos_token)
        self.eos_id = self.id_of(self.eos_token)
        self.vocab_size = self._tokenizer.get_vocab_size(with_added_tokens=True)
        added = self._tokenizer.get_added_tokens_decoder()
        self._special = frozenset(i for i, token in added.items() if token.special)
        settings = decoder_settings(self._tokenizer)
        self._pieces = self._plain_pieces = None
        if Pieces.supports(settings):
            self._pieces = Pieces(self._tokenizer, frozenset(), settings)
            self._plain_pieces = Pieces(self._tokenizer, self._special, settings)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`. Releases the GIL, so it suits a worker thread."""
        encoded = self._tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        return encoded[0].ids

    def encode_spans(self, text: str, *, add_special_tokens: bool = True) -> list[TokenSpan]:
        """Tokens of `text` with the byte ranges that they cover. Releases the GIL."""
        encoded = self._tokenizer.encode_batch([text], add_special_tokens=add_special_tokens)[0]
        raw = text.encode()
        widths = (len(character.encode()) for character in text)
        byte_at = list(accumulate(widths, initial=0))
        return [
            TokenSpan(
                token_id,
                raw[byte_at[start] : byte_at[stop]].decode(errors="replace"),
                byte_at[start],
                byte_at[stop],
            )
            for token_id, (start, stop) in zip(encoded.ids, encoded.offsets, strict=True)
        ]

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of `ids`; ids that do not exist have none."""
        decoder = self.decoder(skip_special_tokens=skip_special_tokens)
        return "".join(map(decoder.push, ids)) + decoder.flush()

    def decoder(self, context: Sequence[int] = (), *, skip_special_tokens: bool = True) -> Decoder:
        """A decoder of ids that come after `context`; with none, they begin a text."""
        pieces = self._plain_pieces if skip_special_tokens else self._pieces
        if pieces is not None:
            return PieceDecoder(pieces, begins_text=len(context) == 0)
        hidden = self._special if skip_special_tokens else frozenset()
        return WindowDecoder(self._tokenizer, context, hidden)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that one token stands for, maybe a part of a character."""
        if self._pieces is not None:
            return self._pieces[token_id]
        return self._tokenizer.decode([token_id], skip_special_tokens=False).encode()

    def token_text(self, token_id: int) -> str:
        """One token alone, with U+FFFD where it holds a part of a character."""
        return self.token_bytes(token_id).decode(errors="replace")

    def is_special(self, token_id: int) -> bool:
        """Whether it is a control token, not shown in texts."""
        return token_id in self._special

    def id_of(self, token: str | None) -> int | None:
        """Id of the token spelt `token` in the vocabulary, None if there is none."""
        return None if token is None else self._tokenizer.token_to_id(token)


def special_tokens(path: Path) -> dict[str, Any]:
    """{"bos_token": text, …} of a model folder: all that its settings name `*_token`.

    Raises CheckpointError for a damaged file.
    """
    found: dict[str, str] = {}
    # later files win: tokenizer_config.json is the one that is kept up to date
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        for name, value in (read_json(path / file) or {}).items():
            text = value.get("content") if isinstance(value, Mapping) else value
            if name.endswith("_token") and isinstance(text, str):
                found[name] = text
    return found


def _load(file: Path) -> tokenizers.Tokenizer:
    if not file.is_file():
        raise CheckpointError(
            f"{file.parent} has no tokenizer.json; make one with: python -c "
            '"from transformers import AutoTokenizer as T; '
            f'T.from_pretrained({str(file.parent)!r}).save_pretrained({str(file.parent)!r})"'
        )
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing narrower
        raise CheckpointError(f"{file} cannot be read ({error}); download it again") from error
    # limits and padding belong to training; a server's own limits apply
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
