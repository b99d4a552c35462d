"""TGI's headers of generating routes: how long each part took, how much was read and written."""

import os
from collections.abc import Iterable

from infercore_api.router.choice import Prompt
from infercore_api.router.generation import Generation


def stream_headers(prompts: Iterable[Prompt], backend: str) -> dict[str, str]:
    """What is known before the first token."""
    texts = {id(prompt.ids): prompt.text for prompt in prompts}  # choices of one prompt share it
    kind = os.environ.get("COMPUTE_TYPE", backend)  # operators set it by the variable of TGI's
    return {
        "x-compute-type": kind.encode("latin-1", "replace").decode("latin-1"),
        "x-compute-characters": str(sum(map(len, texts.values()))),
    }


def whole_headers(generation: Generation, backend: str) -> dict[str, str]:
    """What is known at the end; times in milliseconds, `x-compute-time` in seconds."""
    total = generation.ended - generation.record.started
    milliseconds = {
        "x-total-time": total,
        "x-validation-time": generation.validation_seconds,
        "x-queue-time": generation.queue_seconds,
        "x-inference-time": generation.inference_seconds,
        "x-time-per-token": generation.seconds_per_token,
    }
    return {
        **stream_headers((choice.prompt for choice in generation.choices), backend),
        "x-compute-time": f"{total:.6f}",
        **{name: str(round(seconds * 1000)) for name, seconds in milliseconds.items()},
        "x-prompt-tokens": str(generation.prompt_tokens),
        "x-generated-tokens": str(generation.generated_tokens),
    }
