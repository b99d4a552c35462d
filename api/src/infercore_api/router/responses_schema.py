"""Body of OpenAI's `/v1/responses`, and what its parameters mean to the core."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from infercore.sampling import SamplingParams
from infercore_api.router import openai_schema
from infercore_api.router.validation import MAX_MESSAGES, ExactBody

IGNORED = openai_schema.IGNORED | {"max_tool_calls"}
"""Fields that change nothing about the answer of a served model; published in the docs."""


class ContentPart(ExactBody):
    """A part of a message; what a reply's part carries besides its text is not read again."""

    IGNORED: ClassVar[frozenset[str]] = frozenset({"annotations", "logprobs"})

    type: Literal["input_text", "output_text"]
    text: str


class InputMessage(ExactBody):
    """A message of the input, one of an earlier reply's output too."""

    IGNORED: ClassVar[frozenset[str]] = frozenset({"id", "phase", "status"})

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[ContentPart]

    def for_template(self) -> dict[str, Any]:
        """As templates expect it: they know `system`, not the newer `developer`."""
        parts = self.content
        texts = [parts] if isinstance(parts, str) else [part.text for part in parts]
        return {
            "role": "system" if self.role == "developer" else self.role,
            "content": [{"type": "text", "text": text} for text in texts],
        }


class TextOptions(ExactBody):
    """`text`: the form of the output."""

    IGNORED: ClassVar[frozenset[str]] = frozenset({"verbosity"})
    HARMLESS: ClassVar[Mapping[str, tuple[Any, ...]]] = {"format": ({"type": "text"},)}


class ReasoningOptions(ExactBody):
    """`reasoning`: a served model reasons as its template says."""

    IGNORED: ClassVar[frozenset[str]] = frozenset({"effort", "generate_summary", "summary"})


class ResponseStreamOptions(ExactBody):
    """`stream_options`."""

    include_obfuscation: Literal[False] = False


class ResponsesBody(ExactBody):
    """Body of `/v1/responses`."""

    IGNORED: ClassVar[frozenset[str]] = IGNORED
    HARMLESS: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "background": (False,),
        "context_management": ([],),
        "conversation": (),
        "include": ([], ["reasoning.encrypted_content"]),
        "previous_response_id": (),
        "prompt": (),
        "tool_choice": ("auto", "none"),
        "tools": ([],),
        "top_logprobs": (0,),
        "truncation": ("disabled",),
    }

    model: str = ""
    input: str | Annotated[list[InputMessage], Field(max_length=MAX_MESSAGES)]
    instructions: str | None = None
    max_output_tokens: int | None = Field(default=None, gt=0)
    temperature: float = 1.0
    top_p: float = 1.0
    stream: bool = False
    stream_options: ResponseStreamOptions = Field(default_factory=ResponseStreamOptions)
    text: TextOptions = Field(default_factory=TextOptions)
    reasoning: ReasoningOptions = Field(default_factory=ReasoningOptions)

    def for_template(self) -> list[dict[str, Any]]:
        """Messages as templates expect them, the instructions first."""
        chat = []
        if self.instructions:
            chat.append({"role": "system", "content": self.instructions})
        if isinstance(self.input, str):
            return [*chat, {"role": "user", "content": self.input}]
        return chat + [message.for_template() for message in self.input]

    def sampling(self, max_tokens: int) -> SamplingParams:
        """The core's parameters. Raises InvalidRequest for a value out of range."""
        return SamplingParams(temperature=self.temperature, top_p=self.top_p, max_tokens=max_tokens)
