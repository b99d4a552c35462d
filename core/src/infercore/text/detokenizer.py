"""Incremental detokenization of one stream, with stop strings."""

from collections.abc import Iterable, Sequence

from infercore.text.stops import StopMatcher
from infercore.text.tokenizer import Tokenizer


class Detokenizer:
    """Turns the token ids of one stream into text that is final once it was returned.

    Held back are the bytes of an unfinished character and, unless stops are included, an end
    of the text that may begin a stop string. The text of all pushes and the flush equals
    `Tokenizer.decode` of the ids, up to the stop.

    tokenizer: shared by all streams. prompt_ids: what the ids continue; with none, they begin
        a text. stop: strings that end the text wherever they appear.
    include_stop: the text keeps the stop string (TGI) or ends before it (OpenAI).
    skip_special_tokens: control tokens have no text.

    stop_string: the one that ended the text, None so far.
    num_tokens: ids consumed, up to and including the one that completed the stop string; ids
        beyond it count for nothing.
    """

    __slots__ = ("_decoder", "_held", "_include_stop", "_stops", "num_tokens", "stop_string")

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt_ids: Sequence[int] = (),
        *,
        stop: Iterable[str] = (),
        include_stop: bool = False,
        skip_special_tokens: bool = True,
    ) -> None:
        self._decoder = tokenizer.decoder(prompt_ids, skip_special_tokens=skip_special_tokens)
        stops = tuple(filter(None, stop))
        self._stops = StopMatcher(stops) if stops else None
        self._include_stop = include_stop
        self._held = ""
        self.stop_string: str | None = None
        self.num_tokens = 0

    def push(self, token_ids: Iterable[int]) -> str:
        """Text that became final with these ids; "" after a stop."""
        return "".join([self.push_one(token_id) for token_id in token_ids])

    def push_one(self, token_id: int) -> str:
        """`push` of one id: the path of a streamed token."""
        if self.stop_string is not None:
            return ""
        self.num_tokens += 1
        text = self._decoder.push(token_id)
        return text if self._stops is None or not text else self._scan(text)

    def flush(self) -> str:
        """The rest, at the end of the stream; "" after a stop."""
        if self.stop_string is not None:
            return ""
        text = self._decoder.flush()
        if self._stops is not None and text:
            text = self._scan(text)
        held, self._held = self._held, ""
        return text + held

    def _scan(self, text: str) -> str:
        """Look for stops in new text; returns what is final of it and of what was held."""
        assert self._stops is not None
        found = self._stops.feed(text)
        if found is not None:
            self.stop_string, end = found
            final = self._held + text[:end]
            self._held = ""
            return final if self._include_stop else final.removesuffix(self.stop_string)
        if self._include_stop:
            return text
        text = self._held + text
        kept = len(text) - self._stops.held
        self._held = text[kept:]
        return text[:kept]
