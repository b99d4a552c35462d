"""Joins plugin, checkpoint, executor and engine: from an operator's choices to an engine that runs.

Every refusal happens here, before the first request: an unknown model, a missing device, an option
that the backend does not have, weights that do not fit.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from infercore.backend import Backend
from infercore.capabilities import Capabilities
from infercore.config import EngineConfig
from infercore.engine.engine import Engine
from infercore.engine.info import EngineInfo
from infercore.engine.kv_budget import require_one_sequence, split_blocks
from infercore.engine.limits import EngineLimits
from infercore.errors import ConfigError, HardwareUnavailable, UnsupportedModel
from infercore.executor import Executor, ExecutorConfig, KVGroups, Memory, Progress
from infercore.hub import resolve
from infercore.model_folder import ModelFolder
from infercore.model_spec import ModelSpec
from infercore.models.registry import ModelRegistry
from infercore.plugins import PluginManager
from infercore.quantization import QuantizationMethod
from infercore.worker.loader import open_weights

WARM_UP_SECONDS = 600.0


@dataclass(slots=True)
class Launched:
    """An engine that is ready, and the facts about it."""

    engine: Engine
    info: EngineInfo
    executor: Executor

    def close(self) -> None:
        """Free the device. Idempotent."""
        self.executor.shutdown()


def quiet(phase: str, done: int, total: int) -> None:
    """A Progress that tells nobody."""
    del phase, done, total


def launch(config: EngineConfig, progress: Progress = quiet) -> Launched:
    """Load the model and start an engine on it. Raises ConfigError, in one of its kinds."""
    plugins = PluginManager()
    model = resolve(config.model, config.revision, progress=progress)
    folder = ModelFolder.open(model.path)
    spec = ModelRegistry(plugins.model_families()).build(folder.config)
    method = quantization_method(plugins.quantization_methods(), spec, config.quantize)
    executor, devices = _executor(plugins, config.backend)
    try:
        return _start(config, folder, spec, method, executor, devices, model.commit, progress)
    except BaseException:
        executor.shutdown()
        raise


def _start(
    config: EngineConfig,
    folder: ModelFolder,
    spec: ModelSpec,
    method: QuantizationMethod,
    executor: Executor,
    devices: tuple[str, ...],
    commit: str,
    progress: Progress,
) -> Launched:
    capabilities = executor.capabilities()
    require_architecture(config.backend, spec, capabilities)
    options = executor_config(config, spec, capabilities)
    weights = open_weights(folder.path, spec, method)
    groups = executor.load(spec, weights, options, progress)
    weights.release()
    memory = executor.memory()
    num_blocks, max_model_len = _plan_kv(config, options, groups, memory)
    executor.allocate_kv(num_blocks)
    executor.warm_up((), time.monotonic() + WARM_UP_SECONDS, progress)
    max_input_len = min(config.max_input_len or max_model_len - 1, max_model_len - 1)
    kv_tokens = min((num_blocks[g.name] - 1) * g.block_size for g in groups)
    info = EngineInfo(
        model_id=config.model,
        model_path=str(folder.path),
        revision=commit,
        architecture=spec.architecture,
        backend=config.backend,
        devices=devices,
        dtype=options.dtype,
        kv_dtype=options.kv_dtype,
        quantization=method.name,
        vocab_size=spec.vocab_size,
        eos_ids=folder.eos_ids,
        num_parameters=spec.num_parameters,
        max_model_len=max_model_len,
        max_input_len=max_input_len,
        max_num_seqs=config.max_num_seqs,
        max_batch_tokens=options.max_batch_tokens,
        block_size=options.block_size,
        kv_blocks=sum(num_blocks.values()),
        kv_tokens=kv_tokens,
        memory_total=memory.total,
        memory_weights=memory.weights,
        memory_workspace=memory.workspace,
        memory_kv=sum(num_blocks[g.name] * g.bytes_per_block for g in groups),
        prompt_logprobs=bool(capabilities.prompt_logprobs),
        late_inputs=bool(capabilities.late_inputs),
        batch_invariant=bool(capabilities.batch_invariant),
    )
    limits = EngineLimits.of(
        replace(config, max_input_len=max_input_len), max_model_len, options.max_batch_tokens
    )
    engine = Engine(
        executor, groups, num_blocks, limits, eos_ids=info.eos_ids, vocab_size=spec.vocab_size
    )
    return Launched(engine, info, executor)


def _executor(plugins: PluginManager, name: str) -> tuple[Executor, tuple[str, ...]]:
    backend = plugins.backend(name)
    probe = backend.probe()
    if not probe.available:
        raise HardwareUnavailable(f"backend {name} cannot run here: {probe.reason}")
    built = backend()
    return (built.executor() if isinstance(built, Backend) else built), probe.devices


def quantization_method(
    methods: Sequence[type[QuantizationMethod]], spec: ModelSpec, wanted: str | None
) -> QuantizationMethod:
    """The method that reads this checkpoint: the one asked for, else the one that detects it.

    Raises UnsupportedModel with the names of the installed ones.
    """
    names = ", ".join(sorted(method.name for method in methods))
    if wanted is not None:
        for method in methods:
            if method.name == wanted:
                return method(spec.quantization)
        raise UnsupportedModel(f"no quantization method {wanted!r} is installed; there are {names}")
    for method in methods:
        if method.detect(spec.quantization):
            return method(spec.quantization)
    stated = spec.quantization.get("quant_method", "unnamed")
    raise UnsupportedModel(
        f"the checkpoint is quantized ({stated!r}), and no installed method reads that; "
        f"there are {names}. Install a plugin for it, or serve an unquantized checkpoint"
    )


def require_architecture(backend: str, spec: ModelSpec, capabilities: Capabilities) -> None:
    """Raises UnsupportedModel if the executor brings its own models, and this is none of them."""
    own = capabilities.architectures
    if own is not None and spec.architecture not in own:
        raise UnsupportedModel(
            f"backend {backend} runs models of its own, and {spec.architecture} is none of them; "
            f"it has {', '.join(sorted(own))}. Serve one of those, or choose another --backend"
        )


def executor_config(
    config: EngineConfig, spec: ModelSpec, capabilities: Capabilities
) -> ExecutorConfig:
    """Resolve what the operator left open. Raises ConfigError for what the backend has not."""
    dtype = config.dtype
    if dtype == "auto":
        dtype = spec.dtype if spec.dtype in capabilities.dtypes else capabilities.dtypes[0]
    dtype = _choice("dtype", dtype, capabilities.dtypes)
    kv_dtype = _choice("kv_dtype", config.kv_dtype, capabilities.kv_dtypes)
    block_size = config.block_size or capabilities.block_sizes[0]
    if block_size not in capabilities.block_sizes:
        legal = ", ".join(map(str, capabilities.block_sizes))
        raise ConfigError(f"block size {block_size} is not one of this backend's: {legal}")
    if config.max_model_len is not None and config.max_model_len > spec.max_position:
        raise ConfigError(
            f"the longest sequence asked for is {config.max_model_len} tokens, and the model was "
            f"made for {spec.max_position}; lower it"
        )
    return ExecutorConfig(
        dtype=dtype,
        kv_dtype=dtype if kv_dtype == "auto" else kv_dtype,
        block_size=block_size,
        max_num_seqs=config.max_num_seqs,
        max_batch_tokens=config.max_batch_tokens or capabilities.batch_tokens,
        max_model_len=config.max_model_len or spec.max_position,
        memory_budget=config.memory_budget,
        threads=config.threads,
    )


def _choice(option: str, value: str, legal: Sequence[str]) -> str:
    if value not in legal:
        raise ConfigError(f"{option} {value!r} is not one of this backend's: {', '.join(legal)}")
    return value


def _plan_kv(
    config: EngineConfig, options: ExecutorConfig, groups: KVGroups, memory: Memory
) -> tuple[dict[str, int], int]:
    """Blocks of each group, and the longest sequence that they hold."""
    if config.num_blocks is not None:
        num_blocks = {group.name: config.num_blocks for group in groups}
    elif config.kv_tokens is not None:
        num_blocks = {g.name: -(-config.kv_tokens // g.block_size) + 1 for g in groups}
    else:
        num_blocks = split_blocks(
            groups,
            memory.free,
            max_model_len=options.max_model_len,
            max_num_seqs=options.max_num_seqs,
            max_batch_tokens=options.max_batch_tokens,
        )
    max_model_len = require_one_sequence(
        groups,
        num_blocks,
        free=memory.free,
        max_model_len=options.max_model_len,
        max_batch_tokens=options.max_batch_tokens,
        explicit=config.max_model_len is not None,
    )
    return num_blocks, max_model_len
