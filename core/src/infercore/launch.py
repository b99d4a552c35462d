"""Joins plugin, checkpoint, executor and engine: from an operator's choices to an engine that runs.

Every refusal happens here, before the first request: an unknown model, a missing device, an option
that the backend does not have, weights that do not fit.
"""

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from infercore.backend import Backend
from infercore.capabilities import Capabilities
from infercore.config import EngineConfig
from infercore.engine.bucket_uses import BucketUses
from infercore.engine.buckets import Buckets, StepShape, first_used, largest_step, plan_buckets
from infercore.engine.engine import Engine
from infercore.engine.info import EngineInfo
from infercore.engine.kv_budget import require_one_sequence, split_blocks
from infercore.engine.limits import EngineLimits
from infercore.errors import ConfigError, HardwareUnavailable, UnsupportedModel
from infercore.executor import Bucket, Executor, ExecutorConfig, KVGroups, Memory, Progress
from infercore.formats import quantization_method
from infercore.hub import resolve
from infercore.model_folder import ModelFolder
from infercore.model_spec import ModelSpec
from infercore.models.registry import ModelRegistry
from infercore.plugins import PluginManager
from infercore.quantization import QuantizationMethod
from infercore.worker.loader import open_checkpoint, open_weights

WARM_UP_SECONDS = 600.0

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Launched:
    """An engine that is ready, and the facts about it."""

    engine: Engine
    info: EngineInfo
    executor: Executor
    buckets: Buckets
    uses: BucketUses

    def close(self) -> None:
        """Free the device, and keep what the next start can use. Idempotent."""
        self.executor.shutdown()
        if self.buckets.uses:
            self.uses.save(self.uses.load() + self.buckets.uses)
            self.buckets.uses.clear()


def quiet(phase: str, done: int, total: int) -> None:
    """A Progress that tells nobody."""
    del phase, done, total


def launch(config: EngineConfig, progress: Progress = quiet) -> Launched:
    """Load the model and start an engine on it. Raises ConfigError, in one of its kinds."""
    plugins = PluginManager()
    source = resolve(config.model, config.revision, progress=progress)
    folder = ModelFolder.open(source.path)
    spec = ModelRegistry(plugins.model_families()).build(folder.config)
    spec = replace(spec, quantization=folder.quantization())
    stored = {} if spec.quantization else open_checkpoint(folder.path).shapes()
    method = quantization_method(plugins.quantization_methods(), spec, config.quantize, stored)
    model = _Model(folder, spec, method, source.commit)
    executor, devices = _executor(plugins, config.backend)
    try:
        return _start(config, model, executor, devices, progress)
    except BaseException:
        executor.shutdown()
        raise


@dataclass(frozen=True, slots=True)
class _Model:
    """What is served. commit: of the hub's repository, "" for a folder."""

    folder: ModelFolder
    spec: ModelSpec
    method: QuantizationMethod
    commit: str


@dataclass(frozen=True, slots=True)
class _Room:
    """What the device's memory holds."""

    memory: Memory
    groups: KVGroups
    num_blocks: dict[str, int]
    max_model_len: int


