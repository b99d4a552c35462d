"""What the operator chooses, in one place, before anything is resolved against a machine."""

from dataclasses import dataclass

from infercore.errors import ConfigError


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Options of one engine. None means: derived, and shown in the banner.

    model: a local folder or a hub id; revision: the hub's branch, tag or commit.
    backend: name of an installed backend plugin.
    dtype: compute dtype; "auto" = the checkpoint's, if the backend has it, else its best.
    kv_dtype: dtype of the KV cache; "auto" = the compute dtype.
    activation_dtype: what inputs of weight-only quantized layers are rounded to: "int8"; "bf16" =
        they are not rounded further; "auto" = int8 in bfloat16 compute, if the backend has it.
    quantize: name of a quantization method; None = what the checkpoint says.
    block_size: tokens per KV block; None = the backend's best.
    max_model_len: longest sequence, prompt and output (TGI: --max-total-tokens).
    max_input_len: longest prompt (TGI: --max-input-tokens).
    max_num_seqs: most sequences in a step (TGI: --max-batch-size).
    max_batch_tokens: token budget of a step, prefill and decode together; None = the backend's
        best.
    num_blocks: KV blocks of every group, block 0 included; None = what memory allows.
    kv_tokens: tokens that the KV cache holds (TGI: --max-batch-total-tokens); None = what memory
        allows. It says the same as num_blocks, in tokens; give one of the two.
    memory_budget: bytes for weights, workspace and KV; None = the backend's limit.
    prefix_cache: reuse blocks of equal prefixes.
    step_ahead: submit the next step before the last one's result, where the backend can.
    max_overtake: seconds that a request which does not fit may be overtaken for.
    max_waiting: most requests in the queue; one more is refused as overloaded.
    max_waiting_tokens: most tokens of prompts in the queue; an empty queue takes any prompt.
    step_timeout: seconds of silence with work pending before the watchdog ends the engine.
    threads: CPU threads for compute; None = the backend's choice.
    ranks: devices that share the model by tensor parallelism (TGI: --num-shard).
    """

    model: str
    revision: str | None = None
    backend: str = "cpu"
    dtype: str = "auto"
    kv_dtype: str = "auto"
    activation_dtype: str = "auto"
    quantize: str | None = None
    block_size: int | None = None
    max_model_len: int | None = None
    max_input_len: int | None = None
    max_num_seqs: int = 64
    max_batch_tokens: int | None = None
    num_blocks: int | None = None
    kv_tokens: int | None = None
    memory_budget: int | None = None
    prefix_cache: bool = True
    step_ahead: bool = True
    max_overtake: float = 2.0
    max_waiting: int = 1024
    max_waiting_tokens: int = 2**20
    step_timeout: float = 60.0
    threads: int | None = None
    ranks: int = 1

    def __post_init__(self) -> None:
        positive = (
            "block_size",
            "max_model_len",
            "max_input_len",
            "max_num_seqs",
            "max_batch_tokens",
            "kv_tokens",
            "memory_budget",
            "max_waiting",
            "max_waiting_tokens",
            "step_timeout",
            "threads",
            "ranks",
        )
        for name in positive:
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ConfigError(f"{name} must be positive. Given: {value}")
        if self.num_blocks is not None and self.num_blocks < 2:
            raise ConfigError(
                f"num_blocks must be at least 2 (block 0 is padding's). Given: {self.num_blocks}"
            )
        if self.num_blocks is not None and self.kv_tokens is not None:
            raise ConfigError("num_blocks and kv_tokens both size the KV cache; give one of them")
        if self.max_input_len and self.max_model_len and self.max_input_len >= self.max_model_len:
            raise ConfigError(
                f"max_input_len ({self.max_input_len}) must be below max_model_len "
                f"({self.max_model_len}): at least one token must fit after the prompt"
            )
