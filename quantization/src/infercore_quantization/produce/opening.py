"""Opens a model folder as the engine does: its settings, its spec and its weights."""

from dataclasses import dataclass, replace

from infercore.formats import quantization_method
from infercore.hub import resolve
from infercore.launch import quiet
from infercore.model_folder import ModelFolder
from infercore.model_spec import ModelSpec
from infercore.models.registry import ModelRegistry
from infercore.plugins import PluginManager
from infercore.quantization import QuantizationMethod
from infercore.worker.loader import CheckpointWeights, open_checkpoint, open_weights


@dataclass(frozen=True, slots=True)
class Opened:
    """A model whose files were found to match its config.json; no weight is read yet."""

    folder: ModelFolder
    spec: ModelSpec
    method: QuantizationMethod
    weights: CheckpointWeights


def open_model(model: str, quantize: str | None = None) -> Opened:
    """Open a folder or a hub id. quantize: as for `serve`; None = what the checkpoint says.

    Raises ConfigError, in one of its kinds.
    """
    plugins = PluginManager()
    folder = ModelFolder.open(resolve(model, None, progress=quiet).path)
    spec = ModelRegistry(plugins.model_families()).build(folder.config)
    spec = replace(spec, quantization=folder.quantization())
    stored = {} if spec.quantization else open_checkpoint(folder.path).shapes()
    method = quantization_method(plugins.quantization_methods(), spec, quantize, stored)
    return Opened(folder, spec, method, open_weights(folder.path, spec, method))
