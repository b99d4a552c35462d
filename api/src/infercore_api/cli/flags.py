"""The flags of `infercore serve`: one table, from which parser, help, environment and docs come.

Names, environment variables and meanings are TGI's where TGI has the function. What TGI has and
this server has not is in the table too: harmless flags are accepted and said to do nothing, the
others are refused with what to do instead, so that no option is ever dropped in silence.
"""

from infercore_api.cli.flag import Flag, flag, ours
from infercore_api.cli.server_flags import SERVER_FLAGS
from infercore_api.cli.tgi_flags import TGI_FLAGS

MODEL = "Model"
LIMITS = "Request limits"
BATCHING = "Batching and memory"

FLAGS: tuple[Flag, ...] = (
    flag(
        "model-id",
        str,
        MODEL,
        "A local folder, a hub id, or the bundled model.",
        "engine.model",
        default="infercore/demo",
    ),
    flag("revision", str, MODEL, "The hub's branch, tag or commit.", "engine.revision"),
    ours("backend", str, MODEL, "Name of an installed backend plugin.", "engine.backend"),
    flag(
        "dtype",
        str,
        MODEL,
        "Compute dtype: float32, bfloat16, float16; auto = the checkpoint's.",
        "engine.dtype",
    ),
    flag(
        "kv-cache-dtype",
        str,
        MODEL,
        "Dtype of the KV cache; auto = the compute dtype.",
        "engine.kv_dtype",
    ),
    ours(
        "activation-dtype",
        str,
        MODEL,
        "Inputs of weight-only quantized layers: int8, or bf16 = not rounded; auto = int8 in "
        "bfloat16 compute, where the backend has it.",
        "engine.activation_dtype",
    ),
    flag(
        "quantize",
        str,
        MODEL,
        "Quantization method that reads the checkpoint; by default what the checkpoint says.",
        "engine.quantize",
    ),
    flag(
        "num-shard",
        int,
        MODEL,
        "Devices that share the model by tensor parallelism, where the backend joins them.",
        "engine.ranks",
    ),
    ours("threads", int, MODEL, "CPU threads for compute; by default all.", "engine.threads"),
    ours(
        "served-model-name",
        list[str],
        MODEL,
        "Names that clients may ask for; replies carry the first. By default the model's id.",
        "router.model_names",
        default=None,
    ),
    flag(
        "huggingface-hub-cache",
        str,
        MODEL,
        "Folder of downloaded models; by default the hub library's.",
        "serve.hub_cache",
    ),
    flag(
        "max-concurrent-requests",
        int,
        LIMITS,
        "Sequences in work at once; one more is answered 429.",
        "router.max_concurrent_requests",
    ),
    flag("max-best-of", int, LIMITS, "Largest `best_of`.", "router.max_best_of"),
    flag(
        "max-stop-sequences",
        int,
        LIMITS,
        "Most stop texts of a request.",
        "router.max_stop_sequences",
        zero=True,
    ),
    flag(
        "max-top-n-tokens",
        int,
        LIMITS,
        "Most likeliest tokens shown per position.",
        "router.max_top_n_tokens",
        zero=True,
    ),
    flag(
        "max-input-tokens",
        int,
        LIMITS,
        "Longest prompt, in tokens; by default one less than --max-total-tokens.",
        "engine.max_input_len",
    ),
    flag(
        "max-input-length",
        int,
        LIMITS,
        "TGI's older name of --max-input-tokens; give one of them.",
        "engine.max_input_len",
    ),
    flag(
        "max-total-tokens",
        int,
        LIMITS,
        "Longest sequence, prompt and output; by default what the model and memory allow.",
        "engine.max_model_len",
    ),
    flag(
        "max-client-batch-size",
        int,
        LIMITS,
        "Most prompts, and most choices, of a request.",
        "router.max_client_batch_size",
    ),
    flag("payload-limit", int, LIMITS, "Largest request body, in bytes.", "router.payload_limit"),
    flag(
        "validation-workers",
        int,
        LIMITS,
        "Threads that tokenize and render templates.",
        "router.validation_workers",
    ),
    flag(
        "max-batch-prefill-tokens",
        int,
        BATCHING,
        "Token budget of a step: decodes first, then chunks of prompts; by default what suits the "
        "backend. TGI bounds a prefill "
        "batch by it; here longer prompts are cut into chunks.",
        "engine.max_batch_tokens",
    ),
    flag(
        "max-batch-total-tokens",
        int,
        BATCHING,
        "Tokens that the KV cache holds; by default what memory allows.",
        "engine.kv_tokens",
    ),
    flag("max-batch-size", int, BATCHING, "Most sequences in a step.", "engine.max_num_seqs"),
    ours(
        "memory-budget",
        str,
        BATCHING,
        "Memory for weights, workspace and KV cache, such as 8G or 512M; by default most of "
        "what is available.",
        "engine.memory_budget",
    ),
    ours("block-size", int, BATCHING, "Tokens per KV block.", "engine.block_size"),
    ours(
        "prefix-cache",
        bool,
        BATCHING,
        "Reuse KV blocks of equal prefixes.",
        "engine.prefix_cache",
        no=True,
    ),
    ours(
        "step-ahead",
        bool,
        BATCHING,
        "Submit the next step before the last one's result.",
        "engine.step_ahead",
        no=True,
    ),
    ours(
        "max-overtake",
        float,
        BATCHING,
        "Seconds that a request which does not fit may be overtaken for.",
        "engine.max_overtake",
        zero=True,
    ),
    ours(
        "max-waiting",
        int,
        BATCHING,
        "Most requests in the engine's queue; one more is answered 429.",
        "engine.max_waiting",
    ),
    ours(
        "max-queue-tokens",
        int,
        BATCHING,
        "Most prompt tokens in the engine's queue; a prompt beyond is answered 429.",
        "engine.max_waiting_tokens",
    ),
    ours(
        "step-timeout",
        float,
        BATCHING,
        "Seconds without a finished step, with work pending, before the engine is restarted.",
        "engine.step_timeout",
    ),
    ours(
        "stall-timeout",
        float,
        BATCHING,
        "Seconds without a finished step, with work pending, before /health/live fails; by default "
        "twice --step-timeout, so that the engine is restarted before the server is.",
        "router.stall_timeout",
        default=None,
    ),
    *SERVER_FLAGS,
    *TGI_FLAGS,
)
