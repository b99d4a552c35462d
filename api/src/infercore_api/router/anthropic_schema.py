"""Bodies of Anthropic's routes, and what their parameters mean to the core."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from infercore.sampling import SamplingParams
from infercore_api.router.validation import MAX_MESSAGES, ExactBody, Limits

CACHE_CONTROL = frozenset({"cache_control"})  # equal prefixes are cached without being asked
IGNORED = CACHE_CONTROL | {
    "diagnostics",
    "inference_geo",
    "metadata",
    "service_tier",
    "speed",
    "user_profile_id",
    "workspace_id",
}
"""Fields that change nothing about the answer of a served model; published in the docs."""


class TextBlock(ExactBody):
    """A block of a message's content, or of the system prompt."""

    IGNORED: ClassVar[frozenset[str]] = CACHE_CONTROL
    HARMLESS: ClassVar[Mapping[str, tuple[Any, ...]]] = {"citations": ([],)}

    type: Literal["text"]
    text: str


class Turn(ExactBody):
    """A message of one side."""

    role: Literal["user", "assistant"]
    content: str | list[TextBlock]


class CountBody(ExactBody):
    """Body of `/v1/messages/count_tokens`."""

    IGNORED: ClassVar[frozenset[str]] = IGNORED
    HARMLESS: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "container": (),
        "mcp_servers": ([],),
        "output_config": ({},),
        "output_format": (),
        "thinking": ({"type": "disabled"},),
        "tool_choice": ({"type": "auto"}, {"type": "none"}),
        "tools": ([],),
    }

    model: str
    messages: list[Turn] = Field(min_length=1, max_length=MAX_MESSAGES)
    system: str | list[TextBlock] = Field(default_factory=list)

    def for_template(self) -> list[dict[str, Any]]:
        """Messages as templates expect them: the system's first, then sides that take turns.

        Turns of the same side are one, as Anthropic has it; many templates refuse them otherwise.
        """
        chat: list[dict[str, Any]] = []
        turns = [("system", self.system), *((turn.role, turn.content) for turn in self.messages)]
        for role, content in turns:
            parts = _parts(content)
            if chat and chat[-1]["role"] == role:
                chat[-1]["content"] += parts
            elif parts or role != "system":
                chat.append({"role": role, "content": parts})
        return chat


class MessagesBody(CountBody):
    """Body of `/v1/messages`."""

    max_tokens: int = Field(gt=0)
    stream: bool = False
    stop_sequences: list[str] = Field(default_factory=list)
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0

    def check(self, limits: Limits) -> None:
        """Refuse what is out of the server's limits; ranges are SamplingParams' to check."""
        limits.check_stop(self.stop_sequences, "stop_sequences")

    def sampling(self, max_tokens: int) -> SamplingParams:
        """The core's parameters. Raises InvalidRequest for a value out of range."""
        return SamplingParams(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            stop=tuple(self.stop_sequences),
            max_tokens=max_tokens,
        )


def _parts(content: str | list[TextBlock]) -> list[dict[str, str]]:
    texts = [content] if isinstance(content, str) else [block.text for block in content]
    return [{"type": "text", "text": text} for text in texts]
