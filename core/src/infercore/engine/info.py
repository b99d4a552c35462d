"""What an engine tells about itself once it is ready: the source of `/info`, banner and limits."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """Facts of a launched engine, constant until it restarts. Sizes in bytes, lengths in tokens.

    model_id: as the operator gave it; model_path: the local folder that it resolved to.
    revision: the hub's commit, "" for a local folder.
    eos_ids: ids that end a request unless it ignores them.
    max_model_len, max_input_len, max_num_seqs, max_batch_tokens: the limits in force.
    memory_*: the split that the banner shows. kv_tokens: tokens that all KV blocks hold.
    capabilities: what the executor declares, `Capabilities.facts` as JSON.
    watermark: it marks texts.
    """

    model_id: str
    model_path: str
    revision: str
    architecture: str
    backend: str
    devices: tuple[str, ...]
    dtype: str
    kv_dtype: str
    quantization: str
    vocab_size: int
    eos_ids: tuple[int, ...]
    num_parameters: int
    max_model_len: int
    max_input_len: int
    max_num_seqs: int
    max_batch_tokens: int
    block_size: int
    kv_blocks: int
    kv_tokens: int
    memory_total: int
    memory_weights: int
    memory_workspace: int
    memory_kv: int
    prompt_logprobs: bool
    late_inputs: bool
    batch_invariant: bool
    capabilities: str
    watermark: bool = False