def _start(
    config: EngineConfig,
    model: _Model,
    executor: Executor,
    devices: tuple[str, ...],
    progress: Progress,
) -> Launched:
    capabilities = executor.capabilities()
    require_architecture(config.backend, model.spec, capabilities)
    options = executor_config(config, model.spec, capabilities)
    weights = open_weights(model.folder.path, model.spec, model.method)
    groups = executor.load(model.spec, weights, options, progress)
    weights.release()
    memory = executor.memory()
    room = _Room(memory, groups, *_plan_kv(config, options, groups, memory))
    executor.allocate_kv(room.num_blocks)
    static, largest = capabilities.static_dimensions, _largest_step(config, capabilities)
    planned = plan_buckets(static, largest, -(-room.max_model_len // options.block_size))
    uses = BucketUses(config.backend, devices, model.folder.config, options, planned)
    buckets = Buckets.of(static, _warm_up(executor, planned, uses, progress))
    longest_input = room.max_model_len - 1
    config = replace(
        config, max_input_len=min(config.max_input_len or longest_input, longest_input)
    )
    engine = Engine(
        executor,
        groups,
        room.num_blocks,
        EngineLimits.of(config, room.max_model_len, largest.scheduled),
        eos_ids=model.folder.eos_ids,
        vocab_size=model.spec.vocab_size,
        buckets=buckets,
    )
    info = _info(config, model, devices, options, capabilities, room, largest.scheduled)
    return Launched(engine, info, executor, buckets, uses)


def _info(
    config: EngineConfig,
    model: _Model,
    devices: tuple[str, ...],
    options: ExecutorConfig,
    capabilities: Capabilities,
    room: _Room,
    max_batch_tokens: int,
) -> EngineInfo:
    memory, groups, num_blocks = room.memory, room.groups, room.num_blocks
    assert config.max_input_len is not None
    return EngineInfo(
        model_id=config.model,
        model_path=str(model.folder.path),
        revision=model.commit,
        architecture=model.spec.architecture,
        backend=config.backend,
        devices=devices,
        dtype=options.dtype,
        kv_dtype=options.kv_dtype,
        quantization=model.method.name,
        vocab_size=model.spec.vocab_size,
        eos_ids=model.folder.eos_ids,
        num_parameters=model.spec.num_parameters,
        max_model_len=room.max_model_len,
        max_input_len=config.max_input_len,
        max_num_seqs=config.max_num_seqs,
        max_batch_tokens=max_batch_tokens,
        block_size=options.block_size,
        kv_blocks=sum(num_blocks.values()),
        kv_tokens=min((num_blocks[g.name] - 1) * g.block_size for g in groups),
        memory_total=memory.total,
        memory_weights=memory.weights,
        memory_workspace=memory.workspace,
        memory_kv=sum(num_blocks[g.name] * g.bytes_per_block for g in groups),
        prompt_logprobs=bool(capabilities.prompt_logprobs),
        late_inputs=bool(capabilities.late_inputs),
        batch_invariant=bool(capabilities.batch_invariant),
        capabilities=json.dumps(capabilities.facts()),
        watermark=bool(capabilities.watermark),
    )


def _warm_up(
    executor: Executor, planned: Sequence[Bucket], uses: BucketUses, progress: Progress
) -> Sequence[Bucket]:
    """Warm those first that earlier runs used most. Returns those that were warm in time."""
    ordered = first_used(planned, uses.load()) if planned else ()
    count = executor.warm_up(ordered, time.monotonic() + WARM_UP_SECONDS, progress)
    if count < len(ordered):
        log.warning(
            "%d of %d step shapes are warm after %.0f s; steps of the others are padded into "
            "larger ones, which costs time and no answer",
            *(count, len(ordered), WARM_UP_SECONDS),
        )
    return ordered[:count]


def _executor(plugins: PluginManager, name: str) -> tuple[Executor, tuple[str, ...]]:
    backend = plugins.backend(name)
    probe = backend.probe()
    if not probe.available:
        raise HardwareUnavailable(f"backend {name} cannot run here: {probe.reason}")
    built = backend()
    return (built.executor() if isinstance(built, Backend) else built), probe.devices


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
    largest = _largest_step(config, capabilities)
    return ExecutorConfig(
        dtype=dtype,
        kv_dtype=dtype if kv_dtype == "auto" else kv_dtype,
        block_size=block_size,
        max_num_seqs=largest.rows,
        max_batch_tokens=largest.tokens,
        max_model_len=config.max_model_len or spec.max_position,
        memory_budget=config.memory_budget,
        threads=config.threads,
        ranks=config.ranks,
        activation_int8=_activation_int8(config.activation_dtype, dtype, capabilities),
    )


def _activation_int8(wanted: str, dtype: str, capabilities: Capabilities) -> bool:
    """Whether inputs of weight-only kinds are rounded: never unless the compute dtype is bf16."""
    _choice("activation_dtype", wanted, ("auto", "int8", "bf16"))
    answer = capabilities.activation_int8
    if wanted == "int8" and dtype != "bfloat16":
        raise ConfigError(
            f"activations are rounded to int8 in bfloat16 compute only, and dtype is {dtype}; "
            "leave activation_dtype out, or choose dtype bfloat16"
        )
    if wanted == "int8" and not answer:
        raise ConfigError(
            f"this backend does not round activations to int8 ({answer.support.value}"
            f"{answer.detail and ': '}{answer.detail}); leave activation_dtype out"
        )
    return wanted != "bf16" and dtype == "bfloat16" and bool(answer)


def _largest_step(config: EngineConfig, capabilities: Capabilities) -> StepShape:
    tokens = config.max_batch_tokens or capabilities.batch_tokens
    return largest_step(capabilities.static_dimensions, config.max_num_seqs, tokens)


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
