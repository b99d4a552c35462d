"""The plugin that brings the built-in model families, by the same door as anybody else's."""

from collections.abc import Sequence

from infercore.hookspecs import hookimpl
from infercore.model_spec import ModelFamily

API_VERSION = (1, 0)


@hookimpl
def register_models() -> Sequence[ModelFamily]:
    from infercore.models import gemma2, gpt2, llama, mistral, qwen2, qwen3

    return [module.FAMILY for module in (gemma2, gpt2, llama, mistral, qwen2, qwen3)]
